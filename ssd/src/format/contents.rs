//! A page of a segment's table of contents: up to 31 records or pools, written once, after what it lists. A record
//! that no page lists is not there.

use lapis_config::sizes::slot_bytes;
use lapis_config::{BLOCK_BYTES_MAX, Fingerprint, Key, OBJECT_PART_BYTES, PIECES_MAX, POOLS_MAX};
use lapis_config::{PoolId, PoolKind, PoolShape, UNIT_BYTES};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{FormatError, Head, LogId, PAGE_BYTES, Page, PageIndex, PageKind, SegmentUse};
use super::{at_least, at_most, expect, expect_log, padded, seal, text, unseal};

/// "LAPISTOC".
const MAGIC: u64 = u64::from_le_bytes(*b"LAPISTOC");
const KIND: PageKind = PageKind::Contents;
/// Records or pools in one page.
pub const ENTRIES_MAX: usize = 31;
const LABEL_BYTES: usize = 48;

const RECORDS: u16 = 1;
const POOLS: u16 = 2;
const REMOVED: u8 = 1;

/// Room for the encryption of one record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nonce {
    pub nonce: [u8; 12],
    pub tag: [u8; 16],
}

/// One block in the segment: its slot as it was in memory, tail included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: Key,
    /// The parent's key; the default (zeros) for a root.
    pub parent: Key,
    pub pool: PoolId,
    /// Where it starts in the segment and how many pages it has.
    pub start: PageIndex,
    pub pages: u32,
    /// Payload bytes.
    pub bytes: u32,
    /// The block's `sum`, as in the table of memory.
    pub sum: u64,
    /// Order over the whole log: of several records of one key the highest counts.
    pub sequence: u64,
    /// The policy's class when it was written; a hint.
    pub class: u8,
    /// Nothing was written: the key was removed at this sequence. `start`, `pages`, `bytes` and `sum` are 0.
    pub removed: bool,
    pub nonce: Nonce,
}

