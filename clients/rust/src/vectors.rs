//! Where a batch's bytes lie in the caller's memory: one buffer, or a list of vectors with the same number for each
//! block.

use std::{
    io::{IoSlice, IoSliceMut},
    marker::PhantomData,
    mem::MaybeUninit,
};

use crate::ClientError;

#[derive(Clone, Copy, Debug)]
enum Form {
    One { base: *mut u8, bytes: usize },
    Many { list: *const libc::iovec, count: usize },
}

/// Where blocks go to.
#[derive(Debug)]
pub struct Dst<'a> {
    form: Form,
    of: PhantomData<&'a mut [u8]>,
}

/// Where blocks come from.
#[derive(Debug)]
pub struct Src<'a> {
    form: Form,
    of: PhantomData<&'a [u8]>,
}

// SAFETY: a `Dst` is an exclusive borrow of plain bytes, or the caller of `raw` promised as much.
unsafe impl Send for Dst<'_> {}
// SAFETY: a `Src` is a shared borrow of plain bytes, or the caller of `raw` promised as much.
unsafe impl Send for Src<'_> {}

impl<'a> From<&'a mut [u8]> for Dst<'a> {
    fn from(buffer: &'a mut [u8]) -> Self {
        Self { form: Form::One { base: buffer.as_mut_ptr(), bytes: buffer.len() }, of: PhantomData }
    }
}

impl<'a> From<&'a mut Vec<u8>> for Dst<'a> {
    fn from(buffer: &'a mut Vec<u8>) -> Self {
        Self::from(buffer.as_mut_slice())
    }
}

impl<'a> From<&'a mut [MaybeUninit<u8>]> for Dst<'a> {
    fn from(buffer: &'a mut [MaybeUninit<u8>]) -> Self {
        Self { form: Form::One { base: buffer.as_mut_ptr().cast(), bytes: buffer.len() }, of: PhantomData }
    }
}

impl<'a> From<&'a mut [IoSliceMut<'_>]> for Dst<'a> {
    fn from(vectors: &'a mut [IoSliceMut<'_>]) -> Self {
        // An IoSliceMut has the layout of an iovec on Unix: std's promise.
        Self { form: Form::Many { list: vectors.as_ptr().cast(), count: vectors.len() }, of: PhantomData }
    }
}

impl<'a> From<&'a [u8]> for Src<'a> {
    fn from(buffer: &'a [u8]) -> Self {
        Self { form: Form::One { base: buffer.as_ptr().cast_mut(), bytes: buffer.len() }, of: PhantomData }
    }
}

impl<'a> From<&'a Vec<u8>> for Src<'a> {
    fn from(buffer: &'a Vec<u8>) -> Self {
        Self::from(buffer.as_slice())
    }
}

impl<'a> From<&'a [IoSlice<'_>]> for Src<'a> {
    fn from(vectors: &'a [IoSlice<'_>]) -> Self {
        // An IoSlice has the layout of an iovec on Unix: std's promise.
        Self { form: Form::Many { list: vectors.as_ptr().cast(), count: vectors.len() }, of: PhantomData }
    }
}

impl<'a> Dst<'a> {
    /// Memory known by its addresses alone, as engines in other languages have it.
    ///
    /// # Safety
    /// Each vector is valid for writes of its length for `'a`; nobody else reads or writes there meanwhile, and none
    /// overlaps another or lies in memory that the client mapped.
    pub unsafe fn raw(vectors: &'a [libc::iovec]) -> Self {
        Self { form: Form::Many { list: vectors.as_ptr(), count: vectors.len() }, of: PhantomData }
    }
}

impl<'a> Src<'a> {
    /// Memory known by its addresses alone.
    ///
    /// # Safety
    /// Each vector is valid for reads of its length for `'a`, is initialised, and nobody writes there meanwhile.
    pub unsafe fn raw(vectors: &'a [libc::iovec]) -> Self {
        Self { form: Form::Many { list: vectors.as_ptr(), count: vectors.len() }, of: PhantomData }
    }
}

/// A list of places that was checked against a batch: block `i` has exactly `block_bytes` there.
#[derive(Debug)]
pub(crate) struct Blocks<T> {
    form: Form,
    per_block: usize,
    block_bytes: usize,
    /// Keeps the borrow.
    _of: T,
}

