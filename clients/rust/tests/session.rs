//! Sessions over a daemon that does as it is told: no socket, no thread, no clock.

mod fake;

use std::{
    io::{IoSlice, IoSliceMut},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fake::{BLOCK_BYTES, Fake, key, keys, payload, shape};
use lapis_arena::LineState;
use lapis_client::{
    BlockStatus, ClientError, Dst, GetOptions, Got, HitPolicy, Key, Pool, Put, PutResult, Refusal, ReserveResult,
    Session, Src, Verify, Wait,
    session::{GetJob, PutJob, ReserveJob, Step},
};
use lapis_config::PoolId;
use lapis_transport::frame::{Completion, Request};

const SOON: Duration = Duration::from_secs(1);

const NO_PARENT: PutResult = PutResult::Refused(Refusal::NoParent);

fn get_with(session: &Arc<Session>, pool: &Pool, keys: &[Key], dst: Dst<'_>, options: &GetOptions) -> Got {
    let mut job = GetJob::new(session.clone(), pool, keys, dst, options).expect("a sound call");
    assert_eq!(job.step(SOON), Step::Done, "hits and misses in memory need nobody");
    job.finish()
}

fn get(session: &Arc<Session>, pool: &Pool, keys: &[Key]) -> (Got, Vec<u8>) {
    let mut buffer = vec![0xaa; keys.len() * pool.block_bytes() as usize];
    let got = get_with(session, pool, keys, Dst::from(&mut buffer), &GetOptions::default());
    (got, buffer)
}

struct Scene {
    fake: Fake,
    session: Arc<Session>,
    pool: Pool,
}

/// Blocks 0 to `there` published.
fn scene(there: u64, state: LineState) -> Scene {
    let mut fake = Fake::new();
    let session = fake.session();
    let shape = shape("kv", BLOCK_BYTES, 1);
    let pool = fake.pool(&session, &shape);
    for n in 0..there {
        fake.publish(&shape, &key(n), &payload(n, 0, BLOCK_BYTES), state);
    }
    Scene { fake, session, pool }
}

#[test]
fn a_hit_gives_the_bytes_and_a_miss_says_so() {
    let Scene { session, pool, .. } = scene(4, LineState::Dram);
    let asked = [key(2), key(9), key(0)];
    let (got, buffer) = get(&session, &pool, &asked);
    let hit = BlockStatus::Hit { bytes: BLOCK_BYTES as u32 };
    assert_eq!(got.statuses, [hit, BlockStatus::Miss, hit]);
    assert_eq!((got.hits, got.bytes, got.prefix()), (2, 2 * BLOCK_BYTES as u64, 1));
    assert!(
        buffer[..BLOCK_BYTES] == payload(2, 0, BLOCK_BYTES) && buffer[2 * BLOCK_BYTES..] == payload(0, 0, BLOCK_BYTES)
    );
    assert_eq!(session.stats().blocks_hit, 2);
}

#[test]
fn existence_and_prefixes_come_from_the_table_alone() {
    let Scene { mut fake, session, pool } = scene(5, LineState::Dram);
    assert_eq!(session.exists(&pool, &keys(3..8)).words(), [0b11]);
    let prefix = |policy, range| session.match_prefix(&[(pool.clone(), policy)], &keys(range));
    assert_eq!(prefix(HitPolicy::Prefix, 0..8), 5);
    assert_eq!(prefix(HitPolicy::Prefix, 4..8), 1);
    assert_eq!(prefix(HitPolicy::Trailing(2), 0..8), 5);
    assert_eq!(prefix(HitPolicy::Any, 3..100), 2);
    fake.turn();
    assert!(fake.frames.is_empty(), "nobody was asked");
}

#[test]
fn a_get_tells_the_daemon_of_its_deepest_hit_once() {
    let Scene { mut fake, session, pool } = scene(4, LineState::Dram);
    get(&session, &pool, &keys(0..8));
    let mut touches = Vec::new();
    fake.clients[0].control.drain_touches(10, &mut |touch| touches.push(touch));
    let deepest = fake.writer.find(PoolId(0), &key(3)).expect("a published block");
    assert_eq!(touches.len(), 1);
    assert_eq!((touches[0].line, touches[0].hit, touches[0].asked), (deepest.line.0, 4, 8));
    let counters = fake.clients[0].control.counters();
    assert_eq!((counters.asked, counters.hit, counters.bytes), (8, 4, 4 * BLOCK_BYTES as u64));
}

#[test]
fn the_misses_of_a_prefix_count_as_asked_and_its_hits_when_they_are_read() {
    let Scene { fake, session, pool } = scene(4, LineState::Dram);
    assert_eq!(session.match_prefix(&[(pool.clone(), HitPolicy::Prefix)], &keys(0..10)), 4);
    get(&session, &pool, &keys(0..4));
    let counters = fake.clients[0].control.counters();
    assert_eq!((counters.asked, counters.hit), (10, 4));
}

#[test]
fn a_block_that_changes_its_slot_under_a_copy_is_never_given_torn() {
    let Scene { mut fake, session, pool } = scene(1, LineState::Dram);
    // Its bytes are no round's: it goes before the reader comes.
    fake.drop_block(PoolId(0), &key(0));
    let done = Arc::new(AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (session, pool, done) = (session.clone(), pool.clone(), done.clone());
        move || {
            let (mut hits, mut rounds) = (0u64, 0u64);
            while !done.load(Ordering::Relaxed) || rounds == 0 {
                let (got, buffer) = get(&session, &pool, &[key(0)]);
                if got.hits == 1 {
                    // Every word of a round's block is that round's number.
                    let first = &buffer[..8];
                    assert!(buffer.chunks(8).all(|word| word == first), "bytes of two rounds in one block");
                    hits += 1;
                }
                rounds += 1;
            }
            hits
        }
    });
    let shape = pool.shape().clone();
    for round in 0..3000u64 {
        let bytes: Vec<u8> = round.to_le_bytes().into_iter().cycle().take(BLOCK_BYTES).collect();
        fake.publish(&shape, &key(0), &bytes, LineState::Dram);
        fake.drop_block(PoolId(0), &key(0));
    }
    let bytes = vec![0; BLOCK_BYTES];
    fake.publish(&shape, &key(0), &bytes, LineState::Dram);
    let seen = session.stats().blocks_hit;
    while session.stats().blocks_hit == seen {
        std::thread::yield_now();
    }
    done.store(true, Ordering::Relaxed);
    assert!(reader.join().expect("no torn block") > 0);
}

