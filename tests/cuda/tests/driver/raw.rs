//! The driver's own calls, as an engine makes them: what orders streams, within a process and between two.

use std::{
    ffi::{c_int, c_void},
    mem::MaybeUninit,
    ptr::null_mut,
};

use cudarc::driver::{
    CudaContext,
    sys::{self, CUcontext, CUdeviceptr, CUevent, CUpointer_attribute, CUresult, CUstream},
};
use lapis_arena::hbm::Cuda;

use super::harness::{Scenario, WORD, cuda, word};

pub const OK: CUresult = CUresult::CUDA_SUCCESS;

/// A call that must succeed.
macro_rules! ok {
    ($call:expr) => {
        // SAFETY: pointers are of this test and live; that it is used as it may be is what the stand-in checks.
        assert_eq!(unsafe { $call }, $crate::raw::OK, "{}", stringify!($call))
    };
}
/// A call that must fail so.
macro_rules! fails {
    ($call:expr, $error:ident) => {
        // SAFETY: as above; the stand-in answers misuse by an error.
        assert_eq!(unsafe { $call }, cudarc::driver::sys::CUresult::$error, "{}", stringify!($call))
    };
}
pub(super) use {fails, ok};

/// The primary context of a device, current in this thread.
pub fn context(index: c_int) -> CUcontext {
    let mut context = null_mut();
    ok!(sys::cuDevicePrimaryCtxRetain(&raw mut context, index));
    ok!(sys::cuCtxSetCurrent(context));
    context
}

pub fn stream() -> CUstream {
    let mut stream = null_mut();
    ok!(sys::cuStreamCreate(&raw mut stream, 1));
    stream
}

pub fn event(flags: u32) -> CUevent {
    let mut event = null_mut();
    ok!(sys::cuEventCreate(&raw mut event, flags));
    event
}

pub fn memory(bytes: usize) -> CUdeviceptr {
    let mut at = 0;
    ok!(sys::cuMemAlloc_v2(&raw mut at, bytes));
    at
}

/// Host memory that is registered.
pub struct Pinned(pub Vec<u8>);

impl Pinned {
    pub fn new(bytes: usize, value: u8) -> Self {
        let mut memory = vec![value; bytes];
        ok!(sys::cuMemHostRegister_v2(memory.as_mut_ptr().cast(), bytes, 1));
        Self(memory)
    }

    pub fn at(&self) -> *mut c_void {
        self.0.as_ptr().cast_mut().cast()
    }

    pub fn end(self) -> Vec<u8> {
        ok!(sys::cuMemHostUnregister(self.at()));
        self.0
    }
}

pub const BYTES: usize = 4096;

/// Everything is used as it may be; also what ends it.
#[test]
#[ignore = "in a process of its own"]
fn ordered() {
    let Some(_cuda) = cuda() else { return };
    context(0);
    let (one, two) = (stream(), stream());
    let (from, to) = (Pinned::new(BYTES, 7), Pinned::new(BYTES, 0));
    let (block, flag) = (memory(BYTES), memory(4));
    let done = event(0);

    // By an event.
    ok!(sys::cuMemcpyHtoDAsync_v2(block, from.at(), BYTES, one));
    ok!(sys::cuEventRecord(done, one));
    ok!(sys::cuStreamWaitEvent(two, done, 0));
    ok!(sys::cuMemcpyDtoHAsync_v2(to.at(), block, BYTES, two));
    ok!(sys::cuStreamSynchronize(two));
    assert_eq!(to.0, from.0);

    // By a word that one writes and the other waits for, which is asked to wait first.
    ok!(sys::cuMemsetD8Async(flag, 0, 4, one));
    ok!(sys::cuStreamSynchronize(one));
    ok!(sys::cuStreamWaitValue32_v2(two, flag, 5, 1));
    ok!(sys::cuMemcpyDtoHAsync_v2(to.at(), block, BYTES, two));
    ok!(sys::cuMemsetD8Async(block, 9, BYTES, one));
    fails!(sys::cuStreamQuery(two), CUDA_ERROR_NOT_READY);
    ok!(sys::cuStreamWriteValue32_v2(one, flag, 5, 0));
    ok!(sys::cuStreamSynchronize(two));
    assert_eq!(to.0, [9; BYTES]);

    // By the host, which waits for one and then asks the other; times count up.
    let later = event(0);
    ok!(sys::cuMemcpyAsync(block, from.at() as u64, BYTES, one));
    ok!(sys::cuEventRecord(later, one));
    ok!(sys::cuEventSynchronize(later));
    ok!(sys::cuMemcpyAsync(to.at() as u64, block, BYTES, two));
    ok!(sys::cuCtxSynchronize());
    let mut milliseconds = -1.0;
    ok!(sys::cuEventElapsedTime(&raw mut milliseconds, done, later));
    assert!(milliseconds > 0.0 && to.0 == from.0);

    // By the legacy stream, which comes after blocking streams; by a function of the host in a stream.
    let mut blocking = null_mut();
    ok!(sys::cuStreamCreateWithPriority(&raw mut blocking, 0, -1));
    ok!(sys::cuMemsetD8Async(block, 1, BYTES, blocking));
    ok!(sys::cuMemcpyDtoHAsync_v2(to.at(), block, BYTES, null_mut()));
    ok!(sys::cuStreamSynchronize(null_mut()));
    assert_eq!(to.0, [1; BYTES]);
    unsafe extern "C" fn note(data: *mut c_void) {
        // SAFETY: the test's own counter, which it reads after the stream has ended.
        unsafe { *data.cast::<u32>() += 1 };
    }
    let mut count = 0u32;
    ok!(sys::cuLaunchHostFunc(one, Some(note), (&raw mut count).cast()));
    ok!(sys::cuStreamSynchronize(one));
    assert_eq!(count, 1);

    let (mut kind, mut index) = (0u32, -1);
    ok!(sys::cuPointerGetAttribute(
        (&raw mut kind).cast(),
        CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
        block + 5
    ));
    ok!(sys::cuPointerGetAttribute(
        (&raw mut index).cast(),
        CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
        block
    ));
    assert_eq!((kind, index), (2, 0));
    let own = 0u8;
    let at = (&raw const own).addr() as u64;
    let kind_of = CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    fails!(sys::cuPointerGetAttribute((&raw mut kind).cast(), kind_of, at), CUDA_ERROR_INVALID_VALUE);
    let (mut asked, mut answers) = ([kind_of], [(&raw mut kind).cast::<c_void>()]);
    ok!(sys::cuPointerGetAttributes(1, asked.as_mut_ptr(), answers.as_mut_ptr(), at));
    assert_eq!(kind, 0, "memory that the driver does not know");

    for stream in [one, two, blocking] {
        ok!(sys::cuStreamDestroy_v2(stream));
    }
    for event in [done, later] {
        ok!(sys::cuEventDestroy_v2(event));
    }
    from.end();
    to.end();
    ok!(sys::cuMemFree_v2(block));
    ok!(sys::cuMemFree_v2(flag));
    ok!(sys::cuDevicePrimaryCtxRelease_v2(0));
}

