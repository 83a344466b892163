//! Mappings. `Mapping` is memory that others may write: words by atomics, bytes by copies. `Private` is ours alone.

use std::{
    fmt,
    marker::PhantomData,
    mem::MaybeUninit,
    ops::{Deref, DerefMut, Range},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use memmap2::{MmapOptions, MmapRaw};
use rustix::mm::Advice;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{ArenaError, copy, memfd};

/// Most NUMA nodes that the kernel counts (CONFIG_NODES_SHIFT = 10).
const NODES_MAX: usize = 1024;
/// `HUGETLBFS_MAGIC`.
const HUGETLBFS: u64 = 0x9584_58f6;

/// Whether stores are possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// A shared mapping. Other processes map it too, so no reference into its bytes is ever formed. Clones are cheap and
/// keep it mapped. Offsets are ours, never a client's unchecked number: one out of range panics.
#[derive(Clone)]
pub struct Mapping {
    inner: Arc<Inner>,
}

struct Inner {
    raw: MmapRaw,
    access: Access,
    is_hugetlb: bool,
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapping({} bytes, {:?})", self.len(), self.inner.access)
    }
}

impl Mapping {
    /// Maps the first `bytes` of a descriptor that was made by [`memfd::create`] or passed [`memfd::check`].
    pub fn shared(fd: BorrowedFd<'_>, bytes: u64, access: Access) -> Result<Self, ArenaError> {
        let failed = |e| ArenaError::io("mmap", bytes, e);
        let len = usize::try_from(bytes).map_err(|_| failed(std::io::ErrorKind::OutOfMemory.into()))?;
        let mut options = MmapOptions::new();
        options.len(len);
        let raw = match access {
            Access::ReadOnly => options.map_raw_read_only(fd.as_raw_fd()),
            Access::ReadWrite => options.map_raw(fd.as_raw_fd()),
        };
        let is_hugetlb = rustix::fs::fstatfs(fd).is_ok_and(|found| found.f_type as u64 == HUGETLBFS);
        Ok(Self { inner: Arc::new(Inner { raw: raw.map_err(failed)?, access, is_hugetlb }) })
    }

