//! Graphs that somebody captures from a stream: of them what they forbid all others meanwhile, and no more.

use std::cell::Cell;

use cudarc::driver::sys::{CUresult, CUstreamCaptureMode as Mode};

use crate::world::{Outcome, World};

#[derive(Debug)]
pub struct Capture {
    pub stream: u64,
    pub mode: Mode,
    /// Somebody made a call that is forbidden: the one who captures learns of it at the end.
    pub is_broken: bool,
}

thread_local! {
    /// Of this thread: whether a capture forbids it anything.
    pub static MODE: Cell<Mode> = const { Cell::new(Mode::CU_STREAM_CAPTURE_MODE_GLOBAL) };
}

/// May wait for work, or make others wait: forbidden in all threads while somebody captures for all (`GLOBAL`), but in those that
/// have said that they know better (`RELAXED`). More are forbidden by a real driver; which, its manual does not list.
const UNSAFE: &[&str] = &[
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemUnmap",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuStreamQuery",
    "cuStreamSynchronize",
    "cuCtxSynchronize",
];

/// Whether a call may be made now.
pub fn permits(held: &mut World, call: &str) -> Outcome {
    let forbids = |capture: &&mut Capture| {
        capture.mode == Mode::CU_STREAM_CAPTURE_MODE_GLOBAL
            && MODE.get() != Mode::CU_STREAM_CAPTURE_MODE_RELAXED
            && UNSAFE.contains(&call)
    };
    match held.capture.as_mut().filter(forbids) {
        None => Ok(()),
        Some(capture) => {
            capture.is_broken = true;
            Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
        }
    }
}
