//! Streams, and words of memory that streams wait for.

use std::ffi::{c_int, c_uint, c_void};

use cudarc::driver::sys::{CUcontext, CUdeviceptr, CUhostFn, CUresult, CUstream, cuuint32_t};

use super::{
    copy::{check, either},
    put,
};
use crate::{
    misuse::Kind,
    stream::{self, HostCall, Until, Work},
    world::{Held, Mark, Outcome, World, enter, enter_context, enter_of, unless_fallen, wait},
};

/// The stream of a handle, in a call that puts work into it or waits for it. It need not be of the current context.
pub(super) fn find(held: &mut World, handle: CUstream, current: u64, call: &str) -> Outcome<u64> {
    let id = handle.addr() as u64;
    // 0, and the two names of the default stream: each thread's own is not told apart.
    if id <= 2 {
        if let Some(legacy) = held.contexts.get(&current).and_then(|context| context.legacy) {
            return Ok(legacy);
        }
        let legacy = stream::create(held, current, true, 0)?;
        if let Some(context) = held.contexts.get_mut(&current) {
            context.legacy = Some(legacy);
        }
        return Ok(legacy);
    }
    match held.streams.get(&id) {
        Some(stream) if !stream.is_closed() => Ok(id),
        _ => {
            let known = held.was_handle(id);
            let (kind, what) = if known { (Kind::UseAfterFree, "destroyed") } else { (Kind::WildPointer, "unknown") };
            held.misuse(kind, call, format!("stream {id:#x} is {what}"));
            Err(if known { CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED } else { CUresult::CUDA_ERROR_INVALID_HANDLE })
        }
    }
}

/// The same for work: it must be a stream of the current context.
pub(super) fn find_own(held: &mut World, handle: CUstream, current: u64, call: &str) -> Outcome<u64> {
    let id = find(held, handle, current, call)?;
    if held.streams.get(&id).is_some_and(|stream| stream.context != current) {
        held.misuse(Kind::WrongContext, call, format!("stream {id:#x} is not of the current context"));
        return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
    }
    Ok(id)
}

/// Until the stream has done what it was asked for so far.
pub(super) fn wait_for(mut held: Held, id: u64, call: &'static str) -> Outcome<Held> {
    let Some(context) = held.streams.get(&id).map(|stream| stream.context) else { return Ok(held) };
    let mark = Mark::default();
    stream::push(&mut held, id, Work::Record(mark.clone(), None), call);
    while mark.get().is_none() {
        held = wait(held);
    }
    if let Some(point) = mark.get() {
        held.host.join(&point.clock);
    }
    unless_fallen(held, context)
}

fn create(out: *mut CUstream, flags: c_uint, priority: c_int, call: &'static str) -> Outcome {
    let (mut held, context) = enter_context(call)?;
    if flags > 1 {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let id = stream::create(&mut held, context, flags == 0, priority.clamp(-5, 0))?;
    put(out, std::ptr::without_provenance_mut(id as usize))
}

/// The context of a stream, which works, and the stream.
pub(super) fn enter_stream(handle: CUstream, call: &'static str) -> Outcome<(Held, u64)> {
    let (mut held, current) = enter_context(call)?;
    let id = find(&mut held, handle, current, call)?;
    let context = held.streams.get(&id).map_or(current, |stream| stream.context);
    Ok((enter_of(held, context, call)?, id))
}

/// A word that a stream is to write or wait for: what is wrong with it now is the caller's to hear.
fn word(held: &World, context: u64, at: CUdeviceptr, writes: bool, call: &str) -> Outcome<u64> {
    if !at.is_multiple_of(4) {
        held.misuse(Kind::Misaligned, call, format!("a word at {at:#x}"));
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    check(held, context, either(held, at), 4, writes, false, call)?;
    Ok(at)
}

api! {
    fn cuStreamCreate(stream: *mut CUstream, flags: c_uint) {
        create(stream, flags, 0, CALL)
    }

    fn cuStreamCreateWithPriority(stream: *mut CUstream, flags: c_uint, priority: c_int) {
        create(stream, flags, priority, CALL)
    }

    fn cuStreamDestroy_v2(stream: CUstream) {
        let mut held = enter()?;
        if stream.addr() <= 2 {
            return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
        }
        let id = find(&mut held, stream, 0, CALL)?;
        let context = held.streams.get(&id).map_or(0, |stream| stream.context);
        held = enter_of(held, context, CALL)?;
        if let Some(stream) = held.streams.get_mut(&id) {
            stream.close();
        }
        Ok(())
    }

    fn cuStreamQuery(stream: CUstream) {
        let (mut held, id) = enter_stream(stream, CALL)?;
        let Some(stream) = held.streams.get(&id) else { return Ok(()) };
        if !stream.is_idle() {
            return Err(CUresult::CUDA_ERROR_NOT_READY);
        }
        let clock = stream.clock.clone();
        held.host.join(&clock);
        Ok(())
    }

    fn cuStreamSynchronize(stream: CUstream) {
        let (held, id) = enter_stream(stream, CALL)?;
        wait_for(held, id, CALL).map(drop)
    }

    fn cuStreamGetCtx(stream: CUstream, context: *mut CUcontext) {
        let (held, id) = enter_stream(stream, CALL)?;
        let of = held.streams.get(&id).map_or(0, |stream| stream.context);
        put(context, std::ptr::without_provenance_mut(of as usize))
    }

    fn cuStreamGetPriority(stream: CUstream, priority: *mut c_int) {
        let (held, id) = enter_stream(stream, CALL)?;
        put(priority, held.streams.get(&id).map_or(0, |stream| stream.priority))
    }

    fn cuStreamWriteValue32_v2(stream: CUstream, at: CUdeviceptr, value: cuuint32_t, _flags: c_uint) {
        let (mut held, current) = enter_context(CALL)?;
        let id = find_own(&mut held, stream, current, CALL)?;
        let at = word(&held, current, at, true, CALL)?;
        stream::push(&mut held, id, Work::WriteWord { at, value }, CALL);
        Ok(())
    }

    fn cuStreamWaitValue32_v2(stream: CUstream, at: CUdeviceptr, value: cuuint32_t, flags: c_uint) {
        let (mut held, current) = enter_context(CALL)?;
        let id = find_own(&mut held, stream, current, CALL)?;
        let until = match flags & 3 {
            0 => Until::AtLeast(value),
            1 => Until::Equal(value),
            2 => Until::And(value),
            _ => Until::Nor(value),
        };
        let at = word(&held, current, at, false, CALL)?;
        stream::push(&mut held, id, Work::WaitWord { at, until }, CALL);
        Ok(())
    }

    fn cuLaunchHostFunc(stream: CUstream, function: CUhostFn, data: *mut c_void) {
        let (mut held, current) = enter_context(CALL)?;
        let id = find_own(&mut held, stream, current, CALL)?;
        if function.is_none() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        stream::push(&mut held, id, Work::Call(HostCall { function, data }), CALL);
        Ok(())
    }
}
