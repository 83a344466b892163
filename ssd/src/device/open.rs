//! Opening a path as a device: a regular file, created and really allocated, or a block device. Locked either way. The
//! generic device of an NVMe namespace is another name for its block device, which is what is opened and claimed: so two
//! users of one namespace find each other, whichever name they have.
//!
//! Invariant: content that was there is never changed here: allocation only fills what lies beyond the former end, and
//! a file that holds something else than a log is not touched at all.
//! Invariant: the lock lasts as long as any operation may still reach the file, also when its submitter has gone.

use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileTypeExt,
    },
    path::{Path, PathBuf},
};

use lapis_arena::Mapping;
use rustix::{
    fs::{FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom},
    io::Errno,
};

use super::{Memory, transfer};
use crate::{
    SsdError,
    format::{PAGE_BYTES, superblock},
    passthrough::block_beside,
    volume::open::SEGMENTS_START,
};

const PAGE: u64 = PAGE_BYTES as u64;
/// Bytes of zeros written at once where the file system cannot allocate.
const ZEROS_BYTES: usize = 1 << 20;

/// An open device, locked until this is dropped.
#[derive(Debug)]
pub struct DeviceFile {
    fd: OwnedFd,
    path: PathBuf,
    bytes: u64,
    kind: FileKind,
    direct: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Regular,
    /// With the bytes of its logical block: what it reads and writes at once.
    Block {
        logical_bytes: u32,
    },
}

impl DeviceFile {
    /// Opens `path` as a device of `bytes` bytes, cut to whole pages; `None` is as large as it is.
    ///
    /// A file that is not there is created, for its owner alone; one that is too short is allocated up to `bytes`,
    /// which can take a while; one that is longer keeps its tail. A block device must have `bytes` bytes.
    pub fn open(path: &Path, bytes: Option<u64>) -> Result<Self, SsdError> {
        Self::open_as(path, bytes, true)
    }

    /// Like `open`, through the page cache.
    pub fn open_buffered(path: &Path, bytes: Option<u64>) -> Result<Self, SsdError> {
        Self::open_as(path, bytes, false)
    }

