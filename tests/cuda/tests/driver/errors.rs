//! What goes wrong with devices, and what does not go wrong with it.

use std::{fs, sync::Arc, time::Instant};

use lapis_arena::hbm::{Copier, CopyJob, CudaCopier, Device, HbmError, HbmExtent};

use super::{
    harness::{Scenario, WORD, cuda, open, word},
    suite::{BLOCK, all, all_well, bench, device, host, is_lost, job, now, pattern},
};

const MIB: u64 = 1 << 20;

#[test]
#[ignore = "in a process of its own"]
fn full() {
    let Some(cuda) = cuda() else { return };
    let device = open(&cuda, 0);
    let create = |bytes| HbmExtent::create(&device, bytes, &[]);
    let _one = create(4 * MIB).expect("half");
    let two = create(4 * MIB - 1).expect("the other half, rounded up");
    assert_eq!(device.memory().expect("memory"), (0, 8 * MIB));
    let error = create(1).expect_err("full");
    assert!(matches!(error, HbmError::Full { device: 0, bytes: 1 }) && error.is_transient(), "{error}");
    drop(two);
    assert!(create(4 * MIB).is_ok());
    assert!(!device.is_lost());
}

#[test]
fn a_full_device_says_so_and_goes_on() {
    let run = |without| {
        let scenario = Scenario::new("errors::full").with("LAPIS_CUDA_BYTES", (8 * MIB).to_string());
        scenario.with("LAPIS_CUDA_WITHOUT", without)
    };
    run("").run_clean();
}

#[test]
#[ignore = "in a process of its own"]
fn full_once() {
    let Some(cuda) = cuda() else { return };
    let device = open(&cuda, 0);
    let error = HbmExtent::create(&device, 1, &[]).expect_err("by seed");
    assert!(matches!(error, HbmError::Full { .. }), "{error}");
    assert!(HbmExtent::create(&device, 1, &[]).is_ok());
}

#[test]
fn an_allocation_that_is_refused_leaves_nothing() {
    Scenario::new("errors::full_once").with("LAPIS_CUDA_ERRORS", "memory=1x1").run_clean();
}

#[test]
#[ignore = "in a process of its own"]
fn sticky() {
    let Some(cuda) = cuda() else { return };
    {
        let mut bench = bench(&cuda, 2, u64::MAX);
        let jobs = [job(1, host(0), device(0, 0)), job(2, host(1), device(1, 0))];
        let done = all(&mut bench.copier, &jobs);
        assert!(is_lost(&done[0], 0) && done[1].outcome.is_ok(), "{done:?}");
        let done = all(&mut bench.copier, &[job(3, device(0, 0), host(2)), job(4, device(1, 0), host(3))]);
        assert!(is_lost(&done[0], 0) && done[1].outcome.is_ok(), "{done:?}");
        // The device as it is stays lost while somebody has it.
        let again = open(&cuda, 0);
        assert!(again.memory().expect_err("the same context").is_lost() && again.is_lost());
    }
    let mut bench = bench(&cuda, 2, u64::MAX);
    bench.memory.copy_in(0, &pattern(5));
    all_well(&mut bench.copier, &[job(1, host(0), device(0, 0))]);
    all_well(&mut bench.copier, &[job(2, device(0, 0), host(1))]);
    assert_eq!(bench.memory.to_vec(BLOCK as usize, BLOCK as usize), pattern(5));
}

#[test]
fn a_device_that_failed_comes_back_when_all_let_go_of_it() {
    let scenario = Scenario::new("errors::sticky").with("LAPIS_CUDA_DEVICES", "2");
    scenario.with("LAPIS_CUDA_ERRORS", "0:sticky=1x1").run_clean();
}

