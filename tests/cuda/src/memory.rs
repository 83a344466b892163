//! Addresses: what lies where. Device memory, what is mapped, what was freed, registered host memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, ptr,
    sync::{Arc, Weak},
};

use crate::{
    history::{Bytes, Key},
    misuse::Kind,
    object::Object,
};

/// How mapped memory came to its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `cuMemAlloc`, in a context.
    Allocated,
    /// `cuMemMap`, of a handle.
    Mapped,
    /// `cuIpcOpenMemHandle`, in a context.
    Opened,
}

#[derive(Debug)]
pub struct Mapped {
    pub bytes: u64,
    pub object: Arc<Object>,
    pub offset: u64,
    pub origin: Origin,
    /// In which it was allocated or opened; 0 for what is mapped.
    pub context: u64,
    /// Devices that may read, and that may write.
    pub read: BTreeSet<usize>,
    pub write: BTreeSet<usize>,
}

impl Mapped {
    /// All bytes of it, as memory.
    pub fn touched(&self) -> Bytes {
        Bytes { key: self.object.key, start: self.offset, end: self.offset + self.bytes }
    }
}

#[derive(Debug)]
pub struct Handle {
    pub object: Arc<Object>,
    pub references: u32,
    pub exportable: bool,
}

/// Registered host memory.
#[derive(Clone, Debug)]
pub struct Host {
    pub bytes: u64,
    pub context: u64,
    /// Of all contexts, not of one.
    pub portable: bool,
    /// Allocated by the driver, not registered.
    pub allocated: bool,
    key: Key,
    /// What the first byte is in `key`.
    start: u64,
}

/// Bytes that a copy may touch now.
#[derive(Clone, Debug)]
pub struct Spot {
    pub at: *mut u8,
    pub bytes: Bytes,
    /// Keeps device memory mapped; `None` is host memory.
    pub object: Option<Arc<Object>>,
}

#[derive(Debug, Default)]
pub struct Memory {
    objects: BTreeMap<Key, Weak<Object>>,
    pub handles: BTreeMap<u64, Handle>,
    pub mapped: BTreeMap<u64, Mapped>,
    pub reserved: BTreeMap<u64, u64>,
    pub hosts: BTreeMap<u64, Host>,
    freed: BTreeMap<u64, u64>,
}

impl Memory {
    /// Bytes of a device that are taken, by this process alone.
    pub fn used(&self, device: usize) -> u64 {
        let objects = self.objects.values().filter_map(Weak::upgrade);
        objects.filter(|object| object.device == device).map(|object| object.bytes).sum()
    }

    pub fn adopt(&mut self, object: Object) -> Arc<Object> {
        self.objects.retain(|_, object| object.strong_count() > 0);
        if let Some(known) = self.objects.get(&object.key).and_then(Weak::upgrade) {
            return known;
        }
        let object = Arc::new(object);
        self.objects.insert(object.key, Arc::downgrade(&object));
        object
    }

    /// The address that `at` lies behind, with what is there.
    pub fn mapping(&self, at: u64) -> Option<(u64, &Mapped)> {
        let (base, mapped) = self.mapped.range(..=at).next_back()?;
        (at - base < mapped.bytes).then_some((*base, mapped))
    }

    pub fn host(&self, at: u64) -> Option<(u64, &Host)> {
        let (base, host) = self.hosts.range(..=at).next_back()?;
        (at - base < host.bytes).then_some((*base, host))
    }

    pub fn was_freed(&self, at: u64) -> bool {
        self.freed.range(..=at).next_back().is_some_and(|(base, bytes)| at - base < *bytes)
    }

    pub fn reservation(&self, at: u64) -> Option<(u64, u64)> {
        let (base, bytes) = self.reserved.range(..=at).next_back()?;
        (at - base < *bytes).then_some((*base, *bytes))
    }

    /// An address that is given up for ever.
    pub fn bury(&mut self, at: u64, bytes: u64) {
        self.freed.insert(at, bytes);
    }

    /// Mapped again at an address that was unmapped: only within a reservation.
    pub fn unbury(&mut self, at: u64) {
        self.freed.remove(&at);
    }

    /// Device memory at `at`, for a copy of `bytes` by `device`.
    pub fn device_spot(&self, at: u64, bytes: u64, device: usize, writes: bool) -> Result<Spot, (Kind, String)> {
        let Some((base, mapped)) = self.mapping(at) else {
            if self.was_freed(at) {
                return Err((Kind::UseAfterFree, format!("{at:#x} was freed or unmapped")));
            }
            return Err((Kind::WildPointer, format!("{at:#x} is no device memory")));
        };
        let offset = at - base;
        if bytes > mapped.bytes - offset {
            let what = format!("{bytes} bytes at {offset} of {} at {base:#x}", mapped.bytes);
            return Err((Kind::OutOfBounds, what));
        }
        if !(if writes { &mapped.write } else { &mapped.read }).contains(&device) {
            let way = if writes { "write" } else { "read" };
            return Err((Kind::NoAccess, format!("device {device} may not {way} {at:#x}")));
        }
        let start = mapped.offset + offset;
        let touched = Bytes { key: mapped.object.key, start, end: start + bytes };
        Ok(Spot { at: mapped.object.at(start), bytes: touched, object: Some(mapped.object.clone()) })
    }

