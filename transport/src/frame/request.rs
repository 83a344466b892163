//! Requests as bytes: docs/formats.md, "Request frames". Pure.

use lapis_config::{BATCH_KEYS_MAX, Hint, HitPolicy, Key, PoolId, SlotId, Wait};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{ASKS_MAX, COMMIT_ITEMS_MAX, CommitItem, PEER_NAME_BYTES_MAX, ParentRef, Request};
use crate::code::{CodeError, Reader, Writer};

const COMMIT: u32 = 1;
const REFILL: u32 = 2;
const RESERVE: u32 = 3;
const ABORT: u32 = 4;
const GET: u32 = 5;
const RELEASE: u32 = 6;
const PREFETCH: u32 = 7;
const HINT_KEYS: u32 = 8;
const REMOVE: u32 = 9;
const PURGE: u32 = 10;
const GET_FROM: u32 = 11;
const OFFER: u32 = 12;
const RESERVE_ON_GPU: u32 = 13;
const COMMIT_ON_GPU: u32 = 14;
const ABORT_ON_GPU: u32 = 15;

impl Request {
    /// Replaces `out` by the payload and returns the frame's kind.
    ///
    /// # Panics
    /// If a list is longer than its limit, or the first item of a commit names the one before it.
    pub fn encode(&self, out: &mut Vec<u8>) -> u32 {
        out.clear();
        let mut w = Writer(out);
        match self {
            Self::Commit { token, pool, items } => {
                w.u64(*token);
                put_items(&mut w, *pool, items);
                COMMIT
            }
            Self::Refill { token, pool, slot_bytes, count, deadline_us } => {
                w.u64(*token);
                w.u64(*deadline_us);
                w.pool(*pool);
                w.u16(0);
                w.u32(*slot_bytes);
                w.u32(*count);
                w.u32(0);
                REFILL
            }
            Self::Reserve { token, pool, slot_bytes, parent, deadline_us, keys } => {
                w.u64(*token);
                w.u64(*deadline_us);
                w.record(&Parent::from(parent));
                w.pool(*pool);
                w.u16(0);
                w.u32(*slot_bytes);
                w.u32(0);
                w.count(keys.len(), BATCH_KEYS_MAX);
                w.keys(keys);
                RESERVE
            }
            Self::Abort { slots } => {
                w.u32(0);
                w.count(slots.len(), BATCH_KEYS_MAX);
                w.slots(slots);
                ABORT
            }
            Self::Get { token, asks, wait, deadline_us, keys } => {
                put_get(&mut w, *token, asks, *wait, *deadline_us, keys);
                GET
            }
            Self::GetFrom { token, peer, asks, wait, deadline_us, keys } => {
                put_get(&mut w, *token, asks, *wait, *deadline_us, keys);
                w.text(peer, PEER_NAME_BYTES_MAX);
                GET_FROM
            }
            Self::Offer { token, peer, pool, deadline_us, keys } => {
                w.u64(*token);
                w.u64(*deadline_us);
                put_pool_keys(&mut w, *pool, keys);
                w.text(peer, PEER_NAME_BYTES_MAX);
                OFFER
            }
            Self::Release { token } => {
                w.u64(*token);
                RELEASE
            }
            Self::Prefetch { pool, keys } => {
                put_pool_keys(&mut w, *pool, keys);
                PREFETCH
            }
            Self::HintKeys { pool, hint, keys } => {
                let (code, value) = match *hint {
                    Hint::Ended => (0, 0),
                    Hint::WillReturn => (1, 0),
                    Hint::Pinned { ttl_ms } => (2, ttl_ms),
                    Hint::Priority(priority) => (3, priority.into()),
                };
                w.u32(code);
                w.u32(value);
                put_pool_keys(&mut w, *pool, keys);
                HINT_KEYS
            }
            Self::Remove { token, pool, keys } => {
                w.u64(*token);
                put_pool_keys(&mut w, *pool, keys);
                REMOVE
            }
            Self::Purge { token, pool } => {
                w.u64(*token);
                w.pool(*pool);
                w.u16(0);
                w.u32(0);
                PURGE
            }
            Self::ReserveOnGpu { token, gpu, pool, parent, keys } => {
                w.u64(*token);
                w.u32(gpu.0.into());
                w.u32(0);
                w.record(&Parent::from(parent));
                put_pool_keys(&mut w, *pool, keys);
                RESERVE_ON_GPU
            }
            Self::CommitOnGpu { token, gpu, pool, items } => {
                w.u64(*token);
                w.u32(gpu.0.into());
                w.u32(0);
                put_items(&mut w, *pool, items);
                COMMIT_ON_GPU
            }
            Self::AbortOnGpu { gpu, slots } => {
                w.u32(gpu.0.into());
                w.count(slots.len(), BATCH_KEYS_MAX);
                w.slots(slots);
                ABORT_ON_GPU
            }
        }
    }

