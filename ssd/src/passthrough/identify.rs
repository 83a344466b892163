//! What a namespace and its controller say of themselves: 4096 bytes each, as NVM Express lays them out. Pure; whatever
//! the bytes are, nothing panics.

use super::Refusal;

/// Bytes of an answer.
pub(super) const IDENTIFY_BYTES: usize = 4096;
/// What the largest transfer is a multiple of: the smallest page of memory that a controller may have. Its true one is
/// known to the driver alone.
const PAGE_BYTES: u64 = 4096;

/// A namespace's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub blocks: u64,
    pub logical_bytes: u32,
    pub metadata_bytes: u16,
    /// Type of protection information, 0 for none.
    pub protection: u8,
    /// What a power cut leaves old or new, if the namespace says something of its own.
    atomic: Option<Atomic>,
}

/// In blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Atomic {
    /// 0: the controller's.
    most: u32,
    /// A write over a multiple of it is two; 0: there is none.
    boundary: u32,
    /// Where the first of these multiples lies.
    boundary_offset: u32,
}

/// What a controller can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Controller {
    pub model: String,
    /// `None`: no limit.
    pub transfer_bytes_max: Option<u64>,
    pub volatile_cache: bool,
    pub deallocates: bool,
    atomic_blocks: u32,
}

impl Format {
    pub(super) fn of(answer: &[u8; IDENTIFY_BYTES]) -> Result<Self, Refusal> {
        let (features, formatted) = (answer[24], answer[26]);
        // Bits 5 and 6 go above the lower four, where there are more than 16 formats.
        let index = usize::from(formatted & 0xf) | usize::from(formatted >> 5 & 0x3) << 4;
        let format = u32_at(answer, 128 + 4 * index);
        let shift = format >> 16 & 0xff;
        if !(9..=12).contains(&shift) {
            return Err(Refusal::LogicalBlock { shift });
        }
        Ok(Self {
            blocks: u64::from(u32_at(answer, 4)) << 32 | u64::from(u32_at(answer, 0)),
            logical_bytes: 1 << shift,
            metadata_bytes: format as u16,
            protection: answer[29] & 0x7,
            atomic: (features & 1 << 1 != 0).then(|| Atomic::of(answer)),
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.logical_bytes.into())
    }

    /// Metadata would have to be moved with each block, and protection information made and checked.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match *self {
            Self { protection: kind @ 1.., .. } => Err(Refusal::Protection { kind }),
            Self { metadata_bytes: bytes @ 1.., .. } => Err(Refusal::Metadata { bytes }),
            _ => Ok(()),
        }
    }
}

impl Atomic {
    /// Of NAWUPF and NABSPF, which are one less than they mean where they are not 0, and NABO.
    fn of(answer: &[u8; IDENTIFY_BYTES]) -> Self {
        let meant = |said: u16| if said == 0 { 0 } else { u32::from(said) + 1 };
        let boundary_offset = u16_at(answer, 42).into();
        Self { most: meant(u16_at(answer, 36)), boundary: meant(u16_at(answer, 44)), boundary_offset }
    }

    /// Of writes that are aligned to their length.
    fn aligned(self, controller: u32) -> u32 {
        let most = if self.most == 0 { controller } else { self.most };
        match self {
            Self { boundary: 0, .. } => most,
            // Then multiples of no length but a block's keep off all boundaries.
            Self { boundary_offset: 1.., .. } => 1,
            Self { boundary, .. } => 1 << most.ilog2().min(boundary.trailing_zeros()),
        }
    }
}

impl Controller {
    pub(super) fn of(answer: &[u8; IDENTIFY_BYTES]) -> Self {
        let exponent = u32::from(answer[77]);
        Self {
            model: String::from_utf8_lossy(&answer[24..64]).trim_matches(['\0', ' ']).to_owned(),
            transfer_bytes_max: (exponent > 0)
                .then(|| PAGE_BYTES.checked_shl(exponent).unwrap_or(0))
                .filter(|m| *m > 0),
            volatile_cache: answer[525] & 1 != 0,
            deallocates: u16_at(answer, 520) & 1 << 2 != 0,
            atomic_blocks: u32::from(u16_at(answer, 528)) + 1,
        }
    }

