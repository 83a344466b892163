//! What C hands over, made into Rust values: lists, texts, structs with their size. What is unsafe about arguments is
//! here.
//!
//! Every function asks the same of its caller, who has it from C (the head of `lapis.h`): a pointer is null, or it is
//! good for as many elements as the count beside it says until the call ends, nobody writes there meanwhile, and what the
//! call writes is nobody else's to read.

use std::{
    ffi::{CStr, c_char, c_void},
    mem::MaybeUninit,
    ptr, slice,
};

use lapis_client::{ClientError, Dst, KEY_BYTES, Key, Keys, Pool, Src};

use crate::{error::CallError, names::lapis_key_t};

/// Most keys of one call.
pub const LAPIS_KEYS_MAX: usize = 8192;

/// No struct of this library comes near it: a size beyond it is memory that nobody initialised.
const STRUCT_BYTES_MAX: usize = 4096;

/// A struct that may grow: its first field is its own size as the program was compiled.
///
/// # Safety
/// `repr(C)`, a `usize` first, and sound whatever bytes are in it: numbers and raw pointers alone.
pub unsafe trait Growing: Copy {
    /// Size of its first version.
    const BYTES_MIN: usize;
}

/// Keys of a batch.
///
/// # Safety
/// See the module.
pub unsafe fn keys<'a>(keys: *const lapis_key_t, count: usize) -> Result<Keys<'a>, CallError> {
    if keys.is_null() {
        return Err(CallError::Null { argument: "keys" });
    }
    if !(1..=LAPIS_KEYS_MAX).contains(&count) {
        return Err(ClientError::KeyCount { keys: count }.into());
    }
    // SAFETY: the caller's promise: `count` keys of 32 plain bytes, few enough for an isize.
    let bytes = unsafe { slice::from_raw_parts(keys.cast::<u8>(), count * KEY_BYTES) };
    Ok(Keys::from_bytes(bytes)?)
}

/// One key, or none where null.
///
/// # Safety
/// See the module.
pub unsafe fn key(key: *const lapis_key_t) -> Option<Key> {
    // SAFETY: the caller's promise.
    unsafe { key.as_ref() }.map(|key| Key::from_bytes(key.bytes))
}

/// Elements of a list that is not empty.
///
/// # Safety
/// See the module.
pub unsafe fn list<'a, T>(list: *const T, count: usize, argument: &'static str) -> Result<&'a [T], CallError> {
    if list.is_null() {
        return Err(CallError::Null { argument });
    }
    fits::<T>(count, argument)?;
    // SAFETY: the caller's promise; the length was checked.
    Ok(unsafe { slice::from_raw_parts(list, count) })
}

/// Bytes; null will do for none.
///
/// # Safety
/// See the module.
pub unsafe fn bytes<'a>(bytes: *const c_void, count: usize, argument: &'static str) -> Result<&'a [u8], CallError> {
    if bytes.is_null() && count == 0 {
        return Ok(&[]);
    }
    // SAFETY: the caller's promise.
    unsafe { list(bytes.cast::<u8>(), count, argument) }
}

/// A list that the call fills.
///
/// # Safety
/// See the module.
pub unsafe fn list_out<'a, T>(
    list: *mut T,
    count: usize,
    argument: &'static str,
) -> Result<&'a mut [MaybeUninit<T>], CallError> {
    if list.is_null() {
        return Err(CallError::Null { argument });
    }
    fits::<T>(count, argument)?;
    // SAFETY: the caller's promise; the length was checked; what is there need not be initialised.
    Ok(unsafe { slice::from_raw_parts_mut(list.cast(), count) })
}

/// A list that the call fills if the caller wants it.
///
/// # Safety
/// See the module.
pub unsafe fn list_out_if_wanted<'a, T>(list: *mut T, count: usize) -> Result<&'a mut [MaybeUninit<T>], CallError> {
    if list.is_null() {
        return Ok(&mut []);
    }
    // SAFETY: the caller's promise.
    unsafe { list_out(list, count, "a list to be filled") }
}

