//! The paths of the SSD tier: what is there is looked at first, then judged without I/O. Nothing is written to what
//! exists; where nothing exists, a file without a name is made and goes at once.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use lapis_config::{Bytes, Options, SSD_BYTES_MIN, UNIT_BYTES};
use lapis_ssd::passthrough::block_beside;
use rustix::{
    fs::{AtFlags, FlockOperation, OFlags, StatxFlags},
    io::Errno,
};

use super::{Finding, host::of_tier};

const CHECK: &str = "ssd";
const PAGE_BYTES: usize = UNIT_BYTES as usize;
/// The first bytes of a log's device.
const MAGIC: &[u8; 8] = b"LAPISSB1";

/// What was found at one path.
#[derive(Debug)]
pub(super) struct Probe {
    pub path: PathBuf,
    pub place: Result<Place, io::Error>,
}

#[derive(Clone, Debug)]
pub(super) struct Place {
    pub kind: Kind,
    /// Of the file, and of those parts of it that have room already.
    pub bytes: u64,
    pub allocated_bytes: u64,
    /// Number of the file system's device and its free bytes; of no use for a block device.
    pub device: u64,
    pub room_bytes: u64,
    /// Magic number of the file system.
    pub file_system: u64,
    /// How transfers past the page cache must be aligned, or why there are none.
    pub direct: Result<Option<Alignment>, Errno>,
    pub locked: bool,
    pub content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing yet; the folder lets a file be made.
    New,
    File,
    Block,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    pub memory: u32,
    pub offset: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Blank,
    Lapis,
    Foreign,
}

pub(super) fn probe(path: &Path) -> Probe {
    let place = match std::fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_file() => existing(path, Kind::File),
        Ok(metadata) if metadata.file_type().is_block_device() => existing(path, Kind::Block),
        // The generic device of an NVMe namespace is another name of its block device.
        Ok(_) => match block_beside(path) {
            Some(block) => existing(&block, Kind::Block),
            None => Ok(Place { kind: Kind::Other, ..Place::EMPTY }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => new(path),
        Err(error) => Err(error),
    };
    Probe { path: path.into(), place }
}

impl Place {
    const EMPTY: Self = Self {
        kind: Kind::New,
        bytes: 0,
        allocated_bytes: 0,
        device: 0,
        room_bytes: 0,
        file_system: 0,
        direct: Ok(None),
        locked: false,
        content: Content::Blank,
    };
}

fn existing(path: &Path, kind: Kind) -> io::Result<Place> {
    // A block device that is mounted or part of another is busy to whoever wants it alone.
    let alone = if kind == Kind::Block { OFlags::EXCL } else { OFlags::empty() };
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.read(true).write(true).custom_flags(alone.bits() as i32).open(path)?;
    // Shared, so that two who only look do not see each other. A daemon that starts in this very moment would have to
    // be started again.
    let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK);
    let (metadata, bytes) = (file.metadata()?, file.seek(SeekFrom::End(0))?);
    let content = content(&mut file)?;
    let read = |page: &mut Page| direct_read(&file, page, bytes);
    Ok(Place { kind, bytes, allocated_bytes: metadata.blocks() * 512, locked, content, ..about(&file, read)? })
}

fn new(path: &Path) -> io::Result<Place> {
    let folder = path.parent().ok_or(io::ErrorKind::NotFound)?;
    let file = tempfile::tempfile_in(folder)?;
    let write = |page: &mut Page| rustix::io::pwrite(&file, &page.0, 0).map(drop);
    Ok(Place { kind: Kind::New, ..about(&file, write)? })
}

/// What does not depend on the content; `transfer` is tried past the page cache.
fn about(file: &File, transfer: impl FnOnce(&mut Page) -> Result<(), Errno>) -> io::Result<Place> {
    let (system, room) = (rustix::fs::fstatfs(file)?, rustix::fs::fstatvfs(file)?);
    let device = file.metadata()?.dev();
    let direct = set_direct(file).and_then(|()| transfer(&mut Page([0; PAGE_BYTES]))).map(|()| alignment(file));
    let room_bytes = room.f_bavail.saturating_mul(room.f_frsize);
    Ok(Place { device, room_bytes, file_system: system.f_type as u64, direct, ..Place::EMPTY })
}

/// Memory that any device can transfer to.
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

fn set_direct(file: &File) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT)
}

fn direct_read(file: &File, page: &mut Page, bytes: u64) -> Result<(), Errno> {
    if bytes < UNIT_BYTES {
        return Ok(());
    }
    rustix::io::pread(file, &mut page.0, 0).map(drop)
}

