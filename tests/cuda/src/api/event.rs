//! Events.

use std::{
    ffi::{c_char, c_uint},
    os::fd::{FromRawFd, OwnedFd},
    sync::Arc,
};

use cudarc::driver::sys::{CUevent, CUevent_flags, CUipcEventHandle, CUresult, CUstream};

use super::{ipc, put, stream::find};
use crate::{
    event::{Event, Shared},
    misuse::Kind,
    options::Fault,
    stream::{self, Work},
    world::{Held, Mark, Outcome, World, enter_context, enter_of, unless_fallen, wait, wait_a_little},
};

fn known(held: &World, event: CUevent, call: &str) -> Outcome<u64> {
    let id = event.addr() as u64;
    if held.events.contains_key(&id) {
        return Ok(id);
    }
    let (kind, what) =
        if held.was_handle(id) { (Kind::UseAfterFree, "destroyed") } else { (Kind::WildPointer, "unknown") };
    held.misuse(kind, call, format!("event {id:#x} is {what}"));
    Err(CUresult::CUDA_ERROR_INVALID_HANDLE)
}

/// The state, with an event whose context works.
fn enter_event(event: CUevent, call: &'static str) -> Outcome<(Held, u64)> {
    let (held, _) = enter_context(call)?;
    let id = known(&held, event, call)?;
    let context = held.events[&id].context;
    Ok((enter_of(held, context, call)?, id))
}

/// What is waited for: the last record of it in this process, or by others too.
enum Last {
    Mark(Mark),
    Shared(Arc<Shared>, u64),
}

impl Last {
    fn is_reached(&self) -> bool {
        match self {
            Self::Mark(mark) => mark.get().is_some(),
            Self::Shared(shared, number) => shared.has_reached(*number),
        }
    }
}

/// The last record; none if there never was one, which is CUDA's success and a mistake of the caller.
fn last(held: &World, id: u64, call: &str) -> Option<Last> {
    let event = &held.events[&id];
    let last = match (&event.shared, &event.mark) {
        // Recorded here and by nobody since: what the record knows is known too.
        (Some(shared), mark) if shared.recorded() > 0 => match mark {
            Some(mark) if mark.get().is_some() && shared.has_reached(shared.recorded()) => {
                Some(Last::Mark(mark.clone()))
            }
            _ => Some(Last::Shared(shared.clone(), shared.recorded())),
        },
        (None, Some(mark)) => Some(Last::Mark(mark.clone())),
        _ => None,
    };
    if last.is_none() {
        held.misuse(Kind::Unrecorded, call, format!("event {id:#x} was never recorded"));
    }
    last
}

fn learn(held: &mut World, id: u64) {
    if let Some(point) = held.events.get(&id).and_then(|event| event.mark.clone()).as_ref().and_then(|mark| mark.get())
    {
        held.host.join(&point.clock);
    }
}

fn elapsed(out: *mut f32, from: CUevent, to: CUevent, call: &'static str) -> Outcome {
    let (held, from) = enter_event(from, call)?;
    let to = known(&held, to, call)?;
    let point = |id: u64| {
        let event = &held.events[&id];
        let mark = event.mark.as_ref().filter(|_| event.timed);
        let Some(mark) = mark else {
            held.misuse(Kind::Unrecorded, call, format!("event {id:#x} has no time"));
            return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
        };
        mark.get().map(|point| point.at).ok_or(CUresult::CUDA_ERROR_NOT_READY)
    };
    let (from, to) = (point(from)?, point(to)?);
    put(out, to.saturating_duration_since(from).as_secs_f32() * 1000.0)
}