#[test]
fn a_view_keeps_its_slot_from_reuse_until_it_is_dropped() {
    let Scene { mut fake, session, pool } = scene(2, LineState::Dram);
    let views = session.view(&pool, &keys(0..3), None).expect("views");
    assert_eq!((views.hits(), views.prefix()), (2, 2));
    let view = views[1].as_ref().expect("a hit");
    let mut bytes = vec![0; BLOCK_BYTES];
    view.copy_to(0, &mut bytes).expect("within the block");
    assert!(bytes == payload(1, 0, BLOCK_BYTES) && view.len() == BLOCK_BYTES && view.still_valid());
    assert!(matches!(view.copy_to(1, &mut bytes), Err(ClientError::Range { .. })));
    assert!(!fake.drop_block(PoolId(0), &key(1)), "the view's hazard is seen");
    assert!(!view.still_valid(), "the line is gone");
    drop(views);
    fake.publish(pool.shape(), &key(1), &payload(1, 1, BLOCK_BYTES), LineState::Dram);
    assert!(fake.drop_block(PoolId(0), &key(1)), "no hazard is left");
}

#[test]
fn views_are_bounded_by_the_hazard_page() {
    let Scene { session, pool, .. } = scene(1, LineState::Dram);
    let same = vec![key(0); 8000];
    let held = session.view(&pool, &same, None).expect("8000 views");
    let error = session.view(&pool, &same[..200], None).expect_err("192 entries are left").to_string();
    assert!(error.contains("200") && error.contains("8000"), "{error}");
    assert_eq!(session.view(&pool, &same[..192], None).expect("all that are left").hits(), 192);
    drop(held);
    assert_eq!(session.view(&pool, &same, None).expect("room again").hits(), 8000);
}