    /// Parses a private copy of a payload.
    pub fn decode(kind: u32, payload: &[u8]) -> Result<Self, CodeError> {
        let mut r = Reader::new(payload);
        let request = match kind {
            COMMIT => {
                let token = r.u64("token")?;
                let (pool, items) = items(&mut r)?;
                Self::Commit { token, pool, items }
            }
            REFILL => {
                let (token, deadline_us, pool) = (r.u64("token")?, r.u64("deadline_us")?, r.pool()?);
                r.spare(2)?;
                let (slot_bytes, count) = (r.u32("slot_bytes")?, r.u32("count")?);
                r.spare(4)?;
                Self::Refill { token, pool, slot_bytes, count, deadline_us }
            }
            RESERVE => {
                let (token, deadline_us, parent, pool) =
                    (r.u64("token")?, r.u64("deadline_us")?, r.record::<Parent>("parent")?.try_into()?, r.pool()?);
                r.spare(2)?;
                let slot_bytes = r.u32("slot_bytes")?;
                r.spare(4)?;
                let count = r.key_count()?;
                Self::Reserve { token, pool, slot_bytes, parent, deadline_us, keys: r.keys(count)? }
            }
            ABORT => {
                r.spare(4)?;
                let count = r.count("slots", BATCH_KEYS_MAX)?;
                Self::Abort { slots: r.slots(count)? }
            }
            GET => {
                let Get { token, asks, wait, deadline_us, keys } = get(&mut r)?;
                Self::Get { token, asks, wait, deadline_us, keys }
            }
            GET_FROM => {
                let Get { token, asks, wait, deadline_us, keys } = get(&mut r)?;
                Self::GetFrom { token, peer: r.text("peer", PEER_NAME_BYTES_MAX)?, asks, wait, deadline_us, keys }
            }
            OFFER => {
                let (token, deadline_us) = (r.u64("token")?, r.u64("deadline_us")?);
                let (pool, keys) = pool_keys(&mut r)?;
                Self::Offer { token, peer: r.text("peer", PEER_NAME_BYTES_MAX)?, pool, deadline_us, keys }
            }
            RELEASE => Self::Release { token: r.u64("token")? },
            PREFETCH => {
                let (pool, keys) = pool_keys(&mut r)?;
                Self::Prefetch { pool, keys }
            }
            HINT_KEYS => {
                let hint = hint(&mut r)?;
                let (pool, keys) = pool_keys(&mut r)?;
                Self::HintKeys { pool, hint, keys }
            }
            REMOVE => {
                let token = r.u64("token")?;
                let (pool, keys) = pool_keys(&mut r)?;
                Self::Remove { token, pool, keys }
            }
            PURGE => {
                let (token, pool) = (r.u64("token")?, r.pool()?);
                r.spare(6)?;
                Self::Purge { token, pool }
            }
            RESERVE_ON_GPU => {
                let (token, gpu) = (r.u64("token")?, r.gpu()?);
                r.spare(4)?;
                let parent = r.record::<Parent>("parent")?.try_into()?;
                let (pool, keys) = pool_keys(&mut r)?;
                Self::ReserveOnGpu { token, gpu, pool, parent, keys }
            }
            COMMIT_ON_GPU => {
                let (token, gpu) = (r.u64("token")?, r.gpu()?);
                r.spare(4)?;
                let (pool, items) = items(&mut r)?;
                Self::CommitOnGpu { token, gpu, pool, items }
            }
            ABORT_ON_GPU => {
                let gpu = r.gpu()?;
                let count = r.count("slots", BATCH_KEYS_MAX)?;
                Self::AbortOnGpu { gpu, slots: r.slots(count)? }
            }
            kind => return Err(CodeError::UnknownKind { kind }),
        };
        r.end()?;
        Ok(request)
    }
}

/// The pool and the items of a commit.
fn put_items(w: &mut Writer<'_>, pool: PoolId, items: &[CommitItem]) {
    assert!(
        items.first().is_none_or(|item| item.parent != ParentRef::Previous),
        "the first item of a commit has none before it"
    );
    w.pool(pool);
    w.u16(0);
    w.count(items.len(), COMMIT_ITEMS_MAX);
    items.iter().for_each(|item| w.record(&Item::from(item)));
}

fn items(r: &mut Reader<'_>) -> Result<(PoolId, Vec<CommitItem>), CodeError> {
    let pool = r.pool()?;
    r.spare(2)?;
    let count = r.count("items", COMMIT_ITEMS_MAX)?;
    let items: Vec<CommitItem> = (0..count).map(|_| r.record::<Item>("items")?.try_into()).collect::<Result<_, _>>()?;
    if items.first().is_some_and(|item| item.parent == ParentRef::Previous) {
        return Err(CodeError::Value { field: "parent of the first item", value: PARENT_PREVIOUS.into() });
    }
    Ok((pool, items))
}

fn put_get(w: &mut Writer<'_>, token: u64, asks: &[(PoolId, HitPolicy)], wait: Wait, deadline_us: u64, keys: &[Key]) {
    w.u64(token);
    w.u64(deadline_us);
    w.u32(match wait {
        Wait::Present => 0,
        Wait::Filling => 1,
        Wait::Absent => 2,
    });
    w.u32(0);
    w.count(asks.len(), ASKS_MAX);
    w.count(keys.len(), BATCH_KEYS_MAX);
    asks.iter().for_each(|(pool, policy)| put_ask(w, *pool, *policy));
    w.keys(keys);
}

