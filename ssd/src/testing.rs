//! A device in memory for the tests of this crate: holds only pages that were written, remembers in which order, and
//! completes when it is polled.

pub(crate) mod writer;

use std::{collections::BTreeMap, io, task::Poll};

use lapis_arena::Mapping;
use lapis_config::{Fingerprint, PoolKind, PoolShape};

use crate::{
    device::{Completion, Device, Io, IoKind},
    format::{GroupRecord, LogId, PAGE_BYTES, Superblock},
    volume::{
        open::{Identity, Wanted, plan_open},
        superblocks::{self, Reader},
    },
};

#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A page at this offset became this.
    Page(u64, Vec<u8>),
    Flush,
}

#[derive(Clone)]
pub(crate) struct Sheet {
    pub bytes: u64,
    pub depth: usize,
    pub pages: BTreeMap<u64, Vec<u8>>,
    pub events: Vec<Event>,
    /// What operations fail, by offset and kind.
    pub fails: fn(&Io) -> bool,
    /// Completes the latest first.
    pub backwards: bool,
    /// Completes nothing.
    pub hangs: bool,
    under_way: Vec<Io>,
    kicked: usize,
}

impl Sheet {
    pub fn new(bytes: u64) -> Self {
        Self {
            bytes,
            depth: 8,
            pages: BTreeMap::new(),
            events: Vec::new(),
            fails: |_| false,
            backwards: false,
            hangs: false,
            under_way: Vec::new(),
            kicked: 0,
        }
    }

    /// What lies on it, and nothing of what led there.
    pub fn of_pages(bytes: u64, pages: BTreeMap<u64, Vec<u8>>) -> Self {
        Self { pages, ..Self::new(bytes) }
    }

    pub fn read(&self, offset: u64, out: &mut [u8]) {
        assert!(offset + out.len() as u64 <= self.bytes && offset.is_multiple_of(PAGE_BYTES as u64));
        out.fill(0);
        for (at, page) in self.pages.range(offset..offset + out.len() as u64) {
            let start = (at - offset) as usize;
            out[start..start + PAGE_BYTES].copy_from_slice(page);
        }
    }

    pub fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    fn apply(&mut self, io: &Io) {
        match (io.kind, &io.memory) {
            (IoKind::Read, Some(memory)) => {
                let mut bytes = vec![0; io.bytes as usize];
                self.read(io.offset, &mut bytes);
                memory.mapping.copy_in(memory.range.start, &bytes);
            }
            (IoKind::Write, Some(memory)) => {
                let bytes = memory.mapping.to_vec(memory.range.start, memory.range.len());
                for (i, page) in bytes.chunks(PAGE_BYTES).enumerate() {
                    let offset = io.offset + (i * PAGE_BYTES) as u64;
                    self.pages.insert(offset, page.to_vec());
                    self.events.push(Event::Page(offset, page.to_vec()));
                }
            }
            (IoKind::Flush, None) => self.events.push(Event::Flush),
            (IoKind::Discard, None) => {}
            _ => panic!("{io:?}"),
        }
    }
}

impl Device for Sheet {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn submit(&mut self, io: Io) -> Result<(), Io> {
        if self.under_way.len() == self.depth {
            return Err(io);
        }
        assert!(io.offset.is_multiple_of(PAGE_BYTES as u64) && io.offset + io.bytes <= self.bytes, "{io:?}");
        assert!(io.memory.as_ref().is_none_or(|memory| memory.bytes() as u64 == io.bytes), "{io:?}");
        assert!(self.under_way.iter().all(|other| other.id != io.id), "{:?} is under way", io.id);
        self.under_way.push(io);
        Ok(())
    }

    fn kick(&mut self) -> io::Result<()> {
        self.kicked = self.under_way.len();
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<Completion>) -> io::Result<()> {
        if self.hangs {
            return Ok(());
        }
        let mut ended: Vec<Io> = self.under_way.drain(..self.kicked).collect();
        self.kicked = 0;
        if self.backwards {
            ended.reverse();
        }
        for io in ended {
            let failed = (self.fails)(&io);
            if !failed {
                self.apply(&io);
            }
            let result = if failed { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) };
            out.push(Completion { id: io.id, result });
        }
        Ok(())
    }
}

/// Memory of `pages` pages that hold `fill`.
pub(crate) fn memory(pages: usize, fill: u8) -> crate::device::Memory {
    let mapping = Mapping::anonymous((pages * PAGE_BYTES) as u64).expect("memory");
    mapping.copy_in(0, &vec![fill; pages * PAGE_BYTES]);
    crate::device::Memory::new(&mapping, 0, pages * PAGE_BYTES)
}

/// Of a device of four segments of 64 MiB, with two groups.
pub(crate) fn superblock() -> Superblock {
    let group = |name: &str| GroupRecord { name: name.into(), purged_before: 0 };
    Superblock {
        log: LogId([7; 16]),
        write: 5,
        host: [1; 16],
        instance: [2; 16],
        boots: 3,
        device: 0,
        devices: 1,
        segment_bytes: 64 << 20,
        segments: 4,
        segments_start: 1 << 20,
        sequence_reserved: 1 << 32,
        formatted_s: 1_700_000_000,
        sequence_formatted: 1,
        groups: vec![group("default"), group("chat")],
    }
}

/// A pool of each kind: blocks of one piece, blocks of four, objects.
pub(crate) fn shapes() -> [PoolShape; 3] {
    let shape = |label: &str, kind, block_bytes, pieces| PoolShape {
        namespace: Fingerprint([9; 32]),
        label: label.into(),
        kind,
        block_bytes,
        pieces,
    };
    [
        shape("plain", PoolKind::Chain, 4096, 1),
        shape("pieces", PoolKind::Chain, 8192, 4),
        shape("objects", PoolKind::Object, 1 << 20, 1),
    ]
}

/// Opens a device as a start does; what stands in its superblock from then on.
pub(crate) fn open(sheet: &mut Sheet) -> Option<Superblock> {
    let mut reader = Reader::new(sheet).expect("memory");
    let found = loop {
        if let Poll::Ready(found) = reader.poll(sheet) {
            break found.expect("read");
        }
    };
    let plan = plan_open(&[found], &wanted()).ok()?;
    let mut writer = superblocks::Writer::new(plan.superblocks[0].clone()).expect("memory");
    loop {
        if let Poll::Ready(written) = writer.poll(sheet) {
            return Some(written.expect("written"));
        }
    }
}

pub(crate) fn wanted() -> Wanted {
    Wanted {
        identity: Identity { host: [1; 16], instance: [2; 16] },
        adopt: false,
        log: None,
        log_fresh: LogId([3; 16]),
        segment_bytes: 64 << 20,
        groups: vec!["default".into(), "chat".into()],
        wall_s: 77,
    }
}
