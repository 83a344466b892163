//! How the groups share DRAM: each has a floor that is its own, a ceiling that it never passes, and takes what lies
//! between, extent by extent, while there is any. Pure.
//!
//! Invariant: what is given in all never passes the total.
//! Invariant: what is left always covers the floors that are not reached yet.
//!
//! An extent stays with its group until a cold start: its memory is registered with devices and mapped by clients.

/// Extents come in these: a huge page.
const STEP_BYTES: u64 = 2 << 20;

#[derive(Clone, Copy, Debug)]
struct Share {
    floor_bytes: u64,
    ceiling_bytes: u64,
    taken_bytes: u64,
}

#[derive(Clone, Debug)]
pub struct Shares {
    total_bytes: u64,
    extent_bytes_max: u64,
    groups: Vec<Share>,
}

impl Shares {
    /// `limits`: floor and ceiling of each group, bytes; a ceiling below its floor counts as the floor. Floors that
    /// come to more than the total are cut, the last group's first.
    pub fn new(total_bytes: u64, extent_bytes_max: u64, limits: &[(u64, u64)]) -> Self {
        let mut left = total_bytes;
        let groups = limits.iter().map(|&(floor, ceiling)| {
            let floor_bytes = floor.min(left);
            left -= floor_bytes;
            Share { floor_bytes, ceiling_bytes: ceiling.max(floor_bytes), taken_bytes: 0 }
        });
        let groups = groups.collect();
        Self { total_bytes, extent_bytes_max: extent_bytes_max.max(STEP_BYTES), groups }
    }

    /// The group has an extent of so many bytes: one that it was offered, or found at a warm start.
    pub fn taken(&mut self, group: usize, bytes: u64) {
        self.groups[group].taken_bytes += bytes;
    }

    /// The next extent that the group gets at the daemon's start, bytes: until it has its
    /// floor. A group alone gets all that it may have.
    pub fn at_start(&self, group: usize) -> Option<u64> {
        let share = &self.groups[group];
        let first = if self.groups.len() == 1 { share.ceiling_bytes } else { share.floor_bytes };
        let missing = first.saturating_sub(share.taken_bytes);
        self.extent(group, missing)
    }

    /// One more extent for a group that is short, bytes; `None` if it is at its ceiling or only others' floors are left.
    pub fn on_demand(&self, group: usize) -> Option<u64> {
        self.extent(group, self.extent_bytes_max)
    }

    /// An extent of up to `wanted` bytes, as large as the limits allow.
    fn extent(&self, group: usize, wanted: u64) -> Option<u64> {
        let share = &self.groups[group];
        let given: u64 = self.groups.iter().map(|share| share.taken_bytes).sum();
        let owed: u64 = self
            .groups
            .iter()
            .enumerate()
            .filter(|&(other, _)| other != group)
            .map(|(_, share)| share.floor_bytes.saturating_sub(share.taken_bytes))
            .sum();
        let left = self.total_bytes.saturating_sub(given).saturating_sub(owed);
        let room = share.ceiling_bytes.saturating_sub(share.taken_bytes);
        let bytes = wanted.min(self.extent_bytes_max).min(left).min(room) / STEP_BYTES * STEP_BYTES;
        (bytes > 0).then_some(bytes)
    }
}