    /// Memory of this process alone; for tests and simulation.
    pub fn anonymous(bytes: u64) -> Result<Self, ArenaError> {
        let failed = |e| ArenaError::io("mmap", bytes, e);
        let len = usize::try_from(bytes).map_err(|_| failed(std::io::ErrorKind::OutOfMemory.into()))?;
        let map = MmapOptions::new().len(len).map_anon().map_err(failed)?;
        Ok(Self { inner: Arc::new(Inner { raw: map.into(), access: Access::ReadWrite, is_hugetlb: false }) })
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.inner.raw.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is made of reserved huge pages, which the kernel neither splits nor swaps.
    pub fn is_hugetlb(&self) -> bool {
        self.inner.is_hugetlb
    }

    pub fn is_writable(&self) -> bool {
        self.inner.access == Access::ReadWrite
    }

    /// The address of `offset`, for a device or a caller's own copy. Valid while a clone of the mapping lives.
    pub fn as_ptr(&self, offset: usize) -> *mut u8 {
        self.range(offset, 0).as_ptr()
    }

    /// The address of a checked range.
    #[inline]
    pub(crate) fn range(&self, offset: usize, bytes: usize) -> NonNull<u8> {
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.len()), "{bytes} bytes at {offset} of {}", self.len());
        // SAFETY: `offset` is within the mapping, as just checked; a mapping never starts at address 0.
        unsafe { NonNull::new_unchecked(self.inner.raw.as_mut_ptr().add(offset)) }
    }

    /// Like `range`, for a range that is about to be written.
    #[inline]
    pub(crate) fn range_mut(&self, offset: usize, bytes: usize) -> NonNull<u8> {
        assert!(self.is_writable(), "a store into read-only memory");
        self.range(offset, bytes)
    }

    #[inline]
    fn word64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8), "unaligned word at {offset}");
        // SAFETY: eight aligned bytes within the mapping; ours are atomic accesses only.
        unsafe { AtomicU64::from_ptr(self.range(offset, 8).as_ptr().cast()) }
    }

    #[inline]
    fn word32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4), "unaligned word at {offset}");
        // SAFETY: four aligned bytes within the mapping; ours are atomic accesses only.
        unsafe { AtomicU32::from_ptr(self.range(offset, 4).as_ptr().cast()) }
    }

    #[inline]
    pub fn load64(&self, offset: usize, order: Ordering) -> u64 {
        self.word64(offset).load(order)
    }

    #[inline]
    pub fn store64(&self, offset: usize, value: u64, order: Ordering) {
        self.range_mut(offset, 8);
        self.word64(offset).store(value, order);
    }

    #[inline]
    pub fn load32(&self, offset: usize, order: Ordering) -> u32 {
        self.word32(offset).load(order)
    }

    #[inline]
    pub fn store32(&self, offset: usize, value: u32, order: Ordering) {
        self.range_mut(offset, 4);
        self.word32(offset).store(value, order);
    }

    #[inline]
    pub fn swap64(&self, offset: usize, value: u64, order: Ordering) -> u64 {
        self.range_mut(offset, 8);
        self.word64(offset).swap(value, order)
    }

    #[inline]
    pub fn fetch_add64(&self, offset: usize, value: u64, order: Ordering) -> u64 {
        self.range_mut(offset, 8);
        self.word64(offset).fetch_add(value, order)
    }

    #[inline]
    pub fn fetch_or64(&self, offset: usize, value: u64, order: Ordering) -> u64 {
        self.range_mut(offset, 8);
        self.word64(offset).fetch_or(value, order)
    }

    /// Copies `dst.len()` bytes out; afterwards `dst` is initialised. Somebody may be writing them: whatever was torn
    /// must be caught by what the caller checks next (a generation, a sum).
    #[inline]
    pub fn copy_out(&self, offset: usize, dst: &mut [MaybeUninit<u8>]) {
        copy::out(self, offset, dst, copy::Kernel::Plain);
    }

    /// Copies `src` in.
    #[inline]
    pub fn copy_in(&self, offset: usize, src: &[u8]) {
        copy::into(self, offset, src, copy::Kernel::Plain);
    }

    /// `bytes` bytes from `offset` on, as a vector: for records that are parsed from their copy.
    pub fn to_vec(&self, offset: usize, bytes: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes);
        self.copy_out(offset, &mut out.spare_capacity_mut()[..bytes]);
        // SAFETY: `copy_out` initialised the first `bytes` bytes.
        unsafe { out.set_len(bytes) };
        out
    }

    /// A hint that the cache line of `offset` is wanted soon; any offset is allowed.
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        prefetch_address(self.inner.raw.as_ptr().wrapping_add(offset));
    }

    /// Asks for transparent huge pages, for what is touched from now on. A kernel that has none is no error.
    pub fn advise_huge(&self) {
        // SAFETY: the range is the mapping's own; the advice changes no content.
        let advised = unsafe { rustix::mm::madvise(self.as_ptr(0).cast(), self.len(), Advice::LinuxHugepage) };
        if let Err(error) = advised {
            tracing::debug!(%error, bytes = self.len(), "no transparent huge pages");
        }
    }

    /// Has memory that is not there yet come from a NUMA node as long as that has some. Of shared memory: for every process
    /// that maps it, and by its descriptor too, until the memory goes. What is there stays where it is.
    pub fn prefer_node(&self, node: u32) -> Result<(), ArenaError> {
        const BITS: usize = u64::BITS as usize;
        let failed = |e: std::io::Error| ArenaError::io("placing memory at a NUMA node (mbind)", self.len() as u64, e);
        let mut mask = [0u64; NODES_MAX / BITS];
        let word = mask.get_mut(node as usize / BITS).ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
        *word |= 1 << (node as usize % BITS);
        let (address, bits) = (self.as_ptr(0), NODES_MAX + 1);
        // SAFETY: the range is the mapping's own and whole pages, the mask is read as `bits` says and outlives the call;
        // no content changes.
        let done = unsafe {
            libc::syscall(libc::SYS_mbind, address, self.len(), libc::MPOL_PREFERRED, mask.as_ptr(), bits, 0)
        };
        if done == 0 { Ok(()) } else { Err(failed(std::io::Error::last_os_error())) }
    }

    /// The NUMA node that the memory was asked of last, by whatever process; `None` if it was of none, or the kernel does not
    /// say.
    pub fn preferred_node(&self) -> Option<u32> {
        // `MPOL_F_ADDR`, which the crate libc lacks.
        const BY_ADDRESS: usize = 2;
        let (mut mode, mut mask) = (0i32, [0u64; NODES_MAX / u64::BITS as usize]);
        // SAFETY: both results are ours and as large as is said; the address is mapped.
        let done = unsafe {
            let (mode, mask) = (&raw mut mode, mask.as_mut_ptr());
            libc::syscall(libc::SYS_get_mempolicy, mode, mask, NODES_MAX, self.as_ptr(0), BY_ADDRESS)
        };
        if done != 0 || mode != libc::MPOL_PREFERRED {
            return None;
        }
        let word = mask.iter().position(|word| *word != 0)?;
        Some(word as u32 * u64::BITS + mask[word].trailing_zeros())
    }

    /// Maps the pages of a range for reading, so that the first copy takes no faults. Blocks for about 0.1 s a GiB.
    pub fn populate_read(&self, range: Range<usize>) -> Result<(), ArenaError> {
        self.populate(range, Advice::LinuxPopulateRead)
    }

    /// Allocates and maps the pages of a range; content stays. Blocks, for fresh memory 0.5-3 s a GiB. No memory left
    /// is an error here and a SIGBUS in whoever touches such a page unpopulated.
    pub fn populate_write(&self, range: Range<usize>) -> Result<(), ArenaError> {
        assert!(self.is_writable(), "populating read-only memory for writes");
        self.populate(range, Advice::LinuxPopulateWrite)
    }

    fn populate(&self, range: Range<usize>, advice: Advice) -> Result<(), ArenaError> {
        let page = rustix::param::page_size();
        let start = range.start / page * page;
        let end = range.end.next_multiple_of(page).min(self.len());
        if start >= end {
            return Ok(());
        }
        let bytes = end - start;
        let address = self.range(start, bytes);
        loop {
            // SAFETY: the range is the mapping's own, as checked; populating changes no content.
            match unsafe { rustix::mm::madvise(address.as_ptr().cast(), bytes, advice) } {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                // Before Linux 5.14.
                Err(rustix::io::Errno::INVAL) => {
                    self.touch(start..end, page, advice);
                    return Ok(());
                }
                Err(e) => return Err(ArenaError::io("populating memory", bytes as u64, e)),
            }
        }
    }

    /// For whoever maps its pages in while this mapping is used.
    pub fn pages_ahead(&self) -> PagesAhead {
        assert!(self.is_writable(), "pages are mapped in for writes");
        PagesAhead(self.clone())
    }

    /// Keeps the range in memory: never swapped out, by this mapping. Needs a memlock limit that allows it.
    pub fn lock(&self, range: Range<usize>) -> Result<(), ArenaError> {
        let bytes = range.len();
        let start = self.range(range.start, bytes);
        // SAFETY: the range was checked to lie in this mapping; locking changes no byte of it.
        unsafe { rustix::mm::mlock(start.as_ptr().cast(), bytes) }
            .map_err(|e| ArenaError::io("locking memory (mlock)", bytes as u64, e))
    }

    fn touch(&self, range: Range<usize>, page: usize, advice: Advice) {
        for offset in range.step_by(page).filter(|offset| offset + 8 <= self.len()) {
            match advice {
                Advice::LinuxPopulateWrite => self.fetch_or64(offset, 0, Ordering::Relaxed),
                _ => self.load64(offset, Ordering::Relaxed),
            };
        }
    }
}

