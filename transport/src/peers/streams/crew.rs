//! Threads that are started and waited for together.

use std::{
    io,
    sync::{Arc, Condvar, Mutex},
    thread,
};

use super::lock;

/// Of each thread; they parse heads and hash by chunks of 8 KiB.
const STACK_BYTES: usize = 512 << 10;

/// Clones are of the same crew.
#[derive(Clone, Default)]
pub(super) struct Crew {
    shared: Arc<(Mutex<usize>, Condvar)>,
}

/// Leaves the crew when its thread ends, by a panic too.
struct Member(Crew);

impl Crew {
    pub fn spawn(&self, name: String, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        *lock(&self.shared.0) += 1;
        let member = Member(self.clone());
        let thread = thread::Builder::new().name(name).stack_size(STACK_BYTES);
        let spawned = thread.spawn(move || {
            let _member = member;
            work();
        });
        spawned.map(drop)
    }

    /// Until all have ended.
    pub fn wait(&self) {
        let (count, changed) = &*self.shared;
        let mut count = lock(count);
        while *count > 0 {
            count = changed.wait(count).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        *lock(&self.0.shared.0) -= 1;
        self.0.shared.1.notify_all();
    }
}