/// One of two devices goes away under load. Its jobs fail, all of them; the other's go on, none wrong.
#[test]
#[ignore = "in a process of its own"]
fn lost() {
    let Some(cuda) = cuda() else { return };
    let gone = word();
    let mut bench = bench(&cuda, 2, u64::MAX);
    for slot in 0..4 {
        bench.memory.copy_in((slot * BLOCK) as usize, &pattern(slot));
    }
    let since = Instant::now();
    let mut op = 0;
    let mut round = |copier: &mut dyn Copier| {
        let mut jobs = Vec::new();
        for slot in 0..4 {
            jobs.push(job(op, host(slot), device(0, slot)));
            jobs.push(job(op + 1, host(slot), device(1, slot)));
            op += 2;
        }
        jobs.iter().for_each(|job| assert_eq!(copier.submit(now(since), &[*job]), 1));
        jobs
    };
    let jobs = round(&mut bench.copier);
    fs::write(&gone, "").expect("a file");
    let mut done = Vec::new();
    while bench.copier.in_flight() > 0 {
        bench.copier.poll(now(since), &mut done);
        std::thread::yield_now();
    }
    assert_eq!(done.len(), jobs.len());
    for copied in &done {
        assert!(if copied.op % 2 == 0 { is_lost(copied, 0) } else { copied.outcome.is_ok() }, "{copied:?}");
    }
    let more =
        [job(100, host(0), device(0, 9)), job(101, device(0, 1), device(1, 9)), job(102, device(1, 3), device(0, 3))];
    assert!(all(&mut bench.copier, &more).iter().all(|copied| is_lost(copied, 0)));
    for slot in 0..4 {
        all_well(&mut bench.copier, &[job(slot, device(1, slot), host(8 + slot))]);
        let at = ((8 + slot) * BLOCK) as usize;
        assert_eq!(bench.memory.to_vec(at, BLOCK as usize), pattern(slot));
    }
    bench.copier.remove_device(0);
    assert!(all(&mut bench.copier, &[job(103, host(0), device(0, 0))]).iter().all(|copied| is_lost(copied, 0)));
    let error = Device::open(&cuda, 0).expect_err("gone");
    assert!(error.is_lost(), "{error}");
    all_well(&mut bench.copier, &[job(104, host(0), device(1, 0))]);
}

#[test]
fn one_device_of_two_is_lost_and_nothing_else() {
    for lost_as in ["46", "700", "719", "214"] {
        let folder = tempfile::tempdir().expect("a folder");
        let gone = folder.path().join("gone");
        let gone = gone.to_str().expect("a path");
        let scenario = Scenario::new("errors::lost").with("LAPIS_CUDA_DEVICES", "2").with(WORD, gone);
        let scenario = scenario.with("LAPIS_CUDA_LOSE", format!("0@{gone}")).with("LAPIS_CUDA_LOST_AS", lost_as);
        scenario.with("LAPIS_CUDA_LATENCY_US", "2000-8000").run_clean();
    }
}

/// The other device and its memory stay as they are while the lost one comes back, and reaches that memory again.
#[test]
#[ignore = "in a process of its own"]
fn back() {
    let Some(cuda) = cuda() else { return };
    let gone = word();
    let mut copier = CudaCopier::new(8);
    let (zero, one) = (open(&cuda, 0), open(&cuda, 1));
    let there = HbmExtent::create(&one, 4 * BLOCK, std::slice::from_ref(&zero)).expect("memory");
    let address = there.address();
    fs::write(&gone, "").expect("a file");
    assert!(zero.memory().expect_err("gone").is_lost());
    drop(zero);
    assert!(Device::open(&cuda, 0).is_err(), "not back yet");
    fs::remove_file(&gone).expect("a file");
    let zero = open(&cuda, 0);
    let mut there = there;
    there.let_in(&zero).expect("it reaches it");
    assert_eq!(there.address(), address);
    for device in [&zero, &one] {
        copier.add_device(device).expect("streams");
    }
    let here = HbmExtent::create(&zero, 4 * BLOCK, &[one]).expect("memory");
    copier.add_extent(Arc::new(here));
    copier.add_extent(Arc::new(there));
    all_well(&mut copier, &[job(1, device(1, 0), device(0, 1)), job(2, device(0, 2), device(1, 3))]);
}

