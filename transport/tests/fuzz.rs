//! The fuzz targets over seeded bytes: honest frames and messages with a few bytes changed, and noise.

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use lapis_config::{Fingerprint, Hint, HitPolicy, Key, PoolId, PoolKind, PoolShape, SlotId, Wait};
use lapis_transport::{
    frame::{CommitItem, Completion, ParentRef, PutResult, Request, ReserveResult},
    hello::{Geometry, Resume, ToClient, ToDaemon},
};

const SEED: u64 = 0x1a_9150;
const ROUNDS: usize = 40_000;

/// Changes, cuts or lengthens.
fn damaged(random: &mut fastrand::Rng, whole: &[u8]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..random.usize(..4) {
        let Some(at) = bytes.len().checked_sub(1).map(|last| random.usize(..=last)) else { break };
        match random.u8(..4) {
            0 => bytes[at] = random.u8(..),
            1 => bytes[at] ^= 1 << random.u8(..8),
            2 => bytes.truncate(at),
            _ => bytes.push(random.u8(..)),
        }
    }
    bytes
}

fn noise(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = vec![0; random.usize(..400)];
    random.fill(&mut bytes);
    bytes
}

fn run(honest: &[Vec<u8>], target: fn(&[u8])) {
    let mut random = fastrand::Rng::with_seed(SEED);
    honest.iter().for_each(|bytes| target(bytes));
    for _ in 0..ROUNDS {
        match random.choice(honest).filter(|_| random.u8(..) < 200) {
            Some(whole) => target(&damaged(&mut random, whole)),
            None => target(&noise(&mut random)),
        }
    }
}

fn frames() -> Vec<Vec<u8>> {
    let (token, pool, deadline_us) = (9, PoolId(3), 50_000);
    let keys = || vec![Key::new(b"first"), Key::new(b"second")];
    let slots = || vec![SlotId(16), SlotId(32)];
    let item = |parent| CommitItem { slot: SlotId(16), key: Key::new(b"k"), parent, bytes: 65536, sum: 5 };
    let items = [ParentRef::None, ParentRef::Previous, ParentRef::Key(Key::new(b"p"))].map(item).to_vec();
    let requests = [
        Request::Commit { token, pool, items },
        Request::Refill { token, pool, slot_bytes: 65536, count: 8, deadline_us },
        Request::Reserve { token, pool, slot_bytes: 4096, parent: ParentRef::None, deadline_us, keys: keys() },
        Request::Abort { slots: slots() },
        Request::Get {
            token,
            asks: vec![(pool, HitPolicy::Prefix), (pool, HitPolicy::Trailing(4))],
            wait: Wait::Filling,
            deadline_us,
            keys: keys(),
        },
        Request::Release { token },
        Request::Prefetch { pool, keys: keys() },
        Request::HintKeys { pool, hint: Hint::Priority(3), keys: keys() },
        Request::Remove { token, pool, keys: keys() },
        Request::Purge { token, pool },
    ];
    let completions = [
        Completion::Committed { token, results: vec![PutResult::Stored, PutResult::Exists] },
        Completion::Granted { token, pool, slot_bytes: 65536, slots: slots() },
        Completion::Reserved { token, results: vec![ReserveResult::Slot(SlotId(7)), ReserveResult::Exists] },
        Completion::Got { token, hit: 2 },
        Completion::Removed { token, blocks: 2 },
        Completion::Refused { token, reason: lapis_config::Refusal::AllPinned },
    ];
    let mut payload = Vec::new();
    let framed = |kind: u32, payload: &[u8]| [&kind.to_le_bytes(), payload].concat();
    let mut frames = Vec::new();
    for request in &requests {
        let kind = request.encode(&mut payload);
        frames.push(framed(kind, &payload));
    }
    for completion in &completions {
        let kind = completion.encode(&mut payload);
        frames.push(framed(kind, &payload));
    }
    frames
}

fn messages() -> Vec<Vec<u8>> {
    let resume = Resume { table_id: 1, client: lapis_config::ClientId(2), secret: 3, writing: vec![SlotId(4)] };
    let shape = PoolShape {
        namespace: Fingerprint([7; 32]),
        label: "k/rank0".into(),
        kind: PoolKind::Chain,
        block_bytes: 65536,
        pieces: 2,
    };
    let geometry = Geometry { table_id: 1, instance: 2, lines: 3, extents_bytes: vec![1 << 30, 1 << 30] };
    let to_daemon = [
        ToDaemon::Hello { resume: Some(resume), name: "engine".into(), may_put: true, writes_by_dma: false },
        ToDaemon::OpenPool { token: 1, shape },
        ToDaemon::Bye,
        ToDaemon::Status,
    ];
    let to_client = [
        ToClient::Welcome {
            client: lapis_config::ClientId(2),
            secret: 3,
            geometry,
            may_put: true,
            resumed: true,
            magazine_bytes_max: 1 << 20,
            defaults: lapis_transport::hello::CallDefaults::default(),
        },
        ToClient::Extents { first: 0, extents_bytes: vec![1 << 30] },
        ToClient::Pool { token: 1, pool: PoolId(3), slot_bytes: 65536 },
        ToClient::Refused { token: 0, reason: "no".into() },
        ToClient::Status { json: "{}".into(), last: true },
    ];
    let mut payload = Vec::new();
    let mut messages = Vec::new();
    for message in &to_daemon {
        message.encode(&mut payload);
        messages.push(payload.clone());
    }
    for message in &to_client {
        message.encode(&mut payload);
        messages.push(payload.clone());
    }
    messages
}

#[test]
fn damaged_frames_are_refused_or_mean_something() {
    run(&frames(), targets::frame);
}

#[test]
fn damaged_messages_are_refused_or_mean_something() {
    run(&messages(), targets::hello);
}

#[test]
fn a_ring_keeps_its_frames_or_finds_the_fault() {
    run(&[], targets::ring);
}
