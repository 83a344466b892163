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

/// Why a device does not reach memory that was registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreached {
    #[error("SPDK has no address of it for devices (the limit of locked memory, or no huge pages and no IOMMU)")]
    Unknown,
    #[error("there is no IOMMU, and it is not made of reserved huge pages: it does not stay where it lies")]
    Moves,
}

/// Whether a device reaches all of a range, and does so as long as it is registered. `translate`: of an address and a number of
/// bytes, the address that a device has for it, and how many of these bytes lie in one piece from there on.
///
/// Addresses that are the memory's own are an IOMMU's, which pins what it maps. Others are physical: SPDK looks them up once, and
/// only reserved huge pages stay there.
pub(crate) fn reach(
    (address, bytes): (usize, usize),
    is_reserved: bool,
    translate: impl Fn(usize, usize) -> Option<(u64, usize)>,
) -> Result<(), Unreached> {
    let (mut at, end) = (address, address + bytes);
    while at < end {
        let (to, run) = translate(at, end - at).filter(|(_, run)| *run > 0).ok_or(Unreached::Unknown)?;
        if to != at as u64 && !is_reserved {
            return Err(Unreached::Moves);
        }
        at = at.saturating_add(run);
    }
    Ok(())
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
    fn memory_is_reached_if_all_of_it_is_and_stays_so() {
        let all = (4 * STEP, 3 * STEP);
        let own = |at: usize, left: usize| Some((at as u64, left));
        let pages = |at: usize, _| Some((at as u64 ^ 1 << 40, STEP));
        assert_eq!(reach(all, false, own), Ok(()));
        assert_eq!(reach(all, true, pages), Ok(()));
        assert_eq!(reach(all, false, pages), Err(Unreached::Moves));
        let mixed = |at: usize, left| if at == 6 * STEP { pages(at, left) } else { Some((at as u64, STEP)) };
        assert_eq!(reach(all, false, mixed), Err(Unreached::Moves), "the last page");
        let part = |at: usize, _| (at != 6 * STEP).then_some((at as u64, STEP));
        assert_eq!(reach(all, true, part), Err(Unreached::Unknown), "the last page");
        assert_eq!(reach(all, true, |at, _| Some((at as u64, 0))), Err(Unreached::Unknown), "no progress");
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