/// Where the blocks of a batch go to: one buffer.
///
/// # Safety
/// See the module; for as long as the answer is used.
pub unsafe fn dst<'a>(buffer: *mut c_void, bytes: usize) -> Result<Dst<'a>, CallError> {
    // SAFETY: the caller's promise.
    Ok(Dst::from(unsafe { list_out(buffer.cast::<u8>(), bytes, "dst") }?))
}

/// Where the blocks of a batch come from: one buffer.
///
/// # Safety
/// See the module; for as long as the answer is used.
pub unsafe fn src<'a>(buffer: *const c_void, bytes: usize) -> Result<Src<'a>, CallError> {
    // SAFETY: the caller's promise.
    Ok(Src::from(unsafe { list(buffer.cast::<u8>(), bytes, "src") }?))
}

/// Vectors for blocks of a pool, each looked at by itself; whether they add up is the client's question.
///
/// # Safety
/// See the module.
pub unsafe fn vectors<'a>(
    vectors: *const libc::iovec,
    count: usize,
    pool: &Pool,
) -> Result<&'a [libc::iovec], CallError> {
    // SAFETY: the caller's promise.
    let vectors = unsafe { list(vectors, count, "vectors") }?;
    for (index, vector) in vectors.iter().enumerate() {
        if vector.iov_len as u64 > pool.block_bytes() {
            let (block_bytes, found) = (pool.block_bytes(), vector.iov_len as u64);
            return Err(ClientError::VectorBytes { block: index, expected: block_bytes, found }.into());
        }
        if vector.iov_base.is_null() && vector.iov_len > 0 {
            return Err(CallError::NullAt { argument: "vectors", index });
        }
    }
    Ok(vectors)
}

/// A text of UTF-8.
///
/// # Safety
/// See the module; it ends with a NUL.
pub unsafe fn text<'a>(text: *const c_char, argument: &'static str) -> Result<&'a str, CallError> {
    if text.is_null() {
        return Err(CallError::Null { argument });
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| CallError::Utf8 { argument })
}

/// A text of UTF-8; null is the empty one.
///
/// # Safety
/// As for [`text`].
pub unsafe fn text_or_empty<'a>(bytes: *const c_char, argument: &'static str) -> Result<&'a str, CallError> {
    // SAFETY: the caller's promise.
    if bytes.is_null() { Ok("") } else { unsafe { text(bytes, argument) } }
}

/// A struct of any version, as this library knows it: what an older program did not set is zero.
///
/// # Safety
/// See the module; it is as long as its own size says.
pub unsafe fn growing<T: Growing>(from: *const T, argument: &'static str) -> Result<T, CallError> {
    // SAFETY: the caller's promise.
    let size = unsafe { size_of_theirs(from, argument) }?;
    let known = size_of::<T>();
    // SAFETY: the caller's promise: `size` bytes are there.
    let bytes = unsafe { slice::from_raw_parts(from.cast::<u8>(), size) };
    if bytes.iter().skip(known).any(|byte| *byte != 0) {
        return Err(CallError::Newer { argument, known });
    }
    let mut ours = MaybeUninit::<T>::zeroed();
    // SAFETY: both are at least so long, and apart. Any bytes make a `T` (`Growing`), those that were zeroed too.
    unsafe {
        ptr::copy_nonoverlapping(bytes.as_ptr(), ours.as_mut_ptr().cast(), size.min(known));
        Ok(ours.assume_init())
    }
}

/// The same; null is a struct of zeros, the defaults.
///
/// # Safety
/// As for [`growing`].
pub unsafe fn growing_or_zero<T: Growing>(from: *const T, argument: &'static str) -> Result<T, CallError> {
    if from.is_null() {
        // SAFETY: any bytes make a `T` (`Growing`).
        return Ok(unsafe { MaybeUninit::zeroed().assume_init() });
    }
    // SAFETY: the caller's promise.
    unsafe { growing(from, argument) }
}

