//! XXH3-64 (seed 0) computed while bytes are copied, so that memory is read once. Of libc's memmove, 32 cold blocks of
//! 1 MiB, Zen 4: copy alone 1.43; copy and hash of a block in turn 1.1, of 4 KiB in turn 1.2; here 1.59. CRC-64/NVME of
//! crc-fast, 8 KiB in turn, 1.15. The value is that of any other XXH3-64; the tests compare.
//!
//! Loads and stores are `asm!`: either side may be shared memory, and every byte is loaded once for both uses.

#![cfg(target_arch = "x86_64")]

use std::{arch::asm, arch::x86_64::*, sync::OnceLock};

const PRIME32: [u64; 3] = [0x9e37_79b1, 0x85eb_ca77, 0xc2b2_ae3d];
const PRIME64: [u64; 5] =
    [0x9e37_79b1_85eb_ca87, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 0x85eb_ca77_c2b2_ae63, 0x27d4_eb2f_1656_67c5];
const STRIPE_BYTES: usize = 64;
const SECRET_BYTES: usize = 192;
const BLOCK_STRIPES: usize = (SECRET_BYTES - STRIPE_BYTES) / 8;
const BLOCK_BYTES: usize = BLOCK_STRIPES * STRIPE_BYTES;
/// XXH3 has other rules for inputs up to 240 bytes; and small parts are not worth streaming.
pub(crate) const BYTES_MIN: usize = 4096;
const PREFETCH_BYTES: usize = 4096;

/// Where the bytes go, beside into the hash.
pub(crate) mod store {
    pub(crate) const NOWHERE: u8 = 0;
    /// By ordinary stores, to any address.
    pub(crate) const CACHED: u8 = 1;
    /// Past the caches, to a multiple of 32.
    pub(crate) const STREAMED: u8 = 2;
}

/// Whether [`hash_copy`] may be called for so many bytes.
#[inline]
pub(crate) fn suits(len: usize) -> bool {
    len >= BYTES_MIN && std::arch::is_x86_feature_detected!("avx2")
}

/// The secret of seed 0.
fn secret() -> &'static [u8; SECRET_BYTES] {
    static SECRET: OnceLock<[u8; SECRET_BYTES]> = OnceLock::new();
    SECRET.get_or_init(|| {
        let secret = twox_hash::xxhash3_64::Hasher::new().into_secret();
        (*secret).try_into().expect("the default secret of XXH3 has 192 bytes")
    })
}

fn secret_word(secret: &[u8; SECRET_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(secret[at..at + 8].try_into().expect("8 bytes"))
}

/// Hashes `len` bytes at `src` and copies them to `dst`, as `STORE` says (a value of [`store`]). Streamed stores need an
/// `sfence` before others are told.
///
/// # Safety
/// [`suits`] said so; `src` is valid for reads and, unless `STORE` is `NOWHERE`, `dst` for writes of `len` bytes, and
/// they do not overlap; `dst` is a multiple of 32 if `STREAMED`. Others may write `src`, or read `dst`, meanwhile.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn hash_copy<const STORE: u8>(src: *const u8, dst: *mut u8, len: usize) -> u64 {
    let secret = secret();
    let lanes = |v: [u64; 4]| _mm256_set_epi64x(v[3] as i64, v[2] as i64, v[1] as i64, v[0] as i64);
    let mut acc = [
        lanes([PRIME32[2], PRIME64[0], PRIME64[1], PRIME64[2]]),
        lanes([PRIME64[3], PRIME32[1], PRIME64[4], PRIME32[0]]),
    ];
    let blocks = (len - 1) / BLOCK_BYTES;
    let stripes = (len - 1 - blocks * BLOCK_BYTES) / STRIPE_BYTES;
    let mut at = 0;
    // SAFETY: all stripes lie below `len`: blocks * 1024 + stripes * 64 <= len - 1, and the last one ends at `len`; keys
    // lie within the secret (15 * 8 + 64 <= 192). `dst + at` is a multiple of 32 while `at` is one of 64.
    unsafe {
        for _ in 0..blocks {
            for stripe in 0..BLOCK_STRIPES {
                accumulate::<STORE>(&mut acc, src.add(at), dst.wrapping_add(at), secret.as_ptr().add(stripe * 8));
                at += STRIPE_BYTES;
            }
            scramble(&mut acc, secret.as_ptr().add(SECRET_BYTES - STRIPE_BYTES));
        }
        for stripe in 0..stripes {
            accumulate::<STORE>(&mut acc, src.add(at), dst.wrapping_add(at), secret.as_ptr().add(stripe * 8));
            at += STRIPE_BYTES;
        }
        let tail = len - at;
        let last = last_stripe::<STORE>(src, dst, at, tail);
        add_stripe(&mut acc, last, secret.as_ptr().add(SECRET_BYTES - STRIPE_BYTES - 7));
    }
    finish(acc, secret, len)
}