    fn open_as(path: &Path, bytes: Option<u64>, direct: bool) -> Result<Self, SsdError> {
        let is_new = bytes.is_some() && !path.exists();
        let block = block_beside(path);
        if let Some(block) = block.as_ref().filter(|block| !block.exists()) {
            return Err(SsdError::NoBlock { path: path.into(), block: block.clone() });
        }
        let (fd, direct) = open(block.as_deref().unwrap_or(path), bytes.is_some(), direct)?;
        lock(&fd, path)?;
        let opened = Self::locked(fd, path, bytes, direct);
        if is_new && opened.is_err() {
            // A refused start leaves nothing behind. Nobody else has it: it was locked.
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(%error, path = %path.display(), "removing the empty file");
            }
        }
        opened
    }

    fn locked(fd: OwnedFd, path: &Path, bytes: Option<u64>, direct: bool) -> Result<Self, SsdError> {
        let kind = kind(&fd, path)?;
        let mut file = Self { fd, path: path.to_owned(), bytes: 0, kind, direct };
        let found = file.end()?;
        file.bytes = bytes.unwrap_or(found) / PAGE * PAGE;
        match kind {
            FileKind::Regular if file.bytes > 0 && bytes.is_some() => file.allocate(found)?,
            _ if file.bytes == 0 || found < file.bytes => {
                return Err(SsdError::TooSmall { path: file.path.clone(), expected: file.bytes.max(PAGE), found });
            }
            _ => {}
        }
        if file.direct && !file.reads_directly()? {
            drop(file);
            return Self::open_as(path, bytes, false);
        }
        Ok(file)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A multiple of a page.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// False where the file system refuses O_DIRECT: every byte is then copied through the page cache, which competes
    /// with the arena for memory. Worth a warning.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Gives the lock back early; for whoever knows that no operation is under way.
    pub(crate) fn unlock(&self) {
        if let Err(error) = rustix::fs::flock(&self.fd, FlockOperation::Unlock) {
            tracing::debug!(%error, path = %self.path.display(), "unlocking a device");
        }
    }

    /// Whether a discard does anything. A file keeps its bytes: a hole would give its room away, and then a write could
    /// find the file system full.
    pub(crate) fn discards(&self) -> bool {
        self.kind != FileKind::Regular
    }

    /// Where the file or device ends. Block devices have no size of their own in `stat`.
    fn end(&self) -> Result<u64, SsdError> {
        rustix::fs::seek(&self.fd, SeekFrom::End(0)).map_err(|e| self.failed("finding the end of", e))
    }

    /// Allocates up to `bytes`. A failure leaves the file as long as it was.
    fn allocate(&self, found: u64) -> Result<(), SsdError> {
        if found >= self.bytes && self.room()?.0 == 0 {
            return Ok(());
        }
        if !self.is_blank_or_ours(found)? {
            return Err(SsdError::NotBlank { path: self.path.clone() });
        }
        self.expect_room()?;
        let allocated = self.allocate_or_fill(found);
        if allocated.is_err() {
            // What was allocated before the room ended would otherwise stay, of no use to anyone.
            if let Err(error) = rustix::fs::ftruncate(&self.fd, found) {
                tracing::warn!(%error, path = %self.path.display(), "giving back what was allocated");
            }
        }
        match allocated {
            Err(Errno::NOSPC | Errno::DQUOT) => Err(self.no_room()?),
            allocated => allocated.map_err(|e| self.failed("allocating", e)),
        }
    }

    /// Whether nothing of anybody else's lies where superblocks and what is before segments have their place.
    fn is_blank_or_ours(&self, found: u64) -> Result<bool, SsdError> {
        let failed = |source| SsdError::Io { op: "looking for data on", path: self.path.clone(), source };
        let mut start = Vec::new();
        let file = std::fs::File::open(&self.path).map_err(failed)?;
        file.take(found.min(SEGMENTS_START)).read_to_end(&mut start).map_err(failed)?;
        Ok(start.iter().all(|byte| *byte == 0) || start.chunks(PAGE_BYTES).take(2).any(superblock::is_claimed))
    }

    fn allocate_or_fill(&self, found: u64) -> Result<(), Errno> {
        loop {
            match rustix::fs::fallocate(&self.fd, FallocateFlags::empty(), 0, self.bytes) {
                Err(Errno::INTR) => {}
                // Zeros are as good where they take room (NFS, FAT); where they do not (ZFS with compression), nothing
                // would be. Holes before the former end stay: they cannot be told from content.
                Err(Errno::OPNOTSUPP) => return self.fill(found),
                ended => return ended,
            }
        }
    }

    /// Writes zeros from the former end on.
    fn fill(&self, found: u64) -> Result<(), Errno> {
        rustix::fs::ftruncate(&self.fd, found.max(self.bytes))?;
        let zeros = Mapping::anonymous(ZEROS_BYTES as u64).map_err(|_| Errno::NOMEM)?;
        // A page that is half content is left: what is missing of it is less than a page.
        let mut at = found.next_multiple_of(PAGE);
        while at < self.bytes {
            let bytes = (self.bytes - at).min(ZEROS_BYTES as u64);
            transfer::write(self.as_fd(), at, &Memory::new(&zeros, 0, bytes as usize))
                .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
            at += bytes;
        }
        rustix::fs::fdatasync(&self.fd)
    }

    /// Seen before a file system is filled to its last byte in vain.
    fn expect_room(&self) -> Result<(), SsdError> {
        let (needed, free) = self.room()?;
        if needed > free { Err(self.no_room()?) } else { Ok(()) }
    }

    fn no_room(&self) -> Result<SsdError, SsdError> {
        let (needed, free) = self.room()?;
        Ok(SsdError::NoRoom { path: self.path.clone(), needed, free })
    }

    /// Bytes that the file still needs, and that its file system has for us.
    fn room(&self) -> Result<(u64, u64), SsdError> {
        let stat = rustix::fs::fstat(&self.fd).map_err(|e| self.failed("looking at", e))?;
        let system = rustix::fs::fstatvfs(&self.fd).map_err(|e| self.failed("asking for the room of", e))?;
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        Ok((self.bytes.saturating_sub(allocated), system.f_bavail.saturating_mul(system.f_frsize)))
    }

    /// Some file systems take the flag and refuse the transfer, or want more than a page at once.
    fn reads_directly(&self) -> Result<bool, SsdError> {
        let failed = |source| SsdError::Io { op: "reading the first page of", path: self.path.clone(), source };
        let page = Mapping::anonymous(PAGE).map_err(|e| failed(io::Error::other(e)))?;
        match transfer::read(self.as_fd(), 0, &Memory::new(&page, 0, PAGE_BYTES)) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            // An unreadable first page is no reason to refuse: the log has a second superblock.
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "the first page cannot be read");
                Ok(true)
            }
        }
    }

    fn failed(&self, op: &'static str, error: Errno) -> SsdError {
        SsdError::Io { op, path: self.path.clone(), source: error.into() }
    }

    /// Whatever descriptor a test has made, as a device.
    #[cfg(test)]
    pub(crate) fn of_test(fd: OwnedFd, bytes: u64) -> Self {
        Self { fd, path: "a test's".into(), bytes, kind: FileKind::Regular, direct: false }
    }
}