/// What the kernel says of it (6.1 on), or the block size of a device; `None` where neither is known.
fn alignment(file: &File) -> Option<Alignment> {
    let asked = StatxFlags::from_bits_retain(libc::STATX_DIOALIGN);
    let known = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, asked).ok();
    let said = known.filter(|known| known.stx_mask & libc::STATX_DIOALIGN != 0 && known.stx_dio_offset_align > 0);
    let said = said.map(|known| Alignment { memory: known.stx_dio_mem_align, offset: known.stx_dio_offset_align });
    said.or_else(|| {
        let block = rustix::fs::ioctl_blksszget(file.as_fd()).ok()?;
        Some(Alignment { memory: block, offset: block })
    })
}

fn content(file: &mut File) -> io::Result<Content> {
    let mut pages = Vec::with_capacity(2 * PAGE_BYTES);
    file.rewind()?;
    file.take(2 * UNIT_BYTES).read_to_end(&mut pages)?;
    let begins = |at: usize| pages.get(at..at + MAGIC.len()) == Some(MAGIC);
    Ok(match () {
        () if begins(0) || begins(PAGE_BYTES) => Content::Lapis,
        () if pages.iter().all(|byte| *byte == 0) => Content::Blank,
        () => Content::Foreign,
    })
}

/// One finding for each path, or several if several things are wrong with it.
pub(super) fn judge(options: &Options, probes: &[Probe]) -> Vec<Finding> {
    let mut rooms: BTreeMap<u64, u64> = BTreeMap::new();
    let mut findings = Vec::new();
    for Probe { path, place } in probes {
        let wrong = match place {
            Err(error) => vec![unopened(options, error)],
            Ok(place) => {
                let taken = rooms.entry(place.device).or_insert(0);
                let mut wrong = wrong_with(options, place);
                wrong.extend(room(options, place, taken));
                wrong
            }
        };
        let fine = place.as_ref().ok().filter(|_| wrong.is_empty()).map(|place| Finding::ok(CHECK, praise(place)));
        findings.extend(wrong.into_iter().chain(fine).map(|finding| finding.of(path.display())));
    }
    findings
}

fn unopened(options: &Options, error: &io::Error) -> Finding {
    let advice = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::NOTDIR) => "make its folder, and let the daemon's user write there",
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
            "let the daemon's user read and write it (for a device: a group of its own by a udev rule); run doctor as that user"
        }
        Some(Errno::BUSY) => {
            "it is mounted, part of a volume or a running daemon has it: give Lapis a device or partition of its own"
        }
        _ => "choose another with ssd.paths",
    };
    Finding::bad(of_tier(options), CHECK, format!("cannot be opened: {error}"), advice)
}

fn wrong_with(options: &Options, place: &Place) -> Vec<Finding> {
    let of_tier = of_tier(options);
    if place.kind == Kind::Other {
        let found = "is neither a file nor a block device nor an NVMe namespace";
        return vec![Finding::bad(of_tier, CHECK, found, "choose another with ssd.paths")];
    }
    let mut wrong = Vec::new();
    if place.locked {
        wrong.push(Finding::warn(CHECK, "locked: a daemon has it", "stop that daemon before another one starts on it"));
    }
    match place.direct {
        Err(errno) => {
            let found = format!("no O_DIRECT on {}: {errno}", name_of(place.file_system));
            wrong.push(Finding::bad(of_tier, CHECK, found, "use ext4, xfs or a block device"));
        }
        Ok(Some(Alignment { memory, offset })) if u64::from(memory.max(offset)) > UNIT_BYTES => {
            let found = format!("O_DIRECT needs {offset} B at a time, the log's pages have {UNIT_BYTES} B");
            wrong.push(Finding::bad(of_tier, CHECK, found, "format the device or its file system with 4 KiB blocks"));
        }
        Ok(_) => {}
    }
    if place.kind == Kind::Block && place.bytes < SSD_BYTES_MIN * options.groups.len() as u64 {
        let found = format!("has {}, less than {} for each group", Bytes(place.bytes), Bytes(SSD_BYTES_MIN));
        wrong.push(Finding::bad(of_tier, CHECK, found, "give it a larger device"));
    }
    if place.content == Content::Foreign {
        let found = "holds something that is no log of Lapis";
        let advice = "make sure that nobody wants it (blkid, file), then clear its first 8 KiB";
        wrong.push(Finding::bad(of_tier, CHECK, found, advice));
    }
    if place.kind != Kind::Block
        && let Some(why) = slow(place.file_system)
    {
        let advice = "use ext4 or xfs on a local SSD, or a block device";
        wrong.push(Finding::warn(CHECK, format!("{}: {why}", name_of(place.file_system)), advice));
    }
    wrong
}

