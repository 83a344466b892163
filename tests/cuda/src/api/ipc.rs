//! CUDA IPC: memory of one process in another, as long as the first one lives.

use std::{
    collections::BTreeSet,
    ffi::{CString, c_char, c_uint},
    os::fd::RawFd,
    process,
};

use cudarc::driver::sys::{CUdeviceptr, CUipcMemHandle, CUresult};

use super::put;
use crate::{
    memory::{Mapped, Origin},
    misuse::Kind,
    object::{Object, reserve, stat},
    world::{Outcome, enter_context, give_up},
};

const MAGIC: u64 = 0x6c61_7069_7369_7063;

/// What is in the 64 bytes of a handle: who has which descriptor.
pub(super) struct Ticket {
    pub fd: RawFd,
    pub device: usize,
    pub offset: u64,
    pub bytes: u64,
}

impl Ticket {
    pub fn write(&self) -> [u8; 64] {
        let inode = stat(self.fd).map_or(0, |stat| stat.st_ino);
        let words =
            [MAGIC, u64::from(process::id()), self.fd as u64, inode, self.device as u64, self.offset, self.bytes];
        let mut out = [0; 64];
        for (word, place) in words.iter().zip(out.chunks_exact_mut(8)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// Opens what it stands for: a new descriptor, and the ticket with that one. It must be of another process, which lives.
    pub fn open(handle: &[u8; 64]) -> Outcome<(RawFd, Self)> {
        let word = |index: usize| {
            let bytes = handle[index * 8..][..8].try_into().expect("eight bytes");
            u64::from_le_bytes(bytes)
        };
        if word(0) != MAGIC {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        if word(1) == u64::from(process::id()) {
            return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
        }
        let path = CString::new(format!("/proc/{}/fd/{}", word(1), word(2))).expect("no zero within");
        // SAFETY: a path that ends with a zero; a descriptor or -1 comes back.
        let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
        if fd < 0 || stat(fd).is_none_or(|stat| stat.st_ino != word(3)) {
            if fd >= 0 {
                // SAFETY: just opened, and nobody else's.
                unsafe { libc::close(fd) };
            }
            return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
        }
        Ok((fd, Self { fd, device: word(4) as usize, offset: word(5), bytes: word(6) }))
    }
}

api! {
    fn cuIpcGetMemHandle(handle: *mut CUipcMemHandle, at: CUdeviceptr) {
        let (held, _) = enter_context(CALL)?;
        let Some((_, mapped)) = held.memory.mapping(at).filter(|(_, mapped)| mapped.origin == Origin::Allocated) else {
            held.misuse(Kind::WildPointer, CALL, format!("{at:#x} was not allocated by cuMemAlloc"));
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        };
        let (fd, device) = (mapped.object.fd(), mapped.object.device);
        let reserved = Ticket { fd, device, offset: 0, bytes: mapped.bytes }.write();
        put(handle, CUipcMemHandle { reserved: reserved.map(|byte| byte as c_char) })
    }

    fn cuIpcOpenMemHandle_v2(out: *mut CUdeviceptr, handle: CUipcMemHandle, flags: c_uint) {
        let (mut held, context) = enter_context(CALL)?;
        if flags != 1 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let (fd, ticket) = Ticket::open(&handle.reserved.map(|byte| byte as u8))?;
        let object = Object::import(fd);
        // SAFETY: opened just now; the object has one of its own.
        unsafe { libc::close(fd) };
        let object = object.ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        if ticket.bytes > object.bytes || object.device >= held.devices.len() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let object = held.memory.adopt(object);
        let at = reserve(ticket.bytes, 512).ok_or(CUresult::CUDA_ERROR_MAP_FAILED)?;
        let may = BTreeSet::from([held.contexts[&context].device, object.device]);
        let (bytes, offset, origin) = (ticket.bytes, ticket.offset, Origin::Opened);
        let mapped = Mapped { bytes, object, offset, origin, context, read: may.clone(), write: may };
        held.memory.mapped.insert(at, mapped);
        put(out, at)
    }

    fn cuIpcCloseMemHandle(at: CUdeviceptr) {
        let (mut held, _) = enter_context(CALL)?;
        let Some(mapped) = held.memory.mapped.get(&at).filter(|mapped| mapped.origin == Origin::Opened) else {
            let kind = if held.memory.was_freed(at) { Kind::DoubleFree } else { Kind::WildPointer };
            held.misuse(kind, CALL, format!("{at:#x} is not open"));
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        };
        let (bytes, touched) = (mapped.bytes, mapped.touched());
        held = give_up(held, at, bytes, touched, CALL);
        held.memory.mapped.remove(&at);
        held.memory.bury(at, bytes);
        Ok(())
    }
}
