//! The messages of the Unix socket: one SEQPACKET datagram each. The first 16 bytes of every message (magic, layout
//! major and minor, kind, length) never change, so that the oldest client and the newest daemon can refuse each other
//! by name; nor does the body of `Refused`.

mod to_client;
mod to_daemon;

use lapis_config::{ClientId, GpuId, HAZARDS, PoolId, PoolShape, SlotId};

use crate::code::{CodeError, Reader, Writer, cut};

/// Layout version of the table, the client memfd, the rings and these messages. A differing major is refused; a
/// daemon serves any minor up to its own.
pub const LAYOUT_MAJOR: u16 = 1;
pub const LAYOUT_MINOR: u16 = 2;

/// Largest message of the socket, bytes; a longer one is garbled.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Most descriptors in one message.
pub const MESSAGE_FDS_MAX: usize = 64;
/// Longest name a client gives itself, bytes; cut when sent.
pub const NAME_BYTES_MAX: usize = 256;
/// Longest label of a pool, bytes.
pub const LABEL_BYTES_MAX: usize = 48;
/// Longest reason of a refusal, bytes; cut when sent.
pub const REASON_BYTES_MAX: usize = 1024;
/// Most of a status document in one message, bytes.
pub const STATUS_BYTES_MAX: usize = 32 << 10;
/// Most slots in `Resume::writing`.
pub const WRITING_MAX: usize = HAZARDS;
/// Most slots in `Resume::writing_on_gpus`: what fits beside those.
pub const WRITING_ON_GPUS_MAX: usize = 3072;
/// Most GPUs of a daemon.
pub const GPUS_MAX: usize = lapis_config::GPUS_MAX;

const MAGIC: u32 = u32::from_le_bytes(*b"LPIS");

/// Why a datagram is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    #[error("not a message of lapis: {bytes} bytes without its head")]
    NoHead { bytes: usize },
    #[error("a message of {bytes} bytes says that it has {said}")]
    Length { bytes: usize, said: u32 },
    #[error("a message of {bytes} bytes, the limit is {MESSAGE_BYTES_MAX}")]
    TooLong { bytes: usize },
    #[error("the other side speaks layout {major}.{minor}, this one {LAYOUT_MAJOR}.{LAYOUT_MINOR}")]
    Version { major: u16, minor: u16 },
    #[error("a daemon of layout {LAYOUT_MAJOR}.{LAYOUT_MINOR} does not serve the newer {major}.{minor}")]
    Newer { major: u16, minor: u16 },
    #[error("message of kind {kind}")]
    Body { kind: u32, source: CodeError },
}

/// What every version understands of every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    major: u16,
    minor: u16,
    kind: u32,
}

/// Starts a message in `out`; `finish` sets its length.
fn start(out: &mut Vec<u8>) -> Writer<'_> {
    out.clear();
    let mut w = Writer(out);
    w.u32(MAGIC);
    w.u16(LAYOUT_MAJOR);
    w.u16(LAYOUT_MINOR);
    w.u64(0);
    w
}

fn finish(out: &mut [u8], kind: u32) {
    assert!(out.len() <= MESSAGE_BYTES_MAX, "a message of {} bytes", out.len());
    out[8..12].copy_from_slice(&kind.to_le_bytes());
    let bytes = out.len() as u32;
    out[12..16].copy_from_slice(&bytes.to_le_bytes());
}

/// The head, and what follows it.
fn head(message: &[u8]) -> Result<(Head, Reader<'_>), HelloError> {
    let bytes = message.len();
    if bytes > MESSAGE_BYTES_MAX {
        return Err(HelloError::TooLong { bytes });
    }
    let mut r = Reader::new(message);
    let mut fields = || -> Result<_, CodeError> {
        Ok((r.u32("magic")?, r.u16("major")?, r.u16("minor")?, r.u32("kind")?, r.u32("length")?))
    };
    let (magic, major, minor, kind, said) = fields().map_err(|_| HelloError::NoHead { bytes })?;
    if magic != MAGIC {
        return Err(HelloError::NoHead { bytes });
    }
    if said as usize != bytes {
        return Err(HelloError::Length { bytes, said });
    }
    Ok((Head { major, minor, kind }, r))
}

