//! Copies between private memory and memory that others write. The bytes move in `asm!`: the compiler sees no plain
//! access that could race, and a torn read is only a wrong byte, found by the check that follows.
//!
//! Two kernels. `Plain` is libc's memcpy. `Streaming` loads with a prefetch 4 KiB ahead and stores past the caches
//! (AVX2), which saves reading the destination first: better for batches of large blocks, worse for one small block
//! that is used at once. After streaming, [`sfence`] before anyone else is told of the bytes.

use std::mem::MaybeUninit;

use crate::{Mapping, Sum};

/// Single blocks below this go by `Plain`: the caller is about to read them, and 64 KiB fit its cache.
pub const SINGLE_STREAMING_BYTES: usize = 256 << 10;
/// Blocks of a batch from this size on stream.
pub const BATCH_STREAMING_BYTES: usize = 64 << 10;
/// Parts of a block (pieces, iovecs) below this never stream.
const PART_STREAMING_BYTES: usize = 4 << 10;
/// Bytes of the next slot worth prefetching while one is copied.
const NEXT_BYTES: usize = 1 << 10;
/// How much is summed and then copied at a time where that cannot be done at once: as far as the copy prefetches.
const FUSED_BYTES: usize = 4 << 10;

/// How bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    Plain,
    /// Falls back to `Plain` where the processor or the range does not suit.
    Streaming,
}

impl Kernel {
    /// The better one for a batch of `blocks` blocks of `block_bytes`.
    pub fn choose(block_bytes: usize, blocks: usize) -> Self {
        let from = if blocks > 1 { BATCH_STREAMING_BYTES } else { SINGLE_STREAMING_BYTES };
        if block_bytes >= from { Self::Streaming } else { Self::Plain }
    }
}

/// Copies `dst.len()` bytes at `offset` out of shared memory and returns them, initialised.
#[inline]
pub fn out<'a>(mapping: &Mapping, offset: usize, dst: &'a mut [MaybeUninit<u8>], kernel: Kernel) -> &'a mut [u8] {
    let from = mapping.range(offset, dst.len());
    // SAFETY: `range` checked the source; `dst` is exclusively ours and of the same length, so they do not overlap: no
    // reference into a mapping exists. `bytes` initialises all of it.
    unsafe {
        bytes(from.as_ptr(), dst.as_mut_ptr().cast(), dst.len(), kernel);
        std::slice::from_raw_parts_mut(dst.as_mut_ptr().cast(), dst.len())
    }
}

/// Copies `src` to `offset` in shared memory.
#[inline]
pub fn into(mapping: &Mapping, offset: usize, src: &[u8], kernel: Kernel) {
    let to = mapping.range_mut(offset, src.len());
    // SAFETY: `range_mut` checked the destination; no reference into a mapping exists, so `src` is elsewhere.
    unsafe { bytes(src.as_ptr(), to.as_ptr(), src.len(), kernel) };
}

/// Like [`into`], feeding the same bytes to `sum` on the way, so that memory is read once. Fastest if `src` is all that
/// the sum is of.
#[inline]
pub fn into_summed(mapping: &Mapping, offset: usize, src: &[u8], kernel: Kernel, sum: &mut Sum) {
    let to = mapping.range_mut(offset, src.len());
    // SAFETY: as for `into`.
    if unsafe { fused(src.as_ptr(), to.as_ptr(), src.len(), kernel, sum) } {
        return;
    }
    for (chunk, at) in src.chunks(FUSED_BYTES).zip((offset..).step_by(FUSED_BYTES)) {
        sum.update(chunk);
        into(mapping, at, chunk, kernel);
    }
}

/// Like [`out`], feeding the same bytes to `sum` on the way: for blocks that are not verified yet.
#[inline]
pub fn out_summed<'a>(
    mapping: &Mapping,
    offset: usize,
    dst: &'a mut [MaybeUninit<u8>],
    kernel: Kernel,
    sum: &mut Sum,
) -> &'a mut [u8] {
    let from = mapping.range(offset, dst.len());
    // SAFETY: as for `out`.
    if !unsafe { fused(from.as_ptr(), dst.as_mut_ptr().cast(), dst.len(), kernel, sum) } {
        for (chunk, at) in dst.chunks_mut(FUSED_BYTES).zip((offset..).step_by(FUSED_BYTES)) {
            // Plain: the chunk is read again at once. What is summed is the copy, not the shared bytes.
            sum.update(out(mapping, at, chunk, Kernel::Plain));
        }
    }
    // SAFETY: `fused` initialised all of it, or else `out` each chunk.
    unsafe { std::slice::from_raw_parts_mut(dst.as_mut_ptr().cast(), dst.len()) }
}

