//! The daemon's sudden end. A fuse burns down with every call that the engine makes of the outside; when it is burnt,
//! the call does not return, as after a SIGKILL.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

/// Thrown through the engine's frames. No code of its own runs on the way: it has no `Drop` that says goodbye.
struct Killed;

/// Shared by everything that the engine calls.
#[derive(Clone, Debug, Default)]
pub struct Fuse(Arc<AtomicU32>);

impl Fuse {
    /// The engine dies in the `calls`-th call from now; 0 puts the fuse out.
    pub fn light(&self, calls: u32) {
        self.0.store(calls, Relaxed);
    }

    /// To be called first and last by everything that the engine calls.
    pub fn burn(&self) {
        match self.0.load(Relaxed) {
            0 => {}
            1 => {
                self.0.store(0, Relaxed);
                resume_unwind(Box::new(Killed));
            }
            left => self.0.store(left - 1, Relaxed),
        }
    }
}

/// Runs a piece of the engine; `None` if it was killed in it. Its own panics go on.
pub fn survive<T>(run: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(value) => Some(value),
        Err(thrown) if thrown.is::<Killed>() => None,
        Err(thrown) => resume_unwind(thrown),
    }
}