impl AsFd for DeviceFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for DeviceFile {
    /// Others may hold the same open file for a moment yet (a ring that the kernel tears down behind): the lock goes
    /// now, so that whoever dropped this can open it again at once.
    fn drop(&mut self) {
        self.unlock();
    }
}

fn open(path: &Path, create: bool, direct: bool) -> Result<(OwnedFd, bool), SsdError> {
    let mut flags = OFlags::RDWR | OFlags::CLOEXEC;
    if direct {
        flags |= OFlags::DIRECT;
    }
    if std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device()) {
        // For a block device this is a claim that fails if it is mounted.
        flags |= OFlags::EXCL;
    } else if create {
        flags |= OFlags::CREATE;
    }
    match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok((fd, direct)),
        Err(Errno::INVAL) if direct => open(path, create, false),
        Err(Errno::BUSY) => Err(SsdError::Busy { path: path.to_owned() }),
        Err(e) => Err(SsdError::Io { op: "opening", path: path.to_owned(), source: e.into() }),
    }
}

fn lock(fd: &OwnedFd, path: &Path) -> Result<(), SsdError> {
    match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(SsdError::Locked { path: path.to_owned() }),
        Err(e) => Err(SsdError::Io { op: "locking", path: path.to_owned(), source: e.into() }),
    }
}

