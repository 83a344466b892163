//! Two tiers the simple way: whatever comes into memory is written to SSD at once. Both tiers are lists by recency; a
//! block that is on SSD is not written again. What an admission by demotion saves is measured against this.

use lapis_trace::Request;

use super::{
    super::{cache::Cache, outcome::SsdCounts},
    lists::Lists,
};

pub struct WriteThrough {
    dram: Lists<1>,
    ssd: Lists<1>,
    dram_blocks: u64,
    ssd_blocks: u64,
    block_bytes: u64,
    /// By block: whether it was written before.
    written: Vec<bool>,
    evictions: u64,
    counts: SsdCounts,
}

impl WriteThrough {
    /// `blocks` is what the workload has, the others what each tier holds.
    pub fn new(blocks: u64, dram_blocks: u64, ssd_blocks: u64, block_bytes: u64) -> Self {
        let (dram, ssd, written) = (Lists::new(blocks), Lists::new(blocks), vec![false; blocks as usize]);
        let counts = SsdCounts::default();
        Self { dram, ssd, dram_blocks, ssd_blocks, block_bytes, written, evictions: 0, counts }
    }

    fn write(&mut self, id: u64) {
        let before = std::mem::replace(&mut self.written[id as usize], true);
        let sum = if before { &mut self.counts.readmitted_bytes } else { &mut self.counts.admitted_bytes };
        *sum += self.block_bytes;
        self.counts.device_bytes += self.block_bytes;
    }
}

impl Cache for WriteThrough {
    fn serve(&mut self, request: &Request) -> u64 {
        let hits = request.ids.iter().take_while(|id| self.holds(**id)).count();
        let missing = request.ids[..hits].iter().filter(|id| self.dram.find(**id).is_none()).count();
        self.counts.hit_blocks += missing as u64;
        for id in request.ids.iter().rev() {
            // A hit in memory is none of the SSD's business: there a block is as recent as its last read or write.
            if self.dram.find(*id).is_none() {
                if self.ssd.find(*id).is_none() {
                    self.write(*id);
                }
                self.ssd.put_first(0, *id);
            }
            self.dram.put_first(0, *id);
        }
        while self.dram.len(0) > self.dram_blocks {
            self.dram.pop_last(0);
            self.evictions += 1;
        }
        while self.ssd.len(0) > self.ssd_blocks {
            self.ssd.pop_last(0);
        }
        hits as u64
    }

    fn holds(&self, id: u64) -> bool {
        self.dram.find(id).is_some() || self.ssd.find(id).is_some()
    }

    fn evictions(&self) -> u64 {
        self.evictions
    }

    fn ssd(&self) -> Option<SsdCounts> {
        Some(self.counts)
    }
}
