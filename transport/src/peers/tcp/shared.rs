//! What all connections of this host have in common.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    TcpLimits,
    events::{Events, Told},
    newcomers::Newcomers,
};
use crate::peers::{links::LinkId, tls::Credentials};

/// Refusals that are told of in a second; the rest is counted.
const REFUSALS_TOLD: u32 = 8;

pub(super) struct Shared {
    pub(super) credentials: Option<Credentials>,
    pub(super) limits: TcpLimits,
    pub(super) events: Events,
    pub(super) newcomers: Newcomers,
    pub(super) refused: AtomicU64,
    /// Connections of others that have said a first message.
    pub(super) guests: AtomicUsize,
    links: AtomicU64,
    tasks: AtomicUsize,
    ended: Notify,
    telling: Mutex<Telling>,
}

/// How much was told of refusals in this second.
struct Telling {
    since: Instant,
    told: u32,
    untold: u64,
}

impl Shared {
    pub(super) fn new(credentials: Option<Credentials>, limits: TcpLimits, wake: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self {
            credentials,
            limits,
            events: Events::new(wake),
            newcomers: Newcomers::new(limits.newcomers_max),
            refused: AtomicU64::new(0),
            guests: AtomicUsize::new(0),
            links: AtomicU64::new(1),
            tasks: AtomicUsize::new(0),
            ended: Notify::new(),
            telling: Mutex::new(Telling { since: Instant::now(), told: 0, untold: 0 }),
        }
    }

    /// A number that no link had.
    pub(super) fn link(&self) -> LinkId {
        LinkId(self.links.fetch_add(1, Ordering::Relaxed))
    }

    /// A connection of another host came to nothing. Many at once are told of by their number, or a flood would fill the
    /// log.
    pub(super) fn refuse(&self, remote: SocketAddr, reason: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let Some(untold) = self.may_tell() else { return };
        let more = if untold > 0 { format!("; {untold} more were refused before") } else { String::new() };
        let reason = format!("from {remote}: {reason}{more}");
        tracing::warn!(reason, "a connection of another host is refused");
        self.events.tell(Told::Refused { link: self.link(), reason });
    }

    /// How many were not told of, if this one is.
    fn may_tell(&self) -> Option<u64> {
        let mut telling = self.telling.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if telling.since.elapsed() >= Duration::from_secs(1) {
            (telling.since, telling.told) = (Instant::now(), 0);
        }
        if telling.told == REFUSALS_TOLD {
            telling.untold += 1;
            return None;
        }
        telling.told += 1;
        Some(std::mem::take(&mut telling.untold))
    }

    /// A task that is waited for at the end.
    pub(super) fn task(self: &Arc<Self>) -> Task {
        self.tasks.fetch_add(1, Ordering::SeqCst);
        Task(self.clone())
    }

    pub(super) async fn all_ended(&self) {
        while self.tasks.load(Ordering::SeqCst) > 0 {
            self.ended.notified().await;
        }
    }
}

pub(super) struct Task(Arc<Shared>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, Ordering::SeqCst);
        // Kept for who begins to wait only afterwards.
        self.0.ended.notify_one();
    }
}
