//! What a device that was away is to hold when it is back, or when another one is in its place. Pure.

use super::open::{Found, Hex, SsdOpenError};
use crate::format::Superblock;

/// The superblock for what was found in the place of a device of a running log; `before` is what was written to that one. It has
/// as many segments as before, and none of the blocks that it may hold counts: what was removed meanwhile would come back with
/// them. `sequence`: one above all that are in use, `reserved`: below which all devices know sequences to be reserved.
///
/// Refused is what is not blank and not this device of this log, and what is smaller than it was.
pub fn plan_return(
    found: &Found,
    before: &Superblock,
    sequence: u64,
    reserved: u64,
) -> Result<Superblock, SsdOpenError> {
    let device = usize::from(before.device);
    let (device_bytes, write) = match found {
        Found::Blank { device_bytes } => (*device_bytes, before.write),
        Found::Formatted { device_bytes, superblock } => {
            check(device, superblock, before)?;
            (*device_bytes, superblock.write.max(before.write))
        }
        Found::Other => return Err(SsdOpenError::NotBlank { device }),
        Found::Broken { source } => return Err(SsdOpenError::Broken { device, source: source.clone() }),
    };
    let least = before.segments_start + u64::from(before.segments) * before.segment_bytes;
    if device_bytes < least {
        return Err(SsdOpenError::TooSmall { device, bytes: device_bytes, least });
    }
    Ok(Superblock { write: write + 1, sequence_formatted: sequence, sequence_reserved: reserved, ..before.clone() })
}

fn check(device: usize, found: &Superblock, before: &Superblock) -> Result<(), SsdOpenError> {
    if found.host != before.host {
        return Err(SsdOpenError::OtherHost { device, expected: Hex(before.host), found: Hex(found.host) });
    }
    if found.instance != before.instance {
        return Err(SsdOpenError::OtherInstance { device, expected: Hex(before.instance), found: Hex(found.instance) });
    }
    if found.log != before.log {
        return Err(SsdOpenError::OtherLog { device, expected: Hex(before.log.0), found: Hex(found.log.0) });
    }
    if found.device != before.device {
        let (expected, found) = (before.device.into(), found.device.into());
        return Err(SsdOpenError::OtherGeometry { device, field: "its number", expected, found });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        format::{FormatError, LogId, PageKind},
        testing::wanted,
        volume::open::plan_open,
    };

    const BYTES: u64 = 194 << 20;

    fn before() -> Superblock {
        let found = [BYTES, BYTES].map(|device_bytes| Found::Blank { device_bytes });
        plan_open(&found, &wanted()).expect("blank").superblocks.remove(1)
    }

    fn back(found: &Found) -> Result<Superblock, SsdOpenError> {
        plan_return(found, &before(), 700, 1 << 33)
    }

    fn formatted(change: impl FnOnce(&mut Superblock)) -> Found {
        let mut superblock = Superblock { write: 9, ..before() };
        change(&mut superblock);
        Found::Formatted { device_bytes: BYTES, superblock }
    }

    #[test]
    fn the_same_device_and_a_blank_one_begin_empty_in_the_same_log() {
        let before = before();
        for (found, write) in [(formatted(|_| {}), 10), (Found::Blank { device_bytes: 2 * BYTES }, before.write + 1)] {
            let planned = back(&found).expect("it is taken");
            let sequences = (planned.sequence_formatted, planned.sequence_reserved);
            assert_eq!((planned.write, sequences), (write, (700, 1 << 33)));
            let same = Superblock { sequence_formatted: before.sequence_formatted, ..planned };
            assert_eq!(Superblock { write: before.write, sequence_reserved: before.sequence_reserved, ..same }, before);
        }
        // Written after what the daemon knows of: by the daemon itself, which reserves.
        assert_eq!(back(&formatted(|found| found.write = 1)).expect("it is taken").write, before.write.max(1) + 1);
    }

    #[test]
    fn what_is_not_ours_stays_as_it_is() {
        let kind = PageKind::Superblock;
        let broken = Found::Broken { source: FormatError::Corrupt { kind, expected: 1, found: 2 } };
        assert!(matches!(back(&broken), Err(SsdOpenError::Broken { device: 1, .. })));
        assert!(matches!(back(&Found::Other), Err(SsdOpenError::NotBlank { device: 1 })));
        let refused = |change: fn(&mut Superblock)| back(&formatted(change)).expect_err("not ours");
        assert!(matches!(refused(|found| found.log = LogId([9; 16])), SsdOpenError::OtherLog { .. }));
        assert!(matches!(refused(|found| found.host = [9; 16]), SsdOpenError::OtherHost { .. }));
        assert!(matches!(refused(|found| found.instance = [9; 16]), SsdOpenError::OtherInstance { .. }));
        assert!(matches!(refused(|found| found.device = 0), SsdOpenError::OtherGeometry { .. }));
        let least = before().segments_start + u64::from(before().segments) * before().segment_bytes;
        assert!(back(&Found::Blank { device_bytes: least }).is_ok());
        assert!(matches!(back(&Found::Blank { device_bytes: least - 1 }), Err(SsdOpenError::TooSmall { .. })));
    }
}
