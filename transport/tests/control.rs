//! A client's memory from both ends; and a client that writes anything anywhere in it at any time hurts only itself.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use lapis_arena::Mapping;
use lapis_config::{GpuId, Key, PoolId, SlotId};
use lapis_transport::{
    control::{BYTES, ControlClient, ControlDaemon, Counters, HAZARDS_OFFSET, TOUCHES, Touch, Warning},
    frame::{Completion, Request},
};

const SEED: u64 = 0x5c51_bb1e;
const ROUNDS: u32 = 60_000;

/// Positions, counters and flags most often, ring data and hazards now and then.
fn scribble(mapping: &Mapping, stop: &AtomicBool) -> u64 {
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut writes = 0;
    while !stop.load(Relaxed) {
        let words = if random.u8(..) < 128 { HAZARDS_OFFSET / 8 } else { BYTES as usize / 8 };
        let at = random.usize(..words) * 8;
        match random.u8(..4) {
            0 => mapping.store64(at, random.u64(..), Relaxed),
            1 => mapping.store64(at, random.u64(..1 << 20), Relaxed),
            2 => mapping.store64(at, mapping.load64(at, Relaxed) ^ 1 << random.u32(..64), Relaxed),
            _ => mapping.store64(at, mapping.load64(at, Relaxed).wrapping_add(random.u64(..64)), Relaxed),
        }
        writes += 1;
    }
    writes
}

/// A frame of many kinds, some of them honest, so that the parsers are reached.
fn request(random: &mut fastrand::Rng) -> Request {
    let keys = vec![Key::new(b"key"); random.usize(..64)];
    match random.u8(..3) {
        0 => Request::Prefetch { pool: PoolId(1), keys },
        1 => Request::Remove { token: 5, pool: PoolId(1), keys },
        _ => Request::Release { token: 9 },
    }
}

#[test]
fn the_daemon_lives_with_a_scribbling_client() {
    let mapping = Mapping::anonymous(BYTES).expect("memory");
    let mut daemon = ControlDaemon::new(mapping.clone());
    let client = ControlClient::new(&mapping).expect("fresh memory");
    let stop = Arc::new(AtomicBool::new(false));
    let scribbler = std::thread::spawn({
        let (mapping, stop) = (mapping.clone(), stop.clone());
        move || scribble(&mapping, &stop)
    });
    let mut random = fastrand::Rng::with_seed(SEED);
    let (mut faults, mut popped, mut requests) = (0u64, 0u64, client.rings().0);
    for round in 0..ROUNDS {
        // The honest half of the same client; its own faults are none of ours.
        let _ = requests.push(&request(&mut random));
        match daemon.pop_request() {
            Ok(request) => popped += u64::from(request.is_some()),
            Err(_) => {
                faults += 1;
                daemon.reset();
                requests = client.rings().0;
            }
        }
        daemon.push_completion(&Completion::Got { token: round.into(), hit: 1 });
        let mut touches = 0;
        daemon.drain_touches(64, &mut |_| touches += 1);
        assert!(touches <= 64);
        let _ = (daemon.client_sleeping(), daemon.has_requests(), daemon.counters());
        if round % 1000 == 0 {
            let mut named = 0;
            daemon.hazards().each(&mut |_| named += 1);
            assert!(named <= 8192);
        }
    }
    stop.store(true, Relaxed);
    let writes = scribbler.join().expect("the scribbler ended well");
    assert!(faults > 0 && popped > 0 && writes > 0, "{faults} faults, {popped} requests, {writes} writes");
}

#[test]
fn touches_are_told_once_oldest_first_and_lost_ones_are_counted() {
    let mapping = Mapping::anonymous(BYTES).expect("memory");
    let mut daemon = ControlDaemon::new(mapping.clone());
    let client = ControlClient::new(&mapping).expect("fresh memory");
    let gpu = |n: u32| (!n.is_multiple_of(3)).then_some(GpuId((n % 64) as u8));
    let touch = |n: u32| Touch { line: n, bind_low: n + 1, hit: n % 100, asked: 100, gpu: gpu(n) };
    let drained = |daemon: &mut ControlDaemon, max| {
        let mut seen = Vec::new();
        let lost = daemon.drain_touches(max, &mut |touch| seen.push(touch));
        (seen, lost)
    };
    (0..10).for_each(|n| client.touch(touch(n)));
    assert_eq!(drained(&mut daemon, 4), ((0..4).map(touch).collect(), 0));
    assert_eq!(drained(&mut daemon, 100), ((4..10).map(touch).collect(), 0));
    assert_eq!(drained(&mut daemon, 100), (vec![], 0));
    let many = TOUCHES as u32 + 5;
    (0..many).for_each(|n| client.touch(touch(n)));
    assert_eq!(drained(&mut daemon, usize::MAX), ((5..many).map(touch).collect(), 5));
}

#[test]
fn a_daemon_that_comes_back_finds_hazards_counters_and_empty_rings() {
    let mapping = Mapping::anonymous(BYTES).expect("memory");
    let mut daemon = ControlDaemon::new(mapping.clone());
    let client = ControlClient::new(&mapping).expect("fresh memory");
    let (mut requests, mut completions) = client.rings();
    assert!(requests.push(&Request::Release { token: 1 }).expect("an honest daemon"));
    assert!(daemon.push_completion(&Completion::Got { token: 1, hit: 0 }));
    assert_eq!(completions.pop(), Ok(Some(Completion::Got { token: 1, hit: 0 })));
    client.hazards().set(17, SlotId(4));
    client.count(Counters { asked: 5, hit: 3, bytes: 100, hit_hbm: 2 });
    client.count(Counters { asked: 1, hit: 1, bytes: 50, hit_hbm: 0 });
    daemon.set_expelled();
    assert_eq!(client.warning(), Warning::Expelled);
    drop(daemon);

    let mut daemon = ControlDaemon::new(mapping.clone());
    let mut named = Vec::new();
    daemon.hazards().each(&mut |slot| named.push(slot));
    assert_eq!(named, [SlotId(4)]);
    assert_eq!(daemon.counters(), Counters { asked: 6, hit: 4, bytes: 150, hit_hbm: 2 });
    daemon.reset();
    let (mut requests, mut completions) = client.rings();
    assert_eq!((daemon.pop_request(), completions.pop(), client.warning()), (Ok(None), Ok(None), Warning::None));
    assert!(requests.push(&Request::Release { token: 2 }).expect("an honest daemon"));
    assert_eq!(daemon.pop_request(), Ok(Some(Request::Release { token: 2 })));
}

#[test]
fn a_full_ring_says_so_and_goes_on() {
    let mapping = Mapping::anonymous(BYTES).expect("memory");
    let mut daemon = ControlDaemon::new(mapping.clone());
    let client = ControlClient::new(&mapping).expect("fresh memory");
    let (mut requests, _completions) = client.rings();
    let large = Request::Prefetch { pool: PoolId(1), keys: vec![Key::new(b"key"); 8192] };
    for _ in 0..5 {
        assert!(requests.push(&large).expect("an honest daemon"));
        assert!(!requests.push(&large).expect("an honest daemon"), "two do not fit");
        assert_eq!(daemon.pop_request(), Ok(Some(large.clone())));
    }
}
