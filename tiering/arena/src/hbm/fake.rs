//! The faulty twin of a copier: devices are host memory, time is the caller's, and what goes wrong comes by seed.

use std::{collections::BTreeMap, time::Duration};

use fastrand::Rng;
use lapis_config::Time;

use super::face::{Copied, Copier, CopyError, CopyJob, Spot};
use crate::{ArenaError, Mapping};

/// What goes wrong, and how long copies take. One in 0 is never.
#[derive(Clone, Debug)]
pub struct FakeFaults {
    pub latency_us_max: u64,
    /// One job in so many is refused; some of its bytes may have moved.
    pub refuse_one_in: u64,
    /// One job in so many takes a device with it.
    pub lose_one_in: u64,
}

#[derive(Debug, Default)]
struct FakeDevice {
    extents: Vec<Mapping>,
    is_lost: bool,
}

#[derive(Debug)]
struct Flying {
    job: CopyJob,
    due: Time,
    /// Bytes that moved when it was taken.
    moved: u64,
    outcome: Result<(), CopyError>,
}

/// Jobs of one direction and device end in the order in which they were taken, as on a stream.
#[derive(Debug)]
pub struct FakeCopier {
    devices: BTreeMap<u16, FakeDevice>,
    hosts: Vec<Mapping>,
    faults: FakeFaults,
    rng: Rng,
    flying: Vec<Flying>,
    in_flight_max: usize,
}

impl FakeCopier {
    /// With at most `in_flight_max` jobs at once.
    pub fn new(seed: u64, faults: FakeFaults, in_flight_max: usize) -> Self {
        let (devices, hosts, flying) = (BTreeMap::new(), Vec::new(), Vec::with_capacity(in_flight_max));
        Self { devices, hosts, faults, rng: Rng::with_seed(seed), flying, in_flight_max }
    }

    /// Host memory to copy from and to; its index.
    pub fn add_host(&mut self, mapping: Mapping) -> u32 {
        self.hosts.push(mapping);
        self.hosts.len() as u32 - 1
    }

    /// New memory of a device, zeros; its index there.
    pub fn add_extent(&mut self, device: u16, bytes: u64) -> Result<u32, ArenaError> {
        let mapping = Mapping::anonymous(bytes)?;
        let extents = &mut self.devices.entry(device).or_default().extents;
        extents.push(mapping);
        Ok(extents.len() as u32 - 1)
    }

    /// The device is gone with all that it had, and what is in flight to or from it.
    pub fn lose(&mut self, device: u16) {
        self.devices.entry(device).or_default().is_lost = true;
        for flying in self.flying.iter_mut().filter(|flying| flying.job.touches(device)) {
            flying.outcome = Err(CopyError::Lost { device });
            flying.due = Time(0);
        }
    }

    /// The device is there again, with zeros.
    pub fn bring_back(&mut self, device: u16) -> Result<(), ArenaError> {
        let device = self.devices.entry(device).or_default();
        for extent in &mut device.extents {
            *extent = Mapping::anonymous(extent.len() as u64)?;
        }
        device.is_lost = false;
        Ok(())
    }

    /// When the next job ends, for whoever turns the clock.
    pub fn next_at(&self) -> Option<Time> {
        self.flying.iter().map(|flying| flying.due).min()
    }

    /// What is in a device's memory, for tests.
    pub fn peek(&self, spot: Spot, bytes: usize) -> Vec<u8> {
        let (mapping, offset) = self.place(spot, bytes as u64);
        mapping.to_vec(offset, bytes)
    }

    fn place(&self, spot: Spot, bytes: u64) -> (&Mapping, usize) {
        let (mapping, offset) = match spot {
            Spot::Host { extent, offset } => (&self.hosts[extent as usize], offset),
            Spot::Device { device, extent, offset } => {
                let device = self.devices.get(&device).expect("a device that was told of");
                (&device.extents[extent as usize], offset)
            }
        };
        let end = offset.checked_add(bytes).expect("offset fits");
        assert!(end <= mapping.len() as u64, "{bytes} bytes at {offset} of {}", mapping.len());
        (mapping, offset as usize)
    }

    fn copy(&self, job: &CopyJob, from: u64, to: u64) {
        let (source, at) = self.place(job.from, job.bytes);
        let bytes = source.to_vec(at + from as usize, (to - from) as usize);
        let (target, at) = self.place(job.to, job.bytes);
        target.copy_in(at + from as usize, &bytes);
    }

    fn is_lost(&self, device: u16) -> bool {
        self.devices.get(&device).is_some_and(|device| device.is_lost)
    }

    fn strikes(&mut self, one_in: u64) -> bool {
        one_in > 0 && self.rng.u64(..one_in) == 0
    }

    fn take(&mut self, now: Time, job: CopyJob) {
        let devices: Vec<u16> = [job.to.device(), job.from.device()].into_iter().flatten().collect();
        assert!(!devices.is_empty(), "no copier moves host memory to host memory");
        // Both ends are looked at before anything moves.
        self.place(job.from, job.bytes);
        self.place(job.to, job.bytes);
        let device = devices[0];
        if self.strikes(self.faults.lose_one_in) {
            self.lose(device);
        }
        if let Some(device) = devices.iter().copied().find(|device| self.is_lost(*device)) {
            self.flying.push(Flying { job, due: now, moved: 0, outcome: Err(CopyError::Lost { device }) });
            return;
        }
        let latency = self.rng.u64(..=self.faults.latency_us_max);
        let before = self.flying.iter().filter(|flying| lane(&flying.job) == lane(&job)).map(|flying| flying.due).max();
        let due = now.after(Duration::from_micros(latency)).max(before.unwrap_or(now));
        let refused = self.strikes(self.faults.refuse_one_in);
        let reason = || CopyError::Refused { device, reason: "by seed".to_owned() };
        let moved = self.rng.u64(..=job.bytes);
        // Not at once, not at the end: who looks too early, or reuses too early, finds a part.
        self.copy(&job, 0, moved);
        let outcome = if refused { Err(reason()) } else { Ok(()) };
        self.flying.push(Flying { job, due, moved, outcome });
    }
}