/// A list of structs of any version, each as long as the first says that it is.
///
/// # Safety
/// As for [`growing`], of each.
pub unsafe fn growing_list<T: Growing>(
    list: *const T,
    count: usize,
    argument: &'static str,
) -> Result<Vec<T>, CallError> {
    if list.is_null() {
        return Err(CallError::Null { argument });
    }
    if count == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the caller's promise: there is a first.
    let step = unsafe { size_of_theirs(list, argument) }?;
    if !step.is_multiple_of(align_of::<T>()) {
        return Err(CallError::Value { argument, found: step as u64, expected: "a size that LAPIS_INIT sets" });
    }
    // Few enough for an isize.
    fits::<[u8; STRUCT_BYTES_MAX]>(count, argument)?;
    let one = |index: usize| {
        // SAFETY: the caller's promise: there are so many of that size, each of which begins at a multiple of its alignment.
        let from = unsafe { list.byte_add(index * step) };
        // SAFETY: as above.
        let found = unsafe { size_of_theirs(from, argument) }?;
        if found != step {
            let expected = "the same size in all of the list";
            return Err(CallError::Value { argument, found: found as u64, expected });
        }
        // SAFETY: as above.
        unsafe { growing(from, argument) }
    };
    (0..count).map(one).collect()
}

/// Fills a struct of any version with as much as it has room for. Its size stays, what this library does not know becomes
/// zero.
///
/// # Safety
/// As for [`growing`].
pub unsafe fn fill_growing<T: Growing>(to: *mut T, value: &T, argument: &'static str) -> Result<(), CallError> {
    // SAFETY: the caller's promise.
    let size = unsafe { size_of_theirs(to, argument) }?;
    let after = size_of::<usize>();
    let known = size.min(size_of::<T>()) - after;
    // SAFETY: `size` bytes are there, and `value` is as long as is read of it; the size itself is stepped over.
    unsafe {
        let to = to.cast::<u8>().add(after);
        ptr::copy_nonoverlapping(ptr::from_ref(value).cast::<u8>().add(after), to, known);
        ptr::write_bytes(to.add(known), 0, size - after - known);
    }
    Ok(())
}

/// # Safety
/// As for [`growing`].
unsafe fn size_of_theirs<T: Growing>(from: *const T, argument: &'static str) -> Result<usize, CallError> {
    if from.is_null() {
        return Err(CallError::Null { argument });
    }
    // SAFETY: the caller's promise: a size comes first.
    let found = unsafe { from.cast::<usize>().read() };
    if (T::BYTES_MIN..=STRUCT_BYTES_MAX).contains(&found) {
        Ok(found)
    } else {
        Err(CallError::Size { argument, found, least: T::BYTES_MIN, most: STRUCT_BYTES_MAX })
    }
}

fn fits<T>(count: usize, argument: &'static str) -> Result<(), CallError> {
    if count.checked_mul(size_of::<T>()).is_some_and(|bytes| isize::try_from(bytes).is_ok()) {
        return Ok(());
    }
    Err(CallError::Value { argument, found: count as u64, expected: "a count of what fits memory" })
}

// ---- Places for single answers ----

/// The place, which must be there.
pub fn place<'a, T>(
    out: Option<&'a mut MaybeUninit<T>>,
    argument: &'static str,
) -> Result<&'a mut MaybeUninit<T>, CallError> {
    out.ok_or(CallError::Null { argument })
}

/// Answers if somebody wants to know.
pub fn tell<T>(out: Option<&mut MaybeUninit<T>>, value: T) {
    if let Some(place) = out {
        place.write(value);
    }
}

/// The place of a handle, null until the call succeeds: freeing what a failed call left is no mistake.
pub fn handle_place<'a, T>(
    out: Option<&'a mut MaybeUninit<*mut T>>,
    argument: &'static str,
) -> Result<&'a mut MaybeUninit<*mut T>, CallError> {
    let place = place(out, argument)?;
    place.write(ptr::null_mut());
    Ok(place)
}

/// Gives a handle away; it comes back as a `Box`.
pub fn give<T>(place: &mut MaybeUninit<*mut T>, handle: T) {
    place.write(Box::into_raw(Box::new(handle)));
}

