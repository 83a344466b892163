//! Operations cut into commands: none longer than the controller takes, none over the edge of registered memory. Pure.
//!
//! Invariant: ranges are made of huge pages and do not overlap.

/// Bytes in whose multiples memory is registered, and at whose multiples: a huge page. Older SPDK takes nothing else.
pub(crate) const REGISTER_STEP: usize = 2 << 20;

/// What of memory at `address` can be registered: the huge pages that lie within. `None`: not one.
pub(crate) fn inner(address: usize, bytes: usize) -> Option<(usize, usize)> {
    let start = address.checked_next_multiple_of(REGISTER_STEP)?;
    let end = address.checked_add(bytes)? / REGISTER_STEP * REGISTER_STEP;
    (start < end).then(|| (start, end - start))
}

/// Memory that a controller reaches, by address.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    ranges: Vec<(usize, usize)>,
}

impl Regions {
    pub(crate) fn add(&mut self, address: usize, bytes: usize) {
        let place = self.ranges.partition_point(|range| range.0 < address);
        self.ranges.insert(place, (address, bytes));
    }

    /// Whether what can be registered of a range is there already.
    pub(crate) fn has(&self, address: usize, bytes: usize) -> bool {
        inner(address, bytes).is_none_or(|(start, bytes)| self.run(start, bytes) == (true, bytes))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.ranges.iter().map(|range| range.1).sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, usize)> {
        self.ranges.iter().copied()
    }

    /// Whether the byte at `address` is reached, and how many from there on are like it; of `bytes` at most.
    fn run(&self, address: usize, bytes: usize) -> (bool, usize) {
        let after = self.ranges.partition_point(|range| range.0 <= address);
        let within = after.checked_sub(1).map(|before| self.ranges[before]).filter(|r| address < r.0 + r.1);
        let (is_known, end) = match within {
            Some((start, bytes)) => (true, start + bytes),
            None => (false, self.ranges.get(after).map_or(usize::MAX, |range| range.0)),
        };
        (is_known, bytes.min(end - address))
    }

    /// The next command for `bytes` bytes at `address`.
    pub(crate) fn next(&self, address: usize, bytes: usize, limits: Limits) -> Next {
        let (is_known, run) = self.run(address, bytes);
        let most = if is_known { limits.transfer_max } else { limits.transfer_max.min(limits.bounce_bytes) };
        Next { bytes: run.min(most), bounced: !is_known }
    }
}

/// Bytes at once: of the controller, and of memory that stands in for what is not registered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub transfer_max: usize,
    pub bounce_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Next {
    pub bytes: usize,
    /// Over other memory, with a copy.
    pub bounced: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: usize = REGISTER_STEP;

    #[test]
    fn only_whole_huge_pages_are_registered() {
        assert_eq!(inner(STEP, 2 * STEP), Some((STEP, 2 * STEP)));
        assert_eq!(inner(STEP + 4096, 2 * STEP), Some((2 * STEP, STEP)));
        assert_eq!(inner(STEP + 4096, STEP), None);
        assert_eq!(inner(STEP, STEP - 4096), None);
        assert_eq!(inner(usize::MAX - 4095, 4096), None);
    }

    #[test]
    fn commands_end_where_memory_changes_and_are_no_longer_than_allowed() {
        let mut regions = Regions::default();
        regions.add(4 * STEP, STEP);
        regions.add(2 * STEP, STEP);
        let limits = Limits { transfer_max: 128 << 10, bounce_bytes: 64 << 10 };
        let (mut at, end, mut commands) = (2 * STEP - 8192, 5 * STEP + 4096, Vec::new());
        while at < end {
            let next = regions.next(at, end - at, limits);
            assert!(next.bytes > 0 && next.bytes.is_multiple_of(4096));
            commands.push((at, next));
            at += next.bytes;
        }
        assert_eq!(at, end);
        assert_eq!(commands[0].1, Next { bytes: 8192, bounced: true });
        assert_eq!(commands[1], (2 * STEP, Next { bytes: 128 << 10, bounced: false }));
        for (at, next) in &commands {
            let known =
                |address: usize| (2 * STEP..3 * STEP).contains(&address) || (4 * STEP..5 * STEP).contains(&address);
            assert_eq!((known(*at), known(at + next.bytes - 1)), (!next.bounced, !next.bounced), "{at:x} {next:?}");
            assert!(next.bytes <= if next.bounced { limits.bounce_bytes } else { limits.transfer_max });
        }
        assert_eq!(regions.bytes(), 2 * STEP);
    }
}