#[test]
fn an_unverified_block_with_a_wrong_sum_is_a_miss_and_remembered() {
    let Scene { fake, session, pool } = scene(2, LineState::Unverified);
    let found = fake.writer.find(PoolId(0), &key(1)).expect("a published block");
    fake.write(found.slot, b"damage");
    let (got, buffer) = get(&session, &pool, &keys(0..2));
    assert_eq!(got.statuses[1], BlockStatus::Miss);
    assert!(got.statuses[0].is_hit() && buffer[..BLOCK_BYTES] == payload(0, 0, BLOCK_BYTES));
    assert_eq!(session.view(&pool, &keys(0..2), None).expect("views").hits(), 1);
    get(&session, &pool, &keys(1..2));
    assert_eq!(session.stats().blocks_corrupt, 1, "its sum was made once");
}

#[test]
fn damage_in_a_view_is_seen_before_it_is_handed_out() {
    let Scene { fake, session, pool } = scene(1, LineState::Unverified);
    let found = fake.writer.find(PoolId(0), &key(0)).expect("a published block");
    fake.write(found.slot, b"damage");
    assert_eq!(session.view(&pool, &keys(0..1), None).expect("views").hits(), 0);
    assert_eq!(session.stats().blocks_corrupt, 1);
}

#[test]
fn a_verified_block_is_checked_only_if_asked() {
    let Scene { fake, session, pool } = scene(1, LineState::Dram);
    let found = fake.writer.find(PoolId(0), &key(0)).expect("a published block");
    fake.write(found.slot, b"damage");
    assert_eq!(get(&session, &pool, &keys(0..1)).0.hits, 1);
    let mut buffer = vec![0; BLOCK_BYTES];
    let always = GetOptions { verify: Some(Verify::Always), ..GetOptions::default() };
    assert_eq!(get_with(&session, &pool, &keys(0..1), Dst::from(&mut buffer), &always).hits, 0);
}

#[test]
fn no_view_is_given_while_the_daemon_is_another_one() {
    let Scene { mut fake, session, pool } = scene(1, LineState::Dram);
    let before = session.view(&pool, &keys(0..1), None).expect("views");
    fake.restart();
    session.lost();
    assert_eq!(session.view(&pool, &keys(0..1), None).expect("no error").hits(), 0);
    assert_eq!(get(&session, &pool, &keys(0..1)).0.hits, 1, "copies go on");
    assert!(before[0].as_ref().expect("a hit").still_valid(), "the hazard page was kept");
    let resume = session.resume().expect("it can come back");
    assert_eq!((resume.client, resume.writing.len()), (session.client(), 0));
    fake.clients[0].control.reset();
    assert!(session.resumed(&fake.welcome(0, true)));
    assert_eq!(session.view(&pool, &keys(0..1), None).expect("views").hits(), 1);
}

#[test]
fn an_expelled_client_gets_no_view_and_knows_that_its_old_ones_are_void() {
    let Scene { fake, session, pool } = scene(1, LineState::Dram);
    let before = session.view(&pool, &keys(0..1), None).expect("views");
    fake.clients[0].control.set_expelled();
    assert!(!before[0].as_ref().expect("a hit").still_valid());
    assert_eq!(session.view(&pool, &keys(0..1), None).expect("no error").hits(), 0);
    assert_eq!(session.resume(), None);
}

