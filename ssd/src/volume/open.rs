//! Whether the devices given are ours, and what their superblocks shall say from this start on. Pure: what was found on
//! all devices in, what to write to each out.
//!
//! The road: a [`super::superblocks::Reader`] per device, [`plan_open`] over what they found, a
//! [`super::superblocks::Writer`] per device with what was planned, and only when all are ready, a scan and a volume
//! each: nothing is written under a sequence that not every device knows to be reserved.

use std::fmt;

use crate::format::{FormatError, GROUPS_MAX, GroupRecord, LogId, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, Superblock};
use lapis_config::SegmentId;

/// Where segments start on a device that we format: superblocks, and room to align with what devices erase.
pub const SEGMENTS_START: u64 = 1 << 20;
/// Sequences that a start may use before it reserves more.
pub const SEQUENCES_RESERVED: u64 = 1 << 32;

/// Whose devices these are: /etc/machine-id, and an id of the daemon's installation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub host: [u8; 16],
    pub instance: [u8; 16],
}

/// What a device held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Zeros up to where segments would start. Also what a caller says whose owner wants the device formatted,
    /// whatever it holds.
    Blank { device_bytes: u64 },
    /// The superblock in force.
    Formatted { device_bytes: u64, superblock: Superblock },
    /// Bytes of something else: a file system, a partition table.
    Other,
    /// Superblocks of ours that are torn, or of another version.
    Broken { source: FormatError },
}

/// What the configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub identity: Identity,
    /// Takes devices of another host or installation over, instead of refusing them.
    pub adopt: bool,
    /// The log that is expected, if any is known; else the first formatted device's counts.
    pub log: Option<LogId>,
    /// Random: the log's id if all devices are blank and none is expected.
    pub log_fresh: LogId,
    pub segment_bytes: u64,
    /// Trust groups by name; at most 32 bytes each.
    pub groups: Vec<String>,
    /// Wall clock, for what is formatted.
    pub wall_s: u64,
}

/// What to write, and what this start goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub log: LogId,
    /// Per device, in order.
    pub superblocks: Vec<Superblock>,
    /// Devices that were blank: their segments need no scan.
    pub formatted: Vec<bool>,
    /// The numbers of the groups wanted, in the order wanted.
    pub groups: Vec<u16>,
    /// The first sequence that this start may use; but never one that recovery has seen, or one below.
    pub sequence_first: u64,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SsdOpenError {
    #[error(
        "device {device}: holds something else than a log of Lapis, and stays as it is; delete the file, or zero the first MiB of the device"
    )]
    NotBlank { device: usize },
    #[error("device {device}: superblock: {source}")]
    Broken { device: usize, source: FormatError },
    #[error(
        "device {device}: of host {found}, expected {expected}; to give up what it holds, delete the file or zero its first MiB"
    )]
    OtherHost { device: usize, expected: Hex, found: Hex },
    #[error("device {device}: of installation {found}, expected {expected} (ssd.instance)")]
    OtherInstance { device: usize, expected: Hex, found: Hex },
    #[error("device {device}: of log {found}, expected {expected}")]
    OtherLog { device: usize, expected: Hex, found: Hex },
    #[error("device {device}: {field} is {found}, expected {expected}")]
    OtherGeometry { device: usize, field: &'static str, expected: u64, found: u64 },
    #[error("device {device}: {bytes} bytes, at least {least}")]
    TooSmall { device: usize, bytes: u64, least: u64 },
    #[error("device {device}: group {number} is {found:?}, on another device {expected:?}")]
    OtherGroup { device: usize, number: usize, expected: String, found: String },
    #[error("{groups} groups in the log, counting those of earlier configurations; at most {most}")]
    TooManyGroups { groups: usize, most: usize },
    #[error("no sequences are left above {highest}")]
    NoSequences { highest: u64 },
}