/// The pages of a mapping, to be mapped in ahead of their use by another thread than the one that uses them. No byte can
/// be read or written by this, so that the mapping may be anybody's, a `Private` one's too.
#[derive(Clone, Debug)]
pub struct PagesAhead(Mapping);

impl PagesAhead {
    /// Allocates and maps all pages, `piece_bytes` at a time, while `go_on` says so. A kernel before Linux 5.14, or one
    /// that has no memory left, is no error: pages come when they are touched, as they would have without this.
    pub fn map_in(&self, piece_bytes: usize, go_on: impl Fn() -> bool) {
        for start in (0..self.0.len()).step_by(piece_bytes) {
            let bytes = piece_bytes.min(self.0.len() - start);
            let (address, advice) = (self.0.range(start, bytes).as_ptr(), Advice::LinuxPopulateWrite);
            if !go_on() {
                return;
            }
            // SAFETY: the range is the mapping's own, as checked; populating changes no content.
            if let Err(error) = unsafe { rustix::mm::madvise(address.cast(), bytes, advice) } {
                tracing::debug!(%error, bytes, "pages are not mapped in ahead of their use");
                return;
            }
        }
    }
}

/// A hint that a value is wanted soon.
#[inline]
pub fn prefetch<T>(value: &T) {
    prefetch_address(std::ptr::from_ref(value).cast());
}

