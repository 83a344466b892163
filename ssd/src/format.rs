//! The bytes of the log on devices. Pure: pages in, values out; what a page says is checked before it is believed.
//!
//! A device is superblocks (two pages, written in turn), then segments. A segment is a header page, a chunk of pages of
//! contents, then records and further chunks in the order in which they were written. All numbers are little-endian.
//!
//! Invariant: every page is written once while its segment has one use, and only after what it speaks of is written.
//! Invariant: every page names itself (log, segment, use, place): a page at a wrong place, of an earlier use or of
//! another log is refused, whatever its checksum.
//! Invariant: a decoder gives a value or an error for any 4096 bytes; it never panics and never reads further.
//! Minor versions only give a meaning to bytes that were zero; a reader of a lower minor passes over them.

mod contents;
mod segment;
pub(crate) mod superblock;

use lapis_config::UNIT_BYTES;
pub use lapis_config::{PageIndex, SegmentId};
use twox_hash::XxHash3_64;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use contents::{ContentsPage, ENTRIES_MAX, Entries, Nonce, Record};
pub use segment::SegmentHeader;
pub use superblock::{GROUPS_MAX, GroupRecord, Superblock};

/// Bytes of every page: what a device writes whole or can be asked to.
pub const PAGE_BYTES: usize = UNIT_BYTES as usize;
/// Readers refuse another major version and accept any minor.
pub const MAJOR: u16 = 1;
pub const MINOR: u16 = 0;
/// Least bytes of a segment that the format allows: head, one more chunk and some records. What a daemon makes has at
/// least 64 MiB (`ssd.bytes`); small ones are for tests in which segments fill and retire all the time.
pub const SEGMENT_BYTES_MIN: u64 = 256 << 10;
pub const SEGMENT_BYTES_MAX: u64 = 16 << 30;
/// Pages of contents that lie together; the last of a chunk says where the next chunk starts.
pub const CHUNK_PAGES: u32 = 16;
/// First page of a segment's contents: after the header.
pub const CONTENTS_START: PageIndex = PageIndex(1);

pub type Page = [u8; PAGE_BYTES];

/// One log: drawn at random when its devices were formatted; the same on all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LogId(pub [u8; 16]);

/// One use of one segment, from its opening to its retirement; what its pages must name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SegmentUse {
    pub log: LogId,
    pub segment: SegmentId,
    /// The sequence at which it was opened: never the same twice in a log.
    pub opened: u64,
    /// The trust group's number in the superblock.
    pub group: u16,
}

