//! What the core wants of its devices, and that it never depends on them.

use crate::scene::{MIB, Scene, key};
use lapis_config::{OpId, PoolKind, SegmentId, SlotId};
use lapis_tiering::{
    LogOptions,
    face::{Action, Outcome, Parent, Reply, Reserved},
};

/// Of most blocks here: a slot each is the least there is.
const SMALL: u64 = 100;

/// An empty log on one device serves.
fn with_log(scene: &mut Scene) {
    scene.core.ssd_coming();
    scene.core.ssd_opened(LogOptions {
        group: 0,
        segment_pages: 1 << 14,
        sequence_first: 1,
        sequence_end: 1 << 32,
        list_after_us: 20_000,
        durable: false,
    });
    scene.core.device_added(0);
    scene.core.ssd_ready(scene.now);
}

/// Carries out what the core wants of a device, all of it well, until nothing is wanted; the slots in the order written.
fn serve_device(scene: &mut Scene, next: &mut u32) -> Vec<SlotId> {
    let mut written = Vec::new();
    while let Some(action) = scene.core.poll_action() {
        let op = match action {
            Action::WriteSsd { op, slot, .. } => {
                written.push(slot);
                op
            }
            Action::OpenSegment { op, .. } | Action::ListSsd { op, .. } => op,
            Action::NeedSegment { device } => {
                scene.core.segment_given(SegmentId::new(device, *next));
                *next += 1;
                continue;
            }
            _ => continue,
        };
        scene.core.completed(scene.now, op, Outcome::Ok);
    }
    written
}

#[test]
fn a_flush_writes_every_block_that_is_only_in_memory_and_parents_before_their_children() {
    let mut scene = Scene::new(&[64 * MIB]);
    let pool = scene.pool(PoolKind::Chain, 100, 1);
    with_log(&mut scene);
    let mut segments = 0;
    serve_device(&mut scene, &mut segments);
    for chain in 0..100 {
        scene.now.0 += 200_000;
        assert_eq!(scene.put_chain(pool, chain, 8), 8);
        serve_device(&mut scene, &mut segments);
    }
    assert_eq!(scene.core.dirty_blocks(), 800, "memory is not short");
    scene.core.set_draining(true);
    scene.core.flush(scene.now, 1 << 30);
    let mut written = Vec::new();
    for turn in 0.. {
        if scene.core.is_flushed() {
            break;
        }
        assert!(turn < 1000, "{} of 800 written", written.len());
        written.extend(serve_device(&mut scene, &mut segments));
        scene.now.0 += 20_000;
        scene.core.tick(scene.now);
    }
    assert_eq!((written.len(), scene.core.dirty_blocks()), (800, 0));
    let of = |chain| scene.slots_of(pool, &(0..8).map(|depth| key(chain, depth)).collect::<Vec<_>>());
    let order = |chain| of(chain).iter().map(|slot| written.iter().position(|w| w == slot)).collect::<Vec<_>>();
    for chain in 0..100 {
        assert!(order(chain).is_sorted(), "a parent comes first");
    }
    assert!(order(99) < order(0), "the hottest chain comes first");
    scene.core.audit().unwrap();
}

/// One chain fills the memory, and all that may go of it is its last block, which a device takes its time to write. Puts
/// of 16 blocks of so many bytes with these deadlines wait for it; how many were answered within a second, all of them
/// with slots.
fn puts_while_a_device_is_slow(block_bytes: u64, deadlines_us: &[u64]) -> usize {
    let mut scene = Scene::new(&[MIB]);
    let pool = scene.pool(PoolKind::Chain, SMALL, 1);
    with_log(&mut scene);
    (1..32).for_each(|part| assert_eq!(scene.put_chain(pool, 0, 8 * part), 8));
    let pool = if block_bytes == SMALL { pool } else { scene.pool(PoolKind::Chain, block_bytes, 2) };
    for (&deadline_us, chain) in deadlines_us.iter().zip(1..) {
        let keys: Vec<_> = (0..16).map(|depth| key(chain, depth)).collect();
        scene.client = scene.connect();
        scene.ask_reserve(pool, block_bytes as u32, &keys, Parent::None, deadline_us);
    }
    let (mut segments, mut writes, mut answered) = (0, 0, Vec::new());
    for _ in 0..100 {
        while let Some(action) = scene.core.poll_action() {
            match action {
                Action::NeedSegment { device } => {
                    scene.core.segment_given(SegmentId::new(device, segments));
                    segments += 1;
                }
                Action::OpenSegment { op, .. } => scene.core.completed(scene.now, op, Outcome::Ok),
                Action::WriteSsd { .. } => writes += 1,
                Action::Reply { reply: Reply::Reserved { results }, .. } => answered.push(results),
                _ => {}
            }
        }
        scene.now.0 += 10_000;
        scene.core.tick(scene.now);
    }
    assert!(writes > 0, "the last blocks are written first");
    assert!(answered.iter().flatten().all(|result| matches!(result, Reserved::Slot(_))), "{answered:?}");
    scene.core.audit().unwrap();
    answered.len()
}

#[test]
fn a_put_at_its_deadline_waits_for_no_device() {
    assert_eq!(puts_while_a_device_is_slow(SMALL, &[1_000_000]), 1);
    assert_eq!(puts_while_a_device_is_slow(SMALL, &[10_000_000]), 0, "who has time waits");
}

#[test]
fn nor_does_one_whose_blocks_are_of_a_size_that_has_no_memory_yet() {
    assert_eq!(puts_while_a_device_is_slow(8192, &[1_000_000]), 1);
    assert_eq!(puts_while_a_device_is_slow(8192, &[10_000_000]), 0, "who has time waits");
}

