//! Messages to a client as bytes: docs/formats.md, "Socket messages". Pure.

use lapis_config::{ClientId, EXTENTS_MAX, PoolId};

use super::{
    CallDefaults, GPUS_MAX, Geometry, GpuExtents, HelloError, LAYOUT_MAJOR, MESSAGE_FDS_MAX, REASON_BYTES_MAX,
    STATUS_BYTES_MAX, ToClient, finish, head, start,
};
use crate::code::{CodeError, Reader, Writer};

const WELCOME: u32 = 65;
const EXTENTS: u32 = 66;
const POOL: u32 = 67;
const REFUSED: u32 = 68;
const STATUS: u32 = 69;
const RECALL: u32 = 70;
const DEVICES: u32 = 71;
const GPU: u32 = 72;

impl ToClient {
    /// Replaces `out` by the message.
    ///
    /// # Panics
    /// If a list is beyond its limit: 256 extents in all, 64 in one `Extents` or `Gpu`, 32 KiB of status.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = start(out);
        let kind = match self {
            Self::Welcome { client, secret, geometry, may_put, resumed, magazine_bytes_max, defaults } => {
                w.u64(*secret);
                w.u64(*magazine_bytes_max);
                for value in [defaults.lookup_us, defaults.get_us, defaults.get_bytes_per_s, defaults.put_us] {
                    w.u64(value);
                }
                w.u32(client.0);
                w.u8((*may_put).into());
                w.u8((*resumed).into());
                w.u8(defaults.verify_always.into());
                w.u8(0);
                w.u64(geometry.table_id);
                w.u64(geometry.instance);
                w.u32(geometry.lines);
                put_extents(&mut w, &geometry.extents_bytes, EXTENTS_MAX);
                WELCOME
            }
            Self::Extents { first, extents_bytes } => {
                w.u32(*first);
                put_extents(&mut w, extents_bytes, MESSAGE_FDS_MAX);
                EXTENTS
            }
            Self::Devices { gpus } => {
                w.count(*gpus as usize, GPUS_MAX);
                DEVICES
            }
            Self::Gpu { gpu, index, last, uuid, extents } => {
                w.u32(gpu.0.into());
                w.u16(*index);
                w.u8((*last).into());
                w.u8(matches!(extents, GpuExtents::Handles(_)).into());
                w.bytes(uuid);
                w.count(extents.len(), MESSAGE_FDS_MAX);
                match extents {
                    GpuExtents::Descriptors(extents) => extents.iter().for_each(|bytes| w.u64(*bytes)),
                    GpuExtents::Handles(extents) => extents.iter().for_each(|(bytes, handle)| {
                        w.u64(*bytes);
                        w.bytes(handle);
                    }),
                }
                GPU
            }
            Self::Pool { token, pool, slot_bytes } => {
                w.u64(*token);
                w.pool(*pool);
                w.u16(0);
                w.u32(*slot_bytes);
                POOL
            }
            Self::Recall { pool } => {
                w.pool(*pool);
                w.u16(0);
                RECALL
            }
            Self::Refused { token, reason } => {
                w.u64(*token);
                w.text(reason, REASON_BYTES_MAX);
                REFUSED
            }
            Self::Status { json, last } => {
                assert!(json.len() <= STATUS_BYTES_MAX, "{} bytes of status in one message", json.len());
                w.u8((*last).into());
                w.u8(0);
                w.text(json, STATUS_BYTES_MAX);
                STATUS
            }
        };
        finish(out, kind);
    }

    /// Parses a datagram. Of another major version only a refusal is understood.
    pub fn decode(message: &[u8]) -> Result<Self, HelloError> {
        let (head, r) = head(message)?;
        if head.major != LAYOUT_MAJOR && head.kind != REFUSED {
            return Err(HelloError::Version { major: head.major, minor: head.minor });
        }
        body(head.kind, r).map_err(|source| HelloError::Body { kind: head.kind, source })
    }
}

fn body(kind: u32, mut r: Reader<'_>) -> Result<ToClient, CodeError> {
    let message = match kind {
        WELCOME => welcome(&mut r)?,
        EXTENTS => ToClient::Extents { first: r.u32("first")?, extents_bytes: extents(&mut r, MESSAGE_FDS_MAX)? },
        POOL => {
            let (token, pool) = (r.u64("token")?, PoolId(r.u16("pool")?));
            r.spare(2)?;
            ToClient::Pool { token, pool, slot_bytes: r.u32("slot_bytes")? }
        }
        DEVICES => ToClient::Devices { gpus: r.count("gpus", GPUS_MAX)? as u32 },
        GPU => gpu(&mut r)?,
        RECALL => {
            let pool = r.pool()?;
            r.spare(2)?;
            ToClient::Recall { pool }
        }
        REFUSED => ToClient::Refused { token: r.u64("token")?, reason: r.text("reason", REASON_BYTES_MAX)? },
        STATUS => {
            let last = r.flag("last")?;
            r.spare(1)?;
            ToClient::Status { json: r.text("json", STATUS_BYTES_MAX)?, last }
        }
        kind => return Err(CodeError::UnknownKind { kind }),
    };
    r.end()?;
    Ok(message)
}

fn welcome(r: &mut Reader<'_>) -> Result<ToClient, CodeError> {
    let (secret, magazine_bytes_max) = (r.u64("secret")?, r.u64("magazine_bytes_max")?);
    let (lookup_us, get_us) = (r.u64("lookup_us")?, r.u64("get_us")?);
    let (get_bytes_per_s, put_us) = (r.u64("get_bytes_per_s")?, r.u64("put_us")?);
    let client = ClientId(r.u32("client")?);
    let (may_put, resumed) = (r.flag("may_put")?, r.flag("resumed")?);
    let verify_always = r.flag("verify_always")?;
    r.spare(1)?;
    let (table_id, instance) = (r.u64("table_id")?, r.u64("instance")?);
    let (lines, extents_bytes) = (r.u32("lines")?, extents(r, EXTENTS_MAX)?);
    let geometry = Geometry { table_id, instance, lines, extents_bytes };
    let defaults = CallDefaults { lookup_us, get_us, get_bytes_per_s, put_us, verify_always };
    Ok(ToClient::Welcome { client, secret, geometry, may_put, resumed, magazine_bytes_max, defaults })
}

fn gpu(r: &mut Reader<'_>) -> Result<ToClient, CodeError> {
    let (gpu, index) = (r.gpu()?, r.u16("index")?);
    let (last, by_handles, uuid) = (r.flag("last")?, r.flag("by handles")?, r.array("uuid")?);
    let count = r.count("extents", MESSAGE_FDS_MAX)?;
    let extents = if by_handles {
        let handle = |_| Ok((r.u64("extents_bytes")?, r.array("handle")?));
        GpuExtents::Handles((0..count).map(handle).collect::<Result<_, CodeError>>()?)
    } else {
        GpuExtents::Descriptors((0..count).map(|_| r.u64("extents_bytes")).collect::<Result<_, _>>()?)
    };
    Ok(ToClient::Gpu { gpu, index, last, uuid, extents })
}

fn put_extents(w: &mut Writer<'_>, extents_bytes: &[u64], max: usize) {
    w.count(extents_bytes.len(), max);
    extents_bytes.iter().for_each(|bytes| w.u64(*bytes));
}

fn extents(r: &mut Reader<'_>, max: usize) -> Result<Vec<u64>, CodeError> {
    let count = r.count("extents", max)?;
    (0..count).map(|_| r.u64("extents_bytes")).collect()
}
