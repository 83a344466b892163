//! Shared memory of the tiers: memfds, mappings, the block table, the device table, hazard pages, sums, copy kernels, extents, and
//! memory of GPUs.
//!
//! Invariant: no `&T` or `&[u8]` is ever formed over bytes that another process may write; words are atomics, payloads
//! move by `asm!`. The one exception is [`map::Private`], which holds a lock on its memory.
//! Invariant: nothing here decides. The table says where a block lies; who is evicted is the core's business.

#[cfg(not(all(target_pointer_width = "64", target_endian = "little")))]
compile_error!("the layouts of shared memory are 64-bit little-endian");

pub mod copy;
pub mod device;
pub mod error;
pub mod extent;
mod fused;
pub mod hazard;
pub mod hbm;
pub mod map;
pub mod memfd;
pub mod stored;
pub mod sum;
pub mod table;
pub mod words;

pub use device::{DeviceHazards, DeviceSlot, DeviceTable, DeviceWriter, OnDevice};
pub use error::ArenaError;
pub use extent::Extents;
pub use hazard::Hazards;
pub use map::{Access, Mapping, PagesAhead, Private, prefetch};
pub use stored::StoredBlock;
pub use sum::Sum;
pub use table::{Adoption, Found, LineState, LiveLine, Table, TableWriter};
pub use words::{MappedHalves, MappedWords, Words};
