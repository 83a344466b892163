//! Messages to the daemon as bytes: docs/formats.md, "Socket messages". Pure.

use lapis_config::{ClientId, Fingerprint, GpuId, PoolKind, PoolShape, SlotId};

use super::{
    HelloError, LABEL_BYTES_MAX, LAYOUT_MAJOR, LAYOUT_MINOR, NAME_BYTES_MAX, Resume, ToDaemon, WRITING_MAX,
    WRITING_ON_GPUS_MAX, finish, head, start,
};
use crate::code::{CodeError, Reader, Writer};

const HELLO: u32 = 1;
const OPEN_POOL: u32 = 2;
const BYE: u32 = 3;
const STATUS: u32 = 4;
const DRAIN: u32 = 5;

impl ToDaemon {
    /// Replaces `out` by the message.
    ///
    /// # Panics
    /// If a label or the list of slots is beyond its limit: the client checks what its caller gave.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = start(out);
        let kind = match self {
            Self::Hello { resume, name, may_put, writes_by_dma, gpus } => {
                w.u8((*may_put).into());
                w.u8((*writes_by_dma).into());
                w.u8(resume.is_some().into());
                w.u8((*gpus).into());
                w.text(name, NAME_BYTES_MAX);
                if let Some(resume) = resume {
                    put_resume(&mut w, resume, *gpus);
                }
                HELLO
            }
            Self::OpenPool { token, shape } => {
                assert!(shape.label.len() <= LABEL_BYTES_MAX, "a label of {} bytes", shape.label.len());
                w.u64(*token);
                w.u64(shape.block_bytes);
                w.bytes(&shape.namespace.0);
                w.u16(shape.pieces);
                w.u16(match shape.kind {
                    PoolKind::Chain => 0,
                    PoolKind::Object => 1,
                });
                w.text(&shape.label, LABEL_BYTES_MAX);
                OPEN_POOL
            }
            Self::Bye => BYE,
            Self::Status => STATUS,
            Self::Drain { within_us } => {
                w.u64(*within_us);
                DRAIN
            }
        };
        finish(out, kind);
    }

    /// Parses a datagram. Another major version, or a newer minor one, is refused by name.
    pub fn decode(message: &[u8]) -> Result<Self, HelloError> {
        let (head, r) = head(message)?;
        let (major, minor) = (head.major, head.minor);
        if major != LAYOUT_MAJOR {
            return Err(HelloError::Version { major, minor });
        }
        if minor > LAYOUT_MINOR {
            return Err(HelloError::Newer { major, minor });
        }
        body(head.kind, r).map_err(|source| HelloError::Body { kind: head.kind, source })
    }
}

fn body(kind: u32, mut r: Reader<'_>) -> Result<ToDaemon, CodeError> {
    let message = match kind {
        HELLO => {
            let (may_put, writes_by_dma) = (r.flag("may_put")?, r.flag("writes_by_dma")?);
            let (resumes, gpus) = (r.flag("resumes")?, r.flag("gpus")?);
            let name = r.text("name", NAME_BYTES_MAX)?;
            let resume = if resumes { Some(resume(&mut r, gpus)?) } else { None };
            ToDaemon::Hello { resume, name, may_put, writes_by_dma, gpus }
        }
        OPEN_POOL => {
            let (token, block_bytes) = (r.u64("token")?, r.u64("block_bytes")?);
            let namespace = Fingerprint(r.key("namespace")?.to_bytes());
            let pieces = r.u16("pieces")?;
            let kind = match r.u16("pool kind")? {
                0 => PoolKind::Chain,
                1 => PoolKind::Object,
                value => return Err(CodeError::Value { field: "pool kind", value: value.into() }),
            };
            let label = r.text("label", LABEL_BYTES_MAX)?;
            ToDaemon::OpenPool { token, shape: PoolShape { namespace, label, kind, block_bytes, pieces } }
        }
        BYE => ToDaemon::Bye,
        STATUS => ToDaemon::Status,
        DRAIN => ToDaemon::Drain { within_us: r.u64("within_us")? },
        kind => return Err(CodeError::UnknownKind { kind }),
    };
    r.end()?;
    Ok(message)
}

fn put_resume(w: &mut Writer<'_>, resume: &Resume, gpus: bool) {
    w.u64(resume.table_id);
    w.u64(resume.secret);
    w.u32(resume.client.0);
    w.count(resume.writing.len(), WRITING_MAX);
    w.slots(&resume.writing);
    assert!(gpus || resume.writing_on_gpus.is_empty(), "a client without GPUs writes none");
    if gpus {
        w.count(resume.writing_on_gpus.len(), WRITING_ON_GPUS_MAX);
        for (gpu, slot) in &resume.writing_on_gpus {
            w.u32(gpu.0.into());
            w.u32(slot.0);
        }
    }
}

fn resume(r: &mut Reader<'_>, gpus: bool) -> Result<Resume, CodeError> {
    let (table_id, secret, client) = (r.u64("table_id")?, r.u64("secret")?, ClientId(r.u32("client")?));
    let count = r.count("writing", WRITING_MAX)?;
    let writing = r.slots(count)?;
    let count = if gpus { r.count("writing on GPUs", WRITING_ON_GPUS_MAX)? } else { 0 };
    let on_gpu = |_| Ok((r.gpu()?, SlotId(r.u32("slot")?)));
    let writing_on_gpus: Vec<(GpuId, SlotId)> = (0..count).map(on_gpu).collect::<Result<_, CodeError>>()?;
    Ok(Resume { table_id, client, secret, writing, writing_on_gpus })
}
