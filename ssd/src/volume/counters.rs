//! What went to a device and came from it, by kind, since the start.

/// Bytes of what succeeded, and counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub records_read_bytes: u64,
    pub records_written_bytes: u64,
    pub contents_written_bytes: u64,
    /// Wiped ones included.
    pub headers_written_bytes: u64,
    pub superblocks_written_bytes: u64,
    pub probes_read_bytes: u64,
    pub discarded_bytes: u64,
    pub flushes: u64,
    /// Operations of any kind that failed.
    pub errors: u64,
}

impl Counters {
    /// All bytes that went to the device.
    pub fn written_bytes(&self) -> u64 {
        self.records_written_bytes
            + self.contents_written_bytes
            + self.headers_written_bytes
            + self.superblocks_written_bytes
    }

    /// Of two lives of one device.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            records_read_bytes: self.records_read_bytes + other.records_read_bytes,
            records_written_bytes: self.records_written_bytes + other.records_written_bytes,
            contents_written_bytes: self.contents_written_bytes + other.contents_written_bytes,
            headers_written_bytes: self.headers_written_bytes + other.headers_written_bytes,
            superblocks_written_bytes: self.superblocks_written_bytes + other.superblocks_written_bytes,
            probes_read_bytes: self.probes_read_bytes + other.probes_read_bytes,
            discarded_bytes: self.discarded_bytes + other.discarded_bytes,
            flushes: self.flushes + other.flushes,
            errors: self.errors + other.errors,
        }
    }

    pub fn read_bytes(&self) -> u64 {
        self.records_read_bytes + self.probes_read_bytes
    }
}