    /// Host memory at `at`, for a copy of `bytes` in `context`.
    pub fn host_spot(&self, at: u64, bytes: u64, context: u64, pageable: bool) -> Result<Spot, (Kind, String)> {
        let free = Bytes { key: (0, 0), start: at, end: at.saturating_add(bytes) };
        let unregistered = Spot { at: ptr::without_provenance_mut(at as usize), bytes: free, object: None };
        match self.host(at) {
            Some((_, host)) if host.context != context && !host.portable => {
                Err((Kind::WrongContext, format!("host memory {at:#x} is registered in another context alone")))
            }
            Some((base, host)) if bytes <= host.bytes - (at - base) => {
                let start = host.start + (at - base);
                Ok(Spot { bytes: Bytes { key: host.key, start, end: start + bytes }, ..unregistered })
            }
            // Also where the next registration begins right there: CUDA copies within one.
            Some((base, host)) => {
                let what = format!("{bytes} bytes at {} of a registration of {}", at - base, host.bytes);
                Err((Kind::OutOfBounds, what))
            }
            None if self.mapping(at).is_some() => Err((Kind::WildPointer, format!("{at:#x} is device memory"))),
            None if self.was_freed(at) => Err((Kind::UseAfterFree, format!("{at:#x} was device memory"))),
            None if pageable => Ok(unregistered),
            None => Err((Kind::Pageable, format!("host memory {at:#x} is not registered"))),
        }
    }

    /// What a registered range is, whatever the addresses by which it is known: a second mapping of the same file is the
    /// same memory.
    pub fn host_range(at: u64, bytes: u64, context: u64, portable: bool, allocated: bool) -> Host {
        let (key, start) = file_at(at, bytes).unwrap_or(((0, 0), at));
        Host { bytes, context, portable, allocated, key, start }
    }
}

impl Host {
    pub fn all(&self) -> Bytes {
        Bytes { key: self.key, start: self.start, end: self.start + self.bytes }
    }
}

/// The file that is mapped shared at all of `at..at + bytes` and the offset there.
fn file_at(at: u64, bytes: u64) -> Option<(Key, u64)> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let mut found: Option<(Key, u64)> = None;
    let mut next = at;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, modes, offset) = (words.next()?, words.next()?, words.next()?);
        let (device, inode) = (words.next()?, words.next()?);
        let (low, high) = range.split_once('-')?;
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let (low, high) = (hex(low)?, hex(high)?);
        if next < low || next >= high {
            continue;
        }
        let (major, minor) = device.split_once(':')?;
        let key = (libc::makedev(hex(major)? as u32, hex(minor)? as u32), inode.parse().ok()?);
        let start = hex(offset)? + (next - low);
        let fits = found.is_none_or(|(known, first)| known == key && first + (next - at) == start);
        if !modes.ends_with('s') || key.1 == 0 || !fits {
            return None;
        }
        found.get_or_insert((key, start));
        next = high;
        if next >= at + bytes {
            return found;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(device: usize) -> (Memory, u64) {
        let mut memory = Memory::default();
        let object = memory.adopt(Object::create(device, 8192).expect("memory"));
        let own = BTreeSet::from([device]);
        let (origin, offset, context) = (Origin::Allocated, 0, 1);
        let mapped = Mapped { bytes: 8192, object, offset, origin, context, read: own.clone(), write: own };
        memory.mapped.insert(0x10000, mapped);
        (memory, 0x10000)
    }

    #[test]
    fn each_wrong_address_has_its_own_name() {
        let (mut memory, at) = memory(0);
        let kind =
            |memory: &Memory, at, bytes, device| memory.device_spot(at, bytes, device, true).map_err(|e| e.0).err();
        assert_eq!(kind(&memory, at + 100, 8092, 0), None);
        assert_eq!(kind(&memory, at + 100, 8093, 0), Some(Kind::OutOfBounds));
        assert_eq!(kind(&memory, at, 8, 1), Some(Kind::NoAccess));
        assert_eq!(kind(&memory, 5, 8, 0), Some(Kind::WildPointer));
        assert_eq!((memory.used(0), memory.used(1)), (8192, 0));
        memory.mapped.clear();
        memory.bury(at, 8192);
        assert_eq!(kind(&memory, at + 8191, 1, 0), Some(Kind::UseAfterFree));
        assert_eq!(memory.used(0), 0);
    }

    #[test]
    fn two_mappings_of_one_file_are_the_same_bytes() {
        let object = Object::create(0, 8192).expect("memory");
        let twin = Object::import(object.fd()).expect("the same");
        let range = |object: &Object| Memory::host_range(object.at(4096) as u64, 4096, 1, true, false).all();
        assert_eq!(range(&object), range(&twin));
        assert_eq!(range(&object), Bytes { key: object.key, start: 4096, end: 8192 });
        let own = [0u8; 100];
        let own = Memory::host_range(own.as_ptr() as u64, 100, 1, true, false);
        assert_eq!(own.key, (0, 0));
    }

    #[test]
    fn a_copy_of_host_memory_lies_within_one_registration() {
        let mut memory = Memory::default();
        let block = vec![0u8; 8192];
        let at = block.as_ptr() as u64;
        for half in [at, at + 4096] {
            memory.hosts.insert(half, Memory::host_range(half, 4096, 1, false, false));
        }
        let kind = |at, bytes, context| memory.host_spot(at, bytes, context, false).map_err(|e| e.0).err();
        assert_eq!(kind(at + 10, 4086, 1), None);
        assert_eq!(kind(at + 10, 4087, 1), Some(Kind::OutOfBounds));
        assert_eq!(kind(at + 8192, 1, 1), Some(Kind::Pageable));
        assert_eq!(kind(at, 1, 2), Some(Kind::WrongContext));
    }
}
