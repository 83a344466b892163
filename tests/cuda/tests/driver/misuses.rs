//! Small programs that each use the driver in a way that they must not. Each is answered by CUDA's error where it has one, and
//! recorded: once, under the right name.

use std::{
    ffi::{c_uint, c_ulonglong, c_void},
    ptr::null_mut,
};

use cudarc::driver::sys;
use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap},
};

use super::{
    harness::{Scenario, WORD, cuda, library, word},
    raw::{BYTES, Pinned, context, event, fails, memory, ok, stream},
};

/// Name, and what the record of it starts with.
const PLANTED: &[(&str, fn(), &str)] = &[
    ("use after free", use_after_free, "use-after-free: cuMemcpyHtoDAsync"),
    ("double free", double_free, "double-free: cuMemFree"),
    ("wrong context", wrong_context, "wrong-context: cuMemcpyHtoDAsync"),
    ("no context", no_context, "wrong-context: cuMemAlloc"),
    ("pageable", pageable, "pageable: cuMemcpyHtoDAsync"),
    ("out of bounds", out_of_bounds, "out-of-bounds: cuMemcpyDtoHAsync"),
    ("freed in use", freed_in_use, "in-use: cuMemFree"),
    ("two streams", two_streams, "unsynchronised: cuMemcpy"),
    ("twin mapping", twin_mapping, "unsynchronised: cuMemcpyDtoHAsync"),
    ("unrecorded", unrecorded, "unrecorded: cuEventSynchronize"),
    ("leak", leak, "leak: cuDevicePrimaryCtxRelease"),
    ("unregistered in use", unregistered_in_use, "in-use: cuMemHostUnregister"),
    ("freed without waiting", freed_without_waiting, "unsynchronised: cuMemFree"),
    ("read too early", read_too_early, "in-use: the host"),
    ("registered twice", registered_twice, "registration: cuMemHostRegister"),
    ("no access", no_access, "no-access: cuMemcpyDtoDAsync"),
    ("destroyed stream", destroyed_stream, "use-after-free: cuStreamSynchronize"),
    ("batch", batch, "unsynchronised: cuMemcpyBatchAsync"),
    ("word of nobody", word_of_nobody, "pageable: cuStreamWriteValue32"),
    ("word between words", word_between_words, "misaligned: cuStreamWaitValue32"),
    ("word too early", word_too_early, "unsynchronised: cuMemcpy"),
];

fn use_after_free() {
    let (stream, block, from) = (stream(), memory(BYTES), Pinned::new(BYTES, 0));
    ok!(sys::cuMemFree_v2(block));
    fails!(sys::cuMemcpyHtoDAsync_v2(block + 8, from.at(), 8, stream), CUDA_ERROR_INVALID_VALUE);
}

fn double_free() {
    let block = memory(BYTES);
    ok!(sys::cuMemFree_v2(block));
    fails!(sys::cuMemFree_v2(block), CUDA_ERROR_INVALID_VALUE);
}

fn wrong_context() {
    let (stream, block, from) = (stream(), memory(BYTES), Pinned::new(BYTES, 0));
    context(1);
    fails!(sys::cuMemcpyHtoDAsync_v2(block, from.at(), 8, stream), CUDA_ERROR_INVALID_CONTEXT);
}

fn no_context() {
    ok!(sys::cuCtxSetCurrent(null_mut()));
    let mut at = 0;
    fails!(sys::cuMemAlloc_v2(&raw mut at, 8), CUDA_ERROR_INVALID_CONTEXT);
}

fn pageable() {
    let (stream, block, from) = (stream(), memory(BYTES), [0u8; 64]);
    fails!(sys::cuMemcpyHtoDAsync_v2(block, from.as_ptr().cast(), 64, stream), CUDA_ERROR_INVALID_VALUE);
}

fn out_of_bounds() {
    let (stream, block, to) = (stream(), memory(BYTES), Pinned::new(2 * BYTES, 0));
    fails!(sys::cuMemcpyDtoHAsync_v2(to.at(), block + 1, BYTES, stream), CUDA_ERROR_INVALID_VALUE);
}

