//! Seeds of latencies and errors: random copies over two devices that fail now and then, checked against a model.

use std::{collections::BTreeMap, env, thread, time::Instant};

use fastrand::Rng;
use lapis_arena::{
    Mapping,
    hbm::{Copied, Copier, CopyError, CopyJob, FakeCopier, FakeFaults, Spot},
};
use lapis_config::Time;

use super::{
    harness::{Scenario, WORD, cuda, word},
    suite::{BLOCK, SLOTS, bench, device, host, job, now, pattern},
};

/// Where a block can be, in the model's own terms.
type Place = (Option<u16>, u64);

/// What is known to be where, and what is under way. Never two jobs on a place, unless both read.
struct Model {
    rng: Rng,
    known: BTreeMap<Place, Vec<u8>>,
    flying: BTreeMap<u64, (Place, Place)>,
    next_op: u64,
    wrong: u64,
    errors: u64,
    copied: u64,
}

fn spot(place: Place) -> Spot {
    match place {
        (None, slot) => host(slot),
        (Some(index), slot) => device(index, slot),
    }
}

impl Model {
    fn new(seed: u64) -> Self {
        let rng = Rng::with_seed(seed);
        Self { rng, known: BTreeMap::new(), flying: BTreeMap::new(), next_op: 0, wrong: 0, errors: 0, copied: 0 }
    }

    fn place(&mut self) -> Place {
        let device = [None, Some(0), Some(1)][self.rng.usize(..3)];
        (device, self.rng.u64(..SLOTS))
    }

    fn is_free(&self, place: Place, to_write: bool) -> bool {
        !self.flying.values().any(|(from, to)| *to == place || (to_write && *from == place))
    }

    /// A job that may be asked for now, if the dice show one.
    fn draw(&mut self, memory: &Mapping) -> Option<CopyJob> {
        let (from, to) = (self.place(), self.place());
        let sane = from != to && (from.0.is_some() || to.0.is_some());
        if !sane || !self.is_free(from, false) || !self.is_free(to, true) {
            return None;
        }
        if from.0.is_none() && self.is_free(from, true) && self.rng.bool() {
            let bytes = pattern(self.rng.u64(..));
            memory.copy_in((from.1 * BLOCK) as usize, &bytes);
            self.known.insert(from, bytes);
        }
        let op = self.next_op;
        self.next_op += 1;
        self.flying.insert(op, (from, to));
        Some(job(op, spot(from), spot(to)))
    }

    /// A device that is lost, if that is why it ended.
    fn ended(&mut self, copied: Copied, memory: &Mapping) -> Option<u16> {
        let (from, to) = self.flying.remove(&copied.op).expect("ends once");
        match copied.outcome {
            Ok(()) => {
                self.copied += 1;
                match self.known.get(&from).cloned() {
                    Some(bytes) => self.known.insert(to, bytes),
                    None => self.known.remove(&to),
                };
                self.check(to, memory);
                None
            }
            Err(error) => {
                self.errors += 1;
                self.known.remove(&to);
                match error {
                    CopyError::Lost { device } => Some(device),
                    _ => None,
                }
            }
        }
    }

    /// Memory of the host is looked at as soon as it must be right.
    fn check(&mut self, place: Place, memory: &Mapping) {
        if place.0.is_some() || !self.is_free(place, true) {
            return;
        }
        let found = memory.to_vec((place.1 * BLOCK) as usize, BLOCK as usize);
        self.wrong += u64::from(self.known.get(&place).is_some_and(|bytes| *bytes != found));
    }

    fn forget(&mut self, device: u16) {
        self.known.retain(|place, _| place.0 != Some(device));
    }

    /// One turn: some jobs in, what has ended out. Devices that were lost come back.
    fn turn(&mut self, copier: &mut dyn Copier, memory: &Mapping, at: Time, asks: bool) -> Vec<u16> {
        let mut jobs = Vec::new();
        for _ in 0..if asks { self.rng.usize(..8) } else { 0 } {
            jobs.extend(self.draw(memory));
        }
        let taken = copier.submit(at, &jobs);
        for job in &jobs[taken..] {
            self.flying.remove(&job.op);
        }
        let mut done = Vec::new();
        copier.poll(at, &mut done);
        let mut lost: Vec<u16> = done.into_iter().filter_map(|copied| self.ended(copied, memory)).collect();
        lost.dedup();
        lost
    }

    /// Everything that is known on devices, read back.
    fn read_back(&mut self, copier: &mut dyn Copier, memory: &Mapping, mut clock: impl FnMut() -> Time) {
        let known: Vec<_> =
            self.known.iter().filter(|(place, _)| place.0.is_some()).map(|(p, b)| (*p, b.clone())).collect();
        for (place, bytes) in known {
            let mut done = Vec::new();
            assert_eq!(copier.submit(clock(), &[job(0, spot(place), host(0))]), 1);
            while done.is_empty() {
                copier.poll(clock(), &mut done);
                thread::yield_now();
            }
            if done[0].outcome.is_ok() {
                self.copied += 1;
                self.wrong += u64::from(memory.to_vec(0, BLOCK as usize) != bytes);
            }
        }
    }
}

