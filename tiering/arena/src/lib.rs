//! Shared memory of the tiers: block table, hazards, extents, copy kernels.