#[inline]
pub(crate) fn prefetch_address(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults and changes nothing that a program can see.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// Memory with a descriptor that this daemon alone maps: an array that outlives the process. Sparse: what was never
/// touched is zero and takes no memory.
pub struct Private<T> {
    /// No clone of it reads or writes: `PagesAhead` cannot.
    mapping: Mapping,
    count: usize,
    /// While this is open no other `Private` of the same memory exists, here or elsewhere.
    _owner: OwnedFd,
    of: PhantomData<T>,
}

impl<T> fmt::Debug for Private<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Private({} of {} bytes)", self.count, size_of::<T>())
    }
}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout> Private<T> {
    /// Locks and maps a memfd of at least `count` values. The descriptor must never have been given to a client.
    pub fn map(fd: BorrowedFd<'_>, count: usize) -> Result<Self, ArenaError> {
        const { assert!(size_of::<T>() > 0 && align_of::<T>() <= 4096, "values of a mapping") };
        let bytes = (count as u64).saturating_mul(size_of::<T>() as u64);
        let found = memfd::size(fd)?;
        if found < bytes || count == 0 {
            return Err(ArenaError::Size { expected: bytes, found });
        }
        let owner = memfd::lock_owner(fd)?;
        let mapping = Mapping::shared(owner.as_fd(), bytes, Access::ReadWrite)?;
        Ok(Self { mapping, count, _owner: owner, of: PhantomData })
    }

    /// For whoever maps its pages in while it is used.
    pub fn pages_ahead(&self) -> PagesAhead {
        self.mapping.pages_ahead()
    }

    /// A hint that this value is wanted soon; any index is allowed.
    #[inline]
    pub fn prefetch(&self, index: usize) {
        self.mapping.prefetch(index.wrapping_mul(size_of::<T>()));
    }
}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout> Deref for Private<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `map` checked the size; a mapping is page-aligned; any bytes are a valid T (FromBytes); nobody else
        // writes: the memory is locked by `_owner` and its descriptor goes to no client.
        unsafe { std::slice::from_raw_parts(self.mapping.inner.raw.as_ptr().cast(), self.count) }
    }
}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout> DerefMut for Private<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`; `&mut self` keeps other references of this process out, and T has no padding
        // (IntoBytes), so that every byte stays initialised.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.inner.raw.as_mut_ptr().cast(), self.count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memfd::Huge;

    fn memory(bytes: u64) -> OwnedFd {
        memfd::create("test", bytes, Huge::Never).expect("memory").0
    }

    #[test]
    fn two_mappings_of_one_memory_see_each_other() {
        let fd = memory(8192);
        let [a, b] = [Access::ReadWrite, Access::ReadOnly].map(|access| Mapping::shared(fd.as_fd(), 8192, access));
        let (a, b) = (a.expect("address space"), b.expect("address space"));
        a.store64(8, 5, Ordering::Release);
        a.store32(4096, 6, Ordering::Release);
        assert_eq!((b.load64(8, Ordering::Acquire), b.load32(4096, Ordering::Acquire)), (5, 6));
        assert_eq!((a.swap64(8, 7, Ordering::AcqRel), a.fetch_or64(8, 8, Ordering::AcqRel)), (5, 7));
        assert_eq!(a.fetch_add64(8, 1, Ordering::AcqRel), 15);
        assert_eq!(b.load64(8, Ordering::Acquire), 16);
        b.populate_read(0..8192).expect("memory");
        a.populate_write(1..8191).expect("memory");
        a.touch(0..8192, 4096, Advice::LinuxPopulateWrite);
        a.pages_ahead().map_in(4096, || true);
        b.touch(0..8192, 4096, Advice::LinuxPopulateRead);
        assert_eq!(b.load64(8, Ordering::Acquire), 16, "populating changes nothing");
    }

    #[test]
    fn memory_knows_whether_it_is_made_of_reserved_huge_pages() {
        let (fd, pages) = memfd::create("test", 2 << 20, Huge::Try).expect("memory");
        let mapping = Mapping::shared(fd.as_fd(), 2 << 20, Access::ReadWrite).expect("address space");
        assert_eq!(mapping.is_hugetlb(), pages == memfd::Pages::Hugetlb, "{pages}");
        let small = Mapping::shared(memory(4096).as_fd(), 4096, Access::ReadOnly).expect("address space");
        assert!(!small.is_hugetlb() && !Mapping::anonymous(4096).expect("memory").is_hugetlb());
    }

    #[test]
    fn memory_is_asked_of_a_node_by_every_mapping_of_it() {
        let fd = memory(1 << 20);
        let mapping = || Mapping::shared(fd.as_fd(), 1 << 20, Access::ReadWrite).expect("address space");
        let (one, other) = (mapping(), mapping());
        assert_eq!(one.preferred_node(), None);
        match one.prefer_node(0) {
            Ok(()) => assert_eq!(other.preferred_node(), Some(0), "the memory has it, not the mapping"),
            // A kernel without NUMA, or a container that must not.
            Err(error) => println!("skipped: {error:?}"),
        }
        assert!(one.prefer_node(NODES_MAX as u32).is_err());
        other.populate_write(0..1 << 20).expect("memory");
    }

    #[test]
    fn no_offset_leaves_a_mapping() {
        let mapping = Mapping::anonymous(4096).expect("memory");
        let panics = |f: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err();
        assert!(panics(&|| assert_eq!(mapping.load64(4096, Ordering::Relaxed), 0)));
        assert!(panics(&|| assert_eq!(mapping.load64(4092, Ordering::Relaxed), 0)));
        assert!(panics(&|| assert_eq!(mapping.load64(1, Ordering::Relaxed), 0)));
        assert!(panics(&|| mapping.copy_in(4095, b"ab")));
        assert!(panics(&|| drop(mapping.to_vec(usize::MAX, 2))));
        assert!(panics(&|| drop(crate::MappedWords::new(&mapping, 8, 512))));
        mapping.copy_in(4096, b"");
        mapping.prefetch(usize::MAX);
    }

    #[test]
    fn private_values_outlive_their_mapping_and_have_one_owner() {
        let fd = memory(8192);
        let mut values: Private<lapis_config::Entry> = Private::map(fd.as_fd(), 256).expect("memory");
        values[255].parent = 3;
        assert!(matches!(Private::<u64>::map(fd.as_fd(), 1), Err(ArenaError::Owned)));
        drop(values);
        let values: Private<lapis_config::Entry> = Private::map(fd.as_fd(), 256).expect("memory");
        assert_eq!((values[255].parent, values[0].parent, values.len()), (3, 0, 256));
        drop(values);
        assert!(matches!(Private::<u64>::map(fd.as_fd(), 1025), Err(ArenaError::Size { .. })));
        assert!(matches!(Private::<u64>::map(fd.as_fd(), 0), Err(ArenaError::Size { .. })));
    }
}
