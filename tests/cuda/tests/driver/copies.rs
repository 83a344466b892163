//! How copies go: overlapped, behind registration, between devices that do not reach each other.

use std::{sync::Arc, time::Instant};

use lapis_arena::{
    Mapping,
    hbm::{Copier, CopyError, CudaCopier, HostExtent},
};

use super::{
    harness::{Scenario, cuda, open},
    suite::{BLOCK, SLOTS, all, all_well, bench, device, host, job, now},
};

/// What goes out ends before what was asked to come in earlier: on one stream it would end last.
#[test]
#[ignore = "in a process of its own"]
fn overlapped() {
    let Some(cuda) = cuda() else { return };
    let mut bench = bench(&cuda, 1, u64::MAX);
    let since = Instant::now();
    for op in 0..8 {
        assert_eq!(bench.copier.submit(now(since), &[job(op, host(op), device(0, op))]), 1);
    }
    assert_eq!(bench.copier.submit(now(since), &[job(100, device(0, 10), host(10))]), 1);
    let mut done = Vec::new();
    while bench.copier.in_flight() > 0 {
        bench.copier.poll(now(since), &mut done);
        std::thread::yield_now();
    }
    let place = |op| done.iter().position(|copied| copied.op == op).expect("ended");
    assert!(place(100) < place(7), "{done:?}");
    assert!(place(0) < place(7), "a direction keeps its order");
}

#[test]
fn both_directions_go_on_at_once() {
    Scenario::new("copies::overlapped").with("LAPIS_CUDA_LATENCY_US", "10000").run_clean();
}

/// Host memory is used as far as it is registered, and given back chunk by chunk.
#[test]
#[ignore = "in a process of its own"]
fn behind_registration() {
    let Some(cuda) = cuda() else { return };
    let mut bench = bench(&cuda, 1, BLOCK);
    let device = open(&cuda, 0);
    // Memory of which a page in the middle is none cannot be registered there.
    let memory = Mapping::anonymous(SLOTS * BLOCK).expect("memory");
    let hole = memory.as_ptr((5 * BLOCK) as usize);
    // SAFETY: pages of a mapping of this test's own, which is never read there.
    unsafe { rustix::mm::munmap(hole.cast(), 4096).expect("unmapped") };
    let extent = HostExtent::register(&device, memory, 2 * BLOCK).expect("a thread");
    extent.wait();
    assert_eq!(extent.registered_bytes(), 4 * BLOCK);
    assert!(extent.failure().is_some_and(|error| !error.is_lost()), "{:?}", extent.failure());
    assert_eq!(bench.copier.add_host(extent), 1);
    let there = |slot| lapis_arena::hbm::Spot::Host { extent: 1, offset: slot * BLOCK };
    all_well(&mut bench.copier, &[job(1, there(3), super::suite::device(0, 0))]);
    let done = all(
        &mut bench.copier,
        &[job(2, there(4), super::suite::device(0, 0)), job(3, host(4), super::suite::device(0, 1))],
    );
    assert_eq!(done[0].outcome, Err(CopyError::NotRegistered { extent: 1 }));
    assert_eq!(done[1].outcome, Ok(()));
}

#[test]
fn host_memory_is_used_as_far_as_it_is_registered() {
    Scenario::new("copies::behind_registration").run_clean();
}

#[test]
#[ignore = "in a process of its own"]
fn apart() {
    let Some(cuda) = cuda() else { return };
    let mut bench = bench(&cuda, 2, u64::MAX);
    let done = all(&mut bench.copier, &[job(1, device(0, 0), device(1, 0)), job(2, host(0), device(1, 1))]);
    assert_eq!(done[0].outcome, Err(CopyError::Unreachable { device: 1, other: 0 }));
    assert_eq!(done[1].outcome, Ok(()));
}

#[test]
fn devices_that_do_not_reach_each_other_say_so() {
    Scenario::new("copies::apart").with("LAPIS_CUDA_DEVICES", "2").with("LAPIS_CUDA_WITHOUT", "peers").run_clean();
}

/// A copier that is dropped with copies on their way ends them first.
#[test]
#[ignore = "in a process of its own"]
fn dropped() {
    let Some(cuda) = cuda() else { return };
    let mut bench = bench(&cuda, 2, u64::MAX);
    let jobs: Vec<_> = (0..8).map(|op| job(op, host(op), device((op % 2) as u16, op))).collect();
    assert_eq!(bench.copier.submit(now(Instant::now()), &jobs), 8);
    bench.copier.remove_device(1);
    let mut done = Vec::new();
    bench.copier.poll(now(Instant::now()), &mut done);
    assert!(done.iter().filter(|copied| copied.outcome.is_err()).all(|copied| copied.op % 2 == 1), "{done:?}");
    assert_eq!(done.iter().filter(|copied| copied.op % 2 == 1).count(), 4);
    drop(bench);
    assert_eq!(CudaCopier::new(1).in_flight(), 0);
    // All was given back: a context that is released with something left would be a misuse.
    let device = open(&cuda, 0);
    let (free, total) = device.memory().expect("memory");
    assert_eq!(free, total);
    assert_eq!(Arc::strong_count(&device), 1);
}

#[test]
fn a_copier_that_is_dropped_lets_copies_end_and_leaves_nothing() {
    Scenario::new("copies::dropped").with("LAPIS_CUDA_DEVICES", "2").with("LAPIS_CUDA_LATENCY_US", "5000").run_clean();
}
