//! One stream of a device and what is on it: copies go in batches, each ends with an event that is asked about, never waited
//! for.

use std::{collections::VecDeque, ffi::c_void, sync::Arc};

use cudarc::driver::sys::{
    self, CUcontext, CUdeviceptr, CUevent, CUevent_flags, CUmemLocation, CUmemLocationType, CUmemcpyAttributes,
    CUmemcpySrcAccessOrder, CUresult, CUstream, CUstream_flags,
};

use super::{
    device::Device,
    face::{Copied, CopyError},
};

/// Copies of one call.
const BATCH_MAX: usize = 256;

/// Which ends of a copy are a device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    In,
    Out,
    Within,
    /// Between two devices, by their contexts.
    Between {
        to: CUcontext,
        from: CUcontext,
    },
}

/// A copy as the driver is asked for it; a job has one, or one for each chunk of host memory that it touches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub to: u64,
    pub from: u64,
    pub bytes: usize,
    pub way: Way,
}

/// A job on its way.
#[derive(Debug)]
pub(super) struct Flight {
    pub op: u64,
    pub pieces: Vec<Piece>,
    /// The device at its other end, whose loss is its failure too.
    pub other: Option<Arc<Device>>,
}

#[derive(Debug)]
struct Landing {
    op: u64,
    outcome: Result<(), CopyError>,
    other: Option<Arc<Device>>,
}

#[derive(Debug)]
struct Batch {
    /// None where it could not be recorded: then the stream is asked.
    event: Option<CUevent>,
    landings: Vec<Landing>,
}

#[derive(Debug)]
pub(super) struct Lane {
    device: Arc<Device>,
    stream: CUstream,
    batches: VecDeque<Batch>,
    spare: Vec<CUevent>,
}

// SAFETY: streams and events may be used from any thread whose current context is theirs, which each call sees to.
unsafe impl Send for Lane {}

impl Lane {
    pub fn open(device: &Arc<Device>) -> Result<Self, super::HbmError> {
        let current = device.enter()?;
        let mut stream = std::ptr::null_mut();
        // SAFETY: `stream` is written where it succeeds.
        let code = unsafe { sys::cuStreamCreate(&raw mut stream, CUstream_flags::CU_STREAM_NON_BLOCKING as u32) };
        device.check("cuStreamCreate", code)?;
        drop(current);
        Ok(Self { device: device.clone(), stream, batches: VecDeque::new(), spare: Vec::new() })
    }

    /// Puts jobs on the stream. Those that the driver refused and has not begun are reported at once.
    pub fn launch(&mut self, flights: Vec<Flight>, ended: &mut Vec<Copied>) {
        let mut flights = flights.into_iter().peekable();
        while flights.peek().is_some() {
            let mut batch = Vec::new();
            let mut pieces = 0;
            while let Some(flight) = flights.next_if(|f| batch.is_empty() || pieces + f.pieces.len() <= BATCH_MAX) {
                pieces += flight.pieces.len();
                batch.push(flight);
            }
            self.launch_batch(batch, ended);
        }
    }

    fn launch_batch(&mut self, flights: Vec<Flight>, ended: &mut Vec<Copied>) {
        let device = self.device.clone();
        let Ok(_current) = device.enter() else {
            ended.extend(flights.into_iter().map(|flight| self.lost(flight.op)));
            self.lose(ended);
            return;
        };
        let together = device.cuda.has_batch && !flights.iter().flat_map(|f| &f.pieces).any(Piece::is_between);
        let (mut landings, mut has_begun) = (Vec::with_capacity(flights.len()), false);
        let all = if together { self.copy_together(&flights) } else { CUresult::CUDA_SUCCESS };
        // Of a batch that was refused a part may have begun.
        has_begun |= together;
        for Flight { op, pieces, other } in flights {
            let mut code = all;
            for piece in pieces.iter().filter(|_| !together) {
                code = self.copy(piece);
                if code != CUresult::CUDA_SUCCESS {
                    break;
                }
                has_begun = true;
            }
            let outcome = device.check("a copy", code).map_err(|error| self.refusal(&error));
            landings.push(Landing { op, outcome, other });
        }
        if device.is_lost() {
            ended.extend(landings.into_iter().map(|landing| self.lost(landing.op)));
            self.lose(ended);
        } else if has_begun {
            let event = self.record();
            self.batches.push_back(Batch { event, landings });
        } else {
            ended.extend(landings.into_iter().map(|Landing { op, outcome, .. }| Copied { op, outcome }));
        }
    }

    fn refusal(&self, error: &super::HbmError) -> CopyError {
        let device = self.device.index();
        if error.is_lost() {
            CopyError::Lost { device }
        } else {
            CopyError::Refused { device, reason: error.to_string() }
        }
    }

