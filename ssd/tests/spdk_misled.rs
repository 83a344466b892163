//! What SPDK does not say by itself: that memory is not reached, that a controller hangs, that another one is in its place.

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
use lapis_ssd::device::{Device, Io, IoId, Memory, Waits};
use scene::{MIB, PAGE, STUCK, Scene, filled, noise};
use standin::{Reach, Standin};

/// What registration says of itself is not to be believed: newer SPDK says that all is well whatever came of it, and without an
/// IOMMU it believes that memory stays where it lies.
#[test]
fn memory_that_a_controller_does_not_reach_for_good_is_copied_whatever_registration_says() {
    let _alone = Standin::alone();
    for reach in [Reach::Nowhere, Reach::Physical] {
        let Some(mut scene) = Scene::new(512, 4) else { return };
        let (extent, before) = (Mapping::anonymous(6 * MIB as u64).expect("memory"), scene.standin.registered());
        scene.standin.reach(reach);
        let registered = scene.device.register(&extent);
        scene.standin.reach(Reach::Iommu);
        let said = registered.expect_err("it cannot be reached").to_string();
        assert!(said.contains("registering memory with SPDK"), "{reach:?}: {said}");
        assert_eq!((scene.device.registered_bytes(), scene.standin.registered()), (0, before), "{reach:?}");
        let content = noise(6, 6 * MIB);
        extent.copy_in(0, &content);
        scene.submit(Io::write(IoId(1), 0, Memory::new(&extent, 0, 6 * MIB)));
        scene.all_well(1);
        extent.copy_in(0, &vec![0; 6 * MIB]);
        scene.submit(Io::read(IoId(2), 0, Memory::new(&extent, 0, 6 * MIB)));
        scene.all_well(1);
        assert!(extent.to_vec(0, 6 * MIB) == content, "{reach:?}");
        scene.ends_clean();
    }
}

#[test]
fn a_controller_that_does_not_answer_is_reset_and_serves_on() {
    let Some(mut scene) = Scene::new(512, 8) else { return };
    scene.device.set_patience(Duration::from_millis(200));
    scene.submit(Io::write(IoId(0), 0, filled(&noise(1, MIB))));
    scene.all_well(1);
    scene.plan("hang_after=3");
    for id in 0..8 {
        scene.submit(Io::write(IoId(id), 8 * MIB as u64, filled(&[1; PAGE])));
    }
    let (start, ended) = (Instant::now(), scene.ended(8));
    let failed: Vec<_> = ended.values().filter_map(|result| result.as_ref().err()).collect();
    assert_eq!((failed.len(), scene.standin.count(&scene.address, "resets")), (5, 1), "{ended:?}");
    assert!(failed.iter().all(|(kind, _)| *kind == ErrorKind::ConnectionAborted), "{ended:?}");
    assert!(start.elapsed() >= Duration::from_millis(200), "it was given time to answer");
    scene.plan("");
    let memory = filled(&vec![0; MIB]);
    scene.submit(Io::read(IoId(3), 0, memory.clone()));
    scene.all_well(1);
    assert!(memory.mapping.to_vec(0, MIB) == noise(1, MIB));
    scene.ends_clean();
}

/// A slow one is not one that hangs: each command is given its time.
#[test]
fn a_controller_that_is_slow_is_not_reset() {
    let Some(mut scene) = Scene::new(512, 4) else { return };
    scene.device.set_patience(Duration::from_millis(700));
    scene.plan("seed=2,delay_us=300000,depth=2");
    for id in 0..4 {
        scene.submit(Io::write(IoId(id), 0, filled(&vec![1; MIB / 2])));
    }
    scene.all_well(4);
    assert_eq!(scene.standin.count(&scene.address, "resets"), 0);
    scene.ends_clean();
}

#[test]
fn another_controller_in_the_place_of_one_that_was_pulled_is_left_as_it_is() {
    let Some(mut scene) = Scene::new(512, 4) else { return };
    let count = |scene: &Scene, of: &str| scene.standin.count(&scene.address, of);
    scene.submit(Io::write(IoId(1), 0, filled(&noise(1, MIB))));
    scene.all_well(1);
    scene.standin.fail(&scene.address, true);
    // Something is wanted of it, so that it is looked for.
    let wanted = |scene: &mut Scene| {
        scene.submit(Io::write(IoId(2), 0, filled(&noise(2, MIB))));
        let ended = scene.ended(1).remove(&2).expect("it ended");
        scene.device.wait(scene.bell.as_fd(), Some(Duration::from_millis(50))).expect("a wait");
        ended
    };
    assert!(wanted(&mut scene).is_err());
    scene.standin.swap(&scene.address, "somebody else's");
    scene.standin.plug(&scene.address, true);
    let (start, writes) = (Instant::now(), count(&scene, "writes"));
    while count(&scene, "connects") < 3 {
        assert_eq!(wanted(&mut scene).map_err(|(kind, _)| kind), Err(ErrorKind::NotConnected));
        assert!(start.elapsed() < STUCK, "it is not looked for");
    }
    assert_eq!((count(&scene, "writes"), count(&scene, "attached")), (writes, 0));
    scene.standin.swap(&scene.address, &scene.address);
    while wanted(&mut scene).is_err() {
        assert!(start.elapsed() < STUCK, "it is never found again");
    }
    scene.ends_clean();
}