#[test]
fn a_device_that_is_back_reaches_what_stayed() {
    for without in ["", "vmm"] {
        let folder = tempfile::tempdir().expect("a folder");
        let gone = folder.path().join("gone");
        let gone = gone.to_str().expect("a path");
        let scenario = Scenario::new("errors::back").with("LAPIS_CUDA_DEVICES", "2").with(WORD, gone);
        let scenario = scenario.with("LAPIS_CUDA_LOSE", format!("0@{gone}")).with("LAPIS_CUDA_WITHOUT", without);
        scenario.run_clean();
    }
}

/// A copy between devices whose source went away while it ran must not count as one, though its own device is well.
#[test]
#[ignore = "in a process of its own"]
fn source_lost() {
    let Some(cuda) = cuda() else { return };
    let gone = word();
    let mut bench = bench(&cuda, 2, u64::MAX);
    let since = Instant::now();
    assert_eq!(bench.copier.submit(now(since), &[job(1, device(0, 0), device(1, 0))]), 1);
    fs::write(&gone, "").expect("a file");
    let done = {
        let mut done = Vec::new();
        while done.is_empty() {
            bench.copier.poll(now(since), &mut done);
            std::thread::yield_now();
        }
        done
    };
    assert!(is_lost(&done[0], 0), "{done:?}");
    all_well(&mut bench.copier, &[job(2, host(0), device(1, 0))]);
}

#[test]
fn a_copy_from_a_device_that_is_lost_meanwhile_fails() {
    let folder = tempfile::tempdir().expect("a folder");
    let gone = folder.path().join("gone");
    let gone = gone.to_str().expect("a path");
    let scenario = Scenario::new("errors::source_lost").with("LAPIS_CUDA_DEVICES", "2").with(WORD, gone);
    scenario.with("LAPIS_CUDA_LOSE", format!("0@{gone}")).with("LAPIS_CUDA_LATENCY_US", "5000").run_clean();
}

/// Refused copies end as such, and their memory is not used again before what was begun of them has ended.
#[test]
#[ignore = "in a process of its own"]
fn refused() {
    let Some(cuda) = cuda() else { return };
    let mut bench = bench(&cuda, 1, u64::MAX);
    let mut refused = 0;
    for round in 0..40u64 {
        for slot in 0..8 {
            bench.memory.copy_in((slot * BLOCK) as usize, &pattern(round + slot));
        }
        let jobs: Vec<CopyJob> = (0..8).map(|slot| job(slot, host(slot), device(0, slot))).collect();
        let done = all(&mut bench.copier, &jobs);
        for slot in 0..8 {
            match &done[slot as usize].outcome {
                Ok(()) => {
                    let out = [job(0, device(0, slot), host(15))];
                    while all(&mut bench.copier, &out)[0].outcome.is_err() {}
                    let read = bench.memory.to_vec((15 * BLOCK) as usize, BLOCK as usize);
                    assert_eq!(read, pattern(round + slot), "round {round}");
                }
                Err(error) => {
                    assert!(error.is_transient(), "{error}");
                    refused += 1;
                }
            }
        }
    }
    println!("refused {refused}");
    assert!(refused > 0 && Arc::strong_count(&open(&cuda, 0)) == 1);
}

#[test]
fn what_the_driver_refuses_ends_as_refused() {
    let run = |library: &std::path::Path, errors| {
        let scenario = Scenario::new("errors::refused").library(library).with("LAPIS_CUDA_ERRORS", errors);
        scenario.with("LAPIS_CUDA_LATENCY_US", "0-200").run_clean();
    };
    run(&super::harness::stand_in(), "copy=10,event=5");
    let old = super::loading::without(&["cuMemcpyBatchAsync"]);
    run(old.path(), "copy=10,event=5");
}