const TURNS: u64 = 60;

#[test]
#[ignore = "in a process of its own"]
fn child() {
    let Some(cuda) = cuda() else { return };
    let seed: u64 = word().parse().expect("a seed");
    let since = Instant::now();
    let (mut wrong, mut errors, mut copied) = (0, 0, 0);
    let mut turns = 0;
    // A device that was lost is opened anew when all let go of it: the bench is made again, empty.
    while turns < TURNS {
        let mut bench = bench(&cuda, 2, 40 << 10);
        let mut model = Model::new(seed ^ turns);
        let mut lost = Vec::new();
        while turns < TURNS && lost.is_empty() {
            turns += 1;
            lost = model.turn(&mut bench.copier, &bench.memory, now(since), true);
            thread::yield_now();
        }
        while bench.copier.in_flight() > 0 {
            lost.extend(model.turn(&mut bench.copier, &bench.memory, now(since), false));
            thread::yield_now();
            assert!(since.elapsed().as_secs() < 50, "a copy hangs");
        }
        for device in lost {
            model.forget(device);
        }
        model.read_back(&mut bench.copier, &bench.memory, || now(since));
        (wrong, errors, copied) = (wrong + model.wrong, errors + model.errors, copied + model.copied);
    }
    println!("wrong {wrong} errors {errors} copied {copied}");
}

fn seeds() -> u64 {
    env::var("LAPIS_HBM_SEEDS").map_or(200, |text| text.parse().expect("LAPIS_HBM_SEEDS: a count"))
}

/// `wrong`, `errors`, `copied` of one seed.
fn run(seed: u64) -> [u64; 3] {
    let scenario = Scenario::new("seeds::child").with(WORD, seed.to_string()).with("LAPIS_CUDA_SEED", seed.to_string());
    let scenario = scenario.with("LAPIS_CUDA_DEVICES", "2").with("LAPIS_CUDA_LATENCY_US", "0-300");
    let output = scenario.with("LAPIS_CUDA_ERRORS", "copy=12,event=12,sticky=250x2").run_clean();
    let line = output.lines().find_map(|line| line.split_once("wrong ")).expect("counts").1;
    let words: Vec<&str> = line.split_whitespace().collect();
    [words[0], words[2], words[4]].map(|word| word.parse().expect("a count"))
}

#[test]
fn no_seed_of_latencies_and_errors_shows_a_wrong_byte_or_a_misuse() {
    let first: u64 = env::var("LAPIS_HBM_FIRST").map_or(1, |text| text.parse().expect("LAPIS_HBM_FIRST: a seed"));
    let (last, shards) = (first + seeds(), 2);
    let counts = thread::scope(|scope| {
        let shard = |shard| {
            scope.spawn(move || (first..last).skip(shard).step_by(shards).map(|seed| (seed, run(seed))).collect())
        };
        let threads: Vec<thread::ScopedJoinHandle<'_, Vec<_>>> = (0..shards).map(shard).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no seed fails")).collect::<Vec<_>>()
    });
    let sum = |index: usize| counts.iter().map(|(_, counts)| counts[index]).sum::<u64>();
    println!("{} seeds from {first} on: {} copied, {} errors", counts.len(), sum(2), sum(1));
    for (seed, [wrong, ..]) in &counts {
        assert_eq!(*wrong, 0, "seed {seed}");
    }
    assert!(sum(1) > counts.len() as u64 && sum(2) > 20 * counts.len() as u64, "errors came, and copies all the same");
}

#[test]
fn no_seed_of_the_twin_shows_a_wrong_byte() {
    let (mut errors, mut copied) = (0, 0);
    for seed in 0..seeds() {
        let faults = FakeFaults { latency_us_max: 300, refuse_one_in: 12, lose_one_in: 250 };
        let mut copier = FakeCopier::new(seed, faults, 64);
        let memory = Mapping::anonymous(SLOTS * BLOCK).expect("memory");
        copier.add_host(memory.clone());
        for device in 0..2 {
            copier.add_extent(device, SLOTS * BLOCK).expect("memory");
        }
        let mut model = Model::new(seed);
        let mut at = 0;
        for turn in 0..2 * TURNS {
            at += 40;
            for device in model.turn(&mut copier, &memory, Time(at), turn < TURNS) {
                model.forget(device);
                copier.bring_back(device).expect("memory");
            }
        }
        assert_eq!(copier.in_flight(), 0, "seed {seed}");
        model.read_back(&mut copier, &memory, || {
            at += 300;
            Time(at)
        });
        assert_eq!(model.wrong, 0, "seed {seed}");
        (errors, copied) = (errors + model.errors, copied + model.copied);
    }
    assert!(errors > 0 && copied > 0);
}
