//! Completions as bytes: docs/formats.md, "Completion frames". Pure.

use lapis_config::{BATCH_KEYS_MAX, SlotId};

use super::{Completion, PutResult, ReserveResult};
use crate::code::{self, CodeError, DONE, EXISTS, Reader, Writer};

const COMMITTED: u32 = 65;
const GRANTED: u32 = 66;
const RESERVED: u32 = 67;
const GOT: u32 = 68;
const REMOVED: u32 = 69;
const REFUSED: u32 = 70;

impl Completion {
    /// Replaces `out` by the payload and returns the frame's kind.
    ///
    /// # Panics
    /// If a list is longer than 8192.
    pub fn encode(&self, out: &mut Vec<u8>) -> u32 {
        out.clear();
        let mut w = Writer(out);
        match self {
            Self::Committed { token, results } => {
                w.u64(*token);
                w.u32(0);
                w.count(results.len(), BATCH_KEYS_MAX);
                for result in results {
                    w.u8(match result {
                        PutResult::Stored => DONE,
                        PutResult::Exists => EXISTS,
                        PutResult::Refused(reason) => code::refusal_code(*reason),
                    });
                }
                COMMITTED
            }
            Self::Granted { token, pool, slot_bytes, slots } => {
                w.u64(*token);
                w.pool(*pool);
                w.u16(0);
                w.u32(*slot_bytes);
                w.u32(0);
                w.count(slots.len(), BATCH_KEYS_MAX);
                w.slots(slots);
                GRANTED
            }
            Self::Reserved { token, results } => {
                w.u64(*token);
                w.u32(0);
                w.count(results.len(), BATCH_KEYS_MAX);
                for result in results {
                    let (code, slot) = match result {
                        ReserveResult::Slot(slot) => (DONE, slot.0),
                        ReserveResult::Exists => (EXISTS, 0),
                        ReserveResult::Refused(reason) => (code::refusal_code(*reason), 0),
                    };
                    w.u32(code.into());
                    w.u32(slot);
                }
                RESERVED
            }
            Self::Got { token, hit } => {
                w.u64(*token);
                w.u32(*hit);
                w.u32(0);
                GOT
            }
            Self::Removed { token, blocks } => {
                w.u64(*token);
                w.u64(*blocks);
                REMOVED
            }
            Self::Refused { token, reason } => {
                w.u64(*token);
                w.u32(code::refusal_code(*reason).into());
                w.u32(0);
                REFUSED
            }
        }
    }

    /// Parses a private copy of a payload.
    pub fn decode(kind: u32, payload: &[u8]) -> Result<Self, CodeError> {
        let mut r = Reader::new(payload);
        let completion = match kind {
            COMMITTED => {
                let token = r.u64("token")?;
                r.spare(4)?;
                let count = r.count("results", BATCH_KEYS_MAX)?;
                let codes = r.bytes(count, "results")?;
                let results = codes.iter().map(|code| put_result(*code)).collect::<Result<_, _>>()?;
                Self::Committed { token, results }
            }
            GRANTED => {
                let (token, pool) = (r.u64("token")?, r.pool()?);
                r.spare(2)?;
                let slot_bytes = r.u32("slot_bytes")?;
                r.spare(4)?;
                let count = r.count("slots", BATCH_KEYS_MAX)?;
                Self::Granted { token, pool, slot_bytes, slots: r.slots(count)? }
            }
            RESERVED => {
                let token = r.u64("token")?;
                r.spare(4)?;
                let count = r.count("results", BATCH_KEYS_MAX)?;
                let results = (0..count).map(|_| reserve_result(&mut r)).collect::<Result<_, _>>()?;
                Self::Reserved { token, results }
            }
            GOT => {
                let (token, hit) = (r.u64("token")?, r.u32("hit")?);
                r.spare(4)?;
                Self::Got { token, hit }
            }
            REMOVED => Self::Removed { token: r.u64("token")?, blocks: r.u64("blocks")? },
            REFUSED => {
                let (token, code) = (r.u64("token")?, result_code(&mut r)?);
                r.spare(4)?;
                Self::Refused { token, reason: code::refusal(code)? }
            }
            kind => return Err(CodeError::UnknownKind { kind }),
        };
        r.end()?;
        Ok(completion)
    }
}

fn put_result(code: u8) -> Result<PutResult, CodeError> {
    match code {
        DONE => Ok(PutResult::Stored),
        EXISTS => Ok(PutResult::Exists),
        code => code::refusal(code).map(PutResult::Refused),
    }
}

fn reserve_result(r: &mut Reader<'_>) -> Result<ReserveResult, CodeError> {
    let (code, slot) = (result_code(r)?, r.u32("slot")?);
    match code {
        DONE => Ok(ReserveResult::Slot(SlotId(slot))),
        EXISTS => Ok(ReserveResult::Exists),
        code => code::refusal(code).map(ReserveResult::Refused),
    }
}

fn result_code(r: &mut Reader<'_>) -> Result<u8, CodeError> {
    let code = r.u32("result")?;
    u8::try_from(code).map_err(|_| CodeError::Value { field: "result", value: code.into() })
}
