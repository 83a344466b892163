//! What a controller says of a command that failed, in words. Pure.

use std::fmt;

/// Status type and code as the kernel passes them on: bits 0 to 7 the code, 8 to 10 its type, 14 "do not retry".
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Status(u16);

const DO_NOT_RETRY: u16 = 1 << 14;

/// By type and code: what it is called, and whether the same command may do well a little later.
const KNOWN: &[(u8, u8, &str, bool)] = &[
    (0, 0x01, "invalid command", false),
    (0, 0x02, "invalid field in the command", false),
    (0, 0x04, "data transfer error", false),
    (0, 0x05, "aborted by a loss of power", true),
    (0, 0x06, "internal error of the device", false),
    (0, 0x07, "aborted on request", true),
    (0, 0x08, "aborted by a reset", true),
    (0, 0x0b, "invalid namespace or format", false),
    (0, 0x1c, "sanitize failed", false),
    (0, 0x1d, "a sanitize is under way", false),
    (0, 0x20, "the namespace is write protected", false),
    (0, 0x21, "interrupted", true),
    (0, 0x22, "transient transport error", true),
    (0, 0x80, "blocks beyond the end of the namespace", false),
    (0, 0x81, "no room in the device", false),
    (0, 0x82, "the namespace is not ready", true),
    (0, 0x84, "a format is under way", false),
    (1, 0x81, "invalid protection information", false),
    (1, 0x82, "write to a read-only range", false),
    (2, 0x80, "media error: write fault", false),
    (2, 0x81, "media error: unrecovered read", false),
    (2, 0x82, "media error: end-to-end guard check", false),
    (2, 0x83, "media error: end-to-end application tag check", false),
    (2, 0x84, "media error: end-to-end reference tag check", false),
    (2, 0x85, "media error: compare failure", false),
    (2, 0x86, "access denied", false),
    (2, 0x87, "media error: deallocated or unwritten block", false),
    (3, 0x00, "internal path error", true),
    (3, 0x60, "error of the controller's path", true),
    (3, 0x70, "no path to the controller", true),
    (3, 0x71, "aborted by the host: a reset, or no answer in time", true),
];

impl Status {
    /// What the kernel makes of a command that it took back itself.
    pub(super) const TAKEN_BACK: Self = Self(3 << 8 | 0x71);

    pub(super) fn of(word: u16) -> Self {
        Self(word)
    }

    fn code(self) -> u8 {
        self.0 as u8
    }

    fn kind(self) -> u8 {
        (self.0 >> 8 & 0x7) as u8
    }

    fn known(self) -> Option<&'static (u8, u8, &'static str, bool)> {
        KNOWN.iter().find(|(kind, code, ..)| (*kind, *code) == (self.kind(), self.code()))
    }

    /// Whether the same command may do well a little later: it was cut off, and nothing is wrong with what it asks for.
    pub(super) fn may_pass(self) -> bool {
        self.0 & DO_NOT_RETRY == 0 && self.known().is_some_and(|(.., may_pass)| *may_pass)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind() {
            0 => "failed",
            1 => "refused",
            2 => "media error",
            3 => "path error",
            _ => "error of the vendor's own",
        };
        let words = self.known().map_or(kind, |(_, _, words, _)| words);
        write!(f, "{words} (NVMe status type {}, code {:#04x})", self.kind(), self.code())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_said_in_words_with_its_numbers() {
        let text = |word| Status::of(word).to_string();
        assert_eq!(text(0x281), "media error: unrecovered read (NVMe status type 2, code 0x81)");
        assert_eq!(text(0x4281), text(0x281), "\"do not retry\" is another matter");
        assert_eq!(text(0x082), "the namespace is not ready (NVMe status type 0, code 0x82)");
        assert_eq!(text(0x2f0), "media error (NVMe status type 2, code 0xf0)");
        assert_eq!(text(0x7c1), "error of the vendor's own (NVMe status type 7, code 0xc1)");
    }

    #[test]
    fn what_a_reset_cut_off_may_pass_and_what_the_media_lost_does_not() {
        assert!(Status::TAKEN_BACK.may_pass());
        assert!([0x007, 0x008, 0x082, 0x370].into_iter().all(|word| Status::of(word).may_pass()));
        assert!(![0x281, 0x280, 0x002, 0x4008, 0x7c1].into_iter().any(|word| Status::of(word).may_pass()));
    }

    #[test]
    fn each_is_known_once() {
        for (index, one) in KNOWN.iter().enumerate() {
            assert!(KNOWN[index + 1..].iter().all(|other| (other.0, other.1) != (one.0, one.1)), "{one:?}");
        }
    }
}
