//! Copies by CUDA: a stream for each direction and device.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use lapis_config::Time;

use super::{
    device::Device,
    error::HbmError,
    extent::HbmExtent,
    face::{Copied, Copier, CopyError, CopyJob, Spot},
    host::HostExtent,
    lane::{Flight, Lane, Piece, Way},
};

/// Directions of a device; each has a stream, so that they overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    In,
    Out,
    Across,
}

/// Not for several threads at once; one per engine or one per device.
#[derive(Debug)]
pub struct CudaCopier {
    // Before what they copy: dropped first, and only when nothing runs any more.
    lanes: BTreeMap<(u16, Direction), Lane>,
    devices: BTreeMap<u16, (Arc<Device>, Vec<Arc<HbmExtent>>)>,
    hosts: Vec<Arc<HostExtent>>,
    ended: Vec<Copied>,
    in_flight: usize,
    in_flight_max: usize,
}

/// A spot, looked up.
struct Found<'a> {
    at: u64,
    device: Option<&'a HbmExtent>,
}

impl CudaCopier {
    /// With at most `in_flight_max` jobs at once.
    pub fn new(in_flight_max: usize) -> Self {
        let (lanes, devices, hosts, ended) = (BTreeMap::new(), BTreeMap::new(), Vec::new(), Vec::new());
        Self { lanes, devices, hosts, ended, in_flight: 0, in_flight_max }
    }

    /// A device to copy from and to.
    pub fn add_device(&mut self, device: &Arc<Device>) -> Result<(), HbmError> {
        for direction in [Direction::In, Direction::Out, Direction::Across] {
            self.lanes.insert((device.index(), direction), Lane::open(device)?);
        }
        self.devices.insert(device.index(), (device.clone(), Vec::new()));
        Ok(())
    }

    /// Another device, whose memory is only copied from, onto those that were added.
    pub fn add_peer(&mut self, device: &Arc<Device>) {
        self.devices.insert(device.index(), (device.clone(), Vec::new()));
    }

    /// Lets go of a device with its extents, to be called when it is lost. Its jobs fail, and are polled as ever; waits for
    /// what runs if it is not lost.
    pub fn remove_device(&mut self, device: u16) {
        for direction in [Direction::In, Direction::Out, Direction::Across] {
            if let Some(lane) = self.lanes.remove(&(device, direction)) {
                self.ended.extend(lane.abandon());
            }
        }
        self.devices.remove(&device);
    }

    /// Memory of a device that was added; its index there.
    ///
    /// # Panics
    /// If the device was not added.
    pub fn add_extent(&mut self, extent: Arc<HbmExtent>) -> u32 {
        let (_, extents) = self.devices.get_mut(&extent.device().index()).expect("a device that was added");
        extents.push(extent);
        extents.len() as u32 - 1
    }

    /// Host memory to copy from and to, as far as it is registered; its index.
    pub fn add_host(&mut self, host: Arc<HostExtent>) -> u32 {
        self.hosts.push(host);
        self.hosts.len() as u32 - 1
    }

    /// The lane of a job and what goes on it.
    fn plan(&self, job: &CopyJob) -> Result<((u16, Direction), Flight), CopyError> {
        let (to, from) = (self.find(job.to, job.bytes)?, self.find(job.from, job.bytes)?);
        let (device, direction, way, other) = match (to.device, from.device) {
            (Some(to), None) => (to.device(), Direction::In, Way::In, None),
            (None, Some(from)) => (from.device(), Direction::Out, Way::Out, None),
            (Some(to), Some(from)) if to.device().index() == from.device().index() => {
                (to.device(), Direction::Across, Way::Within, None)
            }
            (Some(to), Some(from)) => {
                let (device, other) = (to.device(), from.device());
                if !from.is_reached_by(device.index()) {
                    return Err(CopyError::Unreachable { device: device.index(), other: other.index() });
                }
                let way = Way::Between { to: device.context, from: other.context };
                (device, Direction::Across, way, Some(other.clone()))
            }
            (None, None) => panic!("no copier moves host memory to host memory"),
        };
        let piece = |part: Range<u64>| Piece {
            to: to.at + part.start,
            from: from.at + part.start,
            bytes: (part.end - part.start) as usize,
            way,
        };
        let pieces = match [job.to, job.from].into_iter().find(|spot| spot.device().is_none()) {
            Some(Spot::Host { extent, offset }) => {
                let parts = self.hosts[extent as usize].parts(offset..offset + job.bytes);
                parts.map(|part| piece(part.start - offset..part.end - offset)).collect()
            }
            _ => vec![piece(0..job.bytes)],
        };
        Ok(((device.index(), direction), Flight { op: job.op, pieces, other }))
    }

    fn find(&self, spot: Spot, bytes: u64) -> Result<Found<'_>, CopyError> {
        let inside = |offset: u64, room: u64| {
            let end = offset.checked_add(bytes).expect("offset fits");
            assert!(end <= room, "{bytes} bytes at {offset} of {room}");
            end
        };
        match spot {
            Spot::Host { extent, offset } => {
                let host = &self.hosts[extent as usize];
                let end = inside(offset, host.mapping().len() as u64);
                if end > host.registered_bytes() {
                    return Err(CopyError::NotRegistered { extent });
                }
                let at = host.mapping().as_ptr(offset as usize).expose_provenance() as u64;
                Ok(Found { at, device: None })
            }
            Spot::Device { device, extent, offset } => {
                // A device that was removed is a lost one.
                let (_, extents) = self.devices.get(&device).ok_or(CopyError::Lost { device })?;
                let extent = &extents[extent as usize];
                inside(offset, extent.bytes());
                Ok(Found { at: extent.address() + offset, device: Some(extent) })
            }
        }
    }
}

impl Copier for CudaCopier {
    fn submit(&mut self, _now: Time, jobs: &[CopyJob]) -> usize {
        let taken = jobs.len().min(self.in_flight_max - self.in_flight);
        let mut by_lane: BTreeMap<(u16, Direction), Vec<Flight>> = BTreeMap::new();
        for job in &jobs[..taken] {
            match self.plan(job) {
                Ok((lane, flight)) if !flight.pieces.iter().all(|piece| piece.bytes == 0) => {
                    by_lane.entry(lane).or_default().push(flight);
                }
                // Nothing to move.
                Ok(_) => self.ended.push(Copied { op: job.op, outcome: Ok(()) }),
                Err(error) => self.ended.push(Copied { op: job.op, outcome: Err(error) }),
            }
        }
        for (lane, flights) in by_lane {
            let lane = self.lanes.get_mut(&lane).expect("a device has all its lanes");
            lane.launch(flights, &mut self.ended);
        }
        self.in_flight += taken;
        taken
    }

    fn poll(&mut self, _now: Time, done: &mut Vec<Copied>) {
        for lane in self.lanes.values_mut() {
            lane.poll(&mut self.ended);
        }
        self.in_flight -= self.ended.len();
        done.append(&mut self.ended);
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}
