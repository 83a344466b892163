//! What a core is told at its start, and pools as it sees them.

use std::time::Duration;

use lapis_config::{Fingerprint, PoolKind, UNIT_BYTES, sizes};

/// A pool as the core sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolDef {
    pub namespace: Fingerprint,
    pub kind: PoolKind,
    /// Most payload bytes of a block.
    pub block_bytes: u64,
    /// 4 KiB units of the slot of the largest block; of every block in a chain pool.
    pub slot_units: u32,
    pub pieces: u16,
}

impl PoolDef {
    /// Bytes that a block of so many payload bytes takes of its slot: what lies behind the payload is among them.
    pub fn stored_bytes(&self, bytes: u32) -> u32 {
        let slot_bytes = u64::from(self.slot_units) * UNIT_BYTES;
        sizes::slot_bytes_of(self.kind, self.pieces, u64::from(bytes)).min(slot_bytes) as u32
    }

    /// 4 KiB units of the slot of a block of so many payload bytes.
    pub fn units_of(&self, bytes: u32) -> u32 {
        match self.kind {
            PoolKind::Chain => self.slot_units,
            PoolKind::Object => {
                let units = sizes::slot_bytes_of(self.kind, self.pieces, u64::from(bytes)) / UNIT_BYTES;
                self.slot_units.min(u32::try_from(units).unwrap_or(u32::MAX))
            }
        }
    }
}

#[derive(Clone, Debug)]
pub struct CoreOptions {
    /// Bytes of slots that one client may hold ahead of its puts; at most a sixteenth of the memory, at least one slot.
    /// All clients together: at most a quarter of the memory, and a slot for each that has none.
    pub magazine_bytes_max: u64,
    /// After this long without a put a client is asked for its magazine when slots are short; again after as long.
    pub idle_recall: Duration,
    /// No slab has fewer units.
    pub slab_units_min: u32,
    /// Most puts, and most gets, that may wait at once; of one client at most `CLIENT_WAITS_MAX`.
    pub waits_max: usize,
    /// One client's reserves hold at most one part in so many of the memory, and at least one slot.
    pub reserved_part: u32,
    /// Most blocks being verified at once: the next ones begin when all have ended.
    pub verifies_max: usize,
    /// Bytes of the blocks that go next which are on SSD before their room is asked for.
    pub write_back_ahead_bytes: u64,
    /// Bytes of blocks that may be written to SSD in a day; `None`: as many as there are.
    pub ssd_write_bytes_a_day: Option<u64>,
    /// Bytes being copied to GPUs at once, at most; one block in any case.
    pub hbm_promote_bytes_max: u64,
}

impl Default for CoreOptions {
    fn default() -> Self {
        Self {
            magazine_bytes_max: 64 << 20,
            idle_recall: Duration::from_secs(10),
            slab_units_min: 16,
            waits_max: 4096,
            reserved_part: 2,
            verifies_max: 16,
            write_back_ahead_bytes: 0,
            ssd_write_bytes_a_day: None,
            hbm_promote_bytes_max: 64 << 20,
        }
    }
}

/// Of one pool, now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    pub blocks: u64,
    pub slabs: u64,
    pub bytes_used: u64,
}
