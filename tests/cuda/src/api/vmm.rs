//! The virtual-memory interface: memory by handles, addresses apart from it.

use std::{
    collections::BTreeSet,
    ffi::{c_int, c_ulonglong, c_void},
};

use cudarc::driver::sys::{
    CUdeviceptr, CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationGranularity_flags, CUmemAllocationHandleType,
    CUmemAllocationProp, CUmemAllocationType, CUmemGenericAllocationHandle, CUmemLocation, CUmemLocationType, CUresult,
};

use super::{memory::create, put, take, take_all};
use crate::{
    memory::{Handle, Mapped, Origin},
    misuse::Kind,
    object::{Object, reserve},
    options::Fault,
    world::{Held, Outcome, World, answering, enter, give_up, lock, unless_fallen},
};

/// What a device has it by.
const GRANULARITY: u64 = 2 << 20;
const DESCRIPTOR: CUmemAllocationHandleType = CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

/// These calls need no context, but a device that has the interface.
fn enter_vmm() -> Outcome<Held> {
    let held = enter()?;
    if held.options.has_vmm { Ok(held) } else { Err(CUresult::CUDA_ERROR_NOT_SUPPORTED) }
}

fn device_at(held: &World, location: &CUmemLocation) -> Outcome<usize> {
    let device = usize::try_from(location.id).ok().filter(|device| *device < held.devices.len());
    match location.type_ {
        CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE => device.ok_or(CUresult::CUDA_ERROR_INVALID_DEVICE),
        _ => Err(CUresult::CUDA_ERROR_NOT_SUPPORTED),
    }
}

/// A device that is lost, or whose context has failed, answers that.
fn works(held: Held, device: usize) -> Outcome<Held> {
    let mut held = answering(held, device);
    held.look_at_device(device);
    if let Some(context) = held.devices[device].context {
        held = unless_fallen(held, context)?;
    }
    if held.devices[device].lost { Err(held.options.lost_as) } else { Ok(held) }
}

fn known(held: &World, handle: u64, call: &str) -> Outcome {
    if held.memory.handles.contains_key(&handle) {
        return Ok(());
    }
    let released = held.was_handle(handle);
    let kind = match (released, call) {
        (true, "cuMemRelease") => Kind::DoubleFree,
        (true, _) => Kind::UseAfterFree,
        _ => Kind::WildPointer,
    };
    held.misuse(kind, call, format!("handle {handle:#x} stands for no memory"));
    Err(CUresult::CUDA_ERROR_INVALID_VALUE)
}

fn whole(bytes: u64) -> Outcome {
    if bytes > 0 && bytes.is_multiple_of(GRANULARITY) { Ok(()) } else { Err(CUresult::CUDA_ERROR_INVALID_VALUE) }
}

/// Mappings that fill `at..at + bytes` exactly, by their addresses.
fn filling(held: &World, at: u64, bytes: u64) -> Option<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    let mut next = at;
    while next < at + bytes {
        let mapped = held.memory.mapped.get(&next).filter(|mapped| mapped.origin == Origin::Mapped)?;
        found.push((next, mapped.bytes));
        next += mapped.bytes;
    }
    (next == at + bytes).then_some(found)
}