#[test]
fn a_batch_larger_than_the_magazine_flows_through_it() {
    let Scene { mut fake, session, pool } = scene(0, LineState::Dram);
    let batch = keys(0..50);
    let bytes: Vec<u8> = (0..50).flat_map(|n| payload(n, 0, BLOCK_BYTES)).collect();
    let mut job = PutJob::new(session.clone(), &pool, &batch, None, Src::from(&bytes)).expect("a sound call");
    fake.drive(&session, |left| job.step(left));
    assert_eq!(job.finish().stored(), 50);
    let (got, back) = get(&session, &pool, &batch);
    assert!(got.hits == 50 && back == bytes);
    let commits = fake.frames.iter().filter(|frame| matches!(frame, Request::Commit { .. })).count();
    assert!(commits >= 50 * BLOCK_BYTES / (256 << 10), "{commits} commits");
    for n in 1..50 {
        assert_eq!(fake.parent(&key(n)), Some(key(n - 1)));
    }
    assert_eq!(fake.parent(&key(0)), None);
}

/// A put of 50 blocks; all that is there is evicted whenever the daemon has had so many commits. And how many of the blocks
/// are there at last, with their bytes.
fn put_while_its_blocks_go(evictions: &[usize]) -> (Put, Fake, usize) {
    let Scene { mut fake, session, pool } = scene(0, LineState::Dram);
    let batch = keys(0..50);
    let bytes: Vec<u8> = (0..50).flat_map(|n| payload(n, 0, BLOCK_BYTES)).collect();
    let mut job = PutJob::new(session.clone(), &pool, &batch, None, Src::from(&bytes)).expect("a sound call");
    for _ in 0..10_000 {
        if job.step(SOON) == Step::Done {
            break;
        }
        fake.turn();
        session.poll();
        let commits = fake.frames.iter().filter(|frame| matches!(frame, Request::Commit { .. })).count();
        if evictions.contains(&commits) {
            let there: Vec<&Key> = batch.iter().filter(|key| fake.has(PoolId(0), key)).collect();
            there.into_iter().for_each(|key| _ = fake.drop_block(PoolId(0), key));
        }
    }
    let put = job.finish();
    let (got, back) = get(&session, &pool, &batch);
    let whole = got.hits * BLOCK_BYTES;
    assert!(back[..whole] == bytes[..whole]);
    (put, fake, got.hits)
}

#[test]
fn a_put_whose_own_blocks_were_evicted_under_way_puts_them_again() {
    let (put, fake, there) = put_while_its_blocks_go(&[3]);
    assert_eq!((put.stored(), put.refused(), there), (50, 0, 50), "{:?}", put.results);
    for n in 1..50 {
        assert_eq!(fake.parent(&key(n)), Some(key(n - 1)));
    }
}

#[test]
fn a_put_whose_blocks_are_evicted_all_the_time_says_so() {
    let (put, ..) = put_while_its_blocks_go(&(0..500).collect::<Vec<_>>());
    assert_eq!(put.results.last(), Some(&NO_PARENT));
}

#[test]
fn a_put_below_what_is_not_there_is_refused_at_once() {
    let Scene { mut fake, session, pool } = scene(0, LineState::Dram);
    let (batch, bytes) = (keys(0..4), vec![1; 4 * BLOCK_BYTES]);
    let mut job = PutJob::new(session.clone(), &pool, &batch, Some(key(99)), Src::from(&bytes)).expect("a sound call");
    fake.drive(&session, |left| job.step(left));
    assert_eq!(job.finish().results, [NO_PARENT; 4]);
    let commits = fake.frames.iter().filter(|frame| matches!(frame, Request::Commit { .. })).count();
    assert_eq!(commits, 1, "it is not tried again");
}