fn freed_in_use() {
    let (stream, block, from) = (stream(), memory(BYTES), Pinned::new(BYTES, 0));
    ok!(sys::cuMemcpyHtoDAsync_v2(block, from.at(), BYTES, stream));
    ok!(sys::cuMemFree_v2(block));
    // By then it had begun, or found its memory gone, which is the end of the context.
    // SAFETY: a stream of this test's own.
    let _ = unsafe { sys::cuStreamSynchronize(stream) };
}

fn two_streams() {
    let (one, two, block) = (stream(), stream(), memory(BYTES));
    let (from, to) = (Pinned::new(BYTES, 7), Pinned::new(BYTES, 0));
    let (begun, other) = (event(2), event(2));
    ok!(sys::cuMemcpyHtoDAsync_v2(block, from.at(), BYTES, one));
    ok!(sys::cuEventRecord(begun, one));
    // Waits, but for another event than the copy's.
    ok!(sys::cuEventRecord(other, two));
    ok!(sys::cuStreamWaitEvent(two, other, 0));
    ok!(sys::cuMemcpyDtoHAsync_v2(to.at(), block, BYTES, two));
    ok!(sys::cuCtxSynchronize());
}

/// One memfd at two addresses: two copies write to the same bytes, by different pointers.
fn twin_mapping() {
    let fd = memfd_create("twin", MemfdFlags::CLOEXEC).expect("memory");
    ftruncate(&fd, BYTES as u64).expect("memory");
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: new mappings, which this test alone has.
    let map = || unsafe { mmap(null_mut(), BYTES, protection, MapFlags::SHARED, &fd, 0).expect("mapped") };
    let (here, there) = (map(), map());
    for at in [here, there] {
        ok!(sys::cuMemHostRegister_v2(at, BYTES, 1));
    }
    let (one, two, block) = (stream(), stream(), memory(BYTES));
    ok!(sys::cuMemcpyDtoHAsync_v2(here, block, BYTES, one));
    ok!(sys::cuMemcpyDtoHAsync_v2(there, block, BYTES, two));
    ok!(sys::cuCtxSynchronize());
}

fn unrecorded() {
    // CUDA calls that success.
    ok!(sys::cuEventSynchronize(event(2)));
}

fn leak() {
    memory(BYTES);
    ok!(sys::cuDevicePrimaryCtxRelease_v2(0));
}

fn unregistered_in_use() {
    let (stream, block, from) = (stream(), memory(BYTES), Pinned::new(BYTES, 0));
    ok!(sys::cuMemcpyHtoDAsync_v2(block, from.at(), BYTES, stream));
    let _kept = from.end();
    // SAFETY: a stream of this test's own.
    let _ = unsafe { sys::cuStreamSynchronize(stream) };
}

/// The copy has ended, which nobody asked: another time it will not have.
fn freed_without_waiting() {
    let (one, two, block, from) = (stream(), stream(), memory(BYTES), Pinned::new(BYTES, 0));
    let flag = memory(4);
    ok!(sys::cuMemcpyHtoDAsync_v2(block, from.at(), BYTES, one));
    let done = event(2);
    ok!(sys::cuEventRecord(done, one));
    // The other stream waits for it, and the host only for what the other stream did before.
    ok!(sys::cuMemsetD8Async(flag, 0, 4, two));
    ok!(sys::cuStreamSynchronize(two));
    until_the_latency_is_over();
    ok!(sys::cuMemFree_v2(block));
}

fn read_too_early() {
    let (stream, block, to) = (stream(), memory(BYTES), Pinned::new(BYTES, 0));
    ok!(sys::cuMemcpyDtoHAsync_v2(to.at(), block, BYTES, stream));
    assert_eq!(host_touches(to.at(), BYTES as u64, false), 0);
    ok!(sys::cuStreamSynchronize(stream));
    assert_eq!(host_touches(to.at(), BYTES as u64, false), 1);
}