/// What a page lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entries {
    Records(Vec<Record>),
    /// Pools by number, listed before the first record that names one: a segment is read without any client. Records
    /// of a pool below the sequence beside it were purged.
    Pools(Vec<(PoolId, PoolShape, u64)>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentsPage {
    pub used: SegmentUse,
    pub place: PageIndex,
    /// Where the next page will be; `None` in the last one: the segment is full.
    pub next: Option<PageIndex>,
    /// Higher in every page of the log that is written later.
    pub sequence: u64,
    pub boots: u64,
    pub entries: Entries,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Layout {
    head: Head,
    opened: U64,
    sequence: U64,
    boots: U64,
    segment: U32,
    place: U32,
    next: U32,
    group: U16,
    kind: U16,
    count: U16,
    spare: [u8; 46],
    entries: [[u8; 128]; ENTRIES_MAX],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RecordLayout {
    key: [u8; 32],
    parent: [u8; 32],
    sum: U64,
    sequence: U64,
    start: U32,
    pages: U32,
    bytes: U32,
    pool: U16,
    class: u8,
    flags: u8,
    nonce: [u8; 12],
    tag: [u8; 16],
    spare: [u8; 4],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct PoolLayout {
    namespace: [u8; 32],
    label: [u8; LABEL_BYTES],
    block_bytes: U64,
    purged_before: U64,
    pool: U16,
    pieces: U16,
    kind: u8,
    spare: [u8; 27],
}

const _: () = assert!(size_of::<Layout>() == PAGE_BYTES, "on-disk layout");
const _: () = assert!(size_of::<RecordLayout>() == 128 && size_of::<PoolLayout>() == 128, "on-disk layout");

impl ContentsPage {
    /// # Panics
    /// If there are more than [`ENTRIES_MAX`] entries or none.
    pub fn encode(&self) -> Box<Page> {
        let SegmentUse { log, segment, opened, group } = self.used;
        let mut layout = Layout::new_zeroed();
        layout.head = Head::new(MAGIC, log);
        layout.opened = U64::new(opened);
        layout.sequence = U64::new(self.sequence);
        layout.boots = U64::new(self.boots);
        layout.segment = U32::new(segment.0);
        layout.place = U32::new(self.place.0);
        layout.next = U32::new(self.next.map_or(0, |next| next.0));
        layout.group = U16::new(group);
        let (kind, bytes): (u16, Vec<[u8; 128]>) = match &self.entries {
            Entries::Records(records) => (RECORDS, records.iter().map(Record::encode).collect()),
            Entries::Pools(pools) => (POOLS, pools.iter().map(|(id, shape, p)| encode_pool(*id, shape, *p)).collect()),
        };
        assert!((1..=ENTRIES_MAX).contains(&bytes.len()), "a page lists something, and not more than it has room for");
        layout.kind = U16::new(kind);
        layout.count = U16::new(bytes.len() as u16);
        layout.entries[..bytes.len()].copy_from_slice(&bytes);
        seal(MAGIC, &layout)
    }

    /// Reads the page at `place` of a segment in the use `used`, which has `segment_pages` pages.
    pub fn decode(page: &Page, used: &SegmentUse, place: PageIndex, segment_pages: u32) -> Result<Self, FormatError> {
        let layout: &Layout = unseal(KIND, MAGIC, page)?;
        expect_log(KIND, used.log, LogId(layout.head.log))?;
        expect(KIND, "segment", used.segment.0.into(), layout.segment.get().into())?;
        expect(KIND, "use", used.opened, layout.opened.get())?;
        expect(KIND, "group", used.group.into(), layout.group.get().into())?;
        expect(KIND, "place", place.0.into(), layout.place.get().into())?;
        let next = layout.next.get();
        at_most(KIND, "next", next.into(), u64::from(segment_pages).saturating_sub(1))?;
        if next != 0 {
            // Later pages lie later: following them ends.
            at_least(KIND, "next", next.into(), u64::from(place.0) + 1)?;
        }
        let count = layout.count.get();
        at_most(KIND, "count", count.into(), ENTRIES_MAX as u64)?;
        let listed = &layout.entries[..usize::from(count)];
        let entries = match layout.kind.get() {
            RECORDS => {
                Entries::Records(listed.iter().map(|b| Record::decode(b, segment_pages)).collect::<Result<_, _>>()?)
            }
            POOLS => Entries::Pools(listed.iter().map(decode_pool).collect::<Result<_, _>>()?),
            kind => {
                return Err(FormatError::TooLarge {
                    kind: KIND,
                    field: "kind",
                    found: kind.into(),
                    most: POOLS.into(),
                });
            }
        };
        let next = (next != 0).then_some(PageIndex(next));
        let (sequence, boots) = (layout.sequence.get(), layout.boots.get());
        Ok(Self { used: *used, place, next, sequence, boots, entries })
    }
}

impl Record {
    fn encode(&self) -> [u8; 128] {
        let layout = RecordLayout {
            key: self.key.to_bytes(),
            parent: self.parent.to_bytes(),
            sum: U64::new(self.sum),
            sequence: U64::new(self.sequence),
            start: U32::new(self.start.0),
            pages: U32::new(self.pages),
            bytes: U32::new(self.bytes),
            pool: U16::new(self.pool.0),
            class: self.class,
            flags: if self.removed { REMOVED } else { 0 },
            nonce: self.nonce.nonce,
            tag: self.nonce.tag,
            spare: [0; 4],
        };
        zerocopy::transmute!(layout)
    }

    fn decode(bytes: &[u8; 128], segment_pages: u32) -> Result<Self, FormatError> {
        let layout: &RecordLayout = zerocopy::transmute_ref!(bytes);
        let record = Self {
            key: Key::from_bytes(layout.key),
            parent: Key::from_bytes(layout.parent),
            pool: PoolId(layout.pool.get()),
            start: PageIndex(layout.start.get()),
            pages: layout.pages.get(),
            bytes: layout.bytes.get(),
            sum: layout.sum.get(),
            sequence: layout.sequence.get(),
            class: layout.class,
            removed: layout.flags & REMOVED != 0,
            nonce: Nonce { nonce: layout.nonce, tag: layout.tag },
        };
        record.check(segment_pages)?;
        Ok(record)
    }

    /// Its bytes lie in the segment, after the header, and hold the payload.
    fn check(&self, segment_pages: u32) -> Result<(), FormatError> {
        at_most(KIND, "pool", self.pool.0.into(), POOLS_MAX as u64 - 1)?;
        if self.removed {
            return expect(KIND, "pages of a removed key", 0, u64::from(self.pages) + u64::from(self.bytes));
        }
        at_least(KIND, "start of a record", self.start.0.into(), 1)?;
        let end = u64::from(self.start.0) + u64::from(self.pages);
        at_most(KIND, "end of a record", end, segment_pages.into())?;
        at_least(KIND, "bytes of a record", self.bytes.into(), 1)?;
        at_most(KIND, "bytes of a record", self.bytes.into(), BLOCK_BYTES_MAX)?;
        at_most(KIND, "bytes of a record", self.bytes.into(), u64::from(self.pages) * UNIT_BYTES)
    }

    /// Whether it has as many pages as a slot of `shape` for its bytes: asked once the pool is known, before the tail
    /// is looked for.
    pub fn fits(&self, shape: &PoolShape) -> bool {
        let bytes = u64::from(self.bytes);
        let most =
            if shape.kind == PoolKind::Object { shape.block_bytes.min(OBJECT_PART_BYTES) } else { shape.block_bytes };
        self.removed || (bytes <= most && slot_bytes(shape, bytes) == u64::from(self.pages) * UNIT_BYTES)
    }
}

fn encode_pool(pool: PoolId, shape: &PoolShape, purged_before: u64) -> [u8; 128] {
    let layout = PoolLayout {
        namespace: shape.namespace.0,
        label: padded(&shape.label),
        block_bytes: U64::new(shape.block_bytes),
        purged_before: U64::new(purged_before),
        pool: U16::new(pool.0),
        pieces: U16::new(shape.pieces),
        kind: match shape.kind {
            PoolKind::Chain => 1,
            PoolKind::Object => 2,
        },
        spare: [0; 27],
    };
    zerocopy::transmute!(layout)
}

fn decode_pool(bytes: &[u8; 128]) -> Result<(PoolId, PoolShape, u64), FormatError> {
    let layout: &PoolLayout = zerocopy::transmute_ref!(bytes);
    let (pool, pieces, block_bytes) = (layout.pool.get(), layout.pieces.get(), layout.block_bytes.get());
    at_most(KIND, "pool", pool.into(), POOLS_MAX as u64 - 1)?;
    at_least(KIND, "pieces", pieces.into(), 1)?;
    at_most(KIND, "pieces", pieces.into(), PIECES_MAX.into())?;
    at_least(KIND, "block_bytes", block_bytes, 1)?;
    expect(KIND, "block_bytes past equal pieces", 0, block_bytes % u64::from(pieces))?;
    let kind = match layout.kind {
        1 => PoolKind::Chain,
        2 => PoolKind::Object,
        kind => return Err(FormatError::TooLarge { kind: KIND, field: "pool kind", found: kind.into(), most: 2 }),
    };
    if kind == PoolKind::Chain {
        at_most(KIND, "block_bytes", block_bytes, BLOCK_BYTES_MAX)?;
    }
    let (namespace, label) = (Fingerprint(layout.namespace), text(KIND, "label", &layout.label)?);
    let shape = PoolShape { namespace, label, kind, block_bytes, pieces };
    Ok((PoolId(pool), shape, layout.purged_before.get()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::SegmentId;
    use proptest::prelude::*;

    const PAGES: u32 = 16384;
    const PLACE: PageIndex = PageIndex(3);

    fn used() -> SegmentUse {
        SegmentUse { log: LogId([5; 16]), segment: SegmentId::new(0, 9), opened: 1234, group: 0 }
    }

    fn decode(page: &Page) -> Result<ContentsPage, FormatError> {
        ContentsPage::decode(page, &used(), PLACE, PAGES)
    }

    fn page_of(entries: Entries) -> ContentsPage {
        ContentsPage { used: used(), place: PLACE, next: Some(PageIndex(4)), sequence: 99, boots: 2, entries }
    }

    fn record() -> impl Strategy<Value = Record> {
        let place = (1u32..300).prop_flat_map(|pages| (1..PAGES - pages, Just(pages), 1..=pages * 4096));
        let rest = (0u16..1024, any::<u8>(), any::<bool>());
        (any::<[u64; 11]>(), place, rest).prop_map(|(words, (start, pages, bytes), (pool, class, removed))| {
            let key = |i: usize| Key([words[i], words[i + 1], words[i + 2], words[i + 3]]);
            let nonce = Nonce { nonce: [words[8] as u8; 12], tag: [words[9] as u8; 16] };
            let (key, parent, pool, sequence) = (key(0), key(4), PoolId(pool), words[10]);
            let (start, pages, bytes, sum) =
                if removed { (PageIndex(0), 0, 0, 0) } else { (PageIndex(start), pages, bytes, words[9]) };
            Record { key, parent, pool, start, pages, bytes, sum, sequence, class, removed, nonce }
        })
    }

    fn pool() -> impl Strategy<Value = (PoolId, PoolShape, u64)> {
        let numbers = (any::<[u64; 2]>(), 1..=BLOCK_BYTES_MAX / u64::from(PIECES_MAX), 1..=PIECES_MAX, 0u16..1024);
        ("[a-z0-9/:-]{0,48}", any::<bool>(), numbers).prop_map(|(label, object, (words, piece_bytes, pieces, id))| {
            let kind = if object { PoolKind::Object } else { PoolKind::Chain };
            let (namespace, block_bytes) = (Fingerprint([words[0] as u8; 32]), piece_bytes * u64::from(pieces));
            (PoolId(id), PoolShape { namespace, label, kind, block_bytes, pieces }, words[1])
        })
    }

    fn entries() -> impl Strategy<Value = Entries> {
        prop_oneof![
            prop::collection::vec(record(), 1..=ENTRIES_MAX).prop_map(Entries::Records),
            prop::collection::vec(pool(), 1..=ENTRIES_MAX).prop_map(Entries::Pools),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(entries in entries(), last: bool) {
            let page = ContentsPage { next: (!last).then_some(PageIndex(700)), ..page_of(entries) };
            prop_assert_eq!(decode(&page.encode()), Ok(page));
        }

        #[test]
        fn any_flipped_bits_of_a_byte_are_noticed(entries in entries(), at in 0..PAGE_BYTES, flip in 1u8..) {
            let mut page = page_of(entries).encode();
            page[at] ^= flip;
            prop_assert!(decode(&page).is_err());
        }

        #[test]
        fn a_page_torn_at_any_sector_is_noticed(entries in entries(), sectors in 0..8usize, fill: u8) {
            let mut page = page_of(entries).encode();
            let whole = page.clone();
            page[512 * sectors..].fill(fill);
            prop_assert!(page == whole || decode(&page).is_err());
        }

        #[test]
        fn any_bytes_under_a_right_checksum_are_a_value_or_an_error(
            bytes in prop::collection::vec(any::<u8>(), PAGE_BYTES - 40),
        ) {
            let good = page_of(Entries::Pools(vec![])).used;
            let mut page: Page = [0; PAGE_BYTES];
            page[..40].copy_from_slice(Head::new(MAGIC, good.log).as_bytes());
            page[40..].copy_from_slice(&bytes);
            // As far right as a page can be with anything in its entries.
            page[40..48].copy_from_slice(&good.opened.to_le_bytes());
            page[64..68].copy_from_slice(&good.segment.0.to_le_bytes());
            page[68..72].copy_from_slice(&PLACE.0.to_le_bytes());
            page[72..76].copy_from_slice(&[0; 4]);
            page[76..78].copy_from_slice(&[0; 2]);
            page[78] = 1 + (page[78] & 1);
            page[79] = 0;
            page[80] &= 31;
            page[81] = 0;
            let sum = crate::format::checksum(MAGIC, &page);
            page[8..16].copy_from_slice(&sum.to_le_bytes());
            if let Ok(ContentsPage { entries: Entries::Records(records), .. }) = decode(&page) {
                for record in records {
                    prop_assert!(record.removed || record.start.0 + record.pages <= PAGES);
                }
            }
        }
    }

    #[test]
    fn every_single_bit_of_a_page_is_guarded() {
        let shape = PoolShape {
            namespace: Fingerprint([1; 32]),
            label: "layer-0".into(),
            kind: PoolKind::Chain,
            block_bytes: 65536,
            pieces: 1,
        };
        let page = page_of(Entries::Pools(vec![(PoolId(3), shape, 0)])).encode();
        for bit in 0..PAGE_BYTES * 8 {
            let mut flipped = page.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_pool_of_unequal_pieces_is_refused() {
        let shape = PoolShape { block_bytes: 65536, pieces: 3, ..pool_shape() };
        let refused = decode(&page_of(Entries::Pools(vec![(PoolId(0), shape, 0)])).encode());
        assert!(matches!(refused, Err(FormatError::Misplaced { found: 1, .. })), "{refused:?}");
    }

    #[test]
    fn a_page_of_an_earlier_use_or_at_another_place_is_refused() {
        let page = page_of(Entries::Records(vec![])).used;
        let good = page_of(Entries::Pools(vec![(PoolId(0), pool_shape(), 0)])).encode();
        let at = |used: SegmentUse, place| ContentsPage::decode(&good, &used, place, PAGES);
        assert!(at(page, PLACE).is_ok());
        let later = SegmentUse { opened: 1235, ..page };
        assert!(matches!(
            at(later, PLACE),
            Err(FormatError::Misplaced { field: "use", expected: 1235, found: 1234, .. })
        ));
        assert!(matches!(at(page, PageIndex(4)), Err(FormatError::Misplaced { field: "place", .. })));
        let group = SegmentUse { group: 1, ..page };
        assert!(matches!(at(group, PLACE), Err(FormatError::Misplaced { field: "group", .. })));
        assert!(matches!(
            ContentsPage::decode(&good, &page, PLACE, 4),
            Err(FormatError::TooLarge { field: "next", found: 4, most: 3, .. })
        ));
    }

    fn pool_shape() -> PoolShape {
        PoolShape {
            namespace: Fingerprint::default(),
            label: String::new(),
            kind: PoolKind::Object,
            block_bytes: 1 << 40,
            pieces: 1,
        }
    }

    #[test]
    fn a_record_has_the_pages_of_its_slot() {
        let shape = PoolShape { kind: PoolKind::Chain, block_bytes: 65536, pieces: 4, ..pool_shape() };
        let mut record = Record {
            key: Key([1; 4]),
            parent: Key::default(),
            pool: PoolId(0),
            start: PageIndex(17),
            pages: 17,
            bytes: 65536,
            sum: 1,
            sequence: 2,
            class: 0,
            removed: false,
            nonce: Nonce::default(),
        };
        assert!(record.fits(&shape), "64 KiB and a page with the sums of its pieces");
        record.pages = 16;
        assert!(!record.fits(&shape) && record.fits(&PoolShape { pieces: 1, ..shape }));
    }
}
