//! SPDK's engine over the stand-in, with what only it has: memory that must be registered, controllers that run full, fail,
//! hang, go and come back. After each the stand-in is asked whether anything was called wrongly.

#[allow(dead_code, reason = "other tests do more with it")]
mod scene;
#[allow(unsafe_code, dead_code, reason = "a library is called by its declarations")]
mod standin;

use std::{
    io::ErrorKind,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use lapis_arena::Mapping;
use lapis_ssd::{
    SsdError,
    device::{Device, Io, IoId, IoKind, Memory, Waits},
    spdk::{NoSpdk, Spdk},
};
use scene::{DEVICE_BYTES, MIB, PAGE, STUCK, Scene, filled, noise};
use standin::{DriveShape, Standin};

#[test]
fn registered_memory_is_reached_and_its_edges_are_copied() {
    let _alone = Standin::alone();
    for sector in [512, 4096] {
        let Some(mut scene) = Scene::new(sector, 8) else { return };
        let extent = Mapping::anonymous(9 * MIB as u64).expect("memory");
        let before = scene.standin.registered();
        scene.device.register(&extent).expect("it is registered");
        let inner = scene.device.registered_bytes();
        assert!(inner >= 6 * MIB && inner.is_multiple_of(2 * MIB) && inner <= 9 * MIB, "{inner}");
        assert_eq!(scene.standin.registered() - before, inner as u64);
        scene.device.register(&extent).expect("it is known");
        assert_eq!(scene.device.registered_bytes(), inner, "once");
        let content = noise(1, 9 * MIB);
        extent.copy_in(0, &content);
        scene.submit(Io::write(IoId(1), 0, Memory::new(&extent, 0, 9 * MIB)));
        scene.all_well(1);
        assert!(scene.standin.count(&scene.address, "writes") >= 72, "in pieces of what the controller takes");
        let back = Memory::new(&Mapping::anonymous(9 * MIB as u64).expect("memory"), 0, 9 * MIB);
        scene.submit(Io::read(IoId(2), 0, back.clone()));
        extent.copy_in(0, &vec![0; 9 * MIB]);
        scene.submit(Io::read(IoId(3), 0, Memory::new(&extent, 0, 9 * MIB)));
        scene.all_well(2);
        assert!(back.mapping.to_vec(0, 9 * MIB) == content && extent.to_vec(0, 9 * MIB) == content);
        let standin = scene.standin;
        scene.ends_clean();
        assert_eq!(standin.registered(), before, "given back");
    }
}

#[test]
fn two_controllers_share_what_is_registered() {
    let _alone = Standin::alone();
    let (Some(mut one), Some(mut other)) = (Scene::new(512, 4), Scene::new(512, 4)) else { return };
    let (standin, before) = (one.standin, one.standin.registered());
    let extent = Mapping::anonymous(8 * MIB as u64).expect("memory");
    one.device.register(&extent).expect("it is registered");
    other.device.register(&extent).expect("it is known already");
    drop(one.device);
    assert!(standin.registered() > before, "the other has it yet");
    other.submit(Io::write(IoId(1), 0, Memory::new(&extent, 4 * MIB, MIB)));
    other.all_well(1);
    other.ends_clean();
    assert_eq!(standin.registered(), before);
}

#[test]
fn a_queue_that_is_full_takes_the_rest_later() {
    let Some(mut scene) = Scene::new(512, 16) else { return };
    scene.plan("seed=3,depth=3,nomem_every=5,delay_us=50");
    for id in 0..16 {
        scene.submit(Io::write(IoId(id), id * MIB as u64, filled(&noise(id, MIB / 2))));
    }
    scene.all_well(16);
    for id in 0..16 {
        let memory = filled(&vec![0; MIB / 2]);
        scene.submit(Io::read(IoId(id), id * MIB as u64, memory.clone()));
        scene.all_well(1);
        assert!(memory.mapping.to_vec(0, MIB / 2) == noise(id, MIB / 2), "{id}");
    }
    scene.ends_clean();
}

#[test]
fn commands_that_end_in_any_order_make_whole_operations() {
    let Some(mut scene) = Scene::new(4096, 8) else { return };
    scene.plan("seed=11,delay_us=300");
    for round in 0..8 {
        for id in 0..8 {
            scene.submit(Io::write(IoId(id), id * 2 * MIB as u64, filled(&noise(round * 8 + id, 2 * MIB))));
        }
        scene.all_well(8);
    }
    for id in 0..8 {
        let memory = filled(&vec![0; 2 * MIB]);
        scene.submit(Io::read(IoId(id), id * 2 * MIB as u64, memory.clone()));
        scene.all_well(1);
        assert!(memory.mapping.to_vec(0, 2 * MIB) == noise(56 + id, 2 * MIB), "{id}");
    }
    scene.ends_clean();
}

#[test]
fn what_the_controller_refuses_fails_once_and_in_words() {
    let Some(mut scene) = Scene::new(512, 8) else { return };
    scene.plan("fail_read=3,status=0x281");
    scene.submit(Io::read(IoId(1), 0, filled(&vec![0; MIB])));
    let ended = scene.ended(1);
    let (_, words) = ended[&1].as_ref().expect_err("a third of its commands fail");
    assert!(words.contains("the medium cannot be read there (status 2/81)"), "{words}");
    scene.plan("fail_write=1,status=0x20");
    scene.submit(Io::write(IoId(2), 0, filled(&vec![0; PAGE])));
    assert_eq!(scene.ended(1)[&2].as_ref().map_err(|(kind, _)| *kind), Err(ErrorKind::ReadOnlyFilesystem));
    scene.plan("fail_flush=1,fail_discard=1,status=0x01");
    scene.submit(Io::flush(IoId(3)));
    scene.submit(Io::discard(IoId(4), 0, DEVICE_BYTES));
    let ended = scene.ended(2);
    assert!(ended[&3].is_err() && ended[&4].is_ok(), "a discard is a hint: {ended:?}");
    scene.plan("");
    scene.submit(Io::flush(IoId(5)));
    scene.all_well(1);
    scene.ends_clean();
}

#[test]
fn discards_and_flushes_reach_the_controller() {
    let Some(mut scene) = Scene::new(4096, 4) else { return };
    scene.submit(Io::discard(IoId(1), 4 * MIB as u64, 8 * MIB as u64));
    scene.submit(Io::flush(IoId(2)));
    scene.all_well(2);
    let count = |of: &str| scene.standin.count(&scene.address, of);
    assert_eq!((count("discards"), count("flushes")), (1, 1));
    scene.ends_clean();
}

#[test]
fn a_controller_that_fails_is_reset_and_what_it_had_ends() {
    let Some(mut scene) = Scene::new(512, 8) else { return };
    for round in 0..20 {
        scene.plan(&format!("seed={round},delay_us=200,fail_after={}", 1 + round * 3));
        for id in 0..8 {
            scene.submit(Io::write(IoId(id), id * MIB as u64, filled(&noise(id, MIB))));
        }
        let ended = scene.ended(8);
        let failed: Vec<_> = ended.values().filter_map(|result| result.as_ref().err()).collect();
        assert!(!failed.is_empty(), "round {round}: {ended:?}");
        for (kind, words) in failed {
            assert_eq!(*kind, ErrorKind::ConnectionAborted, "{words}");
        }
        assert_eq!(scene.standin.count(&scene.address, "resets"), round + 1);
    }
    scene.plan("");
    scene.submit(Io::write(IoId(1), 0, filled(&noise(1, MIB))));
    scene.all_well(1);
    scene.ends_clean();
}

#[test]
fn an_idle_controller_that_fails_is_seen_and_reset() {
    let Some(mut scene) = Scene::new(512, 4) else { return };
    scene.submit(Io::flush(IoId(1)));
    scene.all_well(1);
    scene.standin.fail(&scene.address, false);
    let start = Instant::now();
    while scene.standin.count(&scene.address, "resets") == 0 {
        scene.device.wait(scene.bell.as_fd(), Some(Duration::from_millis(50))).expect("a wait");
        assert!(start.elapsed() < STUCK, "nobody looked");
    }
    scene.submit(Io::flush(IoId(2)));
    scene.all_well(1);
    scene.ends_clean();
}

#[test]
fn a_controller_that_is_pulled_ends_all_with_errors_and_serves_again_when_it_is_back() {
    let Some(mut scene) = Scene::new(512, 8) else { return };
    scene.submit(Io::write(IoId(1), 0, filled(&noise(9, MIB))));
    scene.all_well(1);
    scene.plan("seed=5,delay_us=500,remove_after=12");
    for id in 0..8 {
        scene.submit(Io::write(IoId(id), (1 + id) * MIB as u64, filled(&noise(id, MIB))));
    }
    let ended = scene.ended(8);
    assert!(ended.values().filter(|result| result.is_err()).count() >= 7, "{ended:?}");
    scene.submit(Io::flush(IoId(1)));
    assert_eq!(scene.ended(1)[&1].as_ref().map_err(|(kind, _)| *kind), Err(ErrorKind::NotConnected));
    assert_eq!(scene.standin.count(&scene.address, "attached"), 0, "it was given up");
    scene.plan("");
    scene.standin.plug(&scene.address, true);
    let start = Instant::now();
    loop {
        scene.submit(Io::flush(IoId(2)));
        if scene.ended(1)[&2].is_ok() {
            break;
        }
        assert!(start.elapsed() < STUCK, "it is never found again");
        scene.device.wait(scene.bell.as_fd(), Some(Duration::from_millis(50))).expect("a wait");
    }
    let memory = filled(&vec![0; MIB]);
    scene.submit(Io::read(IoId(3), 0, memory.clone()));
    scene.all_well(1);
    assert!(memory.mapping.to_vec(0, MIB) == noise(9, MIB));
    scene.ends_clean();
}

#[test]
fn a_controller_that_cannot_be_reset_is_given_up() {
    let Some(mut scene) = Scene::new(512, 4) else { return };
    scene.plan("reset_fails=1,fail_after=3,hang_after=1");
    for id in 0..4 {
        scene.submit(Io::write(IoId(id), 0, filled(&[1; PAGE])));
    }
    assert!(scene.ended(4).values().all(Result::is_err));
    assert_eq!(scene.standin.count(&scene.address, "attached"), 0);
    scene.ends_clean();
}

#[test]
fn a_controller_that_hangs_is_left_to_another_thread() {
    let Some(mut scene) = Scene::new(512, 4) else { return };
    scene.plan("hang_after=1");
    let mapping = Mapping::anonymous(MIB as u64).expect("memory");
    scene.submit(Io::read(IoId(1), 0, Memory::new(&mapping, 0, MIB)));
    scene.device.kick().expect("a kick");
    // Nothing comes: the thread sleeps a little between its looks, and hears the bell.
    rustix::io::write(&scene.bell, &1u64.to_ne_bytes()).expect("a bell");
    let start = Instant::now();
    scene.device.wait(scene.bell.as_fd(), None).expect("a wait");
    drop(mapping);
    let Scene { standin, address, device, .. } = scene;
    drop(device);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let start = Instant::now();
    while standin.count(&address, "attached") > 0 {
        assert!(start.elapsed() < STUCK, "it is never given up");
        std::thread::yield_now();
    }
    assert_eq!(standin.misuse(), None);
}

/// What a device made of a command that it did not answer is not known: old or new bytes, sector by sector, and no others.
#[test]
fn a_write_that_was_aborted_leaves_old_sectors_or_new_ones() {
    let Some(mut scene) = Scene::new(512, 4) else { return };
    let (old, new) = (noise(1, MIB), noise(2, MIB));
    for seed in 0..10 {
        scene.plan("");
        scene.submit(Io::write(IoId(1), 0, filled(&old)));
        scene.all_well(1);
        scene.plan(&format!("seed={seed},delay_us=100,fail_after=8"));
        scene.submit(Io::write(IoId(2), 0, filled(&new)));
        assert!(scene.ended(1)[&2].is_err());
        scene.plan("");
        let memory = filled(&vec![0; MIB]);
        scene.submit(Io::read(IoId(3), 0, memory.clone()));
        scene.all_well(1);
        let found = memory.mapping.to_vec(0, MIB);
        for (at, sector) in found.chunks(512).enumerate() {
            let place = at * 512..(at + 1) * 512;
            assert!(sector == &old[place.clone()] || sector == &new[place], "seed {seed}, sector {at}");
        }
    }
    scene.ends_clean();
}

#[test]
fn faults_of_all_kinds_by_seed_lose_nothing_and_break_no_rule() {
    let _alone = Standin::alone();
    let Some(mut scene) = Scene::new(512, 16) else { return };
    let extent = Mapping::anonymous(16 * MIB as u64).expect("memory");
    scene.device.register(&extent).expect("it is registered");
    for seed in 0..60u64 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (delay, nomem, fail) = (rng.u32(0..200), rng.u32(2..40), rng.u32(5..60));
        let reset = if rng.bool() { rng.u32(1..80) } else { 0 };
        scene.plan(&format!(
            "seed={seed},delay_us={delay},depth={},nomem_every={nomem},fail_read={fail},fail_write={fail},fail_after={reset}",
            rng.u32(1..64)
        ));
        let count = rng.usize(1..=16);
        for id in 0..count {
            let (at, bytes) = (rng.usize(0..3000) * PAGE, rng.usize(1..200) * PAGE);
            let memory = Memory::new(&extent, id * MIB, bytes.min(MIB));
            let io = match rng.u32(0..6) {
                0 => Io::flush(IoId(id as u64)),
                1 => Io::discard(IoId(id as u64), at as u64, bytes as u64),
                2 | 3 => Io::read(IoId(id as u64), at as u64, memory),
                _ => Io::write(IoId(id as u64), at as u64, memory),
            };
            assert!(io.kind == IoKind::Flush || io.bytes > 0);
            scene.submit(io);
        }
        assert_eq!(scene.ended(count).len(), count, "seed {seed}");
        assert_eq!(scene.standin.misuse(), None, "seed {seed}");
    }
    scene.ends_clean();
}