fn registered_twice() {
    let from = Pinned::new(BYTES, 0);
    let again = from.at().wrapping_byte_add(64);
    fails!(sys::cuMemHostRegister_v2(again, 64, 1), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
}

fn no_access() {
    let theirs = memory(BYTES);
    context(1);
    let (stream, ours) = (stream(), memory(BYTES));
    fails!(sys::cuMemcpyDtoDAsync_v2(ours, theirs, 8, stream), CUDA_ERROR_PEER_ACCESS_NOT_ENABLED);
}

fn destroyed_stream() {
    let stream = stream();
    ok!(sys::cuStreamDestroy_v2(stream));
    fails!(sys::cuStreamSynchronize(stream), CUDA_ERROR_CONTEXT_IS_DESTROYED);
}

/// Nothing orders the copies of a batch: the second reads what the first writes.
fn batch() {
    let (stream, block, from) = (stream(), memory(2 * BYTES), Pinned::new(BYTES, 0));
    let nowhere = sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_INVALID, id: 0 };
    let mut attributes = sys::CUmemcpyAttributes {
        srcAccessOrder: sys::CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM,
        srcLocHint: nowhere,
        dstLocHint: nowhere,
        flags: 0,
    };
    let (mut to, mut from) = ([block, block + BYTES as u64], [from.at() as u64, block]);
    let (mut bytes, mut first, mut failed) = ([BYTES; 2], 0, 0);
    ok!(sys::cuMemcpyBatchAsync(
        to.as_mut_ptr(),
        from.as_mut_ptr(),
        bytes.as_mut_ptr(),
        2,
        &raw mut attributes,
        &raw mut first,
        1,
        &raw mut failed,
        stream,
    ));
}

fn word_of_nobody() {
    let (stream, word) = (stream(), Box::new(0u32));
    let at = std::ptr::from_ref(&*word).addr() as u64;
    fails!(sys::cuStreamWriteValue32_v2(stream, at, 1, 0), CUDA_ERROR_INVALID_VALUE);
}

fn word_between_words() {
    let (stream, words) = (stream(), memory(8));
    fails!(sys::cuStreamWaitValue32_v2(stream, words + 2, 1, 0), CUDA_ERROR_INVALID_VALUE);
}

/// The word is there before what it is to tell of.
fn word_too_early() {
    let (one, two, block, word) = (stream(), stream(), memory(BYTES), memory(4));
    let (from, to) = (Pinned::new(BYTES, 7), Pinned::new(BYTES, 0));
    ok!(sys::cuMemsetD8Async(word, 0, 4, one));
    ok!(sys::cuStreamSynchronize(one));
    ok!(sys::cuStreamWaitValue32_v2(two, word, 1, 0));
    ok!(sys::cuMemcpyDtoHAsync_v2(to.at(), block, BYTES, two));
    ok!(sys::cuStreamWriteValue32_v2(one, word, 1, 0));
    ok!(sys::cuMemcpyHtoDAsync_v2(block, from.at(), BYTES, one));
    ok!(sys::cuCtxSynchronize());
}

fn host_touches(at: *mut c_void, bytes: u64, writes: bool) -> c_uint {
    let path = library().expect("a child");
    // SAFETY: the library is loaded already, and has this function of this type.
    unsafe {
        let library = libloading::Library::new(path).expect("loaded");
        let touches: libloading::Symbol<'_, unsafe extern "C" fn(*const c_void, c_ulonglong, c_uint) -> c_uint> =
            library.get(b"lapis_cuda_host_touches").expect("the stand-in's");
        touches(at, bytes, c_uint::from(writes))
    }
}

/// What nobody waits for cannot be waited for: it is over, with some certainty.
fn until_the_latency_is_over() {
    std::thread::sleep(std::time::Duration::from_millis(300));
}

#[test]
#[ignore = "in a process of its own"]
fn child() {
    let Some(_cuda) = cuda() else { return };
    context(0);
    let word = word();
    let (_, plant, _) = PLANTED.iter().find(|(name, ..)| *name == word).expect("a planted one");
    plant();
}

#[test]
fn every_planted_misuse_is_caught_under_its_name() {
    let mut missed = Vec::new();
    for (name, _, record) in PLANTED {
        let scenario = Scenario::new("misuses::child").with(WORD, name).with("LAPIS_CUDA_DEVICES", "2");
        let ended = scenario.with("LAPIS_CUDA_LATENCY_US", "20000").run();
        let caught = ended.misuses.first().is_some_and(|line| line.starts_with(record));
        // What was taken from under a copy is found once more as the stream comes to it.
        let once = ended.misuses.len() == 1 || record.starts_with("in-use: cu");
        if !caught || !once {
            missed.push((*name, ended.misuses));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
    assert!(PLANTED.len() >= 10);
}