#[test]
fn what_is_ordered_is_no_race_and_reads_what_was_written() {
    for latency in ["0-0", "500-3000"] {
        Scenario::new("raw::ordered").with("LAPIS_CUDA_LATENCY_US", latency).run_clean();
    }
}

/// An event that two processes know: the other's stream waits for this one's copy.
#[test]
#[ignore = "in a process of its own"]
fn event_owner() {
    let Some(_cuda) = cuda() else { return };
    context(0);
    let (stream, block, from) = (stream(), memory(BYTES), Pinned::new(BYTES, 7));
    let between = event(2 | 4);
    let (mut handle, mut mark) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    ok!(sys::cuIpcGetMemHandle(handle.as_mut_ptr(), block));
    ok!(sys::cuIpcGetEventHandle(mark.as_mut_ptr(), between));
    ok!(sys::cuMemcpyHtoDAsync_v2(block, from.at(), BYTES, stream));
    ok!(sys::cuEventRecord(between, stream));
    // SAFETY: both were written by calls that succeeded.
    let (handle, mark) = unsafe { (handle.assume_init(), mark.assume_init()) };
    let hex = |bytes: [std::ffi::c_char; 64]| bytes.map(|byte| format!("{:02x}", byte.cast_unsigned())).concat();
    let told = format!("{} {}", hex(handle.reserved), hex(mark.reserved));
    Scenario::new("raw::event_guest").with(WORD, told).with("LAPIS_CUDA_LATENCY_US", "0").run_clean();
    ok!(sys::cuEventSynchronize(between));
}

#[test]
#[ignore = "in a process of its own"]
fn event_guest() {
    let Some(_cuda) = cuda() else { return };
    context(0);
    let bytes = |hex: &str| {
        std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hex").cast_signed())
    };
    let told = word();
    let (handle, mark) = told.split_once(' ').expect("two");
    let (mut block, mut between) = (0, null_mut());
    ok!(sys::cuIpcOpenMemHandle_v2(&raw mut block, sys::CUipcMemHandle { reserved: bytes(handle) }, 1));
    ok!(sys::cuIpcOpenEventHandle(&raw mut between, sys::CUipcEventHandle { reserved: bytes(mark) }));
    let (stream, to) = (stream(), Pinned::new(BYTES, 0));
    ok!(sys::cuStreamWaitEvent(stream, between, 0));
    ok!(sys::cuMemcpyDtoHAsync_v2(to.at(), block, BYTES, stream));
    ok!(sys::cuStreamSynchronize(stream));
    assert_eq!(to.0, [7; BYTES]);
}

#[test]
fn a_stream_waits_for_an_event_of_another_process() {
    // Longer than the other process takes to start.
    Scenario::new("raw::event_owner").with("LAPIS_CUDA_LATENCY_US", "400000").run_clean();
}

/// cudarc's own safe layer, which copies from memory that is not registered.
#[test]
#[ignore = "in a process of its own"]
fn safe_layer() {
    let Some(path) = super::harness::library() else { return };
    let cuda = Cuda::load(Some(&path)).expect("the stand-in");
    let context = CudaContext::new(0).expect("a context");
    // It waits for events that it has not recorded yet, which CUDA takes for success and the stand-in for a mistake.
    // SAFETY: one stream orders everything here.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().expect("a stream");
    let block = stream.clone_htod(&[1u32, 2, 3]).expect("copied");
    let twin = stream.clone_dtod(&block).expect("copied");
    assert_eq!(stream.clone_dtoh(&twin).expect("copied"), [1, 2, 3]);
    assert_eq!(cuda.version(), 12080);
}

#[test]
fn the_safe_layer_of_cudarc_runs_on_it() {
    Scenario::new("raw::safe_layer").with("LAPIS_CUDA_PAGEABLE", "allow").run_clean();
}
