//! What a client does that wants harm, or whose process is broken: it scribbles over all that it shares with the daemon
//! and sends frames and messages that make no sense. It may hurt itself; nobody else may notice.

use fastrand::Rng;
use lapis_config::{Hint, HitPolicy, Key, PoolId, SlotId, Wait};
use lapis_transport::{
    control,
    frame::{CommitItem, ParentRef, Request},
    hello::{Resume, ToDaemon},
};

use super::{
    client::{Client, Context},
    plan::{self, Plan},
};

/// One nasty thing, now and then.
pub fn act(client: &mut Client, cx: &mut Context<'_>) {
    if cx.ending || !cx.percent(30) {
        return;
    }
    match cx.rng.u32(..100) {
        0..4 => scribble(client, cx, 0..control::BYTES as usize),
        4..6 => scribble(client, cx, 0..control::HAZARDS_OFFSET),
        6..30 => name_slots(client, cx),
        30..96 => {
            let request = request(cx.rng);
            cx.note(format_args!("sends {:?}", Kind(&request)));
            if let Some(session) = &client.session {
                session.post(request);
            }
        }
        _ => speak(client, cx),
    }
}

fn scribble(client: &Client, cx: &mut Context<'_>, range: std::ops::Range<usize>) {
    let Some(control) = &client.control else { return };
    cx.note(format_args!("scribbles"));
    for _ in 0..cx.rng.u32(1..64) {
        let offset = cx.rng.usize(range.clone()) & !7;
        let word = match cx.rng.u32(..3) {
            0 => u64::MAX,
            1 => cx.rng.u64(..1 << 20),
            _ => cx.rng.u64(..),
        };
        control.store64(offset, word, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Claims to read slots that it never looked up.
fn name_slots(client: &Client, cx: &mut Context<'_>) {
    let Some(control) = &client.control else { return };
    for _ in 0..cx.rng.u32(1..8) {
        let entry = cx.rng.usize(..lapis_config::HAZARDS);
        let named = if cx.rng.bool() { 0 } else { slot(cx.rng).0.wrapping_add(1) };
        control.store32(control::HAZARDS_OFFSET + 4 * entry, named, std::sync::atomic::Ordering::Relaxed);
    }
}

fn slot(rng: &mut Rng) -> SlotId {
    SlotId(if rng.u32(..10) == 0 { rng.u32(..) } else { rng.u32(..2048) / 4 * 4 })
}

fn keys(rng: &mut Rng) -> Vec<Key> {
    let count = if rng.u32(..50) == 0 { 8192 } else { rng.usize(1..32) };
    (0..count).map(|_| if rng.bool() { plan::evil_key(rng) } else { plan::key(rng.u64(..40), rng.u64(..12)) }).collect()
}

fn parent(rng: &mut Rng) -> ParentRef {
    match rng.u32(..3) {
        0 => ParentRef::None,
        1 => ParentRef::Previous,
        _ => ParentRef::Key(if rng.bool() { plan::evil_key(rng) } else { plan::key(rng.u64(..40), rng.u64(..12)) }),
    }
}

fn request(rng: &mut Rng) -> Request {
    let pool = PoolId(if rng.u32(..10) == 0 { rng.u16(..) } else { rng.u16(..3) });
    let token = if rng.bool() { rng.u64(..8) } else { rng.u64(..) };
    let deadline_us = [0, 1, 10_000, 1_000_000, u64::MAX][rng.usize(..5)];
    let slot_bytes = [0, 1, 4096, 16 << 10, 20 << 10, 40 << 10, u32::MAX][rng.usize(..7)];
    match rng.u32(..13) {
        0 | 1 => {
            let item = |rng: &mut Rng| CommitItem {
                slot: slot(rng),
                key: plan::evil_key(rng),
                parent: parent(rng),
                bytes: [0, 1, 4096, 16 << 10, u32::MAX][rng.usize(..5)],
                sum: rng.u64(..),
            };
            let mut items: Vec<CommitItem> = (0..rng.usize(..8)).map(|_| item(rng)).collect();
            // The library itself refuses to write a first item without a parent.
            if let Some(first) = items.first_mut().filter(|first| first.parent == ParentRef::Previous) {
                first.parent = ParentRef::None;
            }
            Request::Commit { token, pool, items }
        }
        2 | 3 => Request::Refill { token, pool, slot_bytes, count: [0, 1, 8, u32::MAX][rng.usize(..4)], deadline_us },
        4 => Request::Reserve { token, pool, slot_bytes, parent: parent(rng), deadline_us, keys: keys(rng) },
        5 => Request::Abort { slots: (0..rng.usize(..64)).map(|_| slot(rng)).collect() },
        6 | 7 => {
            let policy =
                |rng: &mut Rng| [HitPolicy::Prefix, HitPolicy::Any, HitPolicy::Trailing(rng.u32(..))][rng.usize(..3)];
            let asks = (0..rng.usize(..4)).map(|_| (PoolId(rng.u16(..4)), policy(rng))).collect();
            let wait = [Wait::Present, Wait::Filling, Wait::Absent][rng.usize(..3)];
            Request::Get { token, asks, wait, deadline_us, keys: keys(rng) }
        }
        8 => Request::Release { token },
        9 => Request::Prefetch { pool, keys: keys(rng) },
        10 => {
            let hint = [Hint::Ended, Hint::WillReturn, Hint::Pinned { ttl_ms: u32::MAX }, Hint::Priority(255)];
            Request::HintKeys { pool, hint: hint[rng.usize(..4)], keys: keys(rng) }
        }
        11 => Request::Remove { token, pool, keys: keys(rng) },
        _ if rng.u32(..10) == 0 => Request::Purge { token, pool },
        _ => Request::Release { token: u64::MAX },
    }
}

/// Only the kind: lists of thousands of keys are no news.
struct Kind<'a>(&'a Request);

impl std::fmt::Debug for Kind<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:?}", self.0);
        f.write_str(&text[..text.len().min(120)])
    }
}

fn speak(client: &Client, cx: &mut Context<'_>) {
    let Some(conn) = client.conn() else { return };
    let mut shape = Plan::shapes()[cx.rng.usize(..3)].clone();
    match cx.rng.u32(..8) {
        0 => return cx.net.send_bytes(conn, &[cx.rng.u8(..); 40]),
        1 => return cx.net.send(conn, &ToDaemon::Status),
        2 => {
            let client = client.session.as_ref().map(|session| session.client()).unwrap_or_default();
            let resume = Resume {
                table_id: cx.rng.u64(..),
                client,
                secret: cx.rng.u64(..),
                writing: vec![slot(cx.rng)],
                writing_on_gpus: Vec::new(),
            };
            let hello = ToDaemon::Hello {
                resume: Some(resume),
                name: "somebody else".into(),
                may_put: true,
                writes_by_dma: false,
                gpus: false,
            };
            return cx.net.send(conn, &hello);
        }
        3 => shape.block_bytes = [0, u64::MAX, 1 << 40, 3 << 20, 256 << 20][cx.rng.usize(..5)],
        4 => shape.pieces = [0, 3, 257, u16::MAX][cx.rng.usize(..4)],
        5 => shape.label = format!("another {}", cx.rng.u32(..4)),
        _ => {}
    }
    cx.net.send(conn, &ToDaemon::OpenPool { token: cx.rng.u64(..), shape });
}