#[test]
fn nor_does_one_behind_another_that_has_time() {
    assert_eq!(puts_while_a_device_is_slow(SMALL, &[10_000_000, 1_000_000]), 2);
}

#[test]
fn a_segment_whose_header_could_not_be_written_is_tried_again_and_after_all_others() {
    let mut scene = Scene::new(&[MIB]);
    let pool = scene.pool(PoolKind::Chain, 100, 1);
    with_log(&mut scene);
    let (mut given, mut tried) = (0, Vec::new());
    // Puts are written as memory fills up; no header comes on the device until it is well again.
    for round in 0..40 {
        for part in 1..=8 {
            scene.put_chain(pool, 10 + round, 8 * part);
        }
        while let Some(action) = scene.others.pop().or_else(|| scene.core.poll_action()) {
            match action {
                Action::NeedSegment { device } if given < 3 => {
                    scene.core.segment_given(SegmentId::new(device, given));
                    given += 1;
                }
                Action::OpenSegment { op, segment, .. } => {
                    tried.push(segment.index());
                    scene.core.completed(scene.now, op, Outcome::Failed);
                    if tried.len() == 3 {
                        scene.core.device_writable(scene.now, 0, false);
                    }
                }
                _ => {}
            }
        }
        if tried.len() == 3 {
            scene.core.device_writable(scene.now, 0, true);
        }
        scene.now.0 += 100_000;
        scene.core.tick(scene.now);
        if tried.len() > 6 {
            break;
        }
    }
    let (first, again) = tried.split_at(3);
    assert_eq!(first.iter().collect::<std::collections::BTreeSet<_>>().len(), 3, "each once: {tried:?}");
    assert!(again.len() > 3, "none is given up: {tried:?}");
    scene.core.audit().unwrap();
}

#[test]
fn a_segment_that_was_promised_to_another_group_is_given_up_as_soon_as_there_is_one() {
    let mut scene = Scene::new(&[MIB]);
    with_log(&mut scene);
    scene.core.yield_segment(0);
    assert_eq!(scene.core.poll_action(), None, "there is none yet");
    // One to go on with, one to give.
    (1..3).for_each(|index| scene.core.segment_given(SegmentId::new(0, index)));
    let actions: Vec<Action> = std::iter::from_fn(|| scene.core.poll_action()).collect();
    let left = actions.iter().filter(|action| matches!(action, Action::FreeSegment { leaves: true, .. })).count();
    let opened = actions.iter().filter(|action| matches!(action, Action::OpenSegment { .. })).count();
    assert_eq!((left, opened), (1, 1), "{actions:?}");
}

/// Carries out what the core wants, but for blocks that are written to device 1: it hangs. `first`: the other device has
/// segments.
fn turn_with_one_that_hangs(scene: &mut Scene, first: bool, hung: &mut Vec<(OpId, SlotId)>) {
    while let Some(action) = scene.others.pop().or_else(|| scene.core.poll_action()) {
        match action {
            Action::WriteSsd { op, at, slot, .. } if at.segment().device() == 1 => hung.push((op, slot)),
            Action::WriteSsd { op, .. } | Action::OpenSegment { op, .. } | Action::ListSsd { op, .. } => {
                scene.core.completed(scene.now, op, Outcome::Ok);
            }
            _ => {}
        }
    }
    if first && scene.core.segments() == 0 {
        (0..4).for_each(|index| scene.core.segment_given(SegmentId::new(0, index)));
    }
    scene.now.0 += 20_000;
    scene.core.tick(scene.now);
    scene.core.audit().unwrap();
}

#[test]
fn a_device_that_is_out_holds_no_drain_up_and_what_it_may_still_read_is_nobody_elses() {
    let mut scene = Scene::new(&[MIB]);
    let pool = scene.pool(PoolKind::Chain, SMALL, 1);
    with_log(&mut scene);
    scene.core.device_added(1);
    scene.core.segment_given(SegmentId::new(1, 0));
    let keys: Vec<_> = (0..8).flat_map(|chain| (0..8).map(move |depth| key(chain, depth))).collect();
    (0..8).for_each(|chain| assert_eq!(scene.put_chain(pool, chain, 8), 8));
    scene.core.set_draining(true);
    scene.core.flush(scene.now, 1 << 30);
    let mut hung = Vec::new();
    (0..10).for_each(|_| turn_with_one_that_hangs(&mut scene, false, &mut hung));
    assert_eq!(hung.len(), 32, "as much is under way there as may be at once");
    scene.core.device_lost(scene.now, 1);
    (0..10).for_each(|_| turn_with_one_that_hangs(&mut scene, true, &mut hung));
    assert!(scene.core.is_flushed(), "{}", scene.core.unfinished());
    assert_eq!(scene.core.dirty_blocks(), 0, "the other one has all of them");

    // The blocks go. Their slots do not come free by that.
    scene.core.set_draining(false);
    assert_eq!(scene.remove(pool, &keys), 64);
    assert_eq!(scene.core.counts().slots_busy, 32);
    let fresh: Vec<_> = (0..200).map(|depth| key(100, depth)).collect();
    let granted = scene.reserve(pool, 4096, &fresh);
    assert!(granted.len() > 100 && hung.iter().all(|(_, slot)| !granted.contains(slot)), "{}", granted.len());
    for (op, _) in hung.drain(..) {
        scene.core.completed(scene.now, op, Outcome::Ok);
    }
    turn_with_one_that_hangs(&mut scene, true, &mut hung);
    assert_eq!((scene.core.counts().slots_busy, scene.core.unfinished()), (0, String::new()));
}