/// The last 64 bytes of the input, which XXH3 takes in whole; their `tail` bytes from `at` on are not stored yet.
///
/// # Safety
/// As for [`hash_copy`]; `tail` is 1 to 64 and `at + tail` the length.
#[target_feature(enable = "avx2")]
unsafe fn last_stripe<const STORE: u8>(src: *const u8, dst: *mut u8, at: usize, tail: usize) -> [__m256i; 2] {
    // SAFETY: the input has at least 64 bytes, so those before its end are within it; the rest as for `hash_copy`.
    unsafe {
        let from = src.add(at + tail - STRIPE_BYTES);
        let last = [load(from), load(from.add(32))];
        if STORE != store::NOWHERE {
            // Through a copy of what was hashed: the source is read once.
            let mut bytes = [0u8; STRIPE_BYTES];
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), last[0]);
            _mm256_storeu_si256(bytes.as_mut_ptr().add(32).cast(), last[1]);
            crate::copy::plain(bytes.as_ptr().add(STRIPE_BYTES - tail), dst.add(at), tail);
        }
        last
    }
}

/// # Safety
/// 64 bytes at `src` can be read, and written at `dst` as `STORE` says; 64 at `key` can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn accumulate<const STORE: u8>(acc: &mut [__m256i; 2], src: *const u8, dst: *mut u8, key: *const u8) {
    // SAFETY: as for this function; a prefetch never faults.
    unsafe {
        _mm_prefetch::<{ _MM_HINT_T0 }>(src.wrapping_add(PREFETCH_BYTES).cast());
        let data = [load(src), load(src.add(32))];
        match STORE {
            store::STREAMED => {
                stream(dst, data[0]);
                stream(dst.add(32), data[1]);
            }
            store::CACHED => {
                cached(dst, data[0]);
                cached(dst.add(32), data[1]);
            }
            _ => {}
        }
        add_stripe(acc, data, key);
    }
}

/// # Safety
/// 64 bytes at `key` can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_stripe(acc: &mut [__m256i; 2], data: [__m256i; 2], key: *const u8) {
    for (half, (acc, data)) in acc.iter_mut().zip(data).enumerate() {
        // SAFETY: as for this function.
        let key = unsafe { _mm256_loadu_si256(key.add(32 * half).cast()) };
        let mixed = _mm256_xor_si256(data, key);
        let product = _mm256_mul_epu32(mixed, _mm256_srli_epi64::<32>(mixed));
        let swapped = _mm256_shuffle_epi32::<0b01_00_11_10>(data);
        *acc = _mm256_add_epi64(*acc, _mm256_add_epi64(product, swapped));
    }
}

/// # Safety
/// 64 bytes at `key` can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn scramble(acc: &mut [__m256i; 2], key: *const u8) {
    let prime = _mm256_set1_epi32(PRIME32[0] as i32);
    for (half, acc) in acc.iter_mut().enumerate() {
        // SAFETY: as for this function.
        let key = unsafe { _mm256_loadu_si256(key.add(32 * half).cast()) };
        let shifted = _mm256_xor_si256(*acc, _mm256_srli_epi64::<47>(*acc));
        let mixed = _mm256_xor_si256(shifted, key);
        let low = _mm256_mul_epu32(mixed, prime);
        let high = _mm256_mul_epu32(_mm256_srli_epi64::<32>(mixed), prime);
        *acc = _mm256_add_epi64(low, _mm256_slli_epi64::<32>(high));
    }
}

#[target_feature(enable = "avx2")]
fn finish(acc: [__m256i; 2], secret: &[u8; SECRET_BYTES], len: usize) -> u64 {
    let mut lanes = [0u64; 8];
    // SAFETY: two unaligned stores of 32 bytes fill the 64 bytes of `lanes`.
    unsafe {
        _mm256_storeu_si256(lanes.as_mut_ptr().cast(), acc[0]);
        _mm256_storeu_si256(lanes.as_mut_ptr().add(4).cast(), acc[1]);
    }
    let mut hash = (len as u64).wrapping_mul(PRIME64[0]);
    for (pair, at) in lanes.chunks_exact(2).zip((11..).step_by(16)) {
        let low = pair[0] ^ secret_word(secret, at);
        let high = pair[1] ^ secret_word(secret, at + 8);
        let product = u128::from(low) * u128::from(high);
        hash = hash.wrapping_add(product as u64 ^ (product >> 64) as u64);
    }
    hash ^= hash >> 37;
    hash = hash.wrapping_mul(0x1656_6791_9e37_79f9);
    hash ^ (hash >> 32)
}

/// # Safety
/// 32 bytes at `src` can be read. Others may write them.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(src: *const u8) -> __m256i {
    let value;
    // SAFETY: as for this function.
    unsafe {
        asm!("vmovdqu {v}, [{p}]", p = in(reg) src, v = out(ymm_reg) value,
             options(nostack, preserves_flags, readonly));
    }
    value
}

/// # Safety
/// 32 bytes at `dst`, a multiple of 32, can be written. Others may read them.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn stream(dst: *mut u8, value: __m256i) {
    // SAFETY: as for this function.
    unsafe { asm!("vmovntdq [{p}], {v}", p = in(reg) dst, v = in(ymm_reg) value, options(nostack, preserves_flags)) };
}

/// # Safety
/// 32 bytes at `dst` can be written. Others may read them.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn cached(dst: *mut u8, value: __m256i) {
    // SAFETY: as for this function.
    unsafe { asm!("vmovdqu [{p}], {v}", p = in(reg) dst, v = in(ymm_reg) value, options(nostack, preserves_flags)) };
}