api! {
    fn cuEventCreate(event: *mut CUevent, flags: c_uint) {
        let (mut held, context) = enter_context(CALL)?;
        let untimed = flags & CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint != 0;
        let between = flags & CUevent_flags::CU_EVENT_INTERPROCESS as c_uint != 0;
        if flags > 7 || (between && !untimed) {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let shared = if between {
            Some(Arc::new(Shared::create().ok_or(CUresult::CUDA_ERROR_OPERATING_SYSTEM)?))
        } else {
            None
        };
        let id = held.handle();
        held.events.insert(id, Event { context, timed: !untimed, mark: None, shared });
        put(event, std::ptr::without_provenance_mut(id as usize))
    }

    fn cuEventDestroy_v2(event: CUevent) {
        let (mut held, id) = enter_event(event, CALL)?;
        held.events.remove(&id);
        Ok(())
    }

    fn cuEventRecord(event: CUevent, stream: CUstream) {
        let (mut held, current) = enter_context(CALL)?;
        let id = known(&held, event, CALL)?;
        let stream = find(&mut held, stream, current, CALL)?;
        let context = held.events[&id].context;
        if held.streams.get(&stream).is_some_and(|stream| stream.context != context) {
            held.misuse(Kind::WrongContext, CALL, format!("event {id:#x} and stream {stream:#x} are of two contexts"));
            return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
        }
        held = enter_of(held, context, CALL)?;
        let device = held.contexts[&context].device;
        if held.devices[device].faults.strike(Fault::Event) {
            return Err(CUresult::CUDA_ERROR_OPERATING_SYSTEM);
        }
        let mark = Mark::default();
        let Some(event) = held.events.get_mut(&id) else { return Err(CUresult::CUDA_ERROR_INVALID_HANDLE) };
        event.mark = Some(mark.clone());
        let shared = event.shared.clone().map(|shared| {
            let number = shared.record();
            (shared, number)
        });
        stream::push(&mut held, stream, Work::Record(mark, shared), CALL);
        Ok(())
    }

    fn cuEventQuery(event: CUevent) {
        let (mut held, id) = enter_event(event, CALL)?;
        let device = held.contexts[&held.events[&id].context].device;
        if held.devices[device].faults.strike(Fault::Query) {
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        }
        match last(&held, id, CALL) {
            Some(last) if !last.is_reached() => Err(CUresult::CUDA_ERROR_NOT_READY),
            _ => {
                learn(&mut held, id);
                Ok(())
            }
        }
    }

    fn cuEventSynchronize(event: CUevent) {
        let (mut held, id) = enter_event(event, CALL)?;
        let context = held.events[&id].context;
        let Some(last) = last(&held, id, CALL) else { return Ok(()) };
        while !last.is_reached() {
            held = match &last {
                Last::Mark(_) => wait(held),
                Last::Shared(..) => wait_a_little(held),
            };
            held = unless_fallen(held, context)?;
        }
        match &last {
            Last::Mark(mark) => {
                if let Some(point) = mark.get() {
                    held.host.join(&point.clock);
                }
            }
            Last::Shared(..) => learn(&mut held, id),
        }
        unless_fallen(held, context).map(drop)
    }

    fn cuEventElapsedTime(milliseconds: *mut f32, from: CUevent, to: CUevent) {
        elapsed(milliseconds, from, to, CALL)
    }

    fn cuEventElapsedTime_v2(milliseconds: *mut f32, from: CUevent, to: CUevent) {
        elapsed(milliseconds, from, to, CALL)
    }

    fn cuStreamWaitEvent(stream: CUstream, event: CUevent, _flags: c_uint) {
        let (mut held, current) = enter_context(CALL)?;
        let stream = find(&mut held, stream, current, CALL)?;
        let id = known(&held, event, CALL)?;
        let work = match last(&held, id, CALL) {
            Some(Last::Mark(mark)) => Work::Wait(mark),
            Some(Last::Shared(shared, number)) => match held.events[&id].mark.clone() {
                // The last record is this process's own.
                Some(mark) if mark.get().is_none() => Work::Wait(mark),
                _ => Work::WaitShared(shared, number),
            },
            None => return Ok(()),
        };
        stream::push(&mut held, stream, work, CALL);
        Ok(())
    }

    fn cuIpcGetEventHandle(handle: *mut CUipcEventHandle, event: CUevent) {
        let (held, id) = enter_event(event, CALL)?;
        let shared = held.events[&id].shared.as_ref().ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        let reserved = ipc::Ticket { fd: shared.fd(), device: 0, offset: 0, bytes: 0 }.write();
        put(handle, CUipcEventHandle { reserved: reserved.map(|byte| byte as c_char) })
    }

    fn cuIpcOpenEventHandle(event: *mut CUevent, handle: CUipcEventHandle) {
        let (mut held, context) = enter_context(CALL)?;
        let fd = ipc::Ticket::open(&handle.reserved.map(|byte| byte as u8))?.0;
        // SAFETY: just opened, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let shared = Some(Arc::new(Shared::open(fd).ok_or(CUresult::CUDA_ERROR_MAP_FAILED)?));
        let id = held.handle();
        held.events.insert(id, Event { context, timed: false, mark: None, shared });
        put(event, std::ptr::without_provenance_mut(id as usize))
    }
}