/// An id as it is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hex(pub [u8; 16]);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Judges all devices of a log, in the order of their numbers.
///
/// # Panics
/// If there is no device or more than 256, or a segment size that the configuration does not allow.
pub fn plan_open(found: &[Found], wanted: &Wanted) -> Result<Plan, SsdOpenError> {
    assert!((1..=256).contains(&found.len()), "{} devices", found.len());
    assert!((SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&wanted.segment_bytes), "{}", wanted.segment_bytes);
    let mut ours: Vec<(usize, &Superblock)> = Vec::new();
    for (device, found) in found.iter().enumerate() {
        match found {
            Found::Blank { .. } => {}
            Found::Formatted { superblock, .. } => ours.push((device, superblock)),
            Found::Other => return Err(SsdOpenError::NotBlank { device }),
            Found::Broken { source } => return Err(SsdOpenError::Broken { device, source: source.clone() }),
        }
    }
    let log = wanted.log.or(ours.first().map(|(_, first)| first.log)).unwrap_or(wanted.log_fresh);
    for (device, superblock) in &ours {
        check(*device, superblock, found.len(), log, wanted)?;
    }
    let (groups, numbers) = merge_groups(&ours, &wanted.groups)?;
    // A start may have been cut off between two devices: the furthest counts. 0 is no sequence.
    let sequence_first = ours.iter().map(|(_, superblock)| superblock.sequence_reserved).max().unwrap_or(1).max(1);
    let reserved = sequence_first.checked_add(SEQUENCES_RESERVED);
    let sequence_reserved = reserved.ok_or(SsdOpenError::NoSequences { highest: sequence_first })?;
    let boots = ours.iter().map(|(_, superblock)| superblock.boots).max().unwrap_or(0).saturating_add(1);
    let Identity { host, instance } = wanted.identity;
    let started = |from: Superblock| Superblock {
        log,
        write: from.write + 1,
        host,
        instance,
        boots,
        sequence_reserved,
        groups: groups.clone(),
        ..from
    };
    let superblocks = found
        .iter()
        .enumerate()
        .map(|(device, one)| match one {
            Found::Formatted { superblock, device_bytes } => {
                // A device that grew has more segments at its end.
                let segments = superblock.segments.max(segments_of(*device_bytes, superblock.segment_bytes));
                Ok(started(Superblock { segments, ..superblock.clone() }))
            }
            Found::Blank { device_bytes } => {
                let fresh = fresh(device, *device_bytes, found.len(), wanted)?;
                Ok(started(Superblock { sequence_formatted: sequence_first, ..fresh }))
            }
            Found::Other | Found::Broken { .. } => unreachable!("refused above"),
        })
        .collect::<Result<_, _>>()?;
    let formatted = found.iter().map(|found| matches!(found, Found::Blank { .. })).collect();
    Ok(Plan { log, superblocks, formatted, groups: numbers, sequence_first })
}

/// Whether a formatted device is the one that is expected at this place.
fn check(
    device: usize,
    superblock: &Superblock,
    devices: usize,
    log: LogId,
    wanted: &Wanted,
) -> Result<(), SsdOpenError> {
    let Identity { host, instance } = wanted.identity;
    if superblock.host != host && !wanted.adopt {
        return Err(SsdOpenError::OtherHost { device, expected: Hex(host), found: Hex(superblock.host) });
    }
    if superblock.instance != instance && !wanted.adopt {
        return Err(SsdOpenError::OtherInstance { device, expected: Hex(instance), found: Hex(superblock.instance) });
    }
    if superblock.log != log {
        return Err(SsdOpenError::OtherLog { device, expected: Hex(log.0), found: Hex(superblock.log.0) });
    }
    let geometry = [
        ("its number", device as u64, superblock.device.into()),
        ("number of devices", devices as u64, superblock.devices.into()),
        ("segment_bytes", wanted.segment_bytes, superblock.segment_bytes),
    ];
    match geometry.into_iter().find(|(_, expected, found)| expected != found) {
        Some((field, expected, found)) => Err(SsdOpenError::OtherGeometry { device, field, expected, found }),
        None => Ok(()),
    }
}

/// The superblock of a blank device, but for what all devices share.
fn fresh(device: usize, bytes: u64, devices: usize, wanted: &Wanted) -> Result<Superblock, SsdOpenError> {
    let least = SEGMENTS_START + wanted.segment_bytes;
    if bytes < least {
        return Err(SsdOpenError::TooSmall { device, bytes, least });
    }
    Ok(Superblock {
        log: LogId::default(),
        write: 0,
        host: [0; 16],
        instance: [0; 16],
        boots: 0,
        device: device as u8,
        devices: devices as u16,
        segment_bytes: wanted.segment_bytes,
        segments: segments_of(bytes, wanted.segment_bytes),
        segments_start: SEGMENTS_START,
        sequence_reserved: 0,
        formatted_s: wanted.wall_s,
        sequence_formatted: 0,
        groups: Vec::new(),
    })
}

