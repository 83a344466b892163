//! The thread of one GPU: it owns the copier, takes jobs from a channel, reports what ended, and sleeps when nothing is under
//! way. It alone notices that the GPU is lost, and says so once.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use crossbeam::channel::{Receiver, RecvTimeoutError};
use lapis_arena::hbm::{Copied, Copier, CopyError, CopyJob, CudaCopier, Device, HostExtent, Spot};
use lapis_config::OpId;

use super::{
    memory::OpenGpu,
    shown::{GpuShown, Way},
};
use crate::serve;

/// Copies that the driver has at once.
const IN_FLIGHT_MAX: usize = 1024;
/// Between two looks at copies under way: the driver wakes nobody. Doubled while nothing ends.
const LOOK_MIN: Duration = Duration::from_micros(10);
const LOOK_MAX: Duration = Duration::from_micros(200);
/// A GPU with nothing to do is asked so often whether it is there.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Where bytes begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An extent of a group's memory, and the offset in it.
    Dram { group: usize, extent: usize, offset: u64 },
    /// A GPU, by its number in the daemon, and the offset in its memory, all extents in a row.
    Hbm { gpu: usize, offset: u64 },
}

/// One copy. Both ends within one extent; the GPU that gets it is an end of it, and where both ends are GPUs the
/// destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuJob {
    /// Unique among all jobs under way.
    pub op: OpId,
    pub from: Place,
    pub to: Place,
    pub bytes: u64,
}

/// To a GPU's thread.
#[derive(Debug)]
pub enum ToGpu {
    /// Memory of the host that copies may go from and to.
    Host {
        group: usize,
        extent: usize,
        memory: Arc<HostExtent>,
    },
    Copy(Vec<GpuJob>),
}

/// A job that has ended, each once. After an error the destination holds anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuCopied {
    pub op: OpId,
    pub outcome: Result<(), CopyError>,
}

/// From a GPU's thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromGpu {
    Copied(Vec<GpuCopied>),
    /// All that was on it is gone. Its jobs that were under way end as lost, before and after this.
    Lost {
        reason: String,
    },
}

/// A GPU as the copier knows it.
struct Known {
    index: u16,
    device: Option<Arc<Device>>,
    /// Where each extent starts and ends.
    ends: Vec<u64>,
}

pub(super) struct Turner<R> {
    gpu: usize,
    inbox: Receiver<ToGpu>,
    report: R,
    shown: Arc<GpuShown>,
    copier: CudaCopier,
    /// All of the daemon, by number.
    known: Vec<Known>,
    /// What the copier calls an extent of a group.
    hosts: BTreeMap<(usize, usize), u32>,
    waiting: VecDeque<CopyJob>,
    under_way: BTreeMap<u64, (Way, u64)>,
    ended: Vec<Copied>,
    /// Why the GPU did not answer the last probe.
    complaint: Option<String>,
}

impl<R: Fn(FromGpu)> Turner<R> {
    pub fn new(gpu: usize, all: &[OpenGpu], inbox: Receiver<ToGpu>, report: R) -> Self {
        let mut copier = CudaCopier::new(IN_FLIGHT_MAX);
        let known = |(number, other): (usize, &OpenGpu)| {
            let index = other.shown.info.index;
            let mut known = Known { index, device: None, ends: Vec::new() };
            let Some(memory) = &other.memory else { return known };
            let added = match number == gpu {
                true => copier.add_device(&memory.device),
                false => {
                    copier.add_peer(&memory.device);
                    Ok(())
                }
            };
            if let Err(error) = added {
                tracing::error!(gpu, %error, "no streams on a GPU");
                return known;
            }
            for extent in &memory.extents {
                known.ends.push(known.ends.last().copied().unwrap_or(0) + extent.bytes());
                copier.add_extent(extent.clone());
            }
            known.device = Some(memory.device.clone());
            known
        };
        let known = all.iter().enumerate().map(known).collect();
        Self {
            gpu,
            inbox,
            report,
            shown: all[gpu].shown.clone(),
            copier,
            known,
            hosts: BTreeMap::new(),
            waiting: VecDeque::new(),
            under_way: BTreeMap::new(),
            ended: Vec::new(),
            complaint: None,
        }
    }

