//! What commands of a namespace may be: by what the device says of itself, and by what the kernel says of the block
//! device beside it. Judged without I/O, but for `Queue::of`, which reads files of sysfs.

use std::{fs, path::Path, str::FromStr};

use super::{
    Refusal,
    identify::{Controller, Format},
};
use crate::format::PAGE_BYTES;

const PAGE: u64 = PAGE_BYTES as u64;
/// Blocks that a read or write can name.
const BLOCKS_MAX: u64 = 1 << 16;
/// Of a kernel that does not say: what it gives most NVMe devices, and less than what any has.
const SEGMENTS_DEFAULT: u64 = 127;
const COMMANDS_DEFAULT: usize = 64;

/// What an engine goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A power of two that divides a page.
    pub logical_bytes: u32,
    /// Of a command; whole pages.
    pub transfer_bytes_max: u64,
    /// Of a command that gives up a range; whole pages, 0 where there is none.
    pub discard_bytes_max: u64,
    /// Without one, a flush has nothing to do.
    pub volatile_cache: bool,
    /// Bytes of an aligned write that a power cut leaves old or new; `None` where that is not known.
    pub atomic_bytes: Option<u64>,
    /// Commands that a queue has room for.
    pub commands_max: usize,
    /// Whether the driver has queues without interrupts.
    pub can_poll: bool,
}

/// What the kernel says of the block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Queue {
    pub logical_bytes: Option<u32>,
    pub transfer_kib_max: Option<u64>,
    pub segments_max: Option<u64>,
    pub discard_bytes_max: Option<u64>,
    pub commands_max: Option<usize>,
    pub metadata_bytes: Option<u16>,
    pub atomic_bytes: Option<u64>,
    pub write_cache: String,
    pub zoned: String,
    pub can_poll: bool,
}

impl Queue {
    /// Of the folder of a block device in sysfs.
    pub(super) fn of(block: &Path) -> Self {
        let text = |name: &str| fs::read_to_string(block.join(name)).unwrap_or_default().trim().to_owned();
        fn number<T: FromStr>(text: &str) -> Option<T> {
            text.parse().ok()
        }
        Self {
            logical_bytes: number(&text("queue/logical_block_size")),
            transfer_kib_max: number(&text("queue/max_hw_sectors_kb")),
            segments_max: number(&text("queue/max_segments")),
            discard_bytes_max: number(&text("queue/discard_max_hw_bytes")),
            commands_max: number(&text("queue/nr_requests")),
            metadata_bytes: number(&text("metadata_bytes")),
            atomic_bytes: number(&text("queue/atomic_write_unit_max_bytes")).filter(|bytes| *bytes > 0),
            write_cache: text("queue/write_cache"),
            zoned: text("queue/zoned"),
            can_poll: text("queue/io_poll") == "1",
        }
    }
}

impl Limits {
    /// Both are asked where both answer, and the lower limit counts.
    pub(super) fn of(queue: &Queue, said: Option<&(Format, Controller)>) -> Result<Self, Refusal> {
        if !queue.zoned.is_empty() && queue.zoned != "none" {
            return Err(Refusal::Zoned { kind: queue.zoned.clone() });
        }
        if let Some(bytes @ 1..) = queue.metadata_bytes {
            return Err(Refusal::Metadata { bytes });
        }
        match said {
            Some((format, _)) => format.check()?,
            // A command says not where metadata lies: the device would read and write it at address 0.
            None if queue.metadata_bytes.is_none() => return Err(Refusal::Unasked),
            None => {}
        }
        let logical_bytes = match (said, queue.logical_bytes) {
            (Some((format, _)), Some(block)) if format.logical_bytes != block => {
                return Err(Refusal::OtherBlocks { device: format.logical_bytes, kernel: block });
            }
            (Some((format, _)), _) => format.logical_bytes,
            (None, Some(bytes @ (512 | 1024 | 2048 | 4096))) => bytes,
            (None, other) => {
                return Err(Refusal::LogicalBlock { shift: other.unwrap_or(0).checked_ilog2().unwrap_or(0) });
            }
        };
        let controller = said.map(|(_, controller)| controller);
        // Any page of memory may lie anywhere: each is a segment.
        let segments = queue.segments_max.unwrap_or(SEGMENTS_DEFAULT).saturating_mul(PAGE);
        let most = [
            controller.and_then(|controller| controller.transfer_bytes_max),
            queue.transfer_kib_max.map(|kib| kib.saturating_mul(1024)),
            Some(segments),
            Some(BLOCKS_MAX * u64::from(logical_bytes)),
        ];
        let most = most.into_iter().flatten().min().unwrap_or(0) / PAGE * PAGE;
        if most == 0 {
            return Err(Refusal::NoTransfer);
        }
        let deallocates = controller.is_none_or(|controller| controller.deallocates);
        let range = u64::from(u32::MAX) * u64::from(logical_bytes);
        let discard = queue.discard_bytes_max.filter(|_| deallocates).unwrap_or(0).min(range) / PAGE * PAGE;
        Ok(Self {
            logical_bytes,
            transfer_bytes_max: most,
            discard_bytes_max: discard,
            volatile_cache: controller.map_or(queue.write_cache != "write through", |it| it.volatile_cache),
            atomic_bytes: said.map(|(format, controller)| controller.atomic_bytes(format)).or(queue.atomic_bytes),
            commands_max: queue.commands_max.unwrap_or(COMMANDS_DEFAULT).max(1),
            can_poll: queue.can_poll,
        })
    }