/// Hashes and copies all of a sum's payload at once; false, and nothing done, where that does not suit.
///
/// # Safety
/// As for [`bytes`].
#[inline]
unsafe fn fused(src: *const u8, dst: *mut u8, len: usize, kernel: Kernel, sum: &mut Sum) -> bool {
    #[cfg(target_arch = "x86_64")]
    if sum.is_whole(len) && crate::fused::suits(len) {
        use crate::fused::{hash_copy, store};
        let stream = kernel == Kernel::Streaming && (dst as usize).is_multiple_of(32);
        // SAFETY: `suits` said so, the alignment was checked; the ranges are as for this function.
        sum.set_whole(unsafe {
            if stream {
                hash_copy::<{ store::STREAMED }>(src, dst, len)
            } else {
                hash_copy::<{ store::CACHED }>(src, dst, len)
            }
        });
        return true;
    }
    let _ = (src, dst, len, kernel, sum);
    false
}

/// Hashes all of a sum's payload where it lies; false, and nothing done, where that does not suit.
pub(crate) fn hash_in_place(mapping: &Mapping, offset: usize, bytes: usize, sum: &mut Sum) -> bool {
    let from = mapping.range(offset, bytes);
    #[cfg(target_arch = "x86_64")]
    if sum.is_whole(bytes) && crate::fused::suits(bytes) {
        use crate::fused::{hash_copy, store};
        // SAFETY: `suits` said so; `range` checked the source; nothing is stored.
        sum.set_whole(unsafe { hash_copy::<{ store::NOWHERE }>(from.as_ptr(), std::ptr::null_mut(), bytes) });
        return true;
    }
    let _ = (from, sum);
    false
}

/// Hints that the slot at `offset` is copied next.
#[inline]
pub fn prefetch_next(mapping: &Mapping, offset: usize) {
    for line in (0..NEXT_BYTES).step_by(64) {
        mapping.prefetch(offset + line);
    }
}

/// Orders streamed stores before whatever tells others of them: a Release store does not.
#[inline]
pub fn sfence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a fence has no precondition.
    unsafe {
        std::arch::asm!("sfence", options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
}

/// # Safety
/// `src` is valid for reads and `dst` for writes of `len` bytes, and they do not overlap. Others may write `src`, or
/// read `dst`, at the same time.
#[inline]
unsafe fn bytes(src: *const u8, dst: *mut u8, len: usize, kernel: Kernel) {
    #[cfg(target_arch = "x86_64")]
    if kernel == Kernel::Streaming && len >= PART_STREAMING_BYTES && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: as for this function; AVX2 is there.
        return unsafe { streaming_avx2(src, dst, len) };
    }
    let _ = (kernel, PART_STREAMING_BYTES);
    // SAFETY: as for this function.
    unsafe { plain(src, dst, len) };
}

