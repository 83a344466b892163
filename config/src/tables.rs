//! Bytes of the shared tables that a configuration makes: fixed at start, so said before. Pure.

use crate::options::{Group, Options};
use crate::words::UNIT_BYTES;

/// Bytes of a line of the block table, of an entry beside it, of a slot's state, of a table's header page.
const LINE_BYTES: u64 = 64;
const ENTRY_BYTES: u64 = 32;
const SLOT_STATE_BYTES: u64 = 8;
const HEADER_BYTES: u64 = 4096;

/// Bytes of one group's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    pub lines: u64,
    pub table_bytes: u64,
    pub entries_bytes: u64,
    /// Address space; only the states of slots that exist are ever touched: 8 B for each.
    pub slots_bytes: u64,
    /// With every client connected.
    pub controls_bytes: u64,
}

impl Tables {
    /// Of `group`; `control_bytes` is the memory of one client's rings and hazard page.
    pub fn of(options: &Options, group: &Group, control_bytes: u64) -> Self {
        let lines = lines(group.entries_max(options));
        Self {
            lines,
            table_bytes: HEADER_BYTES + lines * LINE_BYTES,
            entries_bytes: lines * ENTRY_BYTES,
            slots_bytes: group.dram_ceiling.div_ceil(UNIT_BYTES) * SLOT_STATE_BYTES,
            controls_bytes: options.server_clients_max * control_bytes,
        }
    }

    /// What is sure to be used once the table is full.
    pub fn resident_bytes(&self) -> u64 {
        self.table_bytes + self.entries_bytes
    }
}

/// Lines of a table for so many entries: it is full at a load of 0.8, where two windows of 47 lines still have room.
pub fn lines(entries_max: u64) -> u64 {
    (entries_max * 5).div_ceil(4)
}
