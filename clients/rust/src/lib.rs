//! The client of Lapis for engines on the same host.

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

pub use client::{Client, ConnectOptions, GetTicket, PutTicket, status};
pub use error::ClientError;
pub use keys::{KEY_BYTES, Keys};
pub use lapis_config::{Fingerprint, Hint, HitPolicy, Key, PoolKind, PoolShape, Refusal, Wait};
pub use lapis_transport::frame::{PutResult, ReserveResult};
pub use namespace::Namespace;
pub use pool::{Pool, Pools};
pub use present::Present;
pub use session::{BlockStatus, GetOptions, Got, Put, PutOptions, Reservation, Session, Verify, View, Views};
pub use stats::Stats;
pub use vectors::{Dst, Src};