    fn copy(&self, piece: &Piece) -> CUresult {
        let Piece { to, from, bytes, way } = *piece;
        let host = |at: u64| std::ptr::with_exposed_provenance_mut::<c_void>(at as usize);
        // SAFETY: both are ranges of extents, checked as the job was resolved, that the copier keeps until the batch has ended
        // or the device is lost; no job in flight touches bytes of another, which is the caller's to keep.
        unsafe {
            match way {
                Way::In => sys::cuMemcpyHtoDAsync_v2(to, host(from), bytes, self.stream),
                Way::Out => sys::cuMemcpyDtoHAsync_v2(host(to), from, bytes, self.stream),
                Way::Within => sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream),
                Way::Between { to: there, from: here } => {
                    sys::cuMemcpyPeerAsync(to, there, from, here, bytes, self.stream)
                }
            }
        }
    }

    /// All in one call.
    fn copy_together(&self, flights: &[Flight]) -> CUresult {
        let pieces = || flights.iter().flat_map(|flight| &flight.pieces);
        let mut to: Vec<CUdeviceptr> = pieces().map(|piece| piece.to).collect();
        let mut from: Vec<CUdeviceptr> = pieces().map(|piece| piece.from).collect();
        let mut bytes: Vec<usize> = pieces().map(|piece| piece.bytes).collect();
        let nowhere = CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_INVALID, id: 0 };
        let mut attributes = CUmemcpyAttributes {
            srcAccessOrder: CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM,
            srcLocHint: nowhere,
            dstLocHint: nowhere,
            flags: 0,
        };
        let (mut first, mut failed) = (0, 0);
        // SAFETY: the lists are of one length and outlive the call; the ranges are as in `copy`.
        unsafe {
            sys::cuMemcpyBatchAsync(
                to.as_mut_ptr(),
                from.as_mut_ptr(),
                bytes.as_mut_ptr(),
                to.len(),
                &raw mut attributes,
                &raw mut first,
                1,
                &raw mut failed,
                self.stream,
            )
        }
    }

    /// An event behind all that is on the stream.
    fn record(&mut self) -> Option<CUevent> {
        let event = self.spare.pop().or_else(|| {
            let mut event = std::ptr::null_mut();
            // SAFETY: `event` is written where it succeeds.
            let code = unsafe { sys::cuEventCreate(&raw mut event, CUevent_flags::CU_EVENT_DISABLE_TIMING as u32) };
            self.device.check("cuEventCreate", code).ok().map(|()| event)
        })?;
        // SAFETY: event and stream are ours and of one context, which is current.
        let code = unsafe { sys::cuEventRecord(event, self.stream) };
        if self.device.check("cuEventRecord", code).is_ok() {
            return Some(event);
        }
        self.spare.push(event);
        None
    }

    /// Whether the first batch has ended; an error means that this cannot be known any more.
    fn first_has_ended(&self) -> Option<bool> {
        let batch = self.batches.front()?;
        let (op, code) = match batch.event {
            // SAFETY: an event of ours, recorded.
            Some(event) => ("cuEventQuery", unsafe { sys::cuEventQuery(event) }),
            // SAFETY: a stream of ours.
            None => ("cuStreamQuery", unsafe { sys::cuStreamQuery(self.stream) }),
        };
        match code {
            CUresult::CUDA_SUCCESS => Some(true),
            CUresult::CUDA_ERROR_NOT_READY => Some(false),
            code => {
                self.device.give_up(op, code);
                None
            }
        }
    }

    /// Reports what has ended; never waits.
    pub fn poll(&mut self, ended: &mut Vec<Copied>) {
        let device = self.device.clone();
        while !self.batches.is_empty() {
            let Ok(_current) = device.enter() else { return self.lose(ended) };
            match self.first_has_ended() {
                Some(true) => {}
                Some(false) => return,
                None => return self.lose(ended),
            }
            let Some(batch) = self.batches.pop_front() else { return };
            self.spare.extend(batch.event);
            for Landing { op, outcome, other } in batch.landings {
                ended.push(Copied { op, outcome: outcome.and_then(|()| still_there(other.as_deref())) });
            }
        }
    }

    /// What is in flight fails: a context that has answered a fatal error runs nothing any more.
    fn lose(&mut self, ended: &mut Vec<Copied>) {
        let landings = self.batches.drain(..).flat_map(|batch| batch.landings);
        let device = self.device.index();
        ended.extend(landings.map(|landing| Copied { op: landing.op, outcome: Err(CopyError::Lost { device }) }));
    }

    /// What is in flight, as failed; returns when none of it runs.
    pub fn abandon(mut self) -> Vec<Copied> {
        let mut ended = Vec::new();
        let device = self.device.clone();
        if let Ok(_current) = device.enter() {
            // SAFETY: a stream of ours.
            let code = unsafe { sys::cuStreamSynchronize(self.stream) };
            if let Err(error) = device.check("cuStreamSynchronize", code) {
                tracing::warn!(%error, "a stream that is given up");
            }
        }
        self.lose(&mut ended);
        ended
    }

    fn lost(&self, op: u64) -> Copied {
        Copied { op, outcome: Err(CopyError::Lost { device: self.device.index() }) }
    }
}

impl Piece {
    fn is_between(&self) -> bool {
        matches!(self.way, Way::Between { .. })
    }
}

/// A copy from a device that went away meanwhile may end well, and have moved anything.
fn still_there(other: Option<&Device>) -> Result<(), CopyError> {
    match other {
        Some(device) if !device.is_well() => Err(CopyError::Lost { device: device.index() }),
        _ => Ok(()),
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Of a lost device nothing runs, and its context takes the rest along.
        let Ok(_current) = self.device.enter() else { return };
        // SAFETY: a stream of ours. Its memory must not go before it has ended.
        let mut code = unsafe { sys::cuStreamSynchronize(self.stream) };
        for event in self.batches.drain(..).filter_map(|batch| batch.event).chain(self.spare.drain(..)) {
            // SAFETY: an event of ours, destroyed once.
            let ended = unsafe { sys::cuEventDestroy_v2(event) };
            code = if code == CUresult::CUDA_SUCCESS { ended } else { code };
        }
        // SAFETY: a stream of ours, destroyed once.
        let ended = unsafe { sys::cuStreamDestroy_v2(self.stream) };
        code = if code == CUresult::CUDA_SUCCESS { ended } else { code };
        if let Err(error) = self.device.check("the end of a stream", code) {
            tracing::warn!(%error, "a stream did not end well");
        }
    }
}