#[test]
fn a_put_copies_only_what_is_not_there() {
    let Scene { mut fake, session, pool } = scene(3, LineState::Dram);
    let batch = [key(0), key(1), key(7), key(2), key(8)];
    let bytes = vec![1; 5 * BLOCK_BYTES];
    let mut job = PutJob::new(session.clone(), &pool, &batch, Some(key(0)), Src::from(&bytes)).expect("a sound call");
    fake.drive(&session, |left| job.step(left));
    let (exists, stored) = (PutResult::Exists, PutResult::Stored);
    assert_eq!(job.finish().results, [exists, exists, stored, exists, stored]);
    assert_eq!((fake.parent(&key(7)), fake.parent(&key(8))), (Some(key(1)), Some(key(2))));
    assert_eq!(get(&session, &pool, &[key(0)]).1, payload(0, 0, BLOCK_BYTES));
}

#[test]
fn a_put_without_room_is_refused_by_a_value() {
    let Scene { mut fake, session, pool } = scene(250, LineState::Dram);
    let bytes = vec![1; 20 * BLOCK_BYTES];
    let batch = keys(1000..1020);
    let mut job = PutJob::new(session.clone(), &pool, &batch, None, Src::from(&bytes)).expect("a sound call");
    fake.drive(&session, |left| job.step(left));
    let put = job.finish();
    assert_eq!((put.stored(), put.refused()), (6, 14), "{:?}", put.results);
    assert_eq!(put.results[19], PutResult::Refused(Refusal::AllPinned));
}

#[test]
fn a_put_that_is_cut_short_gives_its_slots_back() {
    let Scene { mut fake, session, pool } = scene(0, LineState::Dram);
    let (batch, bytes) = (keys(0..16), vec![1; 16 * BLOCK_BYTES]);
    let mut job = PutJob::new(session.clone(), &pool, &batch, None, Src::from(&bytes)).expect("a sound call");
    assert_eq!(job.step(SOON), Step::Posted);
    fake.turn();
    session.poll();
    assert_eq!(job.step(SOON), Step::Posted);
    let put = job.finish();
    assert!(put.results.iter().all(|result| *result == PutResult::Refused(Refusal::Late)));
    fake.turn();
    session.poll();
    // What was posted is stored all the same; what waits in the magazine is there for the next put.
    let left = fake.clients[0].granted.len();
    let mut next =
        PutJob::new(session.clone(), &pool, &batch[..8], None, Src::from(&bytes[..8 * BLOCK_BYTES])).expect("a call");
    fake.drive(&session, |left| next.step(left));
    assert_eq!(next.finish().refused(), 0);
    assert!(left <= 8, "{left} slots are out");
}

#[test]
fn vectors_and_pieces_of_blocks_come_and_go_whole() {
    let mut fake = Fake::new();
    let session = fake.session();
    let shape = shape("pieces", BLOCK_BYTES, 4);
    let pool = fake.pool(&session, &shape);
    let batch = keys(0..3);
    let bytes: Vec<u8> = (0..3).flat_map(|n| payload(n, 0, BLOCK_BYTES)).collect();
    // Vectors that cross the borders of pieces.
    let cuts = [0, 10_000, 10_001, 40_000, BLOCK_BYTES];
    let vectors: Vec<IoSlice<'_>> = bytes
        .chunks(BLOCK_BYTES)
        .flat_map(|block| cuts.windows(2).map(|cut| IoSlice::new(&block[cut[0]..cut[1]])))
        .collect();
    let mut job = PutJob::new(session.clone(), &pool, &batch, None, Src::from(&vectors[..])).expect("a sound call");
    fake.drive(&session, |left| job.step(left));
    assert_eq!(job.finish().stored(), 3);

    let always = GetOptions { verify: Some(Verify::Always), ..GetOptions::default() };
    let mut back = vec![0; bytes.len()];
    let mut vectors: Vec<IoSliceMut<'_>> = back.chunks_mut(4096 * 2).map(IoSliceMut::new).collect();
    assert_eq!(get_with(&session, &pool, &batch, Dst::from(&mut vectors[..]), &always).hits, 3);
    assert!(back == bytes);

    let middle = GetOptions { pieces: Some(1..3), ..always.clone() };
    let mut back = vec![0; bytes.len() / 2];
    let got = get_with(&session, &pool, &batch, Dst::from(&mut back), &middle);
    assert_eq!((got.hits, got.bytes), (3, back.len() as u64));
    for (part, block) in back.chunks(BLOCK_BYTES / 2).zip(bytes.chunks(BLOCK_BYTES)) {
        assert!(part == &block[BLOCK_BYTES / 4..BLOCK_BYTES / 4 * 3]);
    }

    // Damage in the last piece of block 0 is nothing to who reads the ones before it.
    let slot = fake.writer.find(PoolId(0), &key(0)).expect("stored").slot;
    let (mapping, offset) = fake.extents.locate(slot, BLOCK_BYTES as u64).expect("a slot");
    mapping.copy_in(offset + BLOCK_BYTES - 1, &[bytes[BLOCK_BYTES - 1] ^ 1]);
    assert_eq!(get_with(&session, &pool, &batch, Dst::from(&mut back), &middle).hits, 3);
    let last = GetOptions { pieces: Some(2..4), ..always };
    assert_eq!(get_with(&session, &pool, &batch, Dst::from(&mut back), &last).hits, 2);
    let beyond = GetOptions { pieces: Some(3..5), ..GetOptions::default() };
    let error = GetJob::new(session.clone(), &pool, &batch, Dst::from(&mut back), &beyond).err().expect("no piece 4");
    assert!(error.to_string().contains('5') && error.to_string().contains('4'), "{error}");
}