/// What a returning client still holds from before the hang-up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    pub table_id: u64,
    pub client: ClientId,
    /// Random, given in the former `Welcome`: only the former client knows it.
    pub secret: u64,
    /// Slots that some thread of the client may still be writing; all its other grants are given back.
    pub writing: Vec<SlotId>,
    /// The same on GPUs; none unless the `Hello` asks for GPUs.
    pub writing_on_gpus: Vec<(GpuId, SlotId)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToDaemon {
    /// First message of an engine's connection. `writes_by_dma`: granted slots wait a grace after death. `gpus`: the client
    /// wants to be told of the daemon's memory on GPUs, and writes by DMA.
    Hello {
        resume: Option<Resume>,
        name: String,
        may_put: bool,
        writes_by_dma: bool,
        gpus: bool,
    },
    OpenPool {
        token: u64,
        shape: PoolShape,
    },
    /// The client has unmapped everything and writes nothing any more: what it held is free at once. No answer.
    Bye,
    /// Instead of `Hello`: a person asks. Answered by `Status`.
    Status,
    /// Instead of `Hello`, by root or the daemon's own user: the host is to go away, and other hosts are offered what is in
    /// memory, for so long at most. Answered by `Status` with a report, when that is over.
    Drain {
        within_us: u64,
    },
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

/// What a call gets that names nothing else: the `client.*` options of the daemon's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallDefaults {
    pub lookup_us: u64,
    /// Of a get without its bytes.
    pub get_us: u64,
    /// A get or put may take its bytes over this longer.
    pub get_bytes_per_s: u64,
    /// Of a put without its bytes.
    pub put_us: u64,
    /// Check the sum at every local hit, too.
    pub verify_always: bool,
}

impl Default for CallDefaults {
    fn default() -> Self {
        Self {
            lookup_us: 50_000,
            get_us: 50_000,
            get_bytes_per_s: 500_000_000,
            put_us: 1_000_000,
            verify_always: false,
        }
    }
}

/// Extents of the daemon's memory on a GPU, in the order of its slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuExtents {
    /// Bytes of each; a descriptor each comes with the message.
    Descriptors(Vec<u64>),
    /// Bytes and handle (CUDA IPC) of each.
    Handles(Vec<(u64, [u8; 64])>),
}

impl GpuExtents {
    pub fn len(&self) -> usize {
        match self {
            Self::Descriptors(extents) => extents.len(),
            Self::Handles(extents) => extents.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToClient {
    /// Descriptors, in this order: table (read-only), the client's own memfd, the doorbells to the daemon and to the
    /// client (see [`crate::wire::Doorbells`]), lifeline (write end of a pipe: the daemon sees its hang-up when the last
    /// process that inherited it has ended, also over a daemon restart; not sent to a resumed client, which has it).
    /// Extents follow in `Extents` messages (at most 64 descriptors each).
    Welcome {
        client: ClientId,
        secret: u64,
        geometry: Geometry,
        may_put: bool,
        resumed: bool,
        magazine_bytes_max: u64,
        defaults: CallDefaults,
    },
    /// Descriptors of extents `first..first + n`, read-only unless the client may put. Sent after `Welcome`, and again
    /// when the group gets memory later (`extents_bytes` are those of this message).
    Extents {
        first: u32,
        extents_bytes: Vec<u64>,
    },
    /// After the extents, to a client that asked for GPUs: how many `Gpu` follow, one each at least. With descriptors of the
    /// device table (read-only) and of the client's page of device hazards, unless the group uses no GPUs.
    Devices {
        gpus: u32,
    },
    /// What the daemon has on a GPU, or a part of it: at most 64 extents a message, `last` on the final one of the GPU.
    Gpu {
        /// As the device table calls it.
        gpu: GpuId,
        /// As the daemon's driver counts them.
        index: u16,
        last: bool,
        uuid: [u8; 16],
        extents: GpuExtents,
    },
    Pool {
        token: u64,
        pool: PoolId,
        slot_bytes: u32,
    },
    /// Memory is short: give back the magazine of this pool. By the socket, because an idle client looks at no ring.
    Recall {
        pool: PoolId,
    },
    /// The last message before the daemon closes the connection, or the answer to one `OpenPool` (its token; else 0).
    Refused {
        token: u64,
        reason: String,
    },
    /// A JSON document; long ones come in several messages, `last` on the final one.
    Status {
        json: String,
        last: bool,
    },
}

impl ToClient {
    /// The messages that carry a status document.
    pub fn status(mut json: &str) -> Vec<Self> {
        let mut messages = Vec::with_capacity(json.len() / STATUS_BYTES_MAX + 1);
        loop {
            let part = cut(json, STATUS_BYTES_MAX);
            json = &json[part.len()..];
            messages.push(Self::Status { json: part.to_owned(), last: json.is_empty() });
            if json.is_empty() {
                return messages;
            }
        }
    }
}
