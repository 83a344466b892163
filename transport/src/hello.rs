//! The messages of the Unix socket: one SEQPACKET datagram each. The first 16 bytes of every message (magic, layout
//! major and minor, kind, length) never change, so that the oldest client and the newest daemon can refuse each other
//! by name.

use lapis_config::{ClientId, PoolId, PoolShape, SlotId};

/// Layout version of the table, the client memfd, the rings and these messages. A differing major is refused; a
/// daemon serves any minor up to its own.
pub const LAYOUT_MAJOR: u16 = 1;
pub const LAYOUT_MINOR: u16 = 0;

/// What a returning client still holds from before the hang-up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    pub table_id: u64,
    pub client: ClientId,
    /// Random, given in the former `Welcome`: only the former client knows it.
    pub secret: u64,
    /// Slots that some thread of the client may still be writing; all its other grants are given back.
    pub writing: Vec<SlotId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToDaemon {
    /// First message of an engine's connection. `writes_by_dma`: granted slots wait a grace after death.
    Hello { resume: Option<Resume>, name: String, may_put: bool, writes_by_dma: bool },
    OpenPool { token: u64, shape: PoolShape },
    /// The client has unmapped everything and writes nothing any more: what it held is free at once. No answer.
    Bye,
    /// Instead of `Hello`: a person asks. Answered by `Status`.
    Status,
}

/// Geometry that a client needs to map and to check what it maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Geometry {
    pub table_id: u64,
    /// New at every start of the daemon.
    pub instance: u64,
    pub lines: u32,
    /// Bytes of each extent, in order; their descriptors follow in the same order.
    pub extents_bytes: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToClient {
    /// Descriptors, in this order: table (read-only), the client's own memfd, eventfd to wake the daemon, eventfd on
    /// which the daemon wakes the client, lifeline (write end of a pipe: the daemon sees its hang-up when the last
    /// process that inherited it has ended, also over a daemon restart). Extents follow in `Extents` messages (at most 64 descriptors each).
    Welcome { client: ClientId, secret: u64, geometry: Geometry, may_put: bool, resumed: bool, magazine_bytes_max: u64 },
    /// Descriptors of extents `first..first + n`, read-only unless the client may put. Sent after `Welcome`, and again
    /// when the group gets memory later (`extents_bytes` are those of this message).
    Extents { first: u32, extents_bytes: Vec<u64> },
    Pool { token: u64, pool: PoolId, slot_bytes: u32 },
    /// The last message before the daemon closes the connection, or the answer to one `OpenPool` (its token; else 0).
    Refused { token: u64, reason: String },
    /// A JSON document; long ones come in several messages, `last` on the final one.
    Status { json: String, last: bool },
}