#[test]
fn a_controller_has_one_user_and_is_free_again_afterwards() {
    let Some(scene) = Scene::new(512, 4) else { return };
    let path = format!("pci:{}", scene.address);
    let again = Spdk::open(path.as_ref(), Some(scene.standin.folder()), 4).map(drop).expect_err("it is taken");
    assert!(matches!(&again, SsdError::Spdk { source: NoSpdk::Taken { .. }, .. }) && again.is_transient(), "{again:?}");
    let (standin, address) = (scene.standin, scene.address.clone());
    scene.ends_clean();
    drop(standin.open(&address, 4));
    assert_eq!(standin.misuse(), None);
}

#[test]
fn namespaces_that_no_log_can_lie_on_are_refused_in_words() {
    let Some(standin) = Standin::get() else { return };
    let whole = DriveShape::new(DEVICE_BYTES, 512);
    let cases: [(DriveShape, &str, &str); 6] = [
        (DriveShape::new(DEVICE_BYTES, 520), "", "sectors of 520 bytes"),
        (DriveShape::new(DEVICE_BYTES, 8192), "", "sectors of 8192 bytes"),
        (DriveShape { metadata: 8, ..whole }, "", "8 bytes of metadata"),
        (DriveShape { command_set: 1, ..whole }, "", "command set 1"),
        (DriveShape { command_set: 2, ..whole }, "", "command set 2"),
        (whole, "/2", "no active namespace 2"),
    ];
    for (shape, namespace, words) in cases {
        let address = Standin::address();
        standin.drive(&address, None, shape);
        let path = format!("pci:{address}{namespace}");
        let refused = Spdk::open(path.as_ref(), Some(standin.folder()), 4).map(drop).expect_err("refused");
        let SsdError::Spdk { source, .. } = &refused else { panic!("{refused:?}") };
        assert!(source.to_string().contains(words) && !refused.is_transient(), "{source}");
        assert_eq!(standin.count(&address, "attached"), 0, "it was let go");
    }
    let refused =
        Spdk::open("pci:0000:fe:00.0".as_ref(), Some(standin.folder()), 4).map(drop).expect_err("nothing there");
    assert!(refused.is_transient() && format!("{refused:?}").contains("Connect"), "{refused:?}");
    assert_eq!(standin.misuse(), None);
}

#[test]
fn memory_that_cannot_be_registered_is_copied() {
    let _alone = Standin::alone();
    let Some(mut scene) = Scene::new(512, 4) else { return };
    let small = Mapping::anonymous(MIB as u64).expect("memory");
    scene.device.register(&small).expect("nothing to register");
    assert_eq!(scene.device.registered_bytes(), 0);
    small.copy_in(0, &noise(4, MIB));
    scene.submit(Io::write(IoId(1), 0, Memory::new(&small, 0, MIB)));
    scene.all_well(1);
    small.copy_in(0, &vec![0; MIB]);
    scene.submit(Io::read(IoId(2), 0, Memory::new(&small, 0, MIB)));
    scene.all_well(1);
    assert!(small.to_vec(0, MIB) == noise(4, MIB));
    scene.ends_clean();
}