/// What a `Get` has, and the beginning of a `GetFrom`.
struct Get {
    token: u64,
    asks: Vec<(PoolId, HitPolicy)>,
    wait: Wait,
    deadline_us: u64,
    keys: Vec<Key>,
}

fn get(r: &mut Reader<'_>) -> Result<Get, CodeError> {
    let (token, deadline_us) = (r.u64("token")?, r.u64("deadline_us")?);
    let wait = match r.u32("wait")? {
        0 => Wait::Present,
        1 => Wait::Filling,
        2 => Wait::Absent,
        value => return Err(CodeError::Value { field: "wait", value: value.into() }),
    };
    r.spare(4)?;
    let (asks, keys) = (r.count("asks", ASKS_MAX)?, r.key_count()?);
    let asks = (0..asks).map(|_| ask(r)).collect::<Result<_, _>>()?;
    Ok(Get { token, asks, wait, deadline_us, keys: r.keys(keys)? })
}

fn put_ask(w: &mut Writer<'_>, pool: PoolId, policy: HitPolicy) {
    let (code, n) = match policy {
        HitPolicy::Prefix => (0, 0),
        HitPolicy::Trailing(n) => (1, n),
        HitPolicy::Any => (2, 0),
    };
    w.pool(pool);
    w.u16(code);
    w.u32(n);
}

fn ask(r: &mut Reader<'_>) -> Result<(PoolId, HitPolicy), CodeError> {
    let (pool, code, n) = (r.pool()?, r.u16("policy")?, r.u32("trailing")?);
    let policy = match code {
        0 => HitPolicy::Prefix,
        1 => HitPolicy::Trailing(n),
        2 => HitPolicy::Any,
        value => return Err(CodeError::Value { field: "policy", value: value.into() }),
    };
    Ok((pool, policy))
}

const PARENT_NONE: u32 = 0;
const PARENT_PREVIOUS: u32 = 1;
const PARENT_KEY: u32 = 2;

/// An item of a commit as it lies in the frame.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Item {
    slot: u32,
    bytes: u32,
    sum: u64,
    key: Key,
    parent: Parent,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Parent {
    code: u32,
    spare: u32,
    key: Key,
}

const _: () = assert!(size_of::<Item>() == 88 && size_of::<Parent>() == 40, "layout of frames");

impl From<&CommitItem> for Item {
    fn from(item: &CommitItem) -> Self {
        let parent = Parent::from(&item.parent);
        Self { slot: item.slot.0, bytes: item.bytes, sum: item.sum, key: item.key, parent }
    }
}

impl TryFrom<Item> for CommitItem {
    type Error = CodeError;
    fn try_from(item: Item) -> Result<Self, CodeError> {
        let Item { slot, bytes, sum, key, parent } = item;
        Ok(Self { slot: SlotId(slot), key, parent: parent.try_into()?, bytes, sum })
    }
}

impl From<&ParentRef> for Parent {
    fn from(parent: &ParentRef) -> Self {
        let (code, key) = match parent {
            ParentRef::None => (PARENT_NONE, Key::default()),
            ParentRef::Previous => (PARENT_PREVIOUS, Key::default()),
            ParentRef::Key(key) => (PARENT_KEY, *key),
        };
        Self { code, spare: 0, key }
    }
}

impl TryFrom<Parent> for ParentRef {
    type Error = CodeError;
    fn try_from(parent: Parent) -> Result<Self, CodeError> {
        match parent.code {
            PARENT_NONE => Ok(Self::None),
            PARENT_PREVIOUS => Ok(Self::Previous),
            PARENT_KEY => Ok(Self::Key(parent.key)),
            value => Err(CodeError::Value { field: "parent", value: value.into() }),
        }
    }
}

fn hint(r: &mut Reader<'_>) -> Result<Hint, CodeError> {
    let (code, value) = (r.u32("hint")?, r.u32("hint value")?);
    match code {
        0 => Ok(Hint::Ended),
        1 => Ok(Hint::WillReturn),
        2 => Ok(Hint::Pinned { ttl_ms: value }),
        3 => {
            let priority = u8::try_from(value);
            let beyond = CodeError::Limit { field: "hint value", value: value.into(), max: u8::MAX.into() };
            priority.map(Hint::Priority).map_err(|_| beyond)
        }
        value => Err(CodeError::Value { field: "hint", value: value.into() }),
    }
}

fn put_pool_keys(w: &mut Writer<'_>, pool: PoolId, keys: &[Key]) {
    w.pool(pool);
    w.u16(0);
    w.count(keys.len(), BATCH_KEYS_MAX);
    w.keys(keys);
}

fn pool_keys(r: &mut Reader<'_>) -> Result<(PoolId, Vec<Key>), CodeError> {
    let pool = r.pool()?;
    r.spare(2)?;
    let count = r.key_count()?;
    Ok((pool, r.keys(count)?))
}
