//! Each fault shows as it should, by itself and among the others.

use std::collections::BTreeSet;

use lapis_arena::Mapping;

use super::*;
use crate::device::IoId;

const PAGE: u64 = PAGE_BYTES as u64;
const DEVICE_BYTES: u64 = 64 * PAGE;
/// Pages of the operation under test, and where it is.
const BYTES: usize = 4 * PAGE_BYTES;
const AT: u64 = 8 * PAGE;
const ALWAYS: u32 = PER;

fn memory_of(bytes: &[u8]) -> Memory {
    let mapping = Mapping::anonymous(bytes.len() as u64).expect("memory");
    mapping.copy_in(0, bytes);
    Memory::new(&mapping, 0, bytes.len())
}

fn noise(seed: u64) -> Vec<u8> {
    let mut rng = Rng::with_seed(seed);
    (0..BYTES).map(|_| rng.u8(..)).collect()
}

/// Lets time go on until nothing ends any more.
fn run(device: &mut Faulty) -> Vec<Completion> {
    let mut out = Vec::new();
    device.kick().expect("a kick of memory");
    while let Some(due) = device.next_due() {
        device.advance(due);
        device.poll(&mut out).expect("a poll of memory");
    }
    out
}

fn one(device: &mut Faulty, io: Io) -> io::Result<()> {
    device.submit(io).expect("room");
    let mut out = run(device);
    assert_eq!(out.len(), 1, "each ends once");
    out.remove(0).result
}

/// A disk with `noise(1)` flushed at AT, and the result of writing `noise(2)` over it.
fn write_over(faults: Faults, seed: u64) -> (Disk, io::Result<()>, Injected) {
    let disk = Disk::new(DEVICE_BYTES);
    disk.write(AT, &noise(1));
    disk.flushed(disk.landed());
    let mut device = Faulty::new(&disk, 8, faults, seed);
    let result = one(&mut device, Io::write(IoId(1), AT, memory_of(&noise(2))));
    (disk, result, device.kill())
}

/// What a read of a place with `noise(2)`, `noise(1)` before it, gives.
fn read_back(faults: Faults, seed: u64) -> (Vec<u8>, io::Result<()>) {
    let disk = Disk::new(DEVICE_BYTES);
    disk.write(AT, &noise(1));
    disk.write(AT, &noise(2));
    let mut device = Faulty::new(&disk, 8, faults, seed);
    let memory = memory_of(&[0; BYTES]);
    let result = one(&mut device, Io::read(IoId(1), AT, memory.clone()));
    (memory.bytes_now(0..BYTES), result)
}

