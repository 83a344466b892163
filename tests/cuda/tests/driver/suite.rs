//! What every copier must do, over two devices and memory of the host, and what helps to check it.

use std::{sync::Arc, thread, time::Instant};

use lapis_arena::{
    Mapping,
    hbm::{Copied, Copier, CopyError, CopyJob, Cuda, CudaCopier, FakeCopier, FakeFaults, HbmExtent, HostExtent, Spot},
};
use lapis_config::Time;

use super::harness::{Scenario, cuda, open};

pub const BLOCK: u64 = 16 << 10;
pub const SLOTS: u64 = 16;

pub fn host(slot: u64) -> Spot {
    Spot::Host { extent: 0, offset: slot * BLOCK }
}

pub fn device(device: u16, slot: u64) -> Spot {
    Spot::Device { device, extent: 0, offset: slot * BLOCK }
}

pub fn job(op: u64, from: Spot, to: Spot) -> CopyJob {
    CopyJob { op, from, to, bytes: BLOCK }
}

pub fn pattern(seed: u64) -> Vec<u8> {
    (0..BLOCK).map(|at| (seed.wrapping_mul(31) ^ at ^ (at >> 8)) as u8).collect()
}

/// A clock that runs by itself.
pub fn now(since: Instant) -> Time {
    Time(since.elapsed().as_micros() as u64)
}

/// Jobs that must all be taken; until all have ended, by op.
pub fn all(copier: &mut dyn Copier, jobs: &[CopyJob]) -> Vec<Copied> {
    let since = Instant::now();
    assert_eq!(copier.submit(now(since), jobs), jobs.len());
    let mut done = Vec::new();
    while copier.in_flight() > 0 {
        copier.poll(now(since), &mut done);
        assert!(since.elapsed().as_secs() < 30, "{} jobs hang", copier.in_flight());
        thread::yield_now();
    }
    done.sort_by_key(|copied| copied.op);
    assert!(done.iter().map(|copied| copied.op).eq(jobs.iter().map(|job| job.op)), "each ends once");
    done
}

pub fn all_well(copier: &mut dyn Copier, jobs: &[CopyJob]) {
    for copied in all(copier, jobs) {
        assert_eq!(copied.outcome, Ok(()), "op {}", copied.op);
    }
}

/// Bytes that go in on one device, on to the other, out again, and many at once.
fn round_trips(copier: &mut dyn Copier, memory: &Mapping) {
    for slot in 0..4 {
        memory.copy_in((slot * BLOCK) as usize, &pattern(slot));
    }
    all_well(copier, &[job(1, host(0), device(0, 3))]);
    all_well(copier, &[job(2, device(0, 3), device(0, 4))]);
    all_well(copier, &[job(3, device(0, 4), device(1, 5))]);
    all_well(copier, &[job(4, device(1, 5), host(7))]);
    assert_eq!(memory.to_vec((7 * BLOCK) as usize, BLOCK as usize), pattern(0));
    let many: Vec<_> = (0..4).flat_map(|slot| [(0, slot), (1, slot)]).collect();
    let jobs = |way: fn(u64, u16, u64) -> CopyJob| -> Vec<CopyJob> {
        many.iter().zip(10..).map(|((device, slot), op)| way(op, *device, *slot)).collect()
    };
    all_well(copier, &jobs(|op, d, slot| job(op, host(slot), device(d, slot))));
    all_well(copier, &jobs(|op, d, slot| job(op, device(d, slot), host(8 + slot + 4 * u64::from(d)))));
    for (device, slot) in &many {
        let at = (8 + slot + 4 * u64::from(*device)) * BLOCK;
        assert_eq!(memory.to_vec(at as usize, BLOCK as usize), pattern(*slot), "device {device}, slot {slot}");
    }
    assert_eq!(copier.in_flight(), 0);
}