/// Jobs of one are in order: whose device, and which way.
fn lane(job: &CopyJob) -> (Option<u16>, bool, bool) {
    let (to, from) = (job.to.device(), job.from.device());
    (to.or(from), to.is_some(), from.is_some())
}

impl Copier for FakeCopier {
    fn submit(&mut self, now: Time, jobs: &[CopyJob]) -> usize {
        let taken = jobs.len().min(self.in_flight_max - self.flying.len());
        for job in &jobs[..taken] {
            self.take(now, *job);
        }
        taken
    }

    fn poll(&mut self, now: Time, done: &mut Vec<Copied>) {
        let (ended, rest): (Vec<_>, Vec<_>) = self.flying.drain(..).partition(|flying| flying.due <= now);
        self.flying = rest;
        for Flying { job, moved, outcome, .. } in ended {
            if outcome.is_ok() {
                self.copy(&job, moved, job.bytes);
            }
            done.push(Copied { op: job.op, outcome });
        }
    }

    fn in_flight(&self) -> usize {
        self.flying.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 4096;

    fn copier(seed: u64, faults: FakeFaults) -> FakeCopier {
        let mut copier = FakeCopier::new(seed, faults, 64);
        copier.add_host(Mapping::anonymous(16 * BLOCK).expect("memory"));
        for device in 0..2 {
            copier.add_extent(device, 8 * BLOCK).expect("memory");
        }
        copier
    }

    fn host(slot: u64) -> Spot {
        Spot::Host { extent: 0, offset: slot * BLOCK }
    }

    fn device(device: u16, slot: u64) -> Spot {
        Spot::Device { device, extent: 0, offset: slot * BLOCK }
    }

    fn job(op: u64, from: Spot, to: Spot) -> CopyJob {
        CopyJob { op, from, to, bytes: BLOCK }
    }

    #[test]
    fn bytes_are_there_when_a_job_has_ended_and_not_all_before() {
        let faults = FakeFaults { latency_us_max: 100, refuse_one_in: 0, lose_one_in: 0 };
        let mut early = 0;
        for seed in 0..50 {
            let mut copier = copier(seed, faults.clone());
            copier.hosts[0].copy_in(0, &[7; BLOCK as usize]);
            assert_eq!(copier.submit(Time(0), &[job(1, host(0), device(0, 3))]), 1);
            early += u32::from(copier.peek(device(0, 3), BLOCK as usize) == [7; BLOCK as usize]);
            let mut done = Vec::new();
            copier.poll(copier.next_at().expect("in flight"), &mut done);
            assert_eq!(done, [Copied { op: 1, outcome: Ok(()) }]);
            assert_eq!(copier.peek(device(0, 3), BLOCK as usize), [7; BLOCK as usize]);
        }
        assert!(early < 10, "{early} of 50 were whole at once");
    }

    #[test]
    fn a_lost_device_fails_its_own_jobs_and_no_others() {
        let faults = FakeFaults { latency_us_max: 100, refuse_one_in: 0, lose_one_in: 0 };
        let mut copier = copier(1, faults);
        let jobs = [job(1, host(0), device(0, 0)), job(2, host(1), device(1, 0)), job(3, device(0, 1), device(1, 1))];
        assert_eq!(copier.submit(Time(0), &jobs), 3);
        copier.lose(0);
        let mut done = Vec::new();
        copier.poll(Time(1000), &mut done);
        done.sort_by_key(|copied| copied.op);
        let lost = Err(CopyError::Lost { device: 0 });
        let outcomes: Vec<_> = done.into_iter().map(|copied| copied.outcome).collect();
        assert_eq!(outcomes, [lost.clone(), Ok(()), lost.clone()]);
        copier.submit(Time(1000), &[job(4, device(0, 0), host(0))]);
        let mut done = Vec::new();
        copier.poll(Time(1000), &mut done);
        assert_eq!(done[0].outcome, lost);
        copier.bring_back(0).expect("memory");
        copier.submit(Time(1000), &[job(5, device(0, 0), host(0))]);
        copier.poll(Time(2000), &mut done);
        assert_eq!(done[1].outcome, Ok(()));
    }

    #[test]
    fn the_same_seed_gives_the_same_run_and_no_more_is_taken_than_there_is_room_for() {
        let faults = FakeFaults { latency_us_max: 100, refuse_one_in: 3, lose_one_in: 50 };
        let run = |seed| {
            let mut copier = copier(seed, faults.clone());
            let jobs: Vec<_> = (0..100).map(|op| job(op, host(op % 16), device((op % 2) as u16, op % 8))).collect();
            assert_eq!(copier.submit(Time(0), &jobs), 64);
            assert_eq!((copier.submit(Time(0), &jobs[64..]), copier.in_flight()), (0, 64));
            let mut done = Vec::new();
            for now in 0..2000 {
                copier.poll(Time(now), &mut done);
            }
            assert_eq!((done.len(), copier.in_flight()), (64, 0));
            done
        };
        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(6));
        assert!(run(5).iter().any(|copied| matches!(copied.outcome, Err(CopyError::Refused { .. }))));
    }

    #[test]
    #[should_panic(expected = "host memory to host memory")]
    fn host_memory_is_not_copied_to_host_memory() {
        copier(0, FakeFaults { latency_us_max: 0, refuse_one_in: 0, lose_one_in: 0 })
            .submit(Time(0), &[job(0, host(0), host(1))]);
    }
}