#[test]
fn a_waiting_get_reads_what_came_and_releases_it() {
    let Scene { mut fake, session, pool } = scene(1, LineState::Dram);
    let (batch, mut buffer) = (keys(0..2), vec![0; 2 * BLOCK_BYTES]);
    let options = GetOptions { wait: Wait::Absent, ..GetOptions::default() };
    let mut job = GetJob::new(session.clone(), &pool, &batch, Dst::from(&mut buffer), &options).expect("a sound call");
    assert_eq!(job.step(SOON), Step::Posted);
    fake.turn();
    assert_eq!((session.poll(), job.step(SOON)), (0, Step::Waiting));
    fake.publish(pool.shape(), &key(1), &payload(1, 0, BLOCK_BYTES), LineState::Dram);
    let (client, token) = fake.waiting.pop().expect("a get that waits");
    assert!(fake.clients[client].control.push_completion(&Completion::Got { token, hit: 1 }));
    assert_eq!((session.poll(), job.step(SOON)), (1, Step::Posted));
    assert_eq!(job.step(SOON), Step::Done);
    assert_eq!(job.finish().hits, 2);
    assert!(buffer[BLOCK_BYTES..] == payload(1, 0, BLOCK_BYTES));
    fake.turn();
    assert!(fake.frames.contains(&Request::Release { token }));
}

/// Key counts of the gets that the daemon was asked, in order.
fn asked(fake: &Fake) -> Vec<usize> {
    let gets = fake.frames.iter().filter_map(|frame| match frame {
        Request::Get { keys, .. } => Some(keys.len()),
        _ => None,
    });
    gets.collect()
}

/// Blocks 0 to `count` on SSD, those of every tenth key in memory.
fn cold_scene(count: u64) -> Scene {
    let mut scene = scene(0, LineState::Dram);
    for n in 0..count {
        scene.fake.publish(scene.pool.shape(), &key(n), &payload(n, 0, BLOCK_BYTES), LineState::Dram);
        if n % 10 != 0 {
            scene.fake.demote(PoolId(0), &key(n));
        }
    }
    scene
}