/// No more is taken than there is room for, and bytes of odd sizes at odd places are moved as they are.
fn bounds(copier: &mut dyn Copier, memory: &Mapping, in_flight_max: usize) {
    let jobs: Vec<_> = (0..in_flight_max as u64 + 5).map(|op| job(op, host(op % 4), device(0, 0))).collect();
    // All to one slot: only the first few are really asked for.
    let jobs: Vec<_> =
        jobs.into_iter().enumerate().map(|(n, job)| CopyJob { bytes: u64::from(n == 0), ..job }).collect();
    let since = Instant::now();
    assert_eq!(copier.submit(now(since), &jobs), in_flight_max);
    assert_eq!((copier.submit(now(since), &jobs[in_flight_max..]), copier.in_flight()), (0, in_flight_max));
    let mut done = Vec::new();
    while done.len() < in_flight_max {
        copier.poll(now(since), &mut done);
        thread::yield_now();
    }
    memory.copy_in(0, &pattern(9));
    let at = |spot: Spot, by: u64| match spot {
        Spot::Host { extent, offset } => Spot::Host { extent, offset: offset + by },
        Spot::Device { device, extent, offset } => Spot::Device { device, extent, offset: offset + by },
    };
    let odd = |op, from, to| CopyJob { op, from, to, bytes: 1001 };
    all_well(copier, &[odd(1, at(host(0), 77), at(device(1, 2), 333))]);
    all_well(copier, &[odd(2, at(device(1, 2), 333), at(host(5), 1))]);
    assert_eq!(memory.to_vec((5 * BLOCK + 1) as usize, 1001), pattern(9)[77..1078]);
}

/// A copier over two devices, with one extent each, and one of the host.
pub struct Bench {
    pub copier: CudaCopier,
    pub memory: Mapping,
}

pub const IN_FLIGHT_MAX: usize = 64;

/// `chunk_bytes`: in which the host's memory is registered.
pub fn bench(cuda: &Arc<Cuda>, devices: u16, chunk_bytes: u64) -> Bench {
    let devices: Vec<_> = (0..devices).map(|index| open(cuda, index)).collect();
    let memory = Mapping::anonymous(SLOTS * BLOCK).expect("memory");
    let mut copier = CudaCopier::new(IN_FLIGHT_MAX);
    for device in &devices {
        copier.add_device(device).expect("streams");
        let extent = HbmExtent::create(device, SLOTS * BLOCK, &devices).expect("memory of the device");
        assert_eq!(copier.add_extent(Arc::new(extent)), 0);
    }
    // By the last: the others can be lost without it.
    let last = devices.last().expect("a device");
    let extent = HostExtent::register(last, memory.clone(), chunk_bytes).expect("registration");
    extent.wait();
    assert!(extent.failure().is_none() && extent.registered_bytes() == SLOTS * BLOCK);
    assert_eq!(copier.add_host(extent), 0);
    Bench { copier, memory }
}

fn both(copier: &mut dyn Copier, memory: &Mapping) {
    round_trips(copier, memory);
    bounds(copier, memory, IN_FLIGHT_MAX);
}

#[test]
#[ignore = "in a process of its own"]
fn child() {
    let Some(cuda) = cuda() else { return };
    println!("batches: {}", cuda.has_batches());
    // Chunks whose borders lie within blocks.
    for chunk_bytes in [u64::MAX, 24 << 10] {
        let mut bench = bench(&cuda, 2, chunk_bytes);
        both(&mut bench.copier, &bench.memory);
    }
}

fn scenario() -> Scenario {
    Scenario::new("suite::child").with("LAPIS_CUDA_DEVICES", "2").with("LAPIS_CUDA_LATENCY_US", "0-300")
}

#[test]
fn bytes_come_back_as_they_went() {
    assert!(scenario().run_clean().contains("batches: true"));
}

#[test]
fn bytes_come_back_by_a_driver_without_batches() {
    let old = super::loading::without(&["cuMemcpyBatchAsync"]);
    assert!(scenario().library(old.path()).run_clean().contains("batches: false"));
}

#[test]
fn bytes_come_back_without_descriptors_and_without_the_virtual_memory_interface() {
    scenario().with("LAPIS_CUDA_WITHOUT", "descriptors").run_clean();
    let old = super::loading::without(&["cuMemCreate"]);
    scenario().library(old.path()).run_clean();
}

#[test]
fn the_twin_does_the_same() {
    for seed in 0..20 {
        let faults = FakeFaults { latency_us_max: 300, refuse_one_in: 0, lose_one_in: 0 };
        let mut copier = FakeCopier::new(seed, faults, IN_FLIGHT_MAX);
        let memory = Mapping::anonymous(SLOTS * BLOCK).expect("memory");
        copier.add_host(memory.clone());
        for device in 0..2 {
            copier.add_extent(device, SLOTS * BLOCK).expect("memory");
        }
        both(&mut copier, &memory);
    }
}

pub fn is_lost(copied: &Copied, device: u16) -> bool {
    copied.outcome == Err(CopyError::Lost { device })
}