    /// Bytes of an aligned write that a power cut leaves old or new.
    pub(super) fn atomic_bytes(&self, format: &Format) -> u64 {
        let blocks = format.atomic.map_or(self.atomic_blocks, |atomic| atomic.aligned(self.atomic_blocks));
        u64::from(blocks) * u64::from(format.logical_bytes)
    }
}

fn u16_at(answer: &[u8; IDENTIFY_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([answer[at], answer[at + 1]])
}

fn u32_at(answer: &[u8; IDENTIFY_BYTES], at: usize) -> u32 {
    u32::from(u16_at(answer, at + 2)) << 16 | u32::from(u16_at(answer, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 GiB in blocks of 4 KiB, the second of two formats.
    fn namespace() -> [u8; IDENTIFY_BYTES] {
        let mut answer = [0; IDENTIFY_BYTES];
        answer[..8].copy_from_slice(&(1u64 << 18).to_le_bytes());
        (answer[25], answer[26]) = (1, 1);
        answer[128 + 2] = 9;
        answer[132 + 2] = 12;
        answer
    }

    fn controller() -> [u8; IDENTIFY_BYTES] {
        let mut answer = [0; IDENTIFY_BYTES];
        answer[24..64].fill(b' ');
        answer[24..33].copy_from_slice(b"QEMU NVMe");
        (answer[77], answer[525], answer[520]) = (7, 7, 0x5d);
        answer[528] = 7;
        answer
    }

    #[test]
    fn format_and_abilities_are_read_where_the_specification_has_them() {
        let format = Format::of(&namespace()).expect("a good one");
        assert_eq!(
            (format.bytes(), format.logical_bytes, format.metadata_bytes, format.protection),
            (1 << 30, 4096, 0, 0)
        );
        let controller = Controller::of(&controller());
        assert_eq!((controller.model.as_str(), controller.transfer_bytes_max), ("QEMU NVMe", Some(512 << 10)));
        assert!(controller.volatile_cache && controller.deallocates);
        assert_eq!(controller.atomic_bytes(&format), 8 * 4096);
        let mut own = namespace();
        (own[24], own[36]) = (2, 3);
        let atomic = |answer: [u8; IDENTIFY_BYTES]| controller.atomic_bytes(&Format::of(&answer).expect("a good one"));
        assert_eq!(atomic(own), 4 * 4096);
        own[36] = 0;
        assert_eq!(atomic(own), 8 * 4096, "0 is the controller's");
        (own[36], own[44]) = (7, 3);
        assert_eq!(atomic(own), 4 * 4096, "not over a boundary");
        (own[36], own[44]) = (7, 11);
        assert_eq!(atomic(own), 4 * 4096, "the fourth of each twelve blocks begins at a boundary");
        own[42] = 2;
        assert_eq!(atomic(own), 4096, "boundaries lie anywhere");
        own[24] = 0;
        assert_eq!(atomic(own), 8 * 4096, "it says nothing of its own");
        assert_eq!(Controller::of(&[0; IDENTIFY_BYTES]).transfer_bytes_max, None);
    }

    #[test]
    fn formats_above_the_sixteenth_are_found() {
        let mut answer = namespace();
        answer[26] = 1 | 1 << 5;
        answer[128 + 4 * 17 + 2] = 9;
        assert_eq!(Format::of(&answer).expect("a good one").logical_bytes, 512);
    }

    #[test]
    fn what_would_need_metadata_and_odd_blocks_are_refused_with_what_was_found() {
        let mut answer = namespace();
        answer[132] = 8;
        let refused = |answer| Format::of(&answer).and_then(|format| format.check()).expect_err("refused").to_string();
        assert!(refused(answer).contains("8 bytes of metadata"), "{}", refused(answer));
        answer[29] = 1;
        assert!(refused(answer).contains("protection information, type 1"), "{}", refused(answer));
        answer[132 + 2] = 16;
        assert!(refused(answer).contains("65536 bytes"), "{}", refused(answer));
    }

    #[test]
    fn no_answer_panics() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..2000 {
            let mut answer = [0; IDENTIFY_BYTES];
            rng.fill(&mut answer);
            let controller = Controller::of(&answer);
            if let Ok(format) = Format::of(&answer) {
                assert!(format.logical_bytes >= 512 && format.logical_bytes <= 4096);
                assert!(controller.atomic_bytes(&format) >= 512 && format.bytes() >= format.blocks);
            }
        }
    }
}