#[test]
fn more_blocks_than_memory_holds_come_from_ssd_in_windows_two_at_a_time() {
    // A sixteenth of the memory is 16 blocks.
    let Scene { mut fake, session, pool } = cold_scene(700);
    let (batch, mut buffer) = (keys(0..700), vec![0; 700 * BLOCK_BYTES]);
    let dst = Dst::from(&mut buffer);
    let mut job = GetJob::new(session.clone(), &pool, &batch, dst, &GetOptions::default()).expect("a sound call");
    assert_eq!(job.step(SOON), Step::Posted);
    assert_eq!(job.step(SOON), Step::Waiting);
    fake.turn();
    assert_eq!(asked(&fake), [16, 16]);
    fake.drive(&session, |left| job.step(left));
    let got = job.finish();
    assert_eq!((got.hits, got.bytes), (700, 700 * BLOCK_BYTES as u64));
    for n in 0..700 {
        assert!(buffer[n * BLOCK_BYTES..][..BLOCK_BYTES] == payload(n as u64, 0, BLOCK_BYTES), "block {n}");
    }
    assert_eq!(asked(&fake).iter().sum::<usize>(), 630, "each block once, and none that is in memory");
    assert_eq!((asked(&fake).len(), fake.brought_max), (40, 32));
    fake.turn();
    let released = fake.frames.iter().filter(|frame| matches!(frame, Request::Release { .. })).count();
    assert_eq!(released, 40);
}

#[test]
fn a_key_that_nobody_puts_does_not_hold_up_what_is_on_ssd() {
    let Scene { mut fake, session, pool } = cold_scene(50);
    let (batch, mut buffer) = (keys(0..51), vec![0; 51 * BLOCK_BYTES]);
    let options = GetOptions { wait: Wait::Absent, ..GetOptions::default() };
    let mut job = GetJob::new(session.clone(), &pool, &batch, Dst::from(&mut buffer), &options).expect("a sound call");
    for _ in 0..20 {
        job.step(SOON);
        fake.turn();
        session.poll();
    }
    assert_eq!(job.step(SOON), Step::Waiting, "for the one key");
    assert_eq!(asked(&fake), [1, 16, 16, 13]);
    assert_eq!(job.finish().hits, 50);
    assert!(buffer[49 * BLOCK_BYTES..50 * BLOCK_BYTES] == payload(49, 0, BLOCK_BYTES));
}

#[test]
fn a_get_that_is_cut_short_releases_the_windows_that_come_after() {
    let Scene { mut fake, session, pool } = cold_scene(50);
    let (batch, mut buffer) = (keys(0..50), vec![0; 50 * BLOCK_BYTES]);
    let dst = Dst::from(&mut buffer);
    let mut job = GetJob::new(session.clone(), &pool, &batch, dst, &GetOptions::default()).expect("a sound call");
    assert_eq!(job.step(SOON), Step::Posted);
    assert_eq!(job.finish().hits, 5);
    fake.turn();
    session.poll();
    fake.turn();
    let released = fake.frames.iter().filter(|frame| matches!(frame, Request::Release { .. })).count();
    assert_eq!((asked(&fake), released), (vec![16, 16], 2));
}

#[test]
fn an_answer_that_nobody_waits_for_gives_back_what_it_brings() {
    let Scene { mut fake, session, pool } = scene(0, LineState::Dram);
    let mut job = ReserveJob::new(session.clone(), &pool, &keys(0..4), None).expect("a sound call");
    assert_eq!(job.step(SOON), Step::Posted);
    let reservation = job.finish();
    assert!(reservation.results().iter().all(|result| *result == ReserveResult::Refused(Refusal::Late)));
    fake.turn();
    assert_eq!(fake.clients[0].granted.len(), 4);
    session.poll();
    fake.turn();
    assert_eq!(fake.clients[0].granted.len(), 0);
}

