//! Reading and writing of fields, little-endian, without padding of its own. Pure: works on private copies.
//! Invariant: a `Reader` never reads past its bytes and never allocates more than they justify.

use lapis_config::{BATCH_KEYS_MAX, GPUS_MAX, GpuId, Key, PoolId, Refusal, SlotId};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Why bytes are no frame or message. The field's name is that of docs/formats.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    #[error("kind {kind} is not known")]
    UnknownKind { kind: u32 },
    #[error("ends within `{field}`")]
    Short { field: &'static str },
    #[error("{bytes} bytes follow the last field")]
    Long { bytes: usize },
    #[error("`{field}` is {value}")]
    Value { field: &'static str, value: u64 },
    #[error("`{field}` is {value}, the limit is {max}")]
    Limit { field: &'static str, value: u64, max: u64 },
    #[error("`{field}` is not UTF-8")]
    Text { field: &'static str },
}

/// Appends fields to a buffer that is reused from frame to frame.
pub(crate) struct Writer<'a>(pub(crate) &'a mut Vec<u8>);

impl Writer<'_> {
    pub(crate) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }
    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }
    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
    pub(crate) fn pool(&mut self, pool: PoolId) {
        self.u16(pool.0);
    }
    pub(crate) fn keys(&mut self, keys: &[Key]) {
        self.bytes(keys.as_bytes());
    }
    /// A record whose layout in memory is its layout on the wire (all of Lapis is little-endian).
    pub(crate) fn record(&mut self, record: &(impl IntoBytes + Immutable)) {
        self.bytes(record.as_bytes());
    }
    pub(crate) fn slots(&mut self, slots: &[SlotId]) {
        slots.iter().for_each(|slot| self.u32(slot.0));
    }
    /// The length of a list, bounded on this side as on the other.
    ///
    /// # Panics
    /// If the list is longer than `max`: callers split.
    pub(crate) fn count(&mut self, count: usize, max: usize) {
        assert!(count <= max, "a list of {count}, the limit is {max}");
        self.u32(count as u32);
    }
    /// A short text with its length before it, cut to `max` bytes at a character's border.
    pub(crate) fn text(&mut self, text: &str, max: usize) {
        let text = cut(text, max);
        self.u16(text.len() as u16);
        self.bytes(text.as_bytes());
    }
}

/// The longest start of `text` that has at most `max` bytes and ends with a whole character.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.expect("0 is a border")]
}

/// Takes fields from the front of a private copy.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn bytes(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], CodeError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(CodeError::Short { field })?;
        self.rest = rest;
        Ok(taken)
    }
    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], CodeError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(CodeError::Short { field })?;
        self.rest = rest;
        Ok(*taken)
    }
    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, CodeError> {
        Ok(u8::from_le_bytes(self.array(field)?))
    }
    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, CodeError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }
    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, CodeError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }
    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, CodeError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }
    /// A byte that is 0 or 1.
    pub(crate) fn flag(&mut self, field: &'static str) -> Result<bool, CodeError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(CodeError::Value { field, value: value.into() }),
        }
    }
    /// Bytes that later minor versions may give a meaning; not looked at.
    pub(crate) fn spare(&mut self, count: usize) -> Result<(), CodeError> {
        self.bytes(count, "spare").map(drop)
    }
    pub(crate) fn pool(&mut self) -> Result<PoolId, CodeError> {
        Ok(PoolId(self.u16("pool")?))
    }
    /// A GPU's number, as a u32.
    pub(crate) fn gpu(&mut self) -> Result<GpuId, CodeError> {
        let gpu = self.u32("gpu")?;
        let beyond = CodeError::Limit { field: "gpu", value: gpu.into(), max: GPUS_MAX as u64 - 1 };
        u8::try_from(gpu).ok().filter(|gpu| usize::from(*gpu) < GPUS_MAX).map(GpuId).ok_or(beyond)
    }
    pub(crate) fn key(&mut self, field: &'static str) -> Result<Key, CodeError> {
        Ok(Key::from_bytes(self.array(field)?))
    }
    /// A list's length: at most `max`, checked before anything is allocated for it.
    pub(crate) fn count(&mut self, field: &'static str, max: usize) -> Result<usize, CodeError> {
        let count = self.u32(field)? as usize;
        if count > max {
            return Err(CodeError::Limit { field, value: count as u64, max: max as u64 });
        }
        Ok(count)
    }
    pub(crate) fn key_count(&mut self) -> Result<usize, CodeError> {
        self.count("keys", BATCH_KEYS_MAX)
    }
    pub(crate) fn keys(&mut self, count: usize) -> Result<Vec<Key>, CodeError> {
        let bytes = self.bytes(count * size_of::<Key>(), "keys")?;
        let mut keys = vec![Key::default(); count];
        keys.as_mut_bytes().copy_from_slice(bytes);
        Ok(keys)
    }
    pub(crate) fn record<T: FromBytes>(&mut self, field: &'static str) -> Result<T, CodeError> {
        let (record, rest) = T::read_from_prefix(self.rest).map_err(|_| CodeError::Short { field })?;
        self.rest = rest;
        Ok(record)
    }
    pub(crate) fn slots(&mut self, count: usize) -> Result<Vec<SlotId>, CodeError> {
        let (slots, _) = self.bytes(count * 4, "slots")?.as_chunks::<4>();
        Ok(slots.iter().map(|slot| SlotId(u32::from_le_bytes(*slot))).collect())
    }
    pub(crate) fn text(&mut self, field: &'static str, max: usize) -> Result<String, CodeError> {
        let bytes = usize::from(self.u16(field)?);
        if bytes > max {
            return Err(CodeError::Limit { field, value: bytes as u64, max: max as u64 });
        }
        let text = str::from_utf8(self.bytes(bytes, field)?).map_err(|_| CodeError::Text { field })?;
        Ok(text.to_owned())
    }
    /// Nothing may follow the last field.
    pub(crate) fn end(self) -> Result<(), CodeError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(CodeError::Long { bytes }),
        }
    }
}

/// An answer's code: 0 done, 1 exists, else 16 + the refusal's number.
pub(crate) const DONE: u8 = 0;
pub(crate) const EXISTS: u8 = 1;
const REFUSED: u8 = 16;

pub(crate) fn refusal_code(refusal: Refusal) -> u8 {
    REFUSED + refusal as u8
}

pub(crate) fn refusal(code: u8) -> Result<Refusal, CodeError> {
    let refusal = code.checked_sub(REFUSED).and_then(Refusal::from_code);
    refusal.ok_or(CodeError::Value { field: "result", value: code.into() })
}
