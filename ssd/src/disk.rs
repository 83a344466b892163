//! The bytes of a device in memory, for tests and simulation: they outlive whoever has the device open, and a power cut
//! costs them what was not flushed.
//!
//! Invariant: what was flushed, and not written since, survives every power cut.
//! The same calls with the same seeds give the same bytes.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fastrand::Rng;

use crate::{
    device::Memory,
    format::{PAGE_BYTES, Page},
};

/// What a device writes whole even if the power fails.
pub const SECTOR_BYTES: usize = 512;
const SECTORS: usize = PAGE_BYTES / SECTOR_BYTES;
const PAGE: u64 = PAGE_BYTES as u64;

/// Unflushed contents of a page that are remembered: one that is written over and over without a flush may only fall
/// back to some of them.
const VERSIONS_MAX: usize = 4;

/// A disk. Clones are the same disk.
#[derive(Clone)]
pub struct Disk {
    bytes: u64,
    content: Arc<Mutex<Content>>,
}

/// A page that was never written is `None` and reads as zeros.
type Stored = Option<Box<Page>>;

#[derive(Clone, Default)]
struct Content {
    pages: HashMap<u64, Box<Page>>,
    /// What pages held before the writes that no flush has covered, oldest first.
    unflushed: BTreeMap<u64, Vec<Replaced>>,
    /// What pages held before their last write.
    before: HashMap<u64, Stored>,
    /// Writes that have landed.
    landed: u64,
}

#[derive(Clone)]
struct Replaced {
    /// The number of the write that replaced it.
    by: u64,
    held: Stored,
}

impl Disk {
    /// A disk full of zeros; its pages take memory once they are written.
    pub fn new(bytes: u64) -> Self {
        assert!(bytes.is_multiple_of(PAGE), "whole pages");
        Self { bytes, content: Arc::default() }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Another disk with the same content: what a crash at this point would leave.
    pub fn fork(&self) -> Self {
        Self { bytes: self.bytes, content: Arc::new(Mutex::new(self.content().clone())) }
    }

    /// Any bytes, from any offset on.
    pub fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        self.check(offset, bytes);
        let content = self.content();
        gather(offset, bytes, |page| content.pages.get(&page).map(|held| &**held))
    }

    /// What `read` would have given before the last write of each page.
    pub(crate) fn read_stale(&self, offset: u64, bytes: usize) -> Vec<u8> {
        self.check(offset, bytes);
        let content = self.content();
        gather(offset, bytes, |page| match content.before.get(&page) {
            Some(before) => before.as_deref(),
            None => content.pages.get(&page).map(|held| &**held),
        })
    }

    /// Writes bytes anywhere: a torn write, a flipped bit.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        self.check(offset, bytes.len());
        let mut content = self.content();
        content.landed += 1;
        for (page, within, from) in pages(offset, bytes.len()) {
            let mut new = content.pages.get(&page).cloned().unwrap_or_else(|| Box::new([0; PAGE_BYTES]));
            new[within].copy_from_slice(&bytes[from]);
            content.replace(page, Some(new));
        }
    }

    /// Forgets whole pages: they read as zeros.
    pub fn discard(&self, offset: u64, bytes: usize) {
        self.check(offset, bytes);
        let mut content = self.content();
        content.landed += 1;
        for (page, ..) in pages(offset, bytes) {
            content.replace(page, None);
        }
    }

    /// Writes that have landed: what a flush that is submitted now covers.
    pub fn landed(&self) -> u64 {
        self.content().landed
    }

    /// A flush is complete that covers the first `landed` writes.
    pub fn flushed(&self, landed: u64) {
        let mut content = self.content();
        content.unflushed.retain(|_, replaced| {
            replaced.retain(|replaced| replaced.by > landed);
            !replaced.is_empty()
        });
    }

    /// The power fails: each page keeps its last unflushed write, falls back behind some of them, or becomes a mix of
    /// both by sectors. Gives the number of pages that changed.
    pub fn power_cut(&self, seed: u64) -> usize {
        let mut rng = Rng::with_seed(seed);
        let mut content = self.content();
        let mut changed = 0;
        for (page, replaced) in std::mem::take(&mut content.unflushed) {
            let now = content.pages.get(&page).cloned();
            let mut candidates: Vec<Stored> = replaced.into_iter().map(|replaced| replaced.held).collect();
            candidates.push(now.clone());
            let kept = match rng.u8(0..3) {
                0 => continue,
                1 => candidates.swap_remove(rng.usize(..candidates.len())),
                _ => Some(mixed(&mut rng, &candidates)),
            };
            let zeros = Box::new([0; PAGE_BYTES]);
            changed += usize::from(kept.as_ref().unwrap_or(&zeros) != now.as_ref().unwrap_or(&zeros));
            content.put(page, kept);
        }
        content.before.clear();
        changed
    }

    fn check(&self, offset: u64, bytes: usize) {
        let fits = offset.checked_add(bytes as u64).is_some_and(|end| end <= self.bytes);
        assert!(fits, "{bytes} bytes at {offset} of {}", self.bytes);
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    fn put(&mut self, page: u64, held: Stored) -> Stored {
        match held {
            Some(held) => self.pages.insert(page, held),
            None => self.pages.remove(&page),
        }
    }

    fn replace(&mut self, page: u64, new: Stored) {
        let held = self.put(page, new);
        self.before.insert(page, held.clone());
        let by = self.landed;
        let replaced = self.unflushed.entry(page).or_default();
        replaced.push(Replaced { by, held });
        if replaced.len() > VERSIONS_MAX {
            // Not the oldest: that one is what was flushed.
            replaced.remove(1);
        }
    }
}