/// libc's memcpy, called where the compiler cannot see which function it is.
///
/// # Safety
/// As for [`bytes`].
#[inline]
pub(crate) unsafe fn plain(src: *const u8, dst: *mut u8, len: usize) {
    let memcpy =
        libc::memcpy as unsafe extern "C" fn(*mut libc::c_void, *const libc::c_void, usize) -> *mut libc::c_void;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a C call with its three arguments in place; everything that a C function may change is declared; without
    // `nostack` the stack is aligned for a call.
    unsafe {
        std::arch::asm!(
            "call {f}",
            f = in(reg) memcpy,
            inout("rdi") dst => _,
            inout("rsi") src => _,
            inout("rdx") len => _,
            clobber_abi("C"),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(
            "blr {f}",
            f = in(reg) memcpy,
            inout("x0") dst => _,
            inout("x1") src => _,
            inout("x2") len => _,
            clobber_abi("C"),
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    // SAFETY: as for this function; the black box hides that this is a plain copy.
    unsafe {
        std::hint::black_box(memcpy)(dst.cast(), src.cast(), len);
    }
}

/// # Safety
/// As for [`bytes`]; the processor has AVX2 and `len` is at least 64.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn streaming_avx2(src: *const u8, dst: *mut u8, len: usize) {
    let head = dst.align_offset(64);
    let blocks = (len - head) / 128;
    let tail = (len - head) % 128;
    // SAFETY: head, body and tail lie within the two ranges: head < 64 <= len, and the three add up to `len`. The body's
    // stores are to multiples of 64 from `dst + head` on. Prefetches may go past the end: they never fault. The
    // registers changed are declared (ymm0-3 as xmm0-3); vzeroupper leaves the upper halves clean.
    unsafe {
        if head > 0 {
            plain(src, dst, head);
        }
        let (mut from, mut to) = (src.add(head), dst.add(head));
        if blocks > 0 {
            std::arch::asm!(
                "2:",
                "prefetcht0 [{from} + 4096]",
                "prefetcht0 [{from} + 4160]",
                "vmovdqu ymm0, [{from}]",
                "vmovdqu ymm1, [{from} + 32]",
                "vmovdqu ymm2, [{from} + 64]",
                "vmovdqu ymm3, [{from} + 96]",
                "vmovntdq [{to}], ymm0",
                "vmovntdq [{to} + 32], ymm1",
                "vmovntdq [{to} + 64], ymm2",
                "vmovntdq [{to} + 96], ymm3",
                "add {from}, 128",
                "add {to}, 128",
                "dec {blocks}",
                "jnz 2b",
                "vzeroupper",
                from = inout(reg) from,
                to = inout(reg) to,
                blocks = inout(reg) blocks => _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nostack),
            );
        }
        if tail > 0 {
            plain(from, to, tail);
        }
    }
}

#[cfg(test)]
mod tests {
    use lapis_config::Key;

    use super::*;
    use crate::sum;

    const BYTES: usize = 40 << 10;
    const KERNELS: [Kernel; 2] = [Kernel::Plain, Kernel::Streaming];

    fn noise(bytes: usize, seed: u64) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..bytes).map(|_| random.u8(..)).collect()
    }

    /// Lengths around every border of the kernels, and some between.
    fn lengths() -> impl Iterator<Item = usize> {
        let borders = [64, 128, 1024, 4096, 8192, 32 << 10];
        (0..=130).chain(borders.into_iter().flat_map(|b| b - 2..b + 3)).chain([5000, 4096 + 1000, 9999])
    }

    #[test]
    fn every_length_at_every_alignment_is_copied_and_nothing_beside_it() {
        let mapping = Mapping::anonymous(BYTES as u64).expect("memory");
        let (background, source) = (vec![0xa5; BYTES], noise(BYTES, 1));
        for (round, len) in lengths().enumerate() {
            for kernel in KERNELS {
                let (from, to) = (round * 7 % 67, round * 13 % 65);
                mapping.copy_in(0, &background);
                into(&mapping, to, &source[from..from + len], kernel);
                let mut back = vec![MaybeUninit::new(0x5a); BYTES];
                let back = out(&mapping, 0, &mut back, Kernel::Plain);
                assert_eq!(back[..to], background[..to]);
                assert_eq!(back[to..to + len], source[from..from + len], "{kernel:?}, {len} bytes at {to}");
                assert_eq!(back[to + len..], background[to + len..]);

                let mut got = vec![MaybeUninit::new(0x5a); len + 70];
                out(&mapping, to, &mut got[from..from + len], kernel);
                // SAFETY: all of it was initialised above.
                let got: Vec<u8> = got.iter().map(|b| unsafe { b.assume_init() }).collect();
                assert_eq!(got[from..from + len], source[from..from + len]);
                assert!(got[..from].iter().chain(&got[from + len..]).all(|b| *b == 0x5a));
            }
        }
    }

    #[test]
    fn the_sum_taken_on_the_way_is_the_sum_taken_before() {
        let mapping = Mapping::anonymous(BYTES as u64).expect("memory");
        let source = noise(BYTES, 2);
        let key = Key([1, 2, 3, 4]);
        for (round, len) in lengths().enumerate() {
            let (from, to) = (round % 5, round * 13 % 65);
            let payload = &source[from..from + len];
            let expected = sum::of_bytes(9, &key, payload);
            for kernel in KERNELS {
                for to in [0, to] {
                    let mut sum = Sum::new(9, &key, len as u64);
                    into_summed(&mapping, to, payload, kernel, &mut sum);
                    assert_eq!(sum.finish(), expected, "{kernel:?}, {len} bytes in, at {to}");
                    assert_eq!(mapping.to_vec(to, len), payload);
                    assert_eq!(sum::of_mapping(9, &key, &mapping, to, len as u32), expected);

                    let mut sum = Sum::new(9, &key, len as u64);
                    let mut got = vec![MaybeUninit::uninit(); len + 64];
                    let got = out_summed(&mapping, to, &mut got[round % 64..][..len], kernel, &mut sum);
                    assert_eq!((sum.finish(), &*got), (expected, payload), "{kernel:?}, {len} bytes out");
                }
                // In two parts, as from two iovecs.
                let mut sum = Sum::new(9, &key, len as u64);
                let (head, tail) = payload.split_at(len / 3);
                into_summed(&mapping, to, head, kernel, &mut sum);
                into_summed(&mapping, to + head.len(), tail, kernel, &mut sum);
                assert_eq!((sum.finish(), mapping.to_vec(to, len)), (expected, payload.to_vec()));
            }
        }
    }

    #[test]
    fn batches_of_large_blocks_stream_and_single_small_ones_do_not() {
        assert_eq!(Kernel::choose(64 << 10, 32), Kernel::Streaming);
        assert_eq!(Kernel::choose(64 << 10, 1), Kernel::Plain);
        assert_eq!(Kernel::choose(1 << 20, 1), Kernel::Streaming);
        assert_eq!(Kernel::choose(4 << 10, 32), Kernel::Plain);
    }
}
