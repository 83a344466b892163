//! What was found, for people: a few lines a device, and one for everything that is wrong.

use std::fmt;

use super::{Checked, SegmentCheck};

pub(super) fn tell(checked: &Checked, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (superblock, page) in checked.superblocks.iter().zip(0..) {
        match &superblock.why {
            Some(why) => writeln!(f, "superblock {page}: {why}")?,
            None => {
                let force = if superblock.in_force { ", in force" } else { "" };
                writeln!(f, "superblock {page}: whole, write {}{force}", superblock.write)?;
            }
        }
    }
    let Some(device) = &checked.device else {
        return writeln!(f, "no superblock is whole: nothing on this device can be read");
    };
    writeln!(f, "device {} of {}, log {}, {} starts", device.number, device.devices, device.log, device.boots)?;
    writeln!(f, "host {}, installation {}", device.host, device.instance)?;
    let segments = &checked.segments;
    let in_use = segments.iter().filter(|segment| segment.why.is_none()).count();
    let broken = segments.len() - in_use;
    let (blank, earlier) = (checked.segments_blank, checked.segments_earlier);
    writeln!(
        f,
        "{} segments of {} bytes: {in_use} in use, {blank} blank, {earlier} of an earlier log, {broken} broken",
        device.segments, device.segment_bytes
    )?;
    let sum = |of: fn(&SegmentCheck) -> u64| segments.iter().map(of).sum::<u64>();
    let (records, bytes) = (sum(|segment| segment.records.into()), sum(|segment| segment.payload_bytes));
    let (removals, pages) = (sum(|segment| segment.removals.into()), sum(|segment| segment.pages.into()));
    writeln!(f, "{records} records of {bytes} bytes, {removals} removals, in {pages} whole pages of contents")?;
    let payloads = sum(|segment| segment.payloads.into());
    if payloads + sum(|segment| segment.payloads_bad.len() as u64) > 0 {
        writeln!(f, "{payloads} payloads have their sums")?;
    }
    segments.iter().filter(|segment| !segment.is_whole()).try_for_each(|segment| tell_segment(segment, f))
}

fn tell_segment(segment: &SegmentCheck, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let index = segment.index;
    if let Some(why) = &segment.why {
        return writeln!(f, "segment {index}: {why}");
    }
    for (what, places) in
        [("contents", &segment.pages_bad), ("overlap", &segment.overlaps), ("payload", &segment.payloads_bad)]
    {
        for place in places {
            writeln!(f, "segment {index}, page {}: {what}: {}", place.page, place.why)?;
        }
    }
    let counts = [
        (segment.pages_unreadable, "pages of contents unreadable"),
        (segment.records_without_pool, "records of a pool that no page before them lists"),
        (segment.records_misfit, "records whose pages are not their pool's slot"),
        (segment.pools_contradicted, "pools listed again in another shape"),
    ];
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        writeln!(f, "segment {index}: {count} {what}")?;
    }
    Ok(())
}
