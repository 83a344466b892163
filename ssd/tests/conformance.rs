//! What every device must do, asked of each: io_uring, threads, SPDK over a stand-in, memory, and the faulty twin without faults.
//!
//! `LAPIS_TEST_NAMESPACE` names an NVMe namespace (`/dev/ng0n1` or `/dev/nvme0n1`) of which the first 4 MiB may be lost:
//! then io_uring, threads and NVMe commands are asked over it too. One test at a time has it (`--test-threads=1`).

#[allow(unsafe_code, dead_code, reason = "a library is called by its declarations, and other tests call more of it")]
mod standin;
mod subjects;

use std::{
    cell::RefCell,
    collections::BTreeSet,
    io::ErrorKind,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use lapis_ssd::{
    device::{Completion, Device, DeviceFile, Io, IoId, IoKind, Memory, Waits},
    engine::Engine,
};
use proptest::{prelude::*, test_runner::TestRunner};
use rustix::event::{PollFd, PollFlags, Timespec};
use subjects::{
    COMMANDS, DEPTH, DEVICE_BYTES, Driven, Recipe, STUCK, Subject, engine_subjects, files, filled, made, mapping,
    noise, opened, real_subjects, subjects,
};

const PAGE: usize = 4096;

#[test]
fn what_is_written_is_read_back() {
    let pages = DEVICE_BYTES as usize / PAGE;
    let steps = proptest::collection::vec((0..pages, 1..64usize, any::<bool>(), any::<u64>()), 1..DEPTH);
    for mut subject in subjects() {
        let name = subject.name.clone();
        let mut model = vec![0; DEVICE_BYTES as usize];
        let state = RefCell::new((&mut subject, &mut model));
        let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) };
        let ran = TestRunner::new(config).run(&steps, |steps| {
            let (subject, model) = &mut *state.borrow_mut();
            for (page, count, is_write, seed) in steps {
                let (offset, bytes) = (page * PAGE, count.min(pages - page) * PAGE);
                let (place, content) = (offset..offset + bytes, noise(seed, bytes));
                let memory = filled(&content);
                if is_write {
                    model[place].copy_from_slice(&content);
                    subject.submit(Io::write(IoId(seed), offset as u64, memory));
                    subject.all_well(1);
                } else {
                    subject.submit(Io::read(IoId(seed), offset as u64, memory.clone()));
                    subject.all_well(1);
                    prop_assert!(memory.mapping.to_vec(0, bytes) == model[place]);
                }
            }
            Ok(())
        });
        ran.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn many_in_flight_end_once_each_and_one_too_many_is_given_back() {
    const ROUNDS: usize = 20;
    let place = |slot: usize| slot * 4 * PAGE;
    for mut subject in subjects() {
        let name = subject.name.clone();
        assert_eq!((subject.device().depth(), subject.device().bytes()), (DEPTH, DEVICE_BYTES), "{name}");
        for round in 0..ROUNDS {
            let id = |slot| (round * DEPTH + slot) as u64;
            for slot in 0..DEPTH {
                let memory = filled(&noise(id(slot), 4 * PAGE));
                subject.submit(Io::write(IoId(id(slot)), place(slot) as u64, memory));
            }
            let refused = subject.device().submit(Io::flush(IoId(u64::MAX))).expect_err("it is full");
            assert_eq!((refused.id, refused.kind), (IoId(u64::MAX), IoKind::Flush), "{name}");
            let ended = subject.ended(DEPTH);
            assert!(ended.iter().all(|ended| ended.result.is_ok()), "{name}: {ended:?}");
            let ids: BTreeSet<u64> = ended.iter().map(|ended| ended.id.0).collect();
            assert_eq!(ids, (0..DEPTH).map(id).collect(), "{name}");
        }
        let all = mapping(place(DEPTH));
        for slot in 0..DEPTH {
            let memory = Memory::new(&all, place(slot), 4 * PAGE);
            subject.submit(Io::read(IoId(slot as u64), place(slot) as u64, memory));
        }
        subject.all_well(DEPTH);
        for slot in 0..DEPTH {
            let expected = noise(((ROUNDS - 1) * DEPTH + slot) as u64, 4 * PAGE);
            assert!(all.to_vec(place(slot), 4 * PAGE) == expected, "{name}: slot {slot}");
        }
    }
}

#[test]
fn room_comes_back_with_each_completion() {
    const COUNT: usize = 20 * DEPTH;
    for mut subject in subjects() {
        let (mut submitted, mut out) = (0, Vec::new());
        while out.len() < COUNT {
            while submitted < COUNT {
                let offset = (submitted * PAGE) as u64;
                match subject.device().submit(Io::write(IoId(submitted as u64), offset, filled(&[1; PAGE]))) {
                    Ok(()) => submitted += 1,
                    Err(_) => break,
                }
            }
            subject.device().kick().expect("a kick");
            subject.pass();
            subject.device().poll(&mut out).expect("a poll");
            assert!(submitted - out.len() <= DEPTH, "{}", subject.name);
        }
        let ids: BTreeSet<u64> = out.iter().map(|ended| ended.id.0).collect();
        assert_eq!((ids.len(), out.len()), (COUNT, COUNT), "{}", subject.name);
    }
}

#[test]
fn registered_memory_and_any_other_give_the_same() {
    for mut subject in subjects() {
        let name = subject.name.clone();
        let (known, other) = (mapping(64 * PAGE), mapping(64 * PAGE));
        let registered = subject.device().register(&known);
        let known_bytes = match &subject.driven {
            Driven::Real { engine: Engine::Uring(ring), .. } => Some(ring.registered_bytes()),
            Driven::Real { engine: Engine::Passthrough(ring), .. } => Some(ring.registered_bytes()),
            _ => None,
        };
        if let Some(bytes) = known_bytes {
            match registered {
                Ok(()) => assert_eq!(bytes, known.len(), "{name}"),
                // A small limit of locked memory: then all memory is as any other.
                Err(error) => println!("{name}: not registered: {error:?}"),
            }
        }
        known.copy_in(0, &noise(1, 64 * PAGE));
        subject.submit(Io::write(IoId(1), 0, Memory::new(&known, 3 * PAGE, 32 * PAGE)));
        subject.all_well(1);
        subject.submit(Io::read(IoId(2), 0, Memory::new(&other, 0, 32 * PAGE)));
        subject.submit(Io::read(IoId(3), 0, Memory::new(&known, 32 * PAGE, 32 * PAGE)));
        subject.all_well(2);
        let expected = &noise(1, 64 * PAGE)[3 * PAGE..35 * PAGE];
        assert!(other.to_vec(0, 32 * PAGE) == expected, "{name}");
        assert!(known.to_vec(32 * PAGE, 32 * PAGE) == expected, "{name}");
        for mapping in [&known, &other] {
            subject.device().register(mapping).unwrap_or_else(|error| println!("{name}: not registered: {error:?}"));
        }
        subject.submit(Io::write(IoId(4), 0, Memory::new(&other, PAGE, PAGE)));
        subject.submit(Io::write(IoId(5), PAGE as u64, Memory::new(&known, PAGE, PAGE)));
        subject.all_well(2);
    }
}

#[test]
fn what_leaves_the_device_is_an_error_and_the_rest_goes_on() {
    for mut subject in subjects() {
        let beyond = [DEVICE_BYTES, DEVICE_BYTES - PAGE as u64, u64::MAX - 4095];
        for (id, offset) in (0..).zip(beyond) {
            subject.submit(Io::write(IoId(id), offset, filled(&[1; 2 * PAGE])));
            subject.submit(Io::discard(IoId(id + 10), offset, 2 * PAGE as u64));
        }
        subject.submit(Io::write(IoId(20), DEVICE_BYTES - PAGE as u64, filled(&[2; PAGE])));
        for Completion { id, result } in subject.ended(7) {
            assert_eq!(result.is_ok(), id == IoId(20), "{}: {id:?}: {result:?}", subject.name);
        }
    }
}

/// Places are the log's own: one that is not made of pages is a mistake of ours, and reaches no device.
#[test]
fn what_is_not_made_of_pages_is_refused_before_the_device_hears_of_it() {
    const SECTOR: usize = 512;
    let page = PAGE as u64;
    for mut subject in subjects() {
        let name = subject.name.clone();
        let memory = |start: usize, bytes: usize| {
            let memory = filled(&[1; 3 * PAGE]);
            Some(Memory { range: start..start + bytes, ..memory })
        };
        let cases = [
            ("offset", IoKind::Write, SECTOR as u64, page, memory(0, PAGE)),
            ("length", IoKind::Write, 0, SECTOR as u64, memory(0, SECTOR)),
            ("memory", IoKind::Write, 0, page, memory(SECTOR, PAGE)),
            ("memory's length", IoKind::Write, 0, page, memory(0, 2 * PAGE)),
            ("memory beyond its mapping", IoKind::Write, 0, page, memory(3 * PAGE, PAGE)),
            ("no memory", IoKind::Write, 0, page, None),
            ("where it reads", IoKind::Read, SECTOR as u64, page, memory(0, PAGE)),
            ("where it discards", IoKind::Discard, SECTOR as u64, page, None),
            ("what it discards", IoKind::Discard, 0, SECTOR as u64, None),
        ];
        for (id, (what, kind, offset, bytes, memory)) in (0..).zip(cases) {
            let io = Io { id: IoId(id), kind, offset, bytes, memory };
            let given = catch_unwind(AssertUnwindSafe(|| {
                subject.submit(io);
                subject.ended(1)
            }));
            assert!(given.is_err(), "{name}: {what}: {given:?}");
        }
        let whole = filled(&vec![2; DEVICE_BYTES as usize]);
        subject.submit(Io::read(IoId(100), 0, whole.clone()));
        subject.all_well(1);
        assert!(whole.mapping.to_vec(0, DEVICE_BYTES as usize).iter().all(|byte| *byte == 0), "{name}");
    }
}

/// The file was cut behind our back.
#[test]
fn a_read_that_meets_the_end_of_the_file_is_an_error() {
    for mut subject in made(files()) {
        let file = std::fs::File::options().write(true).open(&subject.path).expect("it is there");
        file.set_len(DEVICE_BYTES / 2 + 100).expect("a shorter file");
        subject.submit(Io::read(IoId(1), DEVICE_BYTES / 2 - 4 * PAGE as u64, filled(&[0; 8 * PAGE])));
        subject.submit(Io::read(IoId(2), DEVICE_BYTES - PAGE as u64, filled(&[0; PAGE])));
        subject.submit(Io::read(IoId(3), 0, filled(&[0; PAGE])));
        for Completion { id, result } in subject.ended(3) {
            let kind = result.err().map(|error| error.kind());
            let expected = (id != IoId(3)).then_some(ErrorKind::UnexpectedEof);
            assert_eq!(kind, expected, "{}: {id:?}", subject.name);
        }
    }
}

#[test]
fn a_flush_and_a_discard_end_well_and_a_file_keeps_its_room() {
    for mut subject in subjects() {
        subject.submit(Io::write(IoId(1), 0, filled(&[1; 4 * PAGE])));
        subject.all_well(1);
        subject.submit(Io::flush(IoId(2)));
        subject.submit(Io::discard(IoId(3), 0, DEVICE_BYTES));
        subject.all_well(2);
        // A controller is no file: what the stand-in keeps its bytes in is its own business.
        if subject.dir.is_some() && !subject.is_spdk() {
            let found = std::fs::metadata(&subject.path).expect("it is there");
            assert!(found.blocks() * 512 >= DEVICE_BYTES, "{}: {} blocks", subject.name, found.blocks());
        }
    }
}

#[test]
fn a_bell_ends_a_wait_and_so_does_its_timeout() {
    for mut subject in engine_subjects() {
        let Driven::Real { engine, bell } = &mut subject.driven else { unreachable!("they are real") };
        let bell = bell.as_fd();
        let heard = |engine: &mut Engine| {
            while !is_readable(bell) {
                engine.wait(bell, Some(STUCK)).expect("a wait");
                engine.poll(&mut Vec::new()).expect("a poll");
            }
            rustix::io::read(bell, &mut [0; 8]).expect("it rang");
        };
        let start = Instant::now();
        for _ in 0..3 {
            engine.wait(bell, Some(Duration::from_millis(1))).expect("a wait");
            ring(bell);
            // Rung before the wait: it does not sleep.
            engine.wait(bell, None).expect("a wait");
            engine.poll(&mut Vec::new()).expect("a poll");
            heard(engine);
            // Rung during the wait, or before: either way it is heard.
            std::thread::scope(|scope| {
                scope.spawn(|| ring(bell));
                heard(engine);
            });
        }
        assert!(start.elapsed() < STUCK, "{}: the bell was not what ended the waits", subject.name);
    }
}

fn ring(bell: BorrowedFd<'_>) {
    rustix::io::write(bell, &1u64.to_ne_bytes()).expect("a bell");
}

fn is_readable(bell: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(bell, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec::default())).expect("a poll") > 0
}