    #[cfg(test)]
    pub(super) const SMALLEST: Self = Self {
        logical_bytes: 512,
        transfer_bytes_max: PAGE,
        discard_bytes_max: 0,
        volatile_cache: true,
        atomic_bytes: None,
        commands_max: 1,
        can_poll: false,
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passthrough::identify::IDENTIFY_BYTES;

    fn queue() -> Queue {
        Queue {
            logical_bytes: Some(4096),
            transfer_kib_max: Some(1024),
            segments_max: Some(300),
            discard_bytes_max: Some(1 << 31),
            commands_max: Some(1023),
            write_cache: "write back".into(),
            zoned: "none".into(),
            ..Queue::default()
        }
    }

    /// Blocks of 4 KiB, transfers of 4 KiB shifted by `exponent`, no volatile cache, deallocation.
    fn said(exponent: u8) -> (Format, Controller) {
        let (mut namespace, mut controller) = ([0; IDENTIFY_BYTES], [0; IDENTIFY_BYTES]);
        (namespace[0], namespace[128 + 2]) = (8, 12);
        (controller[77], controller[520]) = (exponent, 4);
        (Format::of(&namespace).expect("a good one"), Controller::of(&controller))
    }

    #[test]
    fn the_lower_of_all_limits_counts() {
        let most =
            |queue: Queue, exponent| Limits::of(&queue, Some(&said(exponent))).expect("a good one").transfer_bytes_max;
        assert_eq!(most(queue(), 5), 128 << 10, "the device's");
        assert_eq!(most(queue(), 0), 1 << 20, "the driver's, of a device without a limit");
        assert_eq!(most(Queue { segments_max: Some(33), ..queue() }, 9), 33 * 4096, "a page a segment");
        assert_eq!(most(Queue { transfer_kib_max: Some(6), ..queue() }, 9), 4096, "whole pages");
        let small = Queue { logical_bytes: Some(512), transfer_kib_max: Some(1 << 20), segments_max: None, ..queue() };
        let small = Queue { metadata_bytes: Some(0), ..small };
        assert_eq!(Limits::of(&small, None).expect("a good one").transfer_bytes_max, 127 * 4096);
        let small = Queue { segments_max: Some(1 << 20), ..small };
        assert_eq!(
            Limits::of(&small, None).expect("a good one").transfer_bytes_max,
            32 << 20,
            "what a command can name"
        );
        let none = Limits::of(&Queue { transfer_kib_max: Some(2), ..queue() }, Some(&said(5)));
        assert!(matches!(none, Err(Refusal::NoTransfer)));
    }

    #[test]
    fn what_the_device_does_not_say_the_kernel_does() {
        let plain = || Queue { metadata_bytes: Some(0), ..queue() };
        let limits = Limits::of(&plain(), None).expect("enough is known");
        assert_eq!((limits.logical_bytes, limits.discard_bytes_max, limits.commands_max), (4096, 1 << 31, 1023));
        assert!(limits.volatile_cache && !limits.can_poll && limits.atomic_bytes.is_none());
        assert!(!Limits::of(&queue(), Some(&said(5))).expect("a good one").volatile_cache);
        let through = Queue { write_cache: "write through".into(), ..plain() };
        assert!(!Limits::of(&through, None).expect("enough is known").volatile_cache);
        let sizeless = Limits::of(&Queue { logical_bytes: None, ..plain() }, None);
        assert!(matches!(sizeless, Err(Refusal::LogicalBlock { .. })), "nothing can be addressed");
        let refused = Limits::of(&queue(), None);
        assert!(matches!(refused, Err(Refusal::Unasked)), "it may have metadata");
    }

    #[test]
    fn a_device_that_gives_up_no_ranges_is_not_asked_to() {
        let mut without = said(5);
        without.1.deallocates = false;
        assert_eq!(Limits::of(&queue(), Some(&without)).expect("a good one").discard_bytes_max, 0);
    }

    #[test]
    fn zones_metadata_and_blocks_that_two_call_differently_are_refused() {
        let refused = |queue: Queue| Limits::of(&queue, Some(&said(5))).expect_err("refused").to_string();
        assert!(refused(Queue { zoned: "host-managed".into(), ..queue() }).contains("host-managed"));
        assert!(refused(Queue { metadata_bytes: Some(8), ..queue() }).contains("8 bytes of metadata"));
        assert!(refused(Queue { logical_bytes: Some(512), ..queue() }).contains("512"));
    }

    #[test]
    fn sysfs_is_read_as_it_is_and_what_is_missing_is_missing() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("a file");
        assert_eq!(Queue::of(folder.path()), Queue::default());
        fs::create_dir(folder.path().join("queue")).expect("a folder");
        write("queue/logical_block_size", "512\n");
        write("queue/max_segments", "129\n");
        write("queue/io_poll", "1\n");
        write("queue/write_cache", "write back\n");
        write("metadata_bytes", "0\n");
        let found = Queue::of(folder.path());
        assert_eq!((found.logical_bytes, found.segments_max, found.metadata_bytes), (Some(512), Some(129), Some(0)));
        assert!(found.can_poll && found.write_cache == "write back" && found.transfer_kib_max.is_none());
    }
}
