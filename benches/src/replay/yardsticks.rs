//! Caches to hold the core's policies against: classics by the book, and the optimum that knows the future. They work
//! on block numbers alone and keep the core's rule of counting.

mod arc;
mod lists;
mod opt;
mod s3fifo;
#[cfg(test)]
mod tests;
mod write_through;

use super::{cache::Cache, workload::Workload};

pub use write_through::WriteThrough;

/// The yardsticks that have one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Yardstick {
    S3Fifo,
    Arc,
    /// The most that any cache of this capacity can hit.
    Opt,
}

impl Yardstick {
    pub const CHOICES: [(&str, Self); 3] = [("s3fifo", Self::S3Fifo), ("arc", Self::Arc), ("opt", Self::Opt)];

    /// An empty cache of `capacity` blocks for this workload.
    ///
    /// # Panics
    /// If the capacity is 0, or `workload` has 2^32 references or more.
    pub fn cache(self, workload: &Workload, capacity: u64) -> Box<dyn Cache> {
        assert!(capacity > 0, "capacities are checked where they are read");
        match self {
            Self::S3Fifo => Box::new(s3fifo::S3Fifo::new(workload.blocks, capacity)),
            Self::Arc => Box::new(arc::Arc::new(workload.blocks, capacity)),
            Self::Opt => Box::new(opt::Opt::new(workload, capacity)),
        }
    }
}
