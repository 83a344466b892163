//! What this client counted. Monotonic since it connected first, over all its sessions.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lapis_transport::{control::Counters, frame::PutResult};

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Counters of one client, as seen in its own process.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Stats {
            /// All of them, each with its name.
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)+]
            }
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counts {
            $(pub $name: AtomicU64,)+
        }

        impl Counts {
            pub fn read(&self) -> Stats {
                Stats { $($name: self.$name.load(Relaxed),)+ }
            }
        }
    };
}
counts! {
    /// Keys asked by `exists` and `match_prefix`, and how many of them were there.
    keys_looked_up,
    keys_found,
    /// Blocks asked by gets and views, and how many of them were hits.
    blocks_asked,
    blocks_hit,
    /// Payload bytes of those hits.
    bytes_hit,
    /// Blocks of puts by their outcome.
    blocks_stored,
    blocks_existed,
    blocks_refused,
    /// Copies and views that met a changed line and were tried once more.
    retries,
    /// Blocks that did not fit their sum, answered as misses.
    blocks_corrupt,
}

impl Counts {
    #[inline]
    pub fn looked_up(&self, keys: usize, found: usize) {
        self.keys_looked_up.fetch_add(keys as u64, Relaxed);
        self.keys_found.fetch_add(found as u64, Relaxed);
    }

    #[inline]
    pub fn got(&self, all: Counters) {
        self.blocks_asked.fetch_add(all.asked, Relaxed);
        self.blocks_hit.fetch_add(all.hit, Relaxed);
        self.bytes_hit.fetch_add(all.bytes, Relaxed);
    }

    pub fn put(&self, results: &[PutResult]) {
        let count = |which: fn(&PutResult) -> bool| results.iter().filter(|result| which(result)).count() as u64;
        self.blocks_stored.fetch_add(count(|result| *result == PutResult::Stored), Relaxed);
        self.blocks_existed.fetch_add(count(|result| *result == PutResult::Exists), Relaxed);
        self.blocks_refused.fetch_add(count(|result| matches!(result, PutResult::Refused(_))), Relaxed);
    }

    pub fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    pub fn corrupt(&self) {
        self.blocks_corrupt.fetch_add(1, Relaxed);
    }
}