    /// Until the engine has gone.
    pub fn run(mut self) {
        let mut pause = LOOK_MIN;
        self.look_after_losses();
        loop {
            let busy = self.copier.in_flight() > 0 || !self.waiting.is_empty();
            match self.inbox.recv_timeout(if busy { pause } else { PROBE_EVERY }) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) if !busy => self.probe(),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(message) = self.inbox.try_recv() {
                self.take(message);
            }
            self.turn();
            self.look_after_losses();
            pause = if self.say() { LOOK_MIN } else { (pause * 2).min(LOOK_MAX) };
            self.shown.is_alive();
        }
    }

    fn take(&mut self, message: ToGpu) {
        match message {
            ToGpu::Host { group, extent, memory } => {
                let number = self.copier.add_host(memory);
                self.hosts.insert((group, extent), number);
            }
            ToGpu::Copy(jobs) => {
                for job in jobs {
                    self.under_way.insert(job.op.0, (self.way(&job), job.bytes));
                    match (self.spot(job.from, job.bytes), self.spot(job.to, job.bytes)) {
                        (Ok(from), Ok(to)) => {
                            self.waiting.push_back(CopyJob { op: job.op.0, from, to, bytes: job.bytes });
                        }
                        (Err(error), _) | (_, Err(error)) => {
                            self.ended.push(Copied { op: job.op.0, outcome: Err(error) });
                        }
                    }
                }
            }
        }
    }

    fn way(&self, job: &GpuJob) -> Way {
        match (job.from, job.to) {
            (Place::Dram { .. }, Place::Hbm { gpu, .. }) if gpu == self.gpu => Way::In,
            (Place::Hbm { gpu, .. }, Place::Dram { .. }) if gpu == self.gpu => Way::Out,
            (Place::Hbm { .. }, Place::Hbm { gpu, .. }) if gpu == self.gpu => Way::Across,
            _ => panic!("a job of another GPU: {job:?}"),
        }
    }

    /// # Panics
    /// If the place lies in no extent: it is the core's, never a client's unchecked word.
    fn spot(&self, place: Place, bytes: u64) -> Result<Spot, CopyError> {
        match place {
            Place::Dram { group, extent, offset } => match self.hosts.get(&(group, extent)) {
                Some(&host) => Ok(Spot::Host { extent: host, offset }),
                None => Err(CopyError::NotRegistered { extent: extent as u32 }),
            },
            Place::Hbm { gpu, offset } => {
                let Known { index, ends, .. } = &self.known[gpu];
                // One that was never there has no extents.
                if ends.is_empty() {
                    return Err(CopyError::Lost { device: *index });
                }
                let extent = ends.partition_point(|end| *end <= offset);
                let start = if extent == 0 { 0 } else { ends[extent - 1] };
                assert!(extent < ends.len() && bytes <= ends[extent] - offset, "{bytes} bytes at {offset} of {ends:?}");
                Ok(Spot::Device { device: *index, extent: extent as u32, offset: offset - start })
            }
        }
    }

    /// Gives the driver what it has room for, and hears what ended.
    fn turn(&mut self) {
        let now = serve::now();
        let taken = self.copier.submit(now, self.waiting.make_contiguous());
        self.waiting.drain(..taken);
        self.copier.poll(now, &mut self.ended);
    }

    fn probe(&mut self) {
        let Some(device) = &self.known[self.gpu].device else { return };
        let complaint = device.memory().err().filter(|error| !error.is_lost()).map(|error| error.to_string());
        // Once, not every second.
        if let Some(error) = complaint.as_ref().filter(|_| complaint != self.complaint) {
            tracing::warn!(gpu = self.gpu, error, "a GPU does not say what memory it has");
        }
        self.complaint = complaint;
    }

    /// Lets go of what is lost; says so where it is this one.
    fn look_after_losses(&mut self) {
        for number in 0..self.known.len() {
            let known = &mut self.known[number];
            let lost = known.device.take_if(|device| device.is_lost()).map(|device| why(&device));
            if lost.is_some() {
                self.copier.remove_device(known.index);
                self.copier.poll(serve::now(), &mut self.ended);
            }
            if number != self.gpu || known.device.is_some() {
                continue;
            }
            let reason = lost.unwrap_or_else(|| "it has no streams".to_owned());
            // Known already where it was lost before this thread began.
            if self.shown.lose(reason.clone()) {
                (self.report)(FromGpu::Lost { reason });
            }
        }
    }

    /// True if there was something.
    fn say(&mut self) -> bool {
        let copied: Vec<GpuCopied> = std::mem::take(&mut self.ended)
            .into_iter()
            .map(|Copied { op, outcome }| {
                let (way, bytes) = self.under_way.remove(&op).expect("a job ends once");
                self.shown.ended(way, bytes, outcome.is_ok());
                GpuCopied { op: OpId(op), outcome }
            })
            .collect();
        let any = !copied.is_empty();
        if any {
            (self.report)(FromGpu::Copied(copied));
        }
        any
    }
}

/// A lost device says so to whatever it is asked, without asking the driver.
fn why(device: &Device) -> String {
    device.memory().map_or_else(|error| error.to_string(), |_| "it was lost".to_owned())
}
