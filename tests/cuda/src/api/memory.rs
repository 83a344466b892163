//! Memory by `cuMemAlloc`.

use std::collections::BTreeSet;

use cudarc::driver::sys::{CUdeviceptr, CUresult};

use super::put;
use crate::{
    memory::{Mapped, Origin},
    misuse::Kind,
    object::{Object, reserve},
    options::Fault,
    world::{Outcome, World, enter_context, give_up},
};

/// Memory of a device, if it has so much left.
pub(super) fn create(held: &mut World, device: usize, bytes: u64) -> Outcome<std::sync::Arc<Object>> {
    let strikes = held.devices[device].faults.strike(Fault::Memory);
    let room = held.devices[device].bytes.saturating_sub(held.memory.used(device));
    if strikes || bytes > room {
        return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    }
    let object = Object::create(device, bytes).ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
    Ok(held.memory.adopt(object))
}

/// Devices whose contexts were given access to the memory of one.
fn friends(held: &World, context: u64) -> BTreeSet<usize> {
    let friends = held.contexts.iter().filter(|(id, other)| **id == context || other.peers.contains(&context));
    friends.map(|(_, other)| other.device).collect()
}

api! {
    fn cuMemAlloc_v2(out: *mut CUdeviceptr, bytes: usize) {
        let (mut held, context) = enter_context(CALL)?;
        if bytes == 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let bytes = bytes as u64;
        let device = held.contexts[&context].device;
        let object = create(&mut held, device, bytes)?;
        let at = reserve(bytes, 512).ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
        let may = friends(&held, context);
        let (offset, origin) = (0, Origin::Allocated);
        let mapped = Mapped { bytes, object, offset, origin, context, read: may.clone(), write: may };
        held.memory.mapped.insert(at, mapped);
        put(out, at)
    }

    fn cuMemFree_v2(at: CUdeviceptr) {
        let (mut held, _) = enter_context(CALL)?;
        if at == 0 {
            return Ok(());
        }
        let Some(mapped) = held.memory.mapped.get(&at).filter(|mapped| mapped.origin == Origin::Allocated) else {
            let kind = if held.memory.was_freed(at) { Kind::DoubleFree } else { Kind::WildPointer };
            held.misuse(kind, CALL, format!("{at:#x} is not allocated"));
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        };
        let (bytes, touched) = (mapped.bytes, mapped.touched());
        held = give_up(held, at, bytes, touched, CALL);
        held.memory.mapped.remove(&at);
        held.memory.bury(at, bytes);
        Ok(())
    }

    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let (held, context) = enter_context(CALL)?;
        let device = held.contexts[&context].device;
        let bytes = held.devices[device].bytes;
        put(free, bytes.saturating_sub(held.memory.used(device)) as usize)?;
        put(total, bytes as usize)
    }

    fn cuMemGetAddressRange_v2(base: *mut CUdeviceptr, bytes: *mut usize, at: CUdeviceptr) {
        let (held, _) = enter_context(CALL)?;
        let (start, mapped) = held.memory.mapping(at).ok_or(CUresult::CUDA_ERROR_NOT_FOUND)?;
        if !base.is_null() {
            put(base, start)?;
        }
        if bytes.is_null() { Ok(()) } else { put(bytes, mapped.bytes as usize) }
    }
}
