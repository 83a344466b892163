//! What takes time and moves or reads bytes beside the engine loop: populating extents, checking sums, devices. The loop
//! hands over work and polls for what ended; the simulator has a twin with delays of its own.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use crossbeam::channel::{Receiver, Sender, unbounded};
use lapis_arena::{Mapping, PagesAhead, StoredBlock, memfd};
use lapis_config::OpId;
use lapis_ssd::{
    drive::{FromDrive, ToDrive},
    format::GroupRecord,
    recover::{self, DeviceScan, Recovered},
};
use lapis_tiering::face::Outcome;
use lapis_transport::peers::paths::{FromPaths, Paths, ToPaths};

use crate::{
    drives::{DriveHandle, DriveOptions},
    gpus::{FromGpu, GpuJob, Gpus, OpenGpu},
};

/// Bytes populated between two reports: small enough that slots become usable early, about 30 ms of clearing pages.
const POPULATE_CHUNK_BYTES: u64 = 16 << 20;
/// Fewer where pages come by a mapping: the kernel holds a lock meanwhile that the engine needs to map anything.
const TOUCH_CHUNK_BYTES: u64 = 4 << 20;
/// Fewer still of memory that is in use: threads of devices, which ask for memory for what they find, take that lock too.
const MAP_IN_CHUNK_BYTES: usize = 128 << 10;
/// Movers give way to the engine loop, and to the engines of the host.
const NICE: i32 = 10;

/// Give an extent its memory.
#[derive(Debug)]
pub struct Populate {
    pub mapping: Mapping,
    pub fd: OwnedFd,
    /// The first so many bytes have theirs, from a former daemon: they hold blocks, and are not written.
    pub populated_bytes: u64,
    /// By touching the mapping, so that it gets huge pages; else through the descriptor.
    pub touch: bool,
    /// And keep it there: see `dram.lock`.
    pub lock: bool,
}

#[derive(Debug)]
pub enum Job {
    Populate {
        group: usize,
        extent: usize,
        memory: Populate,
    },
    Verify {
        group: usize,
        op: OpId,
        block: StoredBlock,
    },
    /// Make the sums of a block that has none.
    Sum {
        group: usize,
        op: OpId,
        block: StoredBlock,
    },
    /// For the drive of a device.
    Drive {
        device: usize,
        to: ToDrive,
    },
    /// Map in memory that the engine is about to use everywhere: a hint, nothing comes of it.
    MapIn {
        pages: Vec<PagesAhead>,
    },
    /// For what moves blocks between hosts.
    Paths(ToPaths),
    /// Of what was found on devices, what counts. `device`: of that one alone, which came back.
    Merge {
        scans: Vec<DeviceScan>,
        groups: Vec<GroupRecord>,
        device: Option<usize>,
    },
}

#[derive(Debug)]
pub enum Done {
    /// The first `bytes` of the extent have memory.
    Populated {
        group: usize,
        extent: usize,
        bytes: u64,
    },
    /// No memory was to be had beyond what was reported before.
    PopulateFailed {
        group: usize,
        extent: usize,
        reason: String,
    },
    Verified {
        group: usize,
        op: OpId,
        outcome: Outcome,
    },
    Summed {
        group: usize,
        op: OpId,
        sum: u64,
    },
    Drive {
        device: usize,
        from: FromDrive,
    },
    Merged {
        recovered: Recovered,
        device: Option<usize>,
    },
    Paths(FromPaths),
    /// Of the GPU of that number.
    Gpu {
        gpu: usize,
        from: FromGpu,
    },
}

pub trait Movers {
    fn submit(&mut self, job: Job);
    fn poll(&mut self) -> Option<Done>;
    /// Memory of the host, all there, that GPUs copy from and to, where there are any.
    fn register_with_gpus(&mut self, _group: usize, _extent: usize, _mapping: &Mapping) {}
    /// Copies for one GPU; each is reported once.
    ///
    /// # Panics
    /// If there is no such GPU.
    fn copy_by_gpu(&mut self, gpu: usize, _jobs: Vec<GpuJob>) {
        panic!("copies by GPU {gpu}, and there is none")
    }
}