#[test]
fn a_device_with_operations_under_way_is_dropped_at_once() {
    // A namespace stays claimed until this process ends: one engine has it, and this test comes last.
    let recipes = files().into_iter().chain([Recipe::Memory, Recipe::Faulty, Recipe::Namespace(COMMANDS)]);
    for mut subject in made(recipes) {
        let memory = mapping(64 * PAGE);
        for slot in 0..DEPTH {
            subject.submit(Io::write(IoId(slot as u64), 0, Memory::new(&memory, 0, 64 * PAGE)));
        }
        subject.device().kick().expect("a kick");
        let (name, start) = (subject.name.clone(), Instant::now());
        drop(subject);
        assert!(start.elapsed() < Duration::from_secs(5), "{name}: {:?}", start.elapsed());
        // Still mapped, whatever the device does with it.
        memory.copy_in(0, &[1; PAGE]);
    }
}

#[test]
fn an_idle_device_gives_its_file_back() {
    for mut subject in real_subjects() {
        subject.submit(Io::write(IoId(1), 0, filled(&[3; PAGE])));
        subject.all_well(1);
        let Subject { name, driven, path, dir } = subject;
        drop(driven);
        // The claim on a block device goes with the last descriptor: threads may have theirs for a moment yet.
        let opened = if dir.is_some() { DeviceFile::open(&path, Some(DEVICE_BYTES)) } else { opened(&path) };
        opened.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// The daemon opens its devices before it starts the threads that drive them.
#[test]
fn a_device_may_be_made_by_one_thread_and_used_by_another() {
    for mut subject in engine_subjects() {
        let known = mapping(PAGE);
        if let Err(error) = subject.device().register(&known) {
            println!("{}: not registered: {error:?}", subject.name);
        }
        let used = std::thread::spawn(move || {
            subject.submit(Io::write(IoId(1), 0, Memory::new(&known, 0, PAGE)));
            subject.all_well(1);
        });
        used.join().expect("it serves there");
    }
}