fn code(result: io::Result<()>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn bits_apart(a: &[u8], b: &[u8]) -> u32 {
    a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
}

#[test]
fn without_faults_it_is_a_right_device() {
    let (disk, result, injected) = write_over(Faults::NONE, 1);
    result.expect("no fault");
    assert!(disk.read(AT, BYTES) == noise(2) && injected.total() == 0);
    let (came, result) = read_back(Faults::NONE, 1);
    result.expect("no fault");
    assert!(came == noise(2));
}

#[test]
fn a_failed_write_lands_in_part_and_a_full_disk_takes_nothing() {
    let mut partly = 0;
    for seed in 0..20 {
        let (disk, result, injected) = write_over(Faults { eio: ALWAYS, ..Faults::NONE }, seed);
        assert_eq!((code(result), injected.of(Fault::Eio)), (Some(libc::EIO), 1));
        let left = disk.read(AT, BYTES);
        assert!(left != noise(2));
        partly += usize::from(left != noise(1));
        let (disk, result, _) = write_over(Faults { full: ALWAYS, ..Faults::NONE }, seed);
        assert_eq!(code(result), Some(libc::ENOSPC));
        assert!(disk.read(AT, BYTES) == noise(1));
    }
    assert!(partly > 5, "{partly}");
}

#[test]
fn a_short_transfer_is_gone_on_with_or_fails() {
    let short = || Faults { short: ALWAYS, ..Faults::NONE };
    let mut failed = 0;
    for seed in 0..20 {
        let (disk, result, _) = write_over(short(), seed);
        match code(result) {
            None => assert!(disk.read(AT, BYTES) == noise(2)),
            Some(libc::EIO) => failed += 1,
            other => panic!("{other:?}"),
        }
        let (came, result) = read_back(short(), seed);
        assert!(result.is_err() || came == noise(2));
    }
    assert!((1..20).contains(&failed), "{failed}");
}

#[test]
fn silent_faults_of_a_write_are_reported_done() {
    for seed in 0..20 {
        let (disk, result, _) = write_over(Faults { torn: ALWAYS, ..Faults::NONE }, seed);
        assert!(result.is_ok() && disk.read(AT, BYTES) != noise(2));
        let (disk, result, _) = write_over(Faults { lost: ALWAYS, ..Faults::NONE }, seed);
        assert!(result.is_ok() && disk.read(AT, BYTES) == noise(1));
        let (disk, result, _) = write_over(Faults { bit_flip: ALWAYS, ..Faults::NONE }, seed);
        assert!(result.is_ok() && bits_apart(&disk.read(AT, BYTES), &noise(2)) == 1);
        let (disk, result, _) = write_over(Faults { misdirected: ALWAYS, ..Faults::NONE }, seed);
        let places = (0..=60).filter(|page| disk.read(page * PAGE, BYTES) == noise(2));
        assert!(result.is_ok() && matches!(places.collect::<Vec<_>>()[..], [page] if page * PAGE != AT));
    }
}

#[test]
fn silent_faults_of_a_read_leave_the_disk_as_it_is() {
    for seed in 0..20 {
        let (came, result) = read_back(Faults { bit_flip: ALWAYS, ..Faults::NONE }, seed);
        assert!(result.is_ok() && bits_apart(&came, &noise(2)) == 1);
        let (came, result) = read_back(Faults { stale: ALWAYS, ..Faults::NONE }, seed);
        assert!(result.is_ok() && came == noise(1));
        let (came, result) = read_back(Faults { misdirected: ALWAYS, ..Faults::NONE }, seed);
        assert!(result.is_ok() && came != noise(2));
    }
}

#[test]
fn what_hangs_ends_when_it_is_told_to() {
    let disk = Disk::new(DEVICE_BYTES);
    let mut device = Faulty::new(&disk, 2, Faults { hang: ALWAYS, ..Faults::NONE }, 1);
    device.submit(Io::write(IoId(1), AT, memory_of(&noise(2)))).expect("room");
    device.submit(Io::flush(IoId(2))).expect("room");
    assert!(run(&mut device).is_empty() && device.hung() == 2 && device.next_due().is_none());
    let refused = device.submit(Io::flush(IoId(3))).expect_err("hung operations take room");
    assert_eq!(refused.id, IoId(3));
    device.release_hung();
    let ended: Vec<u64> = run(&mut device).into_iter().map(|ended| ended.id.0).collect();
    assert_eq!(ended, [1, 2]);
    assert!(disk.read(AT, BYTES) == noise(2));
}

#[test]
fn operations_end_in_order_unless_they_are_late_or_reordered() {
    let order = |faults: Faults| {
        let mut device = Faulty::new(&Disk::new(DEVICE_BYTES), 64, faults, 3);
        (0..64).for_each(|id| device.submit(Io::flush(IoId(id))).expect("room"));
        let ended: Vec<u64> = run(&mut device).into_iter().map(|ended| ended.id.0).collect();
        (ended.is_sorted(), device.now)
    };
    let (sorted, prompt) = order(Faults::NONE);
    assert!(sorted && prompt < Time(200));
    assert!(!order(Faults { reorder: PER / 4, ..Faults::NONE }).0);
    let (sorted, late) = order(Faults { delay: PER / 4, ..Faults::NONE });
    assert!(!sorted && late > Time(100_000));
}

#[test]
fn a_device_that_vanishes_fails_everything_until_it_is_back() {
    let disk = Disk::new(DEVICE_BYTES);
    let mut device = Faulty::new(&disk, 8, Faults { hang: PER / 2, ..Faults::NONE }, 1);
    (0..4).for_each(|id| device.submit(Io::flush(IoId(id))).expect("room"));
    device.kick().expect("a kick of memory");
    device.vanish();
    device.submit(Io::flush(IoId(4))).expect("room");
    let ended = run(&mut device);
    assert!(ended.len() == 5 && ended.into_iter().all(|ended| code(ended.result) == Some(libc::ENODEV)));
    assert_eq!(device.injected().of(Fault::Gone), 5);
    device.come_back();
    device.set_faults(Faults::NONE);
    one(&mut device, Io::flush(IoId(5))).expect("it is back");
}

#[test]
fn a_kill_leaves_writes_under_way_whole_in_part_or_not_at_all() {
    let mut left = BTreeSet::new();
    for seed in 0..40 {
        let disk = Disk::new(DEVICE_BYTES);
        disk.write(AT, &noise(1));
        let mut device = Faulty::new(&disk, 8, Faults::NONE, seed);
        let memory = memory_of(&noise(2));
        device.submit(Io::write(IoId(1), AT, memory.clone())).expect("room");
        device.kick().expect("a kick of memory");
        device.submit(Io::write(IoId(2), 0, memory.clone())).expect("room");
        device.kill();
        memory.fill(0, &[7; BYTES]);
        let found = disk.read(AT, BYTES);
        left.insert(if found == noise(1) {
            "nothing"
        } else if found == noise(2) {
            "all"
        } else {
            "part"
        });
        assert!(disk.read(0, BYTES) == [0; BYTES], "what has not begun never lands");
        let mut again = Faulty::new(&disk, 8, Faults::NONE, seed);
        let came = memory_of(&[0; BYTES]);
        one(&mut again, Io::read(IoId(1), AT, came.clone())).expect("a new process has it open");
        assert!(came.bytes_now(0..BYTES) == found);
    }
    assert_eq!(left, BTreeSet::from(["all", "nothing", "part"]));
}

/// What ended how, by name and error.
type Ended = Vec<(u64, Option<i32>)>;

/// Random operations under a plan: what ended how, and what is on the disk.
fn scramble(faults: Faults, seed: u64) -> (Ended, Vec<u8>, Injected) {
    let disk = Disk::new(DEVICE_BYTES);
    let mut device = Faulty::new(&disk, 16, faults, seed);
    let mut rng = Rng::with_seed(seed);
    let mut out = Vec::new();
    for id in 0..400 {
        let (offset, memory) = (rng.u64(0..60) * PAGE, memory_of(&noise(id)));
        let io = match rng.u8(0..8) {
            0 => Io::flush(IoId(id)),
            1 => Io::discard(IoId(id), offset, PAGE),
            2..5 => Io::read(IoId(id), offset, memory),
            _ => Io::write(IoId(id), offset, memory),
        };
        if device.submit(io).is_err() {
            out.append(&mut run(&mut device));
        }
    }
    device.release_hung();
    out.append(&mut run(&mut device));
    let ended = out.into_iter().map(|ended| (ended.id.0, code(ended.result))).collect();
    (ended, disk.read(0, DEVICE_BYTES as usize), device.kill())
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let faults = || Faults { hang: 50, ..Faults::all(300) };
    for seed in 0..10 {
        assert!(scramble(faults(), seed) == scramble(faults(), seed), "seed {seed}");
    }
    assert!(scramble(faults(), 1) != scramble(faults(), 2));
}

#[test]
fn among_all_faults_each_happens_and_each_operation_ends_once() {
    let mut injected = Injected::default();
    for seed in 0..20 {
        let (ended, _, seen) = scramble(Faults { hang: 50, ..Faults::all(300) }, seed);
        let distinct: BTreeSet<u64> = ended.iter().map(|(id, _)| *id).collect();
        assert_eq!(distinct.len(), ended.len(), "seed {seed}: one ended twice");
        injected.add(&seen);
    }
    for fault in Fault::ALL {
        assert_eq!(injected.of(fault) > 0, fault != Fault::Gone, "{fault:?}: {injected:?}");
    }
}

#[test]
fn memory_that_a_read_fills_is_no_other_operations() {
    let mapping = Mapping::anonymous(2 * PAGE).expect("memory");
    let mut device = Faulty::new(&Disk::new(DEVICE_BYTES), 8, Faults::NONE, 1);
    let first = |bytes| Memory::new(&mapping, 0, bytes);
    device.submit(Io::write(IoId(1), 0, first(PAGE_BYTES))).expect("room");
    device.submit(Io::write(IoId(2), AT, first(2 * PAGE_BYTES))).expect("two may write the same");
    let mut panics = |io: Io| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| device.submit(io))).is_err();
    assert!(panics(Io::read(IoId(3), AT, Memory::new(&mapping, PAGE_BYTES, PAGE_BYTES))));
    assert!(panics(Io::flush(IoId(2))));
}

