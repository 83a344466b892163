//! Ages of blocks in buckets whose width grows with the age: two a doubling. Integers only, so that every machine sorts
//! alike.

/// Buckets: up to 2^20 seconds, the last one open.
pub(super) const BUCKETS: usize = 42;
/// Ages below this, in tenths of a second, are one bucket.
const FIRST: u32 = 8;

/// The bucket of an age in tenths of a second.
#[inline]
pub(super) fn bucket(age: u32) -> usize {
    if age < FIRST {
        return 0;
    }
    let doubling = age.ilog2();
    let half = age >> (doubling - 1) & 1;
    (1 + 2 * (doubling - FIRST.ilog2()) as usize + half as usize).min(BUCKETS - 1)
}

/// Least age of a bucket.
pub(super) fn start(bucket: usize) -> u64 {
    let Some(at) = bucket.checked_sub(1) else { return 0 };
    (2 + at as u64 % 2) << (FIRST.ilog2() as u64 - 1 + at as u64 / 2)
}

/// Tenths of a second that a life may spend in a bucket.
pub(super) fn width(bucket: usize) -> u64 {
    start(bucket + 1) - start(bucket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_age_lies_within_its_bucket() {
        for age in (0..5_000).chain([1 << 20, (1 << 20) + 1, 10_485_759]) {
            let bucket = bucket(age);
            assert!(start(bucket) <= u64::from(age) && u64::from(age) < start(bucket) + width(bucket), "age {age}");
        }
        assert_eq!(bucket(u32::MAX), BUCKETS - 1);
    }
}
