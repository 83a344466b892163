//! Copies, and memory that is filled.

use std::ffi::{c_uchar, c_void};

use cudarc::driver::sys::{CUcontext, CUdeviceptr, CUresult, CUstream};

use super::stream::{find_own, wait_for};
use crate::{
    misuse::Kind,
    options::Fault,
    stream::{self, Piece, Place, Side, Work},
    world::{Held, Outcome, World, enter_context},
};

pub(super) fn device(at: u64) -> Place {
    Place { side: Side::Device, at }
}

pub(super) fn host(at: u64) -> Place {
    Place { side: Side::Host, at }
}

/// By the address alone, as unified addressing has it.
pub(super) fn either(held: &World, at: u64) -> Place {
    let known = held.memory.mapping(at).is_some() || held.memory.was_freed(at);
    if known { device(at) } else { host(at) }
}

/// Looks at a place in the call: what is wrong then is the caller's to hear.
pub(super) fn check(
    held: &World,
    context: u64,
    place: Place,
    bytes: u64,
    writes: bool,
    pageable: bool,
    call: &str,
) -> Outcome {
    let device = held.contexts[&context].device;
    let found = match place.side {
        Side::Device => held.memory.device_spot(place.at, bytes, device, writes),
        Side::Host => held.memory.host_spot(place.at, bytes, context, pageable || held.options.pageable),
    };
    let Err((kind, what)) = found else { return Ok(()) };
    held.misuse(kind, call, what);
    Err(match kind {
        Kind::NoAccess => CUresult::CUDA_ERROR_PEER_ACCESS_NOT_ENABLED,
        Kind::WrongContext => CUresult::CUDA_ERROR_INVALID_CONTEXT,
        _ => CUresult::CUDA_ERROR_INVALID_VALUE,
    })
}

pub(super) fn check_piece(held: &World, context: u64, piece: &Piece, call: &str) -> Outcome {
    check(held, context, piece.from, piece.bytes, false, piece.pageable, call)?;
    check(held, context, piece.to, piece.bytes, true, piece.pageable, call)
}

/// One copy at the end of a stream.
fn copy(to: Place, from: Place, bytes: usize, handle: CUstream, call: &'static str) -> Outcome {
    let (mut held, context) = enter_context(call)?;
    let id = find_own(&mut held, handle, context, call)?;
    if bytes == 0 {
        return Ok(());
    }
    let piece = Piece { to, from, bytes: bytes as u64, pageable: false };
    check_piece(&held, context, &piece, call)?;
    let device = held.contexts[&context].device;
    if held.devices[device].faults.strike(Fault::Copy) {
        return Err(CUresult::CUDA_ERROR_OPERATING_SYSTEM);
    }
    let is_pageable =
        [to, from].into_iter().any(|place| place.side == Side::Host && held.memory.host(place.at).is_none());
    stream::push(&mut held, id, Work::Copy(vec![piece]), call);
    // The driver takes a copy of such memory in the call, or waits for it.
    if is_pageable { wait_for(held, id, call).map(drop) } else { Ok(()) }
}

/// A copy that is done when the call returns.
fn copy_now(to: Place, from: Place, bytes: usize, call: &'static str) -> Outcome {
    let (mut held, context) = enter_context(call)?;
    let id = find_own(&mut held, std::ptr::null_mut(), context, call)?;
    if bytes == 0 {
        return Ok(());
    }
    let piece = Piece { to, from, bytes: bytes as u64, pageable: true };
    check_piece(&held, context, &piece, call)?;
    stream::push(&mut held, id, Work::Copy(vec![piece]), call);
    wait_for(held, id, call).map(drop)
}

fn fill(at: u64, value: u8, bytes: usize, handle: CUstream, call: &'static str) -> Outcome<Option<(Held, u64)>> {
    let (mut held, context) = enter_context(call)?;
    let id = find_own(&mut held, handle, context, call)?;
    if bytes == 0 {
        return Ok(None);
    }
    let (to, bytes) = (either(&held, at), bytes as u64);
    check(&held, context, to, bytes, true, false, call)?;
    stream::push(&mut held, id, Work::Fill { to, bytes, value }, call);
    Ok(Some((held, id)))
}

api! {
    fn cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream) {
        copy(device(to), host(from.addr() as u64), bytes, stream, CALL)
    }

    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream) {
        copy(host(to.addr() as u64), device(from), bytes, stream, CALL)
    }

    fn cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) {
        copy(device(to), device(from), bytes, stream, CALL)
    }

    fn cuMemcpyAsync(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) {
        let (to, from) = {
            let (held, _) = enter_context(CALL)?;
            (either(&held, to), either(&held, from))
        };
        copy(to, from, bytes, stream, CALL)
    }

    fn cuMemcpyPeerAsync(
        to: CUdeviceptr,
        to_context: CUcontext,
        from: CUdeviceptr,
        from_context: CUcontext,
        bytes: usize,
        stream: CUstream,
    ) {
        let (held, _) = enter_context(CALL)?;
        for (at, context) in [(to, to_context), (from, from_context)] {
            let Some(named) = held.contexts.get(&(context.addr() as u64)).map(|context| context.device) else {
                held.misuse(Kind::WrongContext, CALL, format!("context {:#x} is gone", context.addr()));
                return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
            };
            if held.memory.mapping(at).is_some_and(|(_, mapped)| mapped.object.device != named) {
                held.misuse(Kind::WrongContext, CALL, format!("{at:#x} is not of device {named}"));
                return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
            }
        }
        drop(held);
        copy(device(to), device(from), bytes, stream, CALL)
    }

    fn cuMemcpyHtoD_v2(to: CUdeviceptr, from: *const c_void, bytes: usize) {
        copy_now(device(to), host(from.addr() as u64), bytes, CALL)
    }

    fn cuMemcpyDtoH_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize) {
        copy_now(host(to.addr() as u64), device(from), bytes, CALL)
    }

    fn cuMemcpyDtoD_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize) {
        copy_now(device(to), device(from), bytes, CALL)
    }

    fn cuMemsetD8Async(at: CUdeviceptr, value: c_uchar, bytes: usize, stream: CUstream) {
        fill(at, value, bytes, stream, CALL).map(drop)
    }

    fn cuMemsetD8_v2(at: CUdeviceptr, value: c_uchar, bytes: usize) {
        match fill(at, value, bytes, std::ptr::null_mut(), CALL)? {
            Some((held, id)) => wait_for(held, id, CALL).map(drop),
            None => Ok(()),
        }
    }
}
