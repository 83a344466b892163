//! Whether this process is still the one that made a client: two processes on one single-producer ring would corrupt it.
//! Told by a counter that every fork bumps in the child, so that asking costs one load and no system call.

use std::sync::{
    Once,
    atomic::{AtomicU64, Ordering},
};

static FORKS: AtomicU64 = AtomicU64::new(0);
static WATCH: Once = Once::new();

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// The process that made something.
#[derive(Clone, Copy, Debug)]
pub struct Birthplace(u64);

impl Birthplace {
    /// This process.
    pub fn here() -> Self {
        WATCH.call_once(|| {
            // SAFETY: the handler only bumps an atomic, which is allowed in a forked child.
            let failed = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
            assert_eq!(failed, 0, "no memory for a handler of forks");
        });
        Self(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this process is that one, and no child forked of it.
    #[inline]
    pub fn is_here(self) -> bool {
        FORKS.load(Ordering::Relaxed) == self.0
    }
}