impl<T> Blocks<T> {
    fn new(form: Form, blocks: usize, block_bytes: u64, of: T) -> Result<Self, ClientError> {
        let expected = block_bytes * blocks as u64;
        let block_bytes = match form {
            Form::One { bytes, .. } if bytes as u64 == expected => block_bytes as usize,
            Form::One { bytes, .. } => return Err(ClientError::BufferBytes { blocks, expected, found: bytes }),
            Form::Many { count, .. } if count > 0 && count.is_multiple_of(blocks) => block_bytes as usize,
            Form::Many { count, .. } => return Err(ClientError::VectorCount { blocks, vectors: count }),
        };
        let per_block = if let Form::Many { count, .. } = form { count / blocks } else { 1 };
        let checked = Self { form, per_block, block_bytes, _of: of };
        for block in 0..blocks {
            let mut found = 0;
            checked.each(block, |_, bytes| found += bytes as u64);
            if found != block_bytes as u64 {
                return Err(ClientError::VectorBytes { block, expected: block_bytes as u64, found });
            }
        }
        Ok(checked)
    }

    /// Bytes of every block.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Calls `part` with the address and length of each vector of a block, in order; together they are `block_bytes`.
    #[inline]
    fn each(&self, block: usize, mut part: impl FnMut(*mut u8, usize)) {
        match self.form {
            Form::One { base, .. } => part(base.wrapping_add(block * self.block_bytes), self.block_bytes),
            Form::Many { list, count } => {
                assert!((block + 1) * self.per_block <= count, "block {block} of a checked batch");
                for i in block * self.per_block..(block + 1) * self.per_block {
                    // SAFETY: `i` is below the list's count, as just checked; the list lives as long as `self._of`.
                    let vector = unsafe { *list.add(i) };
                    if vector.iov_len > 0 {
                        part(vector.iov_base.cast(), vector.iov_len);
                    }
                }
            }
        }
    }
}

impl<'a> Blocks<Dst<'a>> {
    pub fn to(dst: Dst<'a>, blocks: usize, block_bytes: u64) -> Result<Self, ClientError> {
        Self::new(dst.form, blocks, block_bytes, dst)
    }

    /// Calls `part` with each vector of a block, in order.
    #[inline]
    pub fn each_mut(&mut self, block: usize, mut part: impl FnMut(&mut [MaybeUninit<u8>])) {
        self.each(block, |base, bytes| {
            // SAFETY: the places of a `Dst` are valid for writes and nobody else's while it is borrowed (its sources,
            // or the promise to `raw`); `&mut self` makes this the only use. Bytes are only ever initialised by us.
            part(unsafe { std::slice::from_raw_parts_mut(base.cast(), bytes) });
        });
    }
}

impl<'a> Blocks<Src<'a>> {
    pub fn from(src: Src<'a>, blocks: usize, block_bytes: u64) -> Result<Self, ClientError> {
        Self::new(src.form, blocks, block_bytes, src)
    }

    /// Calls `part` with each vector of a block, in order.
    #[inline]
    pub fn each_ref(&self, block: usize, mut part: impl FnMut(&[u8])) {
        self.each(block, |base, bytes| {
            // SAFETY: the places of a `Src` are valid for reads and not written while it is borrowed (its sources, or
            // the promise to `raw`).
            part(unsafe { std::slice::from_raw_parts(base, bytes) });
        });
    }
}

// SAFETY: as for `Dst` and `Src`, of which this is a checked form.
unsafe impl<T: Send> Send for Blocks<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_of_another_size_is_refused_with_both_numbers() {
        let mut buffer = [0u8; 96];
        let error = Blocks::to(Dst::from(&mut buffer[..]), 2, 64).expect_err("96 are not 128").to_string();
        assert!(error.contains("96") && error.contains("128"), "{error}");
    }

    #[test]
    fn vectors_must_add_up_for_every_block() {
        let (mut a, mut b, mut c, mut d) = ([0u8; 16], [0u8; 48], [0u8; 32], [0u8; 31]);
        let mut vectors = [&mut a[..], &mut b, &mut c, &mut d].map(IoSliceMut::new);
        let error = Blocks::to(Dst::from(&mut vectors[..]), 2, 64).expect_err("63 bytes").to_string();
        assert!(error.contains("block 1") && error.contains("63"), "{error}");
        let error = Blocks::to(Dst::from(&mut vectors[..3]), 2, 64).expect_err("three for two").to_string();
        assert!(error.contains("3 vectors for 2 blocks"), "{error}");
        assert!(Blocks::to(Dst::from(&mut vectors[..2]), 1, 64).is_ok());
    }
}