api! {
    fn cuMemGetAllocationGranularity(
        out: *mut usize,
        properties: *const CUmemAllocationProp,
        _option: CUmemAllocationGranularity_flags,
    ) {
        let held = enter_vmm()?;
        device_at(&held, &take(properties)?.location)?;
        put(out, GRANULARITY as usize)
    }

    fn cuMemCreate(
        out: *mut CUmemGenericAllocationHandle,
        bytes: usize,
        properties: *const CUmemAllocationProp,
        flags: c_ulonglong,
    ) {
        let mut held = enter_vmm()?;
        let properties = take(properties)?;
        let device = device_at(&held, &properties.location)?;
        held = works(held, device)?;
        whole(bytes as u64)?;
        let pinned = properties.type_ == CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        let exportable = properties.requestedHandleTypes == DESCRIPTOR;
        let plain = properties.requestedHandleTypes == CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE;
        if !pinned || flags != 0 || !(exportable || plain) {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        if exportable && !held.options.has_descriptors {
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        let object = create(&mut held, device, bytes as u64)?;
        let id = held.handle();
        held.memory.handles.insert(id, Handle { object, references: 1, exportable });
        put(out, id)
    }

    fn cuMemRelease(handle: CUmemGenericAllocationHandle) {
        let mut held = enter_vmm()?;
        known(&held, handle, CALL)?;
        if let Some(known) = held.memory.handles.get_mut(&handle) {
            known.references -= 1;
            if known.references == 0 {
                held.memory.handles.remove(&handle);
            }
        }
        Ok(())
    }

    fn cuMemRetainAllocationHandle(out: *mut CUmemGenericAllocationHandle, at: *mut c_void) {
        let mut held = enter_vmm()?;
        let at = at.addr() as u64;
        let object = held.memory.mapping(at).filter(|(_, mapped)| mapped.origin == Origin::Mapped);
        let object = object.map(|(_, mapped)| mapped.object.clone()).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        let known = held.memory.handles.iter_mut().find(|(_, handle)| handle.object.key == object.key);
        if let Some((id, handle)) = known {
            handle.references += 1;
            return put(out, *id);
        }
        let id = held.handle();
        let exportable = held.options.has_descriptors;
        held.memory.handles.insert(id, Handle { object, references: 1, exportable });
        put(out, id)
    }

    fn cuMemGetAllocationPropertiesFromHandle(out: *mut CUmemAllocationProp, handle: CUmemGenericAllocationHandle) {
        let held = enter_vmm()?;
        known(&held, handle, CALL)?;
        let handle = &held.memory.handles[&handle];
        let location = CUmemLocation {
            type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
            id: handle.object.device as c_int,
        };
        let none = CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE;
        put(out, CUmemAllocationProp {
            type_: CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
            requestedHandleTypes: if handle.exportable { DESCRIPTOR } else { none },
            location,
            win32HandleMetaData: std::ptr::null_mut(),
            allocFlags: cudarc::driver::sys::CUmemAllocationProp_st__bindgen_ty_1 {
                compressionType: 0,
                gpuDirectRDMACapable: 0,
                usage: 0,
                reserved: [0; 4],
            },
        })
    }

    fn cuMemAddressReserve(
        out: *mut CUdeviceptr,
        bytes: usize,
        alignment: usize,
        _wish: CUdeviceptr,
        flags: c_ulonglong,
    ) {
        let mut held = enter_vmm()?;
        whole(bytes as u64)?;
        if flags != 0 || !(alignment == 0 || alignment.is_power_of_two()) {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let alignment = (alignment as u64).max(GRANULARITY);
        let at = reserve(bytes as u64, alignment).ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
        held.memory.reserved.insert(at, bytes as u64);
        put(out, at)
    }

    fn cuMemAddressFree(at: CUdeviceptr, bytes: usize) {
        let mut held = enter_vmm()?;
        if held.memory.reserved.get(&at) != Some(&(bytes as u64)) {
            let kind = if held.memory.was_freed(at) { Kind::DoubleFree } else { Kind::WildPointer };
            held.misuse(kind, CALL, format!("{bytes} bytes at {at:#x} are not reserved"));
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        if held.memory.mapped.range(at..at + bytes as u64).next().is_some() {
            held.misuse(Kind::InUse, CALL, format!("{at:#x} is mapped still"));
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        held.memory.reserved.remove(&at);
        held.memory.bury(at, bytes as u64);
        Ok(())
    }

    fn cuMemMap(
        at: CUdeviceptr,
        bytes: usize,
        offset: usize,
        handle: CUmemGenericAllocationHandle,
        flags: c_ulonglong,
    ) {
        let mut held = enter_vmm()?;
        known(&held, handle, CALL)?;
        let object = held.memory.handles[&handle].object.clone();
        held = works(held, object.device)?;
        let (bytes, offset) = (bytes as u64, offset as u64);
        whole(bytes)?;
        let fits = held.memory.reservation(at).is_some_and(|(base, room)| at + bytes <= base + room);
        if !fits || flags != 0 || offset != 0 || bytes > object.bytes {
            held.misuse(Kind::OutOfBounds, CALL, format!("{bytes} bytes at {at:#x} of memory of {}", object.bytes));
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let (low, high) = (held.memory.mapping(at), held.memory.mapped.range(at..at + bytes).next());
        if low.is_some() || high.is_some() {
            return Err(CUresult::CUDA_ERROR_ALREADY_MAPPED);
        }
        let nobody = BTreeSet::new();
        let (origin, context) = (Origin::Mapped, 0);
        let mapped = Mapped { bytes, object, offset, origin, context, read: nobody.clone(), write: nobody };
        held.memory.mapped.insert(at, mapped);
        held.memory.unbury(at);
        Ok(())
    }

    fn cuMemUnmap(at: CUdeviceptr, bytes: usize) {
        let mut held = enter_vmm()?;
        let Some(all) = filling(&held, at, bytes as u64) else {
            let kind = if held.memory.was_freed(at) { Kind::DoubleFree } else { Kind::WildPointer };
            held.misuse(kind, CALL, format!("{bytes} bytes at {at:#x} are not mapped"));
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        };
        for (base, len) in all {
            let touched = held.memory.mapped[&base].touched();
            held = give_up(held, base, len, touched, CALL);
            held.memory.mapped.remove(&base);
            held.memory.bury(base, len);
        }
        Ok(())
    }

    fn cuMemSetAccess(at: CUdeviceptr, bytes: usize, access: *const CUmemAccessDesc, count: usize) {
        let mut held = enter_vmm()?;
        let access = take_all(access, count)?;
        let all = filling(&held, at, bytes as u64).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        for description in access {
            let device = device_at(&held, &description.location)?;
            held = works(held, device)?;
            let has_peers = held.options.has_peers;
            for (base, _) in &all {
                let Some(mapped) = held.memory.mapped.get_mut(base) else { continue };
                if mapped.object.device != device && !has_peers {
                    return Err(CUresult::CUDA_ERROR_INVALID_DEVICE);
                }
                let (read, write) = match description.flags {
                    CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE => (true, true),
                    CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READ => (true, false),
                    _ => (false, false),
                };
                for (set, given) in [(&mut mapped.read, read), (&mut mapped.write, write)] {
                    if given { set.insert(device) } else { set.remove(&device) };
                }
            }
        }
        Ok(())
    }

    fn cuMemGetAccess(flags: *mut c_ulonglong, location: *const CUmemLocation, at: CUdeviceptr) {
        let held = enter_vmm()?;
        let device = device_at(&held, &take(location)?)?;
        let (_, mapped) = held.memory.mapping(at).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        let (read, write) = (mapped.read.contains(&device), mapped.write.contains(&device));
        put(flags, if write { 3 } else { c_ulonglong::from(read) })
    }

    fn cuMemExportToShareableHandle(
        out: *mut c_void,
        handle: CUmemGenericAllocationHandle,
        kind: CUmemAllocationHandleType,
        flags: c_ulonglong,
    ) {
        let held = enter_vmm()?;
        known(&held, handle, CALL)?;
        let handle = &held.memory.handles[&handle];
        if kind != DESCRIPTOR || flags != 0 || !handle.exportable || !held.options.has_descriptors {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let fd = handle.object.export().ok_or(CUresult::CUDA_ERROR_OPERATING_SYSTEM)?;
        put(out.cast::<c_int>(), fd)
    }

    fn cuMemImportFromShareableHandle(
        out: *mut CUmemGenericAllocationHandle,
        shared: *mut c_void,
        kind: CUmemAllocationHandleType,
    ) {
        let mut held = enter_vmm()?;
        if kind != DESCRIPTOR || !held.options.has_descriptors {
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        // The descriptor itself is passed in the place of a pointer.
        let fd = c_int::try_from(shared.addr()).map_err(|_| CUresult::CUDA_ERROR_INVALID_VALUE)?;
        drop(held);
        let object = Object::import(fd).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        held = lock();
        if object.device >= held.devices.len() {
            return Err(CUresult::CUDA_ERROR_INVALID_DEVICE);
        }
        held = works(held, object.device)?;
        if held.devices[object.device].faults.strike(Fault::Import) {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let object = held.memory.adopt(object);
        let id = held.handle();
        held.memory.handles.insert(id, Handle { object, references: 1, exportable: true });
        put(out, id)
    }
}