/// Which page it is that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    Superblock,
    SegmentHeader,
    Contents,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("{kind:?}: expected magic {expected:016x}, found {found:016x}")]
    Foreign { kind: PageKind, expected: u64, found: u64 },
    #[error("{kind:?}: expected checksum {expected:016x}, found {found:016x}")]
    Corrupt { kind: PageKind, expected: u64, found: u64 },
    #[error("{kind:?}: format {found_major}.{found_minor}, this version reads {MAJOR}.{MINOR}")]
    Version { kind: PageKind, found_major: u16, found_minor: u16 },
    #[error("{kind:?}: expected log {expected}, found {found}")]
    OtherLog { kind: PageKind, expected: String, found: String },
    #[error("{kind:?}: expected {field} {expected}, found {found}")]
    Misplaced { kind: PageKind, field: &'static str, expected: u64, found: u64 },
    #[error("{kind:?}: {field} is {found}, at most {most}")]
    TooLarge { kind: PageKind, field: &'static str, found: u64, most: u64 },
    #[error("{kind:?}: {field} is {found}, at least {least}")]
    TooSmall { kind: PageKind, field: &'static str, found: u64, least: u64 },
    #[error("{kind:?}: {field} is no text of {most} bytes at most")]
    NoText { kind: PageKind, field: &'static str, most: usize },
}

/// What all pages begin with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    magic: U64,
    /// xxh3-64 of the page's bytes from 16 on, seeded with the magic.
    checksum: U64,
    major: U16,
    minor: U16,
    spare: [u8; 4],
    log: [u8; 16],
}

const HEAD_BYTES: usize = 40;
const SUMMED_FROM: usize = 16;
const _: () = assert!(size_of::<Head>() == HEAD_BYTES, "on-disk layout");

impl Head {
    fn new(magic: u64, log: LogId) -> Self {
        let (major, minor) = (U16::new(MAJOR), U16::new(MINOR));
        Self { magic: U64::new(magic), checksum: U64::new(0), major, minor, spare: [0; 4], log: log.0 }
    }
}

fn checksum(magic: u64, page: &Page) -> u64 {
    XxHash3_64::oneshot_with_seed(magic, &page[SUMMED_FROM..])
}

/// The page of `value`, which begins with a [`Head`], its checksum put in.
fn seal<T: IntoBytes + Immutable>(magic: u64, value: &T) -> Box<Page> {
    const { assert!(size_of::<T>() == PAGE_BYTES, "a page") };
    let mut page = Box::new([0; PAGE_BYTES]);
    page.copy_from_slice(value.as_bytes());
    let sum = checksum(magic, &page);
    page[8..SUMMED_FROM].copy_from_slice(&sum.to_le_bytes());
    page
}

/// The bytes of `page` as a `T`, once magic, checksum and version are right.
fn unseal<T>(kind: PageKind, magic: u64, page: &Page) -> Result<&T, FormatError>
where
    T: FromBytes + KnownLayout + Immutable,
{
    const { assert!(size_of::<T>() == PAGE_BYTES && align_of::<T>() == 1, "a page of any alignment") };
    let (head, _) = Head::read_from_prefix(page).expect("a head is shorter than a page");
    let found = head.magic.get();
    if found != magic {
        return Err(FormatError::Foreign { kind, expected: magic, found });
    }
    let (expected, found) = (checksum(magic, page), head.checksum.get());
    if found != expected {
        return Err(FormatError::Corrupt { kind, expected, found });
    }
    if head.major.get() != MAJOR {
        let (found_major, found_minor) = (head.major.get(), head.minor.get());
        return Err(FormatError::Version { kind, found_major, found_minor });
    }
    Ok(T::ref_from_bytes(page).expect("a page has the size of a page"))
}

fn expect_log(kind: PageKind, expected: LogId, found: LogId) -> Result<(), FormatError> {
    if expected == found {
        return Ok(());
    }
    let text = |id: LogId| id.0.iter().map(|byte| format!("{byte:02x}")).collect();
    Err(FormatError::OtherLog { kind, expected: text(expected), found: text(found) })
}

fn expect(kind: PageKind, field: &'static str, expected: u64, found: u64) -> Result<(), FormatError> {
    if expected == found { Ok(()) } else { Err(FormatError::Misplaced { kind, field, expected, found }) }
}

fn at_most(kind: PageKind, field: &'static str, found: u64, most: u64) -> Result<(), FormatError> {
    if found <= most { Ok(()) } else { Err(FormatError::TooLarge { kind, field, found, most }) }
}

fn at_least(kind: PageKind, field: &'static str, found: u64, least: u64) -> Result<(), FormatError> {
    if found >= least { Ok(()) } else { Err(FormatError::TooSmall { kind, field, found, least }) }
}

/// A text in a field padded with zeros.
fn text(kind: PageKind, field: &'static str, bytes: &[u8]) -> Result<String, FormatError> {
    let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = std::str::from_utf8(&bytes[..length]).ok().filter(|_| bytes[length..].iter().all(|byte| *byte == 0));
    text.map(String::from).ok_or(FormatError::NoText { kind, field, most: bytes.len() })
}

/// `text` padded with zeros; it must fit and hold no zero.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    assert!(text.len() <= N && !text.contains('\0'), "names and labels are checked where they enter");
    let mut bytes = [0; N];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}
