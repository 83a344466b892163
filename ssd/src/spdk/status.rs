//! What an NVMe completion says, in words. Pure. Numbers are those of the NVMe base and NVM command set specifications.

use std::{fmt, io};

/// The status of a completion: type and code. 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(u16);

const GENERIC: u16 = 0;
const SPECIFIC: u16 = 1;
const MEDIA: u16 = 2;
const PATH: u16 = 3;

impl Status {
    /// From the last 16 bits of a completion: the phase is the lowest of them.
    pub(crate) fn of_completion(raw: u16) -> Self {
        Self(raw >> 1 & 0x7ff)
    }

    pub(crate) fn is_success(self) -> bool {
        self.0 == 0
    }

    fn kind(self) -> u16 {
        self.0 >> 8
    }

    fn code(self) -> u16 {
        self.0 & 0xff
    }

    /// `None`: success.
    pub(crate) fn error(self) -> Option<io::Error> {
        let kind = match (self.kind(), self.code()) {
            (GENERIC, 0) => return None,
            // It lost power, was reset, or its queue went.
            (GENERIC, 0x05 | 0x07 | 0x08) | (PATH, _) => io::ErrorKind::ConnectionAborted,
            (GENERIC, 0x80) => io::ErrorKind::InvalidInput,
            (GENERIC, 0x81) => io::ErrorKind::StorageFull,
            (GENERIC, 0x20) | (SPECIFIC, 0x82) => io::ErrorKind::ReadOnlyFilesystem,
            _ => io::ErrorKind::Other,
        };
        Some(io::Error::new(kind, format!("the controller says: {self}")))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match (self.kind(), self.code()) {
            (GENERIC, 0x00) => "success",
            (GENERIC, 0x01) => "it does not know the command",
            (GENERIC, 0x02) => "a field of the command is not valid",
            (GENERIC, 0x04) => "data did not get over the bus",
            (GENERIC, 0x05) => "aborted, power is lost",
            (GENERIC, 0x06) => "internal error",
            (GENERIC, 0x07) => "aborted on request",
            (GENERIC, 0x08) => "aborted, its queue was deleted",
            (GENERIC, 0x0b) => "no such namespace, or not in this format",
            (GENERIC, 0x1c) => "sanitizing failed",
            (GENERIC, 0x1d) => "it is being sanitized",
            (GENERIC, 0x20) => "the namespace is write protected",
            (GENERIC, 0x80) => "beyond the end of the namespace",
            (GENERIC, 0x81) => "out of capacity",
            (GENERIC, 0x82) => "the namespace is not ready",
            (GENERIC, 0x83) => "reserved by another host",
            (GENERIC, 0x84) => "it is being formatted",
            (SPECIFIC, 0x80) => "attributes conflict",
            (SPECIFIC, 0x82) => "a write to what is read only",
            (MEDIA, 0x80) => "the medium does not take the write",
            (MEDIA, 0x81) => "the medium cannot be read there",
            (MEDIA, 0x82..=0x84) => "the end-to-end check failed",
            (MEDIA, 0x86) => "access denied",
            (MEDIA, 0x87) => "that was deallocated, or never written",
            (MEDIA, _) => "a fault of the medium",
            (PATH, _) => "the path to it failed",
            _ => "an error",
        };
        write!(f, "{words} (status {}/{:02x})", self.kind(), self.code())
    }
}

#[test]
fn completions_become_words() {
    let said = |kind: u16, code: u16| Status::of_completion((kind << 8 | code) << 1 | 1).error();
    assert!(said(0, 0).is_none());
    let error = said(2, 0x81).expect("an error");
    assert_eq!(error.to_string(), "the controller says: the medium cannot be read there (status 2/81)");
    assert_eq!(said(0, 0x08).map(|error| error.kind()), Some(io::ErrorKind::ConnectionAborted));
    assert_eq!(said(0, 0x80).map(|error| error.kind()), Some(io::ErrorKind::InvalidInput));
    assert_eq!(said(7, 0x33).expect("an error").to_string(), "the controller says: an error (status 7/33)");
    // "Do not retry", "more" and the delay are none of the code's.
    assert!(Status::of_completion(0xf000).is_success());
}