/// A page of which every sector is one of the candidates'.
fn mixed(rng: &mut Rng, candidates: &[Stored]) -> Box<Page> {
    let mut page = Box::new([0; PAGE_BYTES]);
    for sector in page_sectors() {
        if let Some(from) = &candidates[rng.usize(..candidates.len())] {
            page[sector.clone()].copy_from_slice(&from[sector]);
        }
    }
    page
}

fn page_sectors() -> impl Iterator<Item = Range<usize>> {
    (0..SECTORS).map(|sector| sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES)
}

/// The pages of a range: number, the bytes of the page, and which bytes of the range these are.
fn pages(offset: u64, bytes: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let end = offset + bytes as u64;
    (offset / PAGE..end.div_ceil(PAGE)).map(move |page| {
        let start = offset.max(page * PAGE);
        let stop = end.min((page + 1) * PAGE);
        let within = (start - page * PAGE) as usize..(stop - page * PAGE) as usize;
        (page, within, (start - offset) as usize..(stop - offset) as usize)
    })
}

fn gather<'a>(offset: u64, bytes: usize, page: impl Fn(u64) -> Option<&'a Page>) -> Vec<u8> {
    let mut out = vec![0; bytes];
    for (number, within, to) in pages(offset, bytes) {
        if let Some(held) = page(number) {
            out[to].copy_from_slice(&held[within]);
        }
    }
    out
}

/// What both devices in memory do for an operation.
impl Memory {
    /// The bytes `range` of the operation, as they stand now.
    pub(crate) fn bytes_now(&self, range: Range<usize>) -> Vec<u8> {
        self.mapping.to_vec(self.range.start + range.start, range.len())
    }

    pub(crate) fn fill(&self, from: usize, bytes: &[u8]) {
        self.mapping.copy_in(self.range.start + from, bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: usize = 4;

    #[test]
    fn a_fork_goes_its_own_way() {
        let disk = Disk::new(8192);
        disk.write(5, b"first");
        let fork = disk.fork();
        disk.write(5, b"later");
        assert_eq!((fork.read(5, 5), disk.read(5, 5)), (b"first".to_vec(), b"later".to_vec()));
        disk.discard(0, 4096);
        assert_eq!((disk.read(5, 5), disk.read_stale(5, 5)), (vec![0; 5], b"later".to_vec()));
    }

    proptest! {
        /// Against a list of all contents that each sector has had since the last flush.
        #[test]
        fn a_power_cut_leaves_what_was_flushed_or_written_since(
            writes in proptest::collection::vec((0..PAGES * PAGE_BYTES, 1..6000usize, 1..=255u8, 0..4u8), 1..40),
            seed: u64,
        ) {
            let disk = Disk::new((PAGES * PAGE_BYTES) as u64);
            let read = || disk.read(0, PAGES * PAGE_BYTES);
            let mut since = vec![read()];
            for (offset, bytes, fill, flush) in writes {
                let bytes = bytes.min(PAGES * PAGE_BYTES - offset);
                disk.write(offset as u64, &vec![fill; bytes]);
                since.push(read());
                if flush == 0 {
                    disk.flushed(disk.landed());
                    since.drain(..since.len() - 1);
                }
            }
            disk.power_cut(seed);
            let left = read();
            for at in (0..left.len()).step_by(SECTOR_BYTES) {
                let sector = at..at + SECTOR_BYTES;
                prop_assert!(since.iter().any(|content| content[sector.clone()] == left[sector.clone()]), "{at}");
            }
            prop_assert_eq!(disk.power_cut(seed), 0, "what a power cut left is left by the next");
        }
    }

    #[test]
    fn power_cuts_tear_and_lose_what_was_not_flushed() {
        let (mut lost, mut torn) = (0, 0);
        for seed in 0..100 {
            let disk = Disk::new(PAGE);
            disk.write(0, &[1; PAGE_BYTES]);
            let covered = disk.landed();
            disk.write(0, &[2; PAGE_BYTES]);
            disk.flushed(covered);
            disk.power_cut(seed);
            let left = disk.read(0, PAGE_BYTES);
            assert!(left.iter().all(|byte| [1, 2].contains(byte)), "the first write was flushed");
            lost += usize::from(left.iter().all(|byte| *byte == 1));
            torn += usize::from(left.contains(&1) && left.contains(&2));
        }
        assert!(lost > 5 && torn > 5, "{lost} lost, {torn} torn");
    }
}