/// Fills a list from its start.
pub fn fill<T>(list: &mut [MaybeUninit<T>], values: impl IntoIterator<Item = T>) {
    for (place, value) in list.iter_mut().zip(values) {
        place.write(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(C)]
    struct Ours {
        size: usize,
        first: u64,
        added: u64,
    }

    // SAFETY: numbers alone, the size first.
    unsafe impl Growing for Ours {
        const BYTES_MIN: usize = 16;
    }

    fn read(words: &[usize]) -> Result<Ours, CallError> {
        // SAFETY: as many bytes as the size says are there, or the size is refused before anything else is read.
        unsafe { growing(words.as_ptr().cast(), "ours") }
    }

    #[test]
    fn what_an_older_program_does_not_know_is_zero() {
        assert_eq!(read(&[16, 5]).expect("the first version"), Ours { size: 16, first: 5, added: 0 });
        assert_eq!(read(&[24, 5, 6]).expect("this version"), Ours { size: 24, first: 5, added: 6 });
    }

    #[test]
    fn a_list_has_the_step_of_the_program_that_made_it() {
        // SAFETY: as in `read`, of each.
        let read = |words: &[usize], count| unsafe { growing_list::<Ours>(words.as_ptr().cast(), count, "ours") };
        let fields = |list: Vec<Ours>| list.iter().map(|ours| (ours.first, ours.added)).collect::<Vec<_>>();
        assert_eq!(fields(read(&[16, 5, 16, 7], 2).expect("the first version")), [(5, 0), (7, 0)]);
        assert_eq!(fields(read(&[24, 5, 6, 24, 7, 8], 2).expect("this one")), [(5, 6), (7, 8)]);
        assert_eq!(fields(read(&[32, 5, 6, 0, 32, 7, 8, 0], 2).expect("a newer one")), [(5, 6), (7, 8)]);
        assert!(matches!(read(&[32, 5, 6, 0, 32, 7, 8, 9], 2), Err(CallError::Newer { .. })));
        assert!(matches!(read(&[24, 5, 6, 16, 7, 8], 2), Err(CallError::Value { found: 16, .. })));
        assert!(matches!(read(&[20, 5, 6], 1), Err(CallError::Value { found: 20, .. })));
        assert!(matches!(read(&[0, 5, 6], 1), Err(CallError::Size { found: 0, .. })));
        assert_eq!(fields(read(&[0], 0).expect("none")), []);
    }

    #[test]
    fn what_a_newer_program_sets_is_refused_and_what_it_leaves_is_not() {
        assert_eq!(read(&[32, 5, 6, 0]).expect("nothing new is asked"), Ours { size: 32, first: 5, added: 6 });
        assert!(matches!(read(&[32, 5, 6, 7]), Err(CallError::Newer { argument: "ours", known: 24 })));
    }

    #[test]
    fn a_size_that_nobody_set_is_refused_before_anything_is_read() {
        for size in [0, 15, 4097, usize::MAX] {
            let error = read(&[size]).expect_err("no size of ours").to_string();
            assert!(error.contains("ours.size") && error.contains(&size.to_string()), "{error}");
        }
    }

    #[test]
    fn an_answer_fills_as_much_as_the_program_knows() {
        let value = Ours { size: 24, first: 5, added: 6 };
        for (size, expected) in [(16, [16, 5, 9, 9]), (24, [24, 5, 6, 9]), (32, [32, 5, 6, 0])] {
            let mut words: [usize; 4] = [size, 9, 9, 9];
            // SAFETY: as many bytes as the size says are there.
            unsafe { fill_growing(words.as_mut_ptr().cast(), &value, "ours") }.expect("a size of ours");
            assert_eq!(words, expected);
        }
    }

    #[test]
    fn a_null_is_named_and_a_batch_has_at_most_8192_keys() {
        assert_eq!(LAPIS_KEYS_MAX, lapis_config::BATCH_KEYS_MAX);
        let one = lapis_key_t { bytes: [0; 32] };
        // SAFETY: one key is there, and other counts are refused before anything is read.
        let asked = |key: *const lapis_key_t, count| unsafe { keys(key, count) }.map(|keys| keys.len());
        assert!(matches!(asked(ptr::null(), 1), Err(CallError::Null { argument: "keys" })));
        assert_eq!(asked(&one, 1).expect("one key"), 1);
        for count in [0, LAPIS_KEYS_MAX + 1, usize::MAX] {
            assert!(matches!(asked(&one, count), Err(CallError::Client(ClientError::KeyCount { .. }))));
        }
    }
}
