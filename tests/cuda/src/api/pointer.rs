//! What a pointer is.

use std::ffi::{c_int, c_uint, c_void};

use cudarc::driver::sys::{CUdeviceptr, CUmemorytype, CUpointer_attribute, CUresult};

use super::{put, take_all};
use crate::{
    memory::Origin,
    world::{Outcome, World, enter},
};

/// What is known of an address: none of it for memory that the driver does not know.
fn write(held: &World, out: *mut c_void, attribute: CUpointer_attribute, at: u64) -> Outcome {
    use CUpointer_attribute as A;
    const WRONG: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;
    let pointer = |value: u64| std::ptr::without_provenance_mut::<c_void>(value as usize);
    let (base, bytes, context, device, is_host, handles) = if let Some((base, mapped)) = held.memory.mapping(at) {
        let device = mapped.object.device;
        let context = if mapped.context == 0 { held.devices[device].context.unwrap_or(0) } else { mapped.context };
        let handles = u64::from(mapped.origin == Origin::Mapped && held.options.has_descriptors);
        (base, mapped.bytes, context, device, false, handles)
    } else if let Some((base, host)) = held.memory.host(at) {
        let device = held.contexts.get(&host.context).map_or(0, |context| context.device);
        (base, host.bytes, host.context, device, true, 0)
    } else {
        return Err(WRONG);
    };
    match attribute {
        A::CU_POINTER_ATTRIBUTE_CONTEXT => put(out.cast(), pointer(context)),
        A::CU_POINTER_ATTRIBUTE_MEMORY_TYPE => {
            let host = CUmemorytype::CU_MEMORYTYPE_HOST as c_uint;
            put(out.cast(), if is_host { host } else { CUmemorytype::CU_MEMORYTYPE_DEVICE as c_uint })
        }
        A::CU_POINTER_ATTRIBUTE_DEVICE_POINTER => put(out.cast::<CUdeviceptr>(), at),
        A::CU_POINTER_ATTRIBUTE_HOST_POINTER if is_host => put(out.cast(), pointer(at)),
        A::CU_POINTER_ATTRIBUTE_HOST_POINTER => Err(WRONG),
        A::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL => put(out.cast(), device as c_int),
        A::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR => put(out.cast(), pointer(base)),
        A::CU_POINTER_ATTRIBUTE_RANGE_SIZE => put(out.cast(), bytes as usize),
        A::CU_POINTER_ATTRIBUTE_BUFFER_ID => put(out.cast(), base),
        A::CU_POINTER_ATTRIBUTE_MAPPED => put(out.cast::<c_int>(), 1),
        A::CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES => put(out.cast(), handles),
        A::CU_POINTER_ATTRIBUTE_IS_MANAGED => put(out.cast::<c_int>(), 0),
        A::CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE => {
            let allocated = held.memory.mapping(at).is_some_and(|(_, mapped)| mapped.origin == Origin::Allocated);
            put(out.cast(), c_int::from(allocated))
        }
        _ => Err(CUresult::CUDA_ERROR_NOT_SUPPORTED),
    }
}

api! {
    fn cuPointerGetAttribute(out: *mut c_void, attribute: CUpointer_attribute, at: CUdeviceptr) {
        write(&*enter()?, out, attribute, at)
    }

    fn cuPointerGetAttributes(
        count: c_uint,
        attributes: *mut CUpointer_attribute,
        outs: *mut *mut c_void,
        at: CUdeviceptr,
    ) {
        let held = enter()?;
        let attributes = take_all(attributes, count as usize)?;
        let outs = take_all(outs, count as usize)?;
        let known = held.memory.mapping(at).is_some() || held.memory.host(at).is_some();
        for (attribute, out) in attributes.into_iter().zip(outs) {
            if !known {
                // Of memory that it does not know the driver says null; the smallest answer is four bytes.
                put(out.cast::<c_int>(), 0)?;
            } else if let Err(error) = write(&held, out, attribute, at)
                && error != CUresult::CUDA_ERROR_INVALID_VALUE
            {
                return Err(error);
            }
        }
        Ok(())
    }
}