fn segments_of(device_bytes: u64, segment_bytes: u64) -> u32 {
    (device_bytes.saturating_sub(SEGMENTS_START) / segment_bytes).min(SegmentId::ON_DEVICE_MAX.into()) as u32
}

/// All groups of all devices in the order of their numbers, new ones last; and the numbers of those wanted.
fn merge_groups(
    ours: &[(usize, &Superblock)],
    wanted: &[String],
) -> Result<(Vec<GroupRecord>, Vec<u16>), SsdOpenError> {
    let mut groups: Vec<GroupRecord> = Vec::new();
    for (device, superblock) in ours {
        for (number, found) in superblock.groups.iter().enumerate() {
            // A start that was cut off may have left one device with fewer; but never with others.
            match groups.get_mut(number) {
                None => groups.push(found.clone()),
                Some(group) if group.name == found.name => {
                    group.purged_before = group.purged_before.max(found.purged_before);
                }
                Some(group) => {
                    let (expected, found) = (group.name.clone(), found.name.clone());
                    return Err(SsdOpenError::OtherGroup { device: *device, number, expected, found });
                }
            }
        }
    }
    let mut numbers = Vec::with_capacity(wanted.len());
    for name in wanted {
        let number = groups.iter().position(|group| group.name == *name).unwrap_or_else(|| {
            groups.push(GroupRecord { name: name.clone(), purged_before: 0 });
            groups.len() - 1
        });
        numbers.push(number as u16);
    }
    if groups.len() > GROUPS_MAX {
        return Err(SsdOpenError::TooManyGroups { groups: groups.len(), most: GROUPS_MAX });
    }
    Ok((groups, numbers))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, task::Poll};

    use super::*;
    use crate::{
        format::PAGE_BYTES,
        testing::{Event, Sheet},
        volume::superblocks::{Reader, Writer},
    };

    const BYTES: u64 = 194 << 20;

    fn wanted() -> Wanted {
        Wanted {
            identity: Identity { host: [1; 16], instance: [2; 16] },
            adopt: false,
            log: None,
            log_fresh: LogId([3; 16]),
            segment_bytes: 64 << 20,
            groups: vec!["default".into(), "chat".into()],
            wall_s: 77,
        }
    }

    fn read(sheet: &mut Sheet) -> Found {
        let mut reader = Reader::new(sheet).expect("memory");
        loop {
            if let Poll::Ready(found) = reader.poll(sheet) {
                return found.expect("read");
            }
        }
    }

    fn write(sheet: &mut Sheet, superblock: &Superblock) -> Superblock {
        let mut writer = Writer::new(superblock.clone()).expect("memory");
        loop {
            if let Poll::Ready(written) = writer.poll(sheet) {
                return written.expect("written");
            }
        }
    }

    fn start(sheets: &mut [Sheet], wanted: &Wanted) -> Result<Plan, SsdOpenError> {
        let found: Vec<Found> = sheets.iter_mut().map(read).collect();
        let plan = plan_open(&found, wanted)?;
        sheets.iter_mut().zip(&plan.superblocks).for_each(|(sheet, superblock)| {
            write(sheet, superblock);
        });
        Ok(plan)
    }

    #[test]
    fn blank_devices_are_formatted_and_the_next_start_goes_on_where_this_could_have_ended() {
        let mut sheets = [Sheet::new(BYTES), Sheet::new(2 * BYTES)];
        let first = start(&mut sheets, &wanted()).expect("blank");
        assert_eq!(
            (first.sequence_first, &first.formatted[..], &first.groups[..]),
            (1, &[true, true][..], &[0, 1][..])
        );
        assert_eq!((first.superblocks[0].segments, first.superblocks[1].segments), (3, 6));
        let wanted = Wanted { groups: vec!["new".into(), "chat".into()], log_fresh: LogId([8; 16]), ..wanted() };
        let second = start(&mut sheets, &wanted).expect("ours");
        assert_eq!((second.log, second.sequence_first, &second.groups[..]), (first.log, 1 + (1 << 32), &[2, 1][..]));
        let names: Vec<&str> = second.superblocks[1].groups.iter().map(|group| group.name.as_str()).collect();
        assert_eq!(names, ["default", "chat", "new"], "a group that left keeps its number");
        let Found::Formatted { superblock, .. } = read(&mut sheets[1]) else { panic!("formatted") };
        assert_eq!((superblock.boots, superblock.write, superblock.sequence_reserved), (2, 4, 1 + (2 << 32)));
        assert_eq!((superblock.formatted_s, superblock.sequence_formatted), (77, 1));
    }

    #[test]
    fn a_replaced_device_joins_the_old_log_and_nothing_older_on_it_counts() {
        let mut sheets = [Sheet::new(BYTES), Sheet::new(BYTES)];
        let first = start(&mut sheets, &wanted()).expect("blank");
        sheets[0] = Sheet::new(BYTES);
        let second = start(&mut sheets, &Wanted { log_fresh: LogId([9; 16]), ..wanted() }).expect("half of it ours");
        assert_eq!((second.log, &second.formatted[..]), (first.log, &[true, false][..]));
        assert_eq!(second.superblocks[0].boots, 2);
        assert_eq!(second.superblocks[0].sequence_formatted, second.sequence_first);
    }

    #[test]
    fn devices_of_others_are_refused_with_both_values() {
        let mut sheets = [Sheet::new(BYTES), Sheet::new(BYTES)];
        start(&mut sheets, &wanted()).expect("blank");
        let refused = |sheets: &mut [Sheet], wanted: &Wanted| {
            let found: Vec<Found> = sheets.iter_mut().map(read).collect();
            plan_open(&found, wanted).expect_err("refused").to_string()
        };
        let (one, two, id) = ("01".repeat(16), "02".repeat(16), wanted().identity);
        let other_host = Wanted { identity: Identity { host: [2; 16], ..id }, ..wanted() };
        let error = refused(&mut sheets, &other_host);
        assert!(error.starts_with(&format!("device 0: of host {one}, expected {two}; ")), "{error}");
        let other = Wanted { identity: Identity { instance: [1; 16], ..id }, ..wanted() };
        assert_eq!(
            refused(&mut sheets, &other),
            format!("device 0: of installation {two}, expected {one} (ssd.instance)")
        );
        assert!(start(&mut sheets, &Wanted { adopt: true, ..other_host }).is_ok());
        start(&mut sheets, &Wanted { adopt: true, ..wanted() }).expect("and back");
        let geometry = Wanted { segment_bytes: 128 << 20, ..wanted() };
        assert_eq!(refused(&mut sheets, &geometry), "device 0: segment_bytes is 67108864, expected 134217728");
        assert_eq!(refused(&mut sheets[..1], &wanted()), "device 0: number of devices is 2, expected 1");
        sheets.swap(0, 1);
        assert_eq!(refused(&mut sheets, &wanted()), "device 0: its number is 1, expected 0");
        sheets.swap(0, 1);
        let log = Wanted { log: Some(LogId([1; 16])), ..wanted() };
        assert_eq!(refused(&mut sheets, &log), format!("device 0: of log {}, expected {one}", "03".repeat(16)));
        let mut strangers = [Sheet::new(BYTES), Sheet::new(BYTES)];
        start(&mut strangers, &Wanted { log_fresh: LogId([4; 16]), ..wanted() }).expect("blank");
        sheets.swap_with_slice(&mut strangers);
        std::mem::swap(&mut sheets[0], &mut strangers[0]);
        let error = refused(&mut sheets, &wanted());
        assert_eq!(error, format!("device 1: of log {}, expected {}", "04".repeat(16), "03".repeat(16)));
    }

    #[test]
    fn a_device_with_anything_else_on_it_is_not_formatted() {
        for offset in [0, 4096, 64 << 10, (1 << 20) - 4096] {
            let mut sheet = Sheet::new(BYTES);
            sheet.pages.insert(offset, vec![1; PAGE_BYTES]);
            let found = [read(&mut sheet)];
            assert_eq!(plan_open(&found, &wanted()), Err(SsdOpenError::NotBlank { device: 0 }), "{offset}");
        }
        let mut torn = [Sheet::new(BYTES)];
        start(&mut torn, &wanted()).expect("blank");
        torn[0].pages.values_mut().for_each(|page| page[999] ^= 1);
        let found = [read(&mut torn[0])];
        assert!(matches!(plan_open(&found, &wanted()), Err(SsdOpenError::Broken { device: 0, .. })));
        let small = [read(&mut Sheet::new(64 << 20))];
        let (bytes, least) = (64 << 20, 65 << 20);
        assert_eq!(plan_open(&small, &wanted()), Err(SsdOpenError::TooSmall { device: 0, bytes, least }));
        assert!(matches!(read(&mut Sheet::new(4096)), Found::Blank { device_bytes: 4096 }));
    }

    #[test]
    fn groups_in_another_order_are_refused_and_missing_ones_made_up_for() {
        let mut sheets = [Sheet::new(BYTES), Sheet::new(BYTES)];
        let plan = start(&mut sheets, &wanted()).expect("blank");
        let mut fewer = plan.superblocks[1].clone();
        fewer.write += 2;
        fewer.groups.pop();
        fewer.groups[0].purged_before = 40;
        write(&mut sheets[1], &fewer);
        let plan = start(&mut sheets, &wanted()).expect("a start was cut off");
        assert_eq!(plan.superblocks[0].groups, plan.superblocks[1].groups);
        assert_eq!((plan.superblocks[0].groups.len(), plan.superblocks[0].groups[0].purged_before), (2, 40));
        let mut swapped = plan.superblocks[1].clone();
        swapped.write += 2;
        swapped.groups.swap(0, 1);
        write(&mut sheets[1], &swapped);
        let error = start(&mut sheets, &wanted()).expect_err("another order").to_string();
        assert_eq!(error, r#"device 1: group 0 is "chat", on another device "default""#);
        let many = (0..65).map(|i| format!("g{i}")).collect();
        let error = start(&mut [Sheet::new(BYTES)], &Wanted { groups: many, ..wanted() }).expect_err("too many");
        assert_eq!(error, SsdOpenError::TooManyGroups { groups: 65, most: 64 });
    }

    #[test]
    fn a_start_cut_off_anywhere_leaves_a_superblock_and_a_page_that_rots_takes_nothing() {
        let mut sheet = [Sheet::new(BYTES)];
        start(&mut sheet, &wanted()).expect("blank");
        let before = sheet[0].pages.clone();
        let Event::Page(_, first) = sheet[0].events[0].clone() else { panic!("a page is written first") };
        let torn = [&first[..128], &[0; PAGE_BYTES - 128]].concat();
        let formatting = BTreeMap::from([(4096, torn)]);
        assert!(matches!(read(&mut Sheet::of_pages(BYTES, formatting)), Found::Blank { .. }), "formatting cut off");
        sheet[0].events.clear();
        start(&mut sheet, &wanted()).expect("ours");
        let events = sheet[0].events.clone();
        for cut in 0..=events.len() {
            for torn in [0, 512, 2048, 4096] {
                let mut pages = before.clone();
                for (i, event) in events[..cut].iter().enumerate() {
                    let Event::Page(offset, page) = event else { continue };
                    let bytes = if i + 1 == cut { torn } else { PAGE_BYTES };
                    pages.get_mut(offset).expect("formatted")[..bytes].copy_from_slice(&page[..bytes]);
                }
                let Found::Formatted { superblock, .. } = read(&mut Sheet::of_pages(BYTES, pages)) else {
                    panic!("cut at {cut}, {torn} bytes")
                };
                assert!(superblock.boots == 1 || superblock.boots == 2);
            }
        }
        for rotten in [0, 4096] {
            let mut pages = sheet[0].pages.clone();
            pages.get_mut(&rotten).expect("written")[100] ^= 1;
            let Found::Formatted { superblock, .. } = read(&mut Sheet::of_pages(BYTES, pages)) else {
                panic!("one is whole")
            };
            assert_eq!((superblock.boots, superblock.sequence_reserved), (2, 1 + (2 << 32)));
        }
    }
}
