//! Memory that a ring knows: looked up by address, so that operations need not say that theirs is registered.
//!
//! Invariant: registered memory stays mapped as long as the ring: an address names one memory only.

use io_uring::Submitter;
use lapis_arena::{ArenaError, Mapping};
use lapis_config::REGISTER_BYTES;

/// Entries of the ring's table: the kernel's limit, 16 TiB of arena in buffers of 1 GiB. An entry costs it 16 bytes.
const BUFFERS_MAX: u32 = 1 << 14;

#[derive(Default)]
pub(crate) struct Buffers {
    /// By address; they do not overlap.
    buffers: Vec<Buffer>,
    /// Keeps them mapped.
    mappings: Vec<Mapping>,
    has_table: bool,
}

#[derive(Clone, Copy)]
struct Buffer {
    address: usize,
    bytes: usize,
    index: u16,
}

impl Buffers {
    /// The buffer in which all of the range lies.
    pub(crate) fn find(&self, address: usize, bytes: usize) -> Option<u16> {
        let after = self.buffers.partition_point(|buffer| buffer.address <= address);
        let buffer = self.buffers.get(after.checked_sub(1)?)?;
        let fits = address + bytes <= buffer.address + buffer.bytes;
        fits.then_some(buffer.index)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.buffers.iter().map(|buffer| buffer.bytes).sum()
    }

    /// Registers a mapping, in buffers that no slot straddles. The kernel allocates and pins all of its pages now: up
    /// to seconds a GiB for fresh memory. What was registered before an error stays so.
    pub(crate) fn register(&mut self, submitter: &Submitter<'_>, mapping: &Mapping) -> Result<(), ArenaError> {
        let refused = |op, bytes: usize, source| ArenaError::Io { op, bytes: bytes as u64, source };
        if mapping.is_empty() || self.find(mapping.as_ptr(0) as usize, 0).is_some() {
            return Ok(());
        }
        if !self.has_table {
            let made = submitter.register_buffers_sparse(BUFFERS_MAX);
            made.map_err(|e| refused("a table of registered memory", 0, e))?;
            self.has_table = true;
        }
        // Kept even if the kernel refuses the first buffer: never too short is what counts.
        self.mappings.push(mapping.clone());
        for offset in (0..mapping.len()).step_by(REGISTER_BYTES as usize) {
            let bytes = (mapping.len() - offset).min(REGISTER_BYTES as usize);
            let full = |_| refused("registered memory", bytes, std::io::ErrorKind::QuotaExceeded.into());
            let index = u16::try_from(self.buffers.len()).map_err(full)?;
            let pointer = mapping.as_ptr(offset);
            let buffer = [libc::iovec { iov_base: pointer.cast(), iov_len: bytes }];
            // SAFETY: the bytes lie in the mapping, which `mappings` keeps until the ring is gone (its owner drops the
            // ring first, or leaks both).
            let updated = unsafe { submitter.register_buffers_update(u32::from(index), &buffer, None) };
            updated.map_err(|e| refused("registered memory", bytes, e))?;
            let address = pointer as usize;
            let place = self.buffers.partition_point(|buffer| buffer.address < address);
            self.buffers.insert(place, Buffer { address, bytes, index });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_found_in_the_one_buffer_that_holds_all_of_it() {
        let buffers = [(4096, 8192, 1), (12288, 4096, 0), (40960, 4096, 2)];
        let buffers = buffers.map(|(address, bytes, index)| Buffer { address, bytes, index });
        let buffers = Buffers { buffers: buffers.to_vec(), ..Buffers::default() };
        assert_eq!([4096, 8192].map(|address| buffers.find(address, 4096)), [Some(1), Some(1)]);
        assert_eq!(buffers.find(12288, 4096), Some(0));
        assert_eq!(buffers.find(8192, 8192), None, "it straddles two");
        assert_eq!([0, 16384, 36864, 45056].map(|address| buffers.find(address, 4096)), [None; 4]);
        assert_eq!(buffers.bytes(), 16384);
    }
}
