//! The client of Lapis for engines on the same host: KV-cache blocks by key, out of memory that the daemon shares.
//!
//! ```no_run
//! use lapis_client::{Client, ConnectOptions, GetOptions, Key, Namespace, PoolKind, PoolShape, PutOptions};
//!
//! # fn main() -> Result<(), lapis_client::ClientError> {
//! let client = Client::connect("/run/lapis/lapis.sock", ConnectOptions::default())?;
//! let namespace = Namespace::new("llama-3-8b").revision("a1b2c3").dtype("bf16").tokens_per_block(16).fingerprint();
//! let shape = PoolShape { namespace, label: "rank0".into(), kind: PoolKind::Chain, block_bytes: 1 << 20, pieces: 1 };
//! let pool = client.pool(&shape)?;
//!
//! let keys = [Key::new(b"first"), Key::new(b"second")];
//! let mut blocks = vec![7u8; 2 << 20];
//! client.put_from(&pool, &keys, None, &blocks, &PutOptions::default())?;
//! let got = client.get_into(&pool, &keys, &mut blocks, &GetOptions::default())?;
//! for view in client.view(&pool, &keys)?.iter().flatten() {
//!     println!("{} bytes at {:?}", view.len(), view.as_ptr());
//! }
//! # let _ = got;
//! # Ok(())
//! # }
//! ```
//! `examples/hello.rs` is the same, to be run.
//!
//! # What needs whom
//! The daemon publishes where every block lies in a table that each client maps read-only. So [`Client::exists`],
//! [`Client::match_prefix`], [`Client::get_into`] and [`Client::view`] of blocks in memory run in the caller's thread
//! alone: no system call, no lock, nobody woken. They go on while the daemon is dead or starting again.
//! Everything else goes through a ring to the daemon and back: puts, waiting gets, blocks that are not in memory.
//!
//! # What can be relied on
//! - Bytes under a key are the bytes that were put under it, or it is a miss. A copy is checked against the line after
//!   it was made; a block that nobody has verified since the daemon started is checked against its sum.
//! - No call outlives its deadline by more than a copy. A dead daemon is a miss, or a put [`Refusal::Gone`]; errors tell
//!   of mistakes in the call. The client reconnects by itself; pools stay open, cold starts included.
//! - A refused put is a value and no error. [`Refusal::Cold`] is an ordinary one: on a host without an SSD tier a
//!   [`Client::reserve`] or a [`Client::put_object`] worth less than all that could make room for it gets none. Go on without
//!   storing; asking again at once gets the same answer. [`Client::put_from`] never hears it, nor does anybody while
//!   memory is free.
//! - A [`View`] keeps its block where it is. Release it soon: over the daemon's limit of pinned bytes, and when others
//!   need them, the client is warned, then given up; [`View::still_valid`] tells.
//! - In a forked child every call answers [`ClientError::Closed`]: connect anew there.
//!
//! # Two layers
//! [`Session`] is the protocol without sockets, threads and clock; a simulation drives it as it is. [`Client`] adds
//! those: deadlines, waiting, and a thread that watches the connection.

mod client;
mod error;
mod fork;
mod keys;
mod namespace;
mod pool;
mod present;
pub mod session;
mod stats;
mod sums;
mod vectors;

pub use client::{Client, ConnectOptions, GetTicket, NewObject, PutTicket, drain, status};
#[cfg(feature = "cuda")]
pub use client::{DeviceGot, DeviceLoad, DeviceObjects};
pub use error::ClientError;
pub use fork::Birthplace;
pub use keys::{KEY_BYTES, Keys};
pub use lapis_config::{Fingerprint, Hint, HitPolicy, Key, PoolKind, PoolShape, Refusal, Wait};
pub use lapis_transport::frame::{PutResult, ReserveResult};
pub use namespace::Namespace;
pub use pool::{Pool, Pools};
pub use present::Present;
#[cfg(feature = "cuda")]
pub use session::device::{
    DeviceFlag, DeviceObject, DeviceObjectStatus, DevicePiece, DevicePtr, DeviceRange, DeviceStream, GpuOpened,
    load_cuda,
};
pub use session::{
    BlockStatus, GetOptions, Got, ObjectDst, ObjectInfo, ObjectStatus, Put, PutOptions, Reservation, Session, Verify,
    View, Views,
};
pub use stats::Stats;
pub use vectors::{Dst, Src};
