//! Primary contexts, which context is current, peers.

use std::{
    collections::BTreeSet,
    ffi::{c_int, c_uint},
};

use cudarc::driver::sys::{CUcontext, CUdevice, CUresult};

use super::put;
use crate::{
    misuse::Kind,
    stream::{self, Work},
    world::{
        CURRENT, Context, Mark, Outcome, answering, end_context, enter, enter_context, enter_of, unless_fallen, wait,
    },
};

fn pointer(context: u64) -> CUcontext {
    std::ptr::without_provenance_mut(context as usize)
}

/// A device that is lost can be used again only when it is back.
fn device_of(held: &crate::world::World, device: CUdevice) -> Outcome<usize> {
    let index = usize::try_from(device).ok().filter(|index| *index < held.devices.len());
    index.ok_or(CUresult::CUDA_ERROR_INVALID_DEVICE)
}

api! {
    fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice) {
        let mut held = enter()?;
        let device = device_of(&held, device)?;
        held = answering(held, device);
        held.look_at_device(device);
        if held.devices[device].lost {
            return Err(held.options.lost_as);
        }
        let id = match held.devices[device].context {
            Some(id) => id,
            None => {
                let id = held.handle();
                held.contexts.insert(id, Context { device, sticky: None, legacy: None, peers: BTreeSet::new() });
                held.devices[device].context = Some(id);
                id
            }
        };
        held.devices[device].retained += 1;
        put(context, pointer(id))
    }

    fn cuDevicePrimaryCtxRelease_v2(device: CUdevice) {
        let mut held = enter()?;
        let device = device_of(&held, device)?;
        let Some(context) = held.devices[device].context else {
            held.misuse(Kind::DoubleFree, CALL, format!("the context of device {device} was released"));
            return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
        };
        held.devices[device].retained = held.devices[device].retained.saturating_sub(1);
        if held.devices[device].retained == 0 {
            drop(end_context(held, context, true, CALL));
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxReset_v2(device: CUdevice) {
        let held = enter()?;
        let device = device_of(&held, device)?;
        if let Some(context) = held.devices[device].context {
            drop(end_context(held, context, false, CALL));
        }
        Ok(())
    }

    fn cuCtxSetCurrent(context: CUcontext) {
        let held = enter()?;
        let id = context.addr() as u64;
        if id != 0 && !held.contexts.contains_key(&id) {
            held.misuse(Kind::WrongContext, CALL, format!("context {id:#x} is gone"));
            return Err(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
        }
        CURRENT.with_borrow_mut(|stack| {
            stack.pop();
            stack.extend((id != 0).then_some(id));
        });
        Ok(())
    }

    fn cuCtxGetCurrent(context: *mut CUcontext) {
        drop(enter()?);
        put(context, pointer(CURRENT.with_borrow(|stack| stack.last().copied().unwrap_or(0))))
    }

    fn cuCtxPushCurrent_v2(context: CUcontext) {
        let id = context.addr() as u64;
        drop(enter_of(enter()?, id, CALL)?);
        CURRENT.with_borrow_mut(|stack| stack.push(id));
        Ok(())
    }

    fn cuCtxPopCurrent_v2(context: *mut CUcontext) {
        drop(enter()?);
        let popped = CURRENT.with_borrow_mut(Vec::pop).ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)?;
        if context.is_null() { Ok(()) } else { put(context, pointer(popped)) }
    }

    fn cuCtxGetDevice(device: *mut CUdevice) {
        let (held, context) = enter_context(CALL)?;
        put(device, held.contexts[&context].device as CUdevice)
    }

    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        drop(enter_context(CALL)?);
        for (at, value) in [(least, 0), (greatest, -5)] {
            if !at.is_null() {
                put(at, value)?;
            }
        }
        Ok(())
    }

    fn cuCtxSynchronize() {
        let (mut held, context) = enter_context(CALL)?;
        let all: Vec<u64> = held.streams.iter().filter(|(_, s)| s.context == context).map(|(id, _)| *id).collect();
        let marks: Vec<Mark> = all.into_iter().map(|id| {
            let mark = Mark::default();
            stream::push(&mut held, id, Work::Record(mark.clone(), None), CALL);
            mark
        }).collect();
        while marks.iter().any(|mark| mark.get().is_none()) {
            held = wait(held);
        }
        for point in marks.iter().filter_map(|mark| mark.get()) {
            held.host.join(&point.clock);
        }
        unless_fallen(held, context).map(drop)
    }

    fn cuCtxEnablePeerAccess(peer: CUcontext, flags: c_uint) {
        let (mut held, context) = enter_context(CALL)?;
        let peer = peer.addr() as u64;
        let (Some(own), Some(other)) = (held.contexts.get(&context), held.contexts.get(&peer)) else {
            held.misuse(Kind::WrongContext, CALL, format!("context {peer:#x} is gone"));
            return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
        };
        if flags != 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        if own.device == other.device {
            return Err(CUresult::CUDA_ERROR_INVALID_DEVICE);
        }
        if !held.options.has_peers {
            return Err(CUresult::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED);
        }
        let device = own.device;
        let new = held.contexts.get_mut(&context).is_some_and(|own| own.peers.insert(peer));
        if !new {
            return Err(CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
        }
        for mapped in held.memory.mapped.values_mut().filter(|mapped| mapped.context == peer) {
            mapped.read.insert(device);
            mapped.write.insert(device);
        }
        Ok(())
    }

    fn cuCtxDisablePeerAccess(peer: CUcontext) {
        let (mut held, context) = enter_context(CALL)?;
        let peer = peer.addr() as u64;
        let device = held.contexts[&context].device;
        let had = held.contexts.get_mut(&context).is_some_and(|own| own.peers.remove(&peer));
        if !had {
            return Err(CUresult::CUDA_ERROR_PEER_ACCESS_NOT_ENABLED);
        }
        for mapped in held.memory.mapped.values_mut().filter(|mapped| mapped.context == peer) {
            mapped.read.remove(&device);
            mapped.write.remove(&device);
        }
        Ok(())
    }
}