fn kind(fd: &OwnedFd, path: &Path) -> Result<FileKind, SsdError> {
    let failed = |op, e: Errno| SsdError::Io { op, path: path.to_owned(), source: e.into() };
    let stat = rustix::fs::fstat(fd).map_err(|e| failed("looking at", e))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(FileKind::Regular),
        FileType::BlockDevice => {
            let found = rustix::fs::ioctl_blksszget(fd).map_err(|e| failed("asking for the logical block of", e))?;
            let page = PAGE_BYTES as u32;
            if found == 0 || !page.is_multiple_of(found) {
                return Err(SsdError::LogicalBlock { path: path.to_owned(), page, found });
            }
            Ok(FileKind::Block { logical_bytes: found })
        }
        _ => Err(SsdError::NoDevice { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_file_is_created_for_its_owner_and_really_allocated() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let file = DeviceFile::open(&path, Some((4 << 20) + 5)).expect("room for 4 MiB");
        assert_eq!((file.bytes(), file.kind()), (4 << 20, FileKind::Regular));
        let found = std::fs::metadata(&path).expect("it is there");
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        assert!(found.blocks() * 512 >= 4 << 20, "{} blocks", found.blocks());
    }

    #[test]
    fn what_was_there_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut content: Vec<u8> = (0..3 * PAGE_BYTES + 7).map(|i| i as u8 | 1).collect();
        content[..8].copy_from_slice(b"LAPISSB1");
        std::fs::write(&path, &content).expect("room");
        for bytes in [Some(2 * PAGE), Some(8 * PAGE), None] {
            let file = DeviceFile::open(&path, bytes).expect("a file");
            assert_eq!(file.bytes(), bytes.unwrap_or(8 * PAGE));
        }
        let file = DeviceFile::open(&path, Some(16 * PAGE)).expect("a file");
        file.fill(8 * PAGE).expect("room");
        let found = std::fs::read(&path).expect("it is there");
        assert!(found.len() == 16 * PAGE_BYTES && found[..content.len()] == content);
        assert!(found[content.len()..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_holds_something_else_is_neither_grown_nor_filled() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("letters");
        for (text, length) in [(&b"Dear"[..], 4), (b"Dear", 3 * PAGE), (b"Dear", 64 * PAGE)] {
            let mut file = std::fs::File::create(&path).expect("a file");
            io::Write::write_all(&mut file, text).and_then(|()| file.set_len(length)).expect("a sparse file");
            let before = std::fs::metadata(&path).map(|found| (found.len(), found.blocks())).expect("it is there");
            let refused = DeviceFile::open(&path, Some(64 * PAGE)).expect_err("not ours");
            assert!(matches!(refused, SsdError::NotBlank { .. }), "{refused}");
            let after = std::fs::metadata(&path).map(|found| (found.len(), found.blocks())).expect("it is there");
            assert_eq!(before, after);
        }
        std::fs::File::create(&path).and_then(|file| file.set_len(3 * PAGE)).expect("a file of zeros");
        assert_eq!(DeviceFile::open(&path, Some(64 * PAGE)).expect("blank").bytes(), 64 * PAGE);
    }

    #[test]
    fn a_device_has_one_user() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let first = DeviceFile::open(&path, Some(PAGE)).expect("a file");
        let refused = DeviceFile::open(&path, Some(PAGE)).expect_err("it is used");
        assert!(refused.is_transient() && refused.to_string().contains(path.to_str().expect("UTF-8")), "{refused}");
        let kept_open = first.fd.try_clone().expect("a descriptor");
        drop(first);
        DeviceFile::open(&path, Some(PAGE)).expect("whoever keeps the descriptor does not keep the lock");
        drop(kept_open);
    }

    #[test]
    fn more_than_there_is_room_for_says_both_values_and_takes_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        match DeviceFile::open(&path, Some(1 << 60)).expect_err("an exbibyte") {
            SsdError::NoRoom { needed, free, .. } => assert!(needed == 1 << 60 && free > 0 && free < needed),
            other => panic!("{other}"),
        }
        assert!(!path.exists(), "an empty file stays");
        std::fs::write(&path, []).expect("room");
        DeviceFile::open(&path, Some(1 << 60)).expect_err("an exbibyte");
        assert_eq!(std::fs::metadata(&path).map(|found| (found.len(), found.blocks())).ok(), Some((0, 0)));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(matches!(DeviceFile::open(Path::new("/dev/null"), None), Err(SsdError::NoDevice { .. })));
        assert!(matches!(DeviceFile::open(dir.path(), Some(PAGE)), Err(SsdError::Io { .. })));
        let missing = dir.path().join("missing");
        assert!(matches!(DeviceFile::open(&missing, None), Err(SsdError::Io { op: "opening", .. })));
        std::fs::write(&missing, b"short").expect("room");
        assert!(matches!(DeviceFile::open(&missing, None), Err(SsdError::TooSmall { found: 5, .. })));
    }
}