/// How a thread tells the engine what ended, and wakes it.
#[derive(Clone)]
struct Report {
    done: Sender<Done>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Report {
    fn tell(&self, done: Done) {
        self.leave(done);
        (self.wake)();
    }

    /// For when the engine is awake the next time.
    fn leave(&self, done: Done) {
        // The engine ended first if this fails: nobody is left to tell.
        let _ = self.done.send(done);
    }
}

/// Threads that do the work; each end rings the engine's waker.
pub struct Threads {
    populate: Sender<Job>,
    verify: Sender<Job>,
    drives: Vec<DriveHandle>,
    paths: Option<Box<dyn Paths>>,
    gpus: Option<Gpus>,
    done: Receiver<Done>,
    report: Report,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    /// `populate_threads` for first touches, `verify_threads` for sums, one for each device. `wake` is called after each
    /// report.
    pub fn start(
        populate_threads: usize,
        verify_threads: usize,
        devices: Vec<DriveOptions>,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let (populate, populate_jobs) = unbounded();
        let (verify, verify_jobs) = unbounded();
        let (report, done) = unbounded();
        let (stop, report) = (Arc::new(AtomicBool::new(false)), Report { done: report, wake: Arc::new(wake) });
        let (mut threads, mut drives) = (Vec::new(), Vec::new());
        for (device, options) in devices.into_iter().enumerate() {
            drives.push(DriveHandle::start(device, options, report.done.clone(), report.wake.clone())?);
        }
        let kinds = [(populate_threads, "populate", populate_jobs), (verify_threads, "verify", verify_jobs)];
        for (count, name, jobs) in kinds {
            for _ in 0..count {
                let (jobs, report, stop) = (jobs.clone(), report.clone(), stop.clone());
                threads.push(std::thread::Builder::new().name(name.into()).spawn(move || {
                    let own = rustix::thread::gettid();
                    if let Err(error) = rustix::process::setpriority_process(Some(own), NICE) {
                        tracing::debug!(%error, "movers run at the engine's priority");
                    }
                    work(&jobs, &stop, &report);
                })?);
            }
        }
        Ok(Self { populate, verify, drives, paths: None, gpus: None, done, report, stop, threads })
    }
}

impl Movers for Threads {
    fn submit(&mut self, job: Job) {
        let queue = match job {
            Job::Drive { device, to } => return self.drives[device].tell(to),
            Job::Merge { scans, groups, device } => return self.merge(scans, groups, device),
            Job::MapIn { pages } => return self.map_in(pages),
            Job::Paths(job) => {
                return self.paths.as_mut().expect("jobs of peers where there are peers").submit(job);
            }
            Job::Populate { .. } => &self.populate,
            Job::Verify { .. } | Job::Sum { .. } => &self.verify,
        };
        queue.send(job).expect("the threads live as long as this");
    }

    fn poll(&mut self) -> Option<Done> {
        let of_paths = || self.paths.as_mut().and_then(|paths| paths.poll()).map(Done::Paths);
        self.done.try_recv().ok().or_else(of_paths)
    }

    fn register_with_gpus(&mut self, group: usize, extent: usize, mapping: &Mapping) {
        if let Some(gpus) = &self.gpus {
            gpus.register(group, extent, mapping.clone());
        }
    }

    fn copy_by_gpu(&mut self, gpu: usize, jobs: Vec<GpuJob>) {
        self.gpus.as_ref().expect("copies where there are GPUs").copy(gpu, jobs);
    }
}

impl Threads {
    /// From now on blocks move between this host and others.
    pub fn set_paths(&mut self, paths: Box<dyn Paths>) {
        self.paths = Some(paths);
    }