#[test]
fn a_reservation_is_written_in_place_and_committed() {
    let Scene { mut fake, session, pool } = scene(1, LineState::Dram);
    let mut job = ReserveJob::new(session.clone(), &pool, &keys(0..3), None).expect("a sound call");
    fake.drive(&session, |left| job.step(left));
    let mut reservation = job.finish();
    assert_eq!(reservation.results()[0], ReserveResult::Exists);
    assert_eq!(reservation.as_mut_ptr(0), None);
    for i in 1..3 {
        assert!(reservation.write_at(i, 0, &payload(i as u64, 0, BLOCK_BYTES)).expect("within the block"));
    }
    assert!(matches!(reservation.write_at(1, 1, &[0; BLOCK_BYTES]), Err(ClientError::Range { .. })));
    let mut commit = reservation.commit();
    fake.drive(&session, |_| commit.step());
    assert_eq!(commit.finish().results, [PutResult::Exists, PutResult::Stored, PutResult::Stored]);
    let mut buffer = vec![0; 3 * BLOCK_BYTES];
    let always = GetOptions { verify: Some(Verify::Always), ..GetOptions::default() };
    assert_eq!(get_with(&session, &pool, &keys(0..3), Dst::from(&mut buffer), &always).hits, 3);
    assert!(buffer[2 * BLOCK_BYTES..] == payload(2, 0, BLOCK_BYTES));
}

#[test]
fn a_reservation_that_is_dropped_is_aborted() {
    let Scene { mut fake, session, pool } = scene(0, LineState::Dram);
    let mut job = ReserveJob::new(session.clone(), &pool, &keys(0..3), None).expect("a sound call");
    fake.drive(&session, |left| job.step(left));
    drop(job.finish());
    fake.turn();
    assert_eq!(fake.clients[0].granted.len(), 0);
}

#[test]
fn a_hang_up_answers_everything_and_what_is_being_written_is_named() {
    let Scene { mut fake, session, pool } = scene(1, LineState::Dram);
    let mut job = ReserveJob::new(session.clone(), &pool, &keys(5..7), None).expect("a sound call");
    fake.drive(&session, |left| job.step(left));
    let reservation = job.finish();
    let (batch, bytes) = (keys(0..4), vec![1; 4 * BLOCK_BYTES]);
    let mut put = PutJob::new(session.clone(), &pool, &batch, None, Src::from(&bytes)).expect("a sound call");
    assert_eq!(put.step(SOON), Step::Posted);
    session.lost();
    while put.step(SOON) != Step::Done {}
    let (gone, exists) = (PutResult::Refused(Refusal::Gone), PutResult::Exists);
    assert_eq!(put.finish().results, [exists, gone, gone, gone]);
    let resume = session.resume().expect("it can come back");
    assert_eq!(resume.writing.len(), 2, "the reservation's slots");
    // Given up between the resumption's making and the welcome: the daemon was told that they are in use.
    drop(reservation);
    fake.clients[0].control.reset();
    assert!(session.resumed(&fake.welcome(0, true)));
    fake.turn();
    assert_eq!(fake.clients[0].granted.len(), 0);
}

#[test]
fn the_recall_of_a_magazine_is_answered() {
    let Scene { mut fake, session, pool } = scene(0, LineState::Dram);
    let (slot_bytes, id) = (pool.slot_bytes(), PoolId(0));
    session.submit(|token| Request::Refill { token, pool: id, slot_bytes, count: 5, deadline_us: 1 }).expect("room");
    fake.turn();
    session.poll();
    assert_eq!(fake.clients[0].granted.len(), 5);
    session.recalled(id);
    fake.turn();
    assert_eq!(fake.clients[0].granted.len(), 0);
}

#[test]
fn a_client_that_may_not_put_is_refused_without_asking() {
    let mut fake = Fake::new();
    fake.may_put = false;
    let session = fake.session();
    let pool = fake.pool(&session, &shape("kv", BLOCK_BYTES, 1));
    let (batch, bytes) = (keys(0..1), vec![1; BLOCK_BYTES]);
    let mut put = PutJob::new(session.clone(), &pool, &batch, None, Src::from(&bytes)).expect("a sound call");
    assert_eq!(put.step(SOON), Step::Done);
    assert_eq!(put.finish().results, [PutResult::Refused(Refusal::ReadOnly)]);
    fake.turn();
    assert!(fake.frames.is_empty());
}
