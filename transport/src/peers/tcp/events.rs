//! What the thread of connections tells whoever drives it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crossbeam::queue::SegQueue;
use tokio::sync::OwnedSemaphorePermit;

use super::link::LinkHandle;
use crate::peers::{links::LinkId, message::PeerMessage};

pub(super) enum Told {
    Dialled {
        link: LinkId,
        certified: Option<String>,
        local: SocketAddr,
        remote: SocketAddr,
    },
    Accepted {
        link: LinkId,
        certified: Option<String>,
        remote: SocketAddr,
        handle: LinkHandle,
    },
    /// `room`: its bytes' share of what may wait to be taken here; given back when it is dropped.
    Message {
        link: LinkId,
        message: PeerMessage,
        room: OwnedSemaphorePermit,
    },
    Room {
        link: LinkId,
    },
    Closed {
        link: LinkId,
        reason: String,
    },
    /// A connection that nobody was told of.
    Refused {
        link: LinkId,
        reason: String,
    },
}

/// Bounded by what fills it: each link's messages by its own bound, all else by the number of links.
pub(super) struct Events {
    queue: SegQueue<Told>,
    /// Whoever takes was woken, and has not yet found the queue empty.
    is_woken: AtomicBool,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Events {
    pub(super) fn new(wake: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { queue: SegQueue::new(), is_woken: AtomicBool::new(false), wake }
    }

    pub(super) fn tell(&self, told: Told) {
        self.queue.push(told);
        if !self.is_woken.swap(true, Ordering::SeqCst) {
            (self.wake)();
        }
    }

    pub(super) fn take(&self) -> Option<Told> {
        if let Some(told) = self.queue.pop() {
            return Some(told);
        }
        self.is_woken.store(false, Ordering::SeqCst);
        // What was told in between has woken nobody.
        self.queue.pop()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn who_takes_is_woken_once_until_nothing_is_left() {
        let wakes = Arc::new(AtomicU32::new(0));
        let counted = wakes.clone();
        let events = Events::new(Arc::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        }));
        let tell = || events.tell(Told::Room { link: LinkId(1) });
        for round in 1..=3 {
            (0..5).for_each(|_| tell());
            assert_eq!(wakes.load(Ordering::SeqCst), round);
            (0..4).for_each(|_| assert!(events.take().is_some()));
            tell();
            assert_eq!(wakes.load(Ordering::SeqCst), round, "something was left");
            assert!(events.take().is_some() && events.take().is_some() && events.take().is_none());
        }
    }
}