#[test]
fn what_a_flush_covered_outlasts_a_kill_and_a_power_cut() {
    let mut survived = 0;
    for seed in 0..200 {
        let disk = Disk::new(DEVICE_BYTES);
        let mut device = Faulty::new(&disk, 16, Faults::loud(800), seed);
        let (mut done, mut covered) = (Vec::new(), 0);
        for page in 0..32 {
            let content = vec![page as u8 + 1; PAGE_BYTES];
            if one(&mut device, Io::write(IoId(page), page * PAGE, memory_of(&content))).is_ok() {
                done.push((page, content));
            }
            if page % 5 == 4 {
                // Begun after the flush, and so not covered by it.
                let before = done.len();
                device.submit(Io::flush(IoId(100))).expect("room");
                device.submit(Io::write(IoId(101), 40 * PAGE, memory_of(&[9; BYTES]))).expect("room");
                let ended = run(&mut device);
                if ended.iter().any(|ended| ended.id == IoId(100) && ended.result.is_ok()) {
                    covered = before;
                }
            }
        }
        device.kill();
        disk.power_cut(seed);
        for (page, content) in &done[..covered] {
            assert!(disk.read(page * PAGE, PAGE_BYTES) == *content, "seed {seed}, page {page}");
            survived += 1;
        }
    }
    assert!(survived > 2000, "{survived}");
}
