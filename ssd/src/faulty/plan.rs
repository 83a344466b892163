//! What goes wrong, how often. Pure.

use std::{ops::Range, time::Duration};

/// What a device can do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// An error; some sectors of a write may have landed, some of a read may have come.
    Eio,
    /// A part is done first; then the rest, or an error.
    Short,
    /// Only some sectors of a write land; reported done.
    Torn,
    /// One bit is another one: on the disk after a write, in memory after a read. Reported done.
    BitFlip,
    /// A write lands at another page, a read comes from there. Reported done.
    Misdirected,
    /// Nothing of a write lands; reported done.
    Lost,
    /// A read gives what was there before the last write.
    Stale,
    /// No space (ENOSPC) for a write.
    Full,
    /// Ends late.
    Delay,
    /// Never ends, until it is told to.
    Hang,
    /// Later ones overtake it, it overtakes earlier ones.
    Reorder,
    /// The device was gone. Not by rate: see `Faulty::vanish`.
    Gone,
}

impl Fault {
    pub const ALL: [Self; 12] = [
        Self::Eio,
        Self::Short,
        Self::Torn,
        Self::BitFlip,
        Self::Misdirected,
        Self::Lost,
        Self::Stale,
        Self::Full,
        Self::Delay,
        Self::Hang,
        Self::Reorder,
        Self::Gone,
    ];
}

/// How often each fault happens, per 10,000 operations that it can happen to, and how long things take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    pub eio: u32,
    pub short: u32,
    pub torn: u32,
    pub bit_flip: u32,
    pub misdirected: u32,
    pub lost: u32,
    pub stale: u32,
    pub full: u32,
    pub delay: u32,
    pub hang: u32,
    pub reorder: u32,
    /// Time of an operation, drawn for each; they end in the order in which they began, but for the faults.
    pub latency_us: Range<u64>,
    /// What a delay adds, at most.
    pub delay_max: Duration,
}

/// Of how many operations.
pub const PER: u32 = 10_000;

impl Faults {
    /// A right device.
    pub const NONE: Self = Self {
        eio: 0,
        short: 0,
        torn: 0,
        bit_flip: 0,
        misdirected: 0,
        lost: 0,
        stale: 0,
        full: 0,
        delay: 0,
        hang: 0,
        reorder: 0,
        latency_us: 20..200,
        delay_max: Duration::from_secs(2),
    };

    /// All faults but hangs, which end only when they are told to, each `rate` times in 10,000.
    pub fn all(rate: u32) -> Self {
        let silent = Self { torn: rate, bit_flip: rate, misdirected: rate, lost: rate, stale: rate, ..Self::NONE };
        Self { eio: rate, short: rate, full: rate, delay: rate, reorder: rate, ..silent }
    }

    /// Only what a device says: errors and times, no wrong bytes.
    pub fn loud(rate: u32) -> Self {
        Self { eio: rate, short: rate, full: rate, delay: rate, reorder: rate, ..Self::NONE }
    }

    pub(super) fn rate(&self, fault: Fault) -> u32 {
        match fault {
            Fault::Eio => self.eio,
            Fault::Short => self.short,
            Fault::Torn => self.torn,
            Fault::BitFlip => self.bit_flip,
            Fault::Misdirected => self.misdirected,
            Fault::Lost => self.lost,
            Fault::Stale => self.stale,
            Fault::Full => self.full,
            Fault::Delay => self.delay,
            Fault::Hang => self.hang,
            Fault::Reorder => self.reorder,
            Fault::Gone => 0,
        }
    }
}

impl Default for Faults {
    fn default() -> Self {
        Self::NONE
    }
}

/// How often each fault has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    counts: [u64; Fault::ALL.len()],
}

impl Injected {
    pub fn of(&self, fault: Fault) -> u64 {
        self.counts[fault as usize]
    }

    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds what another device, or the same one before it was killed, has seen.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
    }

    pub(super) fn count(&mut self, fault: Fault) {
        self.counts[fault as usize] += 1;
    }
}
