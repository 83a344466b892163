//! NVMe commands as the kernel takes them: in the second half of a submission entry, or by ioctl. Pure.

use zerocopy::{FromZeros, Immutable, IntoBytes};

/// `struct nvme_uring_cmd`, and `struct nvme_passthru_cmd`, whose last word is the command's result.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromZeros, IntoBytes, Immutable)]
pub(super) struct Command {
    pub opcode: u8,
    flags: u8,
    reserved: u16,
    pub namespace: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    pub address: u64,
    metadata_bytes: u32,
    pub data_bytes: u32,
    pub cdw10: u32,
    pub cdw11: u32,
    pub cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    /// 0: the kernel's own.
    timeout_ms: u32,
    result: u32,
}

const _: () = assert!(size_of::<Command>() == 72, "the kernel's layout");

/// Of an entry of 128 bytes, what a command has.
const ENTRY_BYTES: usize = 80;

const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;
const DATASET_MANAGEMENT: u8 = 0x09;
const IDENTIFY: u8 = 0x06;

/// Dataset management: the ranges are not wanted any more.
const DEALLOCATE: u32 = 1 << 2;

/// Bytes of a command that gives up ranges: as many as it could name, 256, though it names one. Some devices read them all
/// whatever their number, as the kernel's driver has it (`nvme_setup_discard`); what lies behind the first is not heeded.
pub(super) const RANGES_BYTES: usize = 4096;

/// What identify is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    Namespace = 0,
    Controller = 1,
}

/// Logical blocks of a namespace, as commands name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub namespace: u32,
    /// A power of two that divides a page.
    pub logical_bytes: u32,
}

impl Blocks {
    /// Bytes `offset..offset + bytes` of the namespace to or from memory at `address`.
    ///
    /// # Panics
    /// If they are not whole blocks, none at all, or more than a command can name: places are ours.
    pub(super) fn transfer(self, is_read: bool, offset: u64, bytes: u64, address: u64) -> Command {
        let (first, count) = (self.count(offset), self.count(bytes));
        let last = count.checked_sub(1).and_then(|last| u16::try_from(last).ok()).expect("1 to 65536 blocks");
        Command {
            opcode: if is_read { READ } else { WRITE },
            namespace: self.namespace,
            address,
            data_bytes: bytes as u32,
            cdw10: first as u32,
            cdw11: (first >> 32) as u32,
            cdw12: last.into(),
            ..Command::new_zeroed()
        }
    }

    pub(super) fn flush(self) -> Command {
        Command { opcode: FLUSH, namespace: self.namespace, ..Command::new_zeroed() }
    }

    /// Gives up one range, which lies at `address` as `range` says. There are `RANGES_BYTES` from there on.
    pub(super) fn deallocate(self, address: u64) -> Command {
        Command {
            opcode: DATASET_MANAGEMENT,
            namespace: self.namespace,
            address,
            data_bytes: RANGES_BYTES as u32,
            cdw10: 0, // One range: their number less one.
            cdw11: DEALLOCATE,
            ..Command::new_zeroed()
        }
    }

    /// # Panics
    /// As `transfer`, for more than 2^32 blocks.
    pub(super) fn range(self, offset: u64, bytes: u64) -> Range {
        let blocks = u32::try_from(self.count(bytes)).expect("fewer blocks than a range can name");
        Range { attributes: 0, blocks, first: self.count(offset) }
    }

    fn count(self, bytes: u64) -> u64 {
        let logical_bytes = u64::from(self.logical_bytes);
        assert!(bytes.is_multiple_of(logical_bytes), "whole blocks");
        bytes / logical_bytes
    }
}

/// A range of dataset management.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable)]
pub(super) struct Range {
    attributes: u32,
    blocks: u32,
    first: u64,
}

const _: () = assert!(size_of::<Range>() == 16, "the device's layout");

impl Command {
    /// Asks for 4096 bytes about this.
    pub(super) fn identify(about: About, namespace: u32, address: u64) -> Self {
        Self {
            opcode: IDENTIFY,
            namespace: if about == About::Namespace { namespace } else { 0 },
            address,
            data_bytes: 4096,
            cdw10: about as u32,
            ..Self::new_zeroed()
        }
    }

    /// For the entry.
    pub(super) fn entry_bytes(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..size_of::<Self>()].copy_from_slice(self.as_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Blocks = Blocks { namespace: 7, logical_bytes: 512 };

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    }

    #[test]
    fn a_transfer_names_blocks_and_memory_where_the_kernel_looks_for_them() {
        let bytes = SMALL.transfer(true, (5 << 41) + 4096, 8192, 0x1122_3344_5566_7788).entry_bytes();
        assert_eq!((bytes[0], word(&bytes, 4)), (2, 7));
        assert_eq!(u64::from_ne_bytes(bytes[24..32].try_into().expect("eight")), 0x1122_3344_5566_7788);
        assert_eq!((word(&bytes, 36), word(&bytes, 40), word(&bytes, 44)), (8192, 8, 5), "bytes, then the first block");
        assert_eq!(word(&bytes, 48), 15, "blocks less one");
        assert!(bytes[52..].iter().chain(&bytes[8..24]).chain(&bytes[32..36]).all(|byte| *byte == 0));
        let large = Blocks { namespace: 1, logical_bytes: 4096 };
        let write = large.transfer(false, 4096, 65536 * 4096, 0);
        assert_eq!((write.opcode, write.cdw10, write.cdw12), (1, 1, 65535));
    }

    #[test]
    fn a_flush_has_no_data_and_a_deallocation_one_range() {
        let flush = SMALL.flush();
        assert_eq!((flush.opcode, flush.namespace, flush.address, flush.data_bytes), (0, 7, 0, 0));
        let give_up = SMALL.deallocate(64);
        assert_eq!((give_up.opcode, give_up.data_bytes, give_up.cdw10, give_up.cdw11), (9, 4096, 0, 4));
        let range = SMALL.range(1 << 20, 1 << 30);
        assert_eq!(range.as_bytes()[..4], [0; 4]);
        assert_eq!((word(range.as_bytes(), 4), word(range.as_bytes(), 8)), (1 << 21, 2048));
    }

    #[test]
    fn identify_names_the_namespace_only_where_it_is_about_one() {
        let about = |about| Command::identify(about, 7, 0);
        assert_eq!((about(About::Namespace).namespace, about(About::Namespace).cdw10), (7, 0));
        assert_eq!((about(About::Controller).namespace, about(About::Controller).cdw10), (0, 1));
    }

    #[test]
    #[should_panic(expected = "whole blocks")]
    fn half_a_block_is_refused() {
        SMALL.transfer(true, 256, 4096, 0);
    }

    #[test]
    #[should_panic(expected = "1 to 65536 blocks")]
    fn more_blocks_than_a_command_can_name_are_refused() {
        SMALL.transfer(true, 0, 65537 * 512, 0);
    }
}