/// Whether the file can be made as long as it will be; `taken` counts what other paths take of the same file system.
fn room(options: &Options, place: &Place, taken: &mut u64) -> Option<Finding> {
    if !matches!(place.kind, Kind::New | Kind::File) {
        return None;
    }
    let needed = options.ssd_bytes.saturating_sub(place.allocated_bytes);
    let left = place.room_bytes.saturating_sub(*taken);
    *taken = taken.saturating_add(needed);
    (needed > left).then(|| {
        let found = format!("{:.1} GiB of room left, {:.1} GiB needed", gib(left), gib(needed));
        Finding::bad(of_tier(options), CHECK, found, "free room or lower ssd.bytes")
    })
}

fn praise(place: &Place) -> String {
    let what = match (place.kind, place.content) {
        (Kind::New, _) => "can be made".into(),
        (_, Content::Lapis) => format!("a log of Lapis, {:.1} GiB", gib(place.bytes)),
        _ => format!("blank, {:.1} GiB", gib(place.bytes)),
    };
    let align = match place.direct {
        Ok(Some(Alignment { memory, offset })) => format!(", O_DIRECT in {offset} B (memory {memory} B)"),
        _ => ", O_DIRECT".into(),
    };
    match place.kind {
        Kind::Block => format!("block device, {what}{align}"),
        _ => format!("{what} on {}, {:.1} GiB of room{align}", name_of(place.file_system), gib(place.room_bytes)),
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// File systems by the magic numbers of `statfs`, and what is wrong with some.
const FILE_SYSTEMS: &[(u64, &str, Option<&str>)] = &[
    (0xef53, "ext4", None),
    (0x5846_5342, "xfs", None),
    (0xf2f5_2010, "f2fs", None),
    (0x9123_683e, "btrfs", Some("copies on write: no preallocation, and the log's bytes are written twice")),
    (0x2fc1_2fc1, "zfs", Some("copies on write: no preallocation, and the log's bytes are written twice")),
    (0x0102_1994, "tmpfs", Some("is memory, not SSD")),
    (0x8584_58f6, "ramfs", Some("is memory, not SSD")),
    (0x794c_7630, "overlay", Some("is the writable layer of a container: mount a volume there")),
    (0x6969, "nfs", Some("is remote: it stalls with the network")),
    (0xff53_4d42, "cifs", Some("is remote: it stalls with the network")),
    (0x00c3_6400, "ceph", Some("is remote: it stalls with the network")),
    (0x6573_5546, "fuse", Some("is served by another process")),
];

fn name_of(magic: u64) -> String {
    let known = FILE_SYSTEMS.iter().find(|(number, ..)| *number == magic);
    known.map_or_else(|| format!("file system {magic:#x}"), |(_, name, _)| (*name).into())
}

fn slow(magic: u64) -> Option<&'static str> {
    FILE_SYSTEMS.iter().find(|(number, ..)| *number == magic)?.2
}

#[cfg(test)]
mod tests {
    use std::fs;

    use lapis_config::LoadInput;

    use super::*;
    use crate::doctor::Level;

    const GIB: u64 = 1 << 30;
    const ALIGNED: Result<Option<Alignment>, Errno> = Ok(Some(Alignment { memory: 4, offset: 512 }));

    fn options(paths: &[&str]) -> Options {
        let mut options = Options::load(&LoadInput::default()).expect("the defaults hold together").options;
        options.ssd_paths = paths.iter().map(PathBuf::from).collect();
        options
    }

    fn good() -> Place {
        let (file_system, room_bytes) = (0xef53, 100 * GIB);
        Place { device: 1, file_system, room_bytes, direct: ALIGNED, ..Place::EMPTY }
    }

    fn judged(places: Vec<Result<Place, io::Error>>) -> Vec<Finding> {
        let probes: Vec<Probe> = places.into_iter().map(|place| Probe { path: "/data/a".into(), place }).collect();
        let findings = judge(&options(&["/data/a"]), &probes);
        for finding in &findings {
            assert_eq!(finding.level == Level::Ok, finding.advice.is_none(), "{finding}");
        }
        findings
    }

    fn one(place: Result<Place, io::Error>) -> Finding {
        let findings = judged(vec![place]);
        assert_eq!(findings.len(), 1, "{findings:?}");
        findings[0].clone()
    }

    #[test]
    fn a_good_file_and_a_good_device_are_found_good() {
        let found = one(Ok(good()));
        assert!(found.level == Level::Ok && found.found.contains("can be made on ext4"), "{found}");
        let log = Place { kind: Kind::File, bytes: 64 * GIB, content: Content::Lapis, ..good() };
        assert_eq!(one(Ok(log)).level, Level::Ok);
        let device = Place { kind: Kind::Block, bytes: 1 << 40, room_bytes: 0, file_system: 0x0102_1994, ..good() };
        let found = one(Ok(device));
        assert!(found.level == Level::Ok && found.found.contains("1024.0 GiB, O_DIRECT in 512 B"), "{found}");
    }

    #[test]
    fn what_no_log_can_lie_on_fails() {
        let cases = [
            (Place { direct: Err(Errno::INVAL), ..good() }, "no O_DIRECT on ext4"),
            (Place { direct: Ok(Some(Alignment { memory: 512, offset: 65536 })), ..good() }, "65536 B at a time"),
            (Place { kind: Kind::Other, ..good() }, "neither a file nor"),
            (Place { kind: Kind::Block, bytes: 100 << 20, ..good() }, "has 100MiB, less than 512MiB"),
            (Place { kind: Kind::Block, bytes: GIB, content: Content::Foreign, ..good() }, "no log of Lapis"),
            (Place { room_bytes: GIB, ..good() }, "1.0 GiB of room left, 64.0 GiB needed"),
        ];
        for (place, words) in cases {
            let found = one(Ok(place));
            assert!(found.level == Level::Fail && found.found.contains(words), "{found} does not say {words:?}");
        }
        for (errno, words) in [(Errno::NOENT, "make its folder"), (Errno::ACCESS, "udev"), (Errno::BUSY, "mounted")] {
            let found = one(Err(errno.into()));
            assert!(found.level == Level::Fail && found.to_string().contains(words), "{found}");
        }
    }

    #[test]
    fn what_a_daemon_has_and_what_is_no_local_disk_is_warned_of() {
        let found = one(Ok(Place { kind: Kind::File, locked: true, allocated_bytes: 64 * GIB, ..good() }));
        assert!(found.level == Level::Warn && found.found.contains("a daemon has it"), "{found}");
        for magic in [0x0102_1994, 0x6969, 0x9123_683e, 0x794c_7630] {
            assert_eq!(one(Ok(Place { file_system: magic, ..good() })).level, Level::Warn);
        }
        let unknown = one(Ok(Place { file_system: 0x77, ..good() }));
        assert!(unknown.level == Level::Ok && unknown.found.contains("file system 0x77"), "{unknown}");
    }

    #[test]
    fn a_tier_that_is_not_required_only_warns() {
        let lax = Options { ssd_required: false, ..options(&["/a"]) };
        let probe = Probe { path: "/a".into(), place: Ok(Place { direct: Err(Errno::INVAL), ..good() }) };
        assert_eq!(judge(&lax, &[probe])[0].level, Level::Warn);
    }

    #[test]
    fn paths_of_one_file_system_share_its_room() {
        let levels = |places| judged(places).iter().map(|finding| finding.level).collect::<Vec<_>>();
        assert_eq!(levels(vec![Ok(good()), Ok(good())]), [Level::Ok, Level::Fail]);
        assert_eq!(levels(vec![Ok(good()), Ok(Place { device: 2, ..good() })]), [Level::Ok, Level::Ok]);
        let full = Place { kind: Kind::File, allocated_bytes: 64 * GIB, room_bytes: 0, ..good() };
        assert_eq!(levels(vec![Ok(full.clone()), Ok(full)]), [Level::Ok, Level::Ok], "room that they have already");
    }

    #[test]
    fn a_probe_sees_what_is_there_and_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let look = || probe(&path).place.expect("a place");
        let fresh = look();
        assert_eq!((fresh.kind, fresh.content, fresh.locked), (Kind::New, Content::Blank, false));
        assert!(fresh.room_bytes > 0 && fs::read_dir(folder.path()).expect("the folder").next().is_none());
        fs::write(&path, [0u8; 8192]).expect("a file");
        assert_eq!((look().kind, look().bytes, look().content), (Kind::File, 8192, Content::Blank));
        let mut bytes = [0u8; 8192];
        bytes[4096..4104].copy_from_slice(MAGIC);
        fs::write(&path, bytes).expect("a file");
        assert_eq!(look().content, Content::Lapis);
        fs::write(&path, b"something else").expect("a file");
        let held = File::open(&path).expect("the file");
        rustix::fs::flock(&held, FlockOperation::LockExclusive).expect("a lock");
        assert_eq!((look().content, look().locked), (Content::Foreign, true));
        let kind = |path: &str| probe(Path::new(path)).place.expect("a place").kind;
        assert_eq!(kind("/dev/null"), Kind::Other);
        let missing = probe(&folder.path().join("no/log")).place.expect_err("no folder");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