    /// From now on blocks move between the host's memory and GPUs, by a thread for each on these CPUs or on any.
    pub fn start_gpus(&mut self, opened: Vec<OpenGpu>, cpus: &[Option<Vec<u32>>]) -> std::io::Result<()> {
        let report = self.report.clone();
        let report = Arc::new(move |gpu, from| report.tell(Done::Gpu { gpu, from }));
        self.gpus = Some(Gpus::start(opened, cpus, report)?);
        Ok(())
    }

    /// On a thread of its own, which gives way to nobody: what is on SSD is not served before.
    fn merge(&self, scans: Vec<DeviceScan>, groups: Vec<GroupRecord>, device: Option<usize>) {
        let report = self.report.clone();
        let merge = move || report.tell(Done::Merged { recovered: recover::merge(scans, &groups), device });
        if let Err(error) = std::thread::Builder::new().name("merge".into()).spawn(merge) {
            tracing::error!(%error, "no thread to merge what is on SSD: it stays unknown");
        }
    }

    /// As the merge: the engine would touch every page itself, at twice the price and later.
    fn map_in(&mut self, pages: Vec<PagesAhead>) {
        let stop = self.stop.clone();
        let map_in = move || {
            let go_on = || !stop.load(Ordering::Relaxed);
            pages.iter().for_each(|pages| pages.map_in(MAP_IN_CHUNK_BYTES, go_on));
        };
        match std::thread::Builder::new().name("map in".into()).spawn(map_in) {
            Ok(thread) => self.threads.push(thread),
            Err(error) => tracing::debug!(%error, "no thread to map in memory: it is mapped as it is used"),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Nothing is copied from here on.
        self.gpus = None;
        (self.populate, _) = unbounded();
        (self.verify, _) = unbounded();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a mover thread panicked");
            }
        }
    }
}

fn work(jobs: &Receiver<Job>, stop: &AtomicBool, report: &Report) {
    for job in jobs {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        match job {
            Job::Populate { group, extent, memory } => populate(group, extent, &memory, stop, report),
            // The engine is woken for the last of those that wait: alone, a check takes less time than that.
            Job::Verify { group, op, block } => {
                let done = Done::Verified { group, op, outcome: check(&block) };
                if jobs.is_empty() { report.tell(done) } else { report.leave(done) }
            }
            Job::Sum { group, op, block } => report.tell(Done::Summed { group, op, sum: block.make_sums() }),
            Job::Merge { .. } | Job::MapIn { .. } | Job::Drive { .. } | Job::Paths(_) => {
                unreachable!("they have threads of their own")
            }
        }
    }
}

fn populate(group: usize, extent: usize, memory: &Populate, stop: &AtomicBool, report: &Report) {
    let bytes = memory.mapping.len() as u64;
    // A lock ends with its process: what a former daemon populated is locked anew.
    let mut at = if memory.lock { 0 } else { memory.populated_bytes };
    let chunk = if memory.touch || memory.lock { TOUCH_CHUNK_BYTES } else { POPULATE_CHUNK_BYTES };
    while at < bytes && !stop.load(Ordering::Relaxed) {
        let had = at < memory.populated_bytes;
        let end = if had { (at + chunk).min(memory.populated_bytes) } else { (at + chunk).min(bytes) };
        let done = match memory.touch {
            _ if had => Ok(()),
            true => memory.mapping.populate_write(at as usize..end as usize),
            false => memfd::clear(memory.fd.as_fd(), at..end),
        };
        let done = done.and_then(|()| match memory.lock {
            true => memory.mapping.lock(at as usize..end as usize),
            false => Ok(()),
        });
        if let Err(error) = done {
            return report.tell(Done::PopulateFailed { group, extent, reason: error.to_string() });
        }
        at = end;
        if had {
            continue;
        }
        report.tell(Done::Populated { group, extent, bytes: at });
    }
}

/// Compares a block with its sum where it lies.
pub fn check(block: &StoredBlock) -> Outcome {
    if block.is_sound() { Outcome::Ok } else { Outcome::Corrupt }
}
