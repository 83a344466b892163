//! What this machine could do at best, for the figures to stand beside: libc's memmove between private blocks, loads of
//! random cache lines, the clock itself.

use std::{
    fs, io,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use memmap2::MmapMut;

/// Bytes of a line of the block table, and of a cache line.
const LINE_BYTES: usize = 64;

/// Private memory cut into equal blocks, every page touched. Starts on a page, as engines' buffers do.
#[derive(Debug)]
pub struct PrivateBlocks {
    memory: MmapMut,
    block_bytes: usize,
}

impl PrivateBlocks {
    /// At least `bytes` bytes, at least one block; each block gets other content.
    pub fn new(bytes: usize, block_bytes: usize) -> io::Result<Self> {
        let blocks = bytes.div_ceil(block_bytes).max(1);
        let mut memory = MmapMut::map_anon(blocks * block_bytes)?;
        for (i, block) in memory.chunks_exact_mut(block_bytes).enumerate() {
            block.fill(i as u8 | 1);
        }
        Ok(Self { memory, block_bytes })
    }

    /// The same memory in blocks of another size.
    pub fn cut(&mut self, block_bytes: usize) {
        assert!(
            self.memory.len().is_multiple_of(block_bytes),
            "{} bytes in blocks of {block_bytes}",
            self.memory.len()
        );
        self.block_bytes = block_bytes;
    }

    pub fn blocks(&self) -> usize {
        self.memory.len() / self.block_bytes
    }

    pub fn block(&self, index: usize) -> &[u8] {
        &self.memory[index * self.block_bytes..][..self.block_bytes]
    }

    /// `count` blocks that follow each other.
    pub fn run_mut(&mut self, first: usize, count: usize) -> &mut [u8] {
        &mut self.memory[first * self.block_bytes..][..count * self.block_bytes]
    }

    /// `count` blocks that follow each other.
    pub fn run(&self, first: usize, count: usize) -> &[u8] {
        &self.memory[first * self.block_bytes..][..count * self.block_bytes]
    }
}

/// libc's memmove, called, not inlined.
pub fn memmove(to: &mut [u8], from: &[u8]) {
    assert_eq!(to.len(), from.len(), "as much there as here");
    // SAFETY: both are valid for their equal lengths; `to` is borrowed exclusively.
    unsafe { libc::memmove(to.as_mut_ptr().cast(), from.as_ptr().cast(), from.len()) };
}

/// What two readings of the clock cost: the time between them when nothing lies between them, median.
pub fn clock_cost() -> Duration {
    let mut costs: Vec<Duration> = (0..1001).map(|_| Instant::now().elapsed()).collect();
    costs.sort_unstable();
    costs[costs.len() / 2]
}

/// The client's own mapping of the block table, found by its name in this process: the same pages under the same
/// addresses that its look-ups read.
#[derive(Debug)]
pub struct TableLines {
    base: usize,
    lines: usize,
}

impl TableLines {
    /// The largest read-only memfd of this process that `wanted` names. Valid while the client that mapped it is
    /// connected.
    ///
    /// # Safety
    /// No method may be called after that client has been dropped.
    pub unsafe fn of_this_process(wanted: impl Fn(&str) -> bool) -> io::Result<Self> {
        let maps = fs::read_to_string("/proc/self/maps")?;
        let found = maps.lines().filter_map(|line| region(line, &wanted)).max_by_key(|(_, bytes)| *bytes);
        let (base, bytes) = found.ok_or_else(|| io::Error::other("no table is mapped in this process"))?;
        Ok(Self { base, lines: bytes / LINE_BYTES })
    }

    pub fn lines(&self) -> usize {
        self.lines
    }

    /// Reads the first word of each line whose number is given; the loads do not wait for each other.
    pub fn read(&self, lines: &[u32]) -> u64 {
        let mut all = 0;
        for line in lines {
            let line = *line as usize;
            assert!(line < self.lines, "line {line} of {}", self.lines);
            // SAFETY: an aligned word within the mapping, which lives (see `of_this_process`); the daemon writes it by
            // atomic stores.
            let word = unsafe { &*((self.base + line * LINE_BYTES) as *const AtomicU64) };
            all ^= word.load(Ordering::Relaxed);
        }
        all
    }
}

/// Start and length of the region that a line of /proc/self/maps describes, if it is a wanted read-only memfd.
fn region(line: &str, wanted: &impl Fn(&str) -> bool) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, access, name) = (fields.next()?, fields.next()?, fields.nth(3)?);
    let name = name.strip_prefix("/memfd:")?;
    let (start, end) = range.split_once('-')?;
    let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16));
    let (start, end) = (start.ok()?, end.ok()?);
    (access == "r--s" && wanted(name)).then_some((start, end - start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_their_size_and_lie_one_after_the_other() {
        let mut blocks = PrivateBlocks::new(10_000, 4096).expect("memory");
        assert_eq!((blocks.blocks(), blocks.block(2).len()), (3, 4096));
        assert!(blocks.block(0).as_ptr().addr().is_multiple_of(4096));
        let from = vec![7; 4096];
        memmove(blocks.run_mut(1, 1), &from);
        assert_eq!((blocks.block(1), blocks.run(1, 2).len()), (&from[..], 8192));
        blocks.cut(2048);
        assert_eq!((blocks.blocks(), blocks.block(2)), (6, &from[..2048]));
    }

    #[test]
    fn only_a_wanted_read_only_memfd_is_the_table() {
        let line = "7f00-8f00 r--s 00000000 00:01 2049  /memfd:g0.table (deleted)";
        assert_eq!(region(line, &|name| name.contains("table")), Some((0x7f00, 0x1000)));
        assert_eq!(region(line, &|name| name.contains("arena")), None);
        assert_eq!(region(&line.replace("r--s", "rw-s"), &|_| true), None);
        assert_eq!(region("7f00-8f00 r-xp 00000000 fe:00 12 /usr/lib/libc.so.6", &|_| true), None);
        assert_eq!(region("7f00-8f00 rw-p 00000000 00:00 0", &|_| true), None);
    }
}
