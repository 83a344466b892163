//! The thread that ends what is late. It sleeps until the first deadline that it knows of, and is woken for an earlier one
//! only: fetches that end in time cost it nothing.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Instant,
};

use super::{lock, reader::Peer};

pub(super) struct Late {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    plan: Mutex<Plan>,
    changed: Condvar,
}

#[derive(Default)]
struct Plan {
    peers: Vec<Arc<Peer>>,
    /// When to look; `None`: nothing is known to be due.
    at: Option<Instant>,
    is_ended: bool,
}

impl Late {
    pub fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("lapis-late".into()).spawn(move || theirs.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub fn watch(&self, peer: Arc<Peer>) {
        lock(&self.shared.plan).peers.push(peer);
    }

    pub fn forget(&self, peer: &Arc<Peer>) {
        lock(&self.shared.plan).peers.retain(|watched| !Arc::ptr_eq(watched, peer));
    }

    /// Something was submitted that has to end then.
    pub fn by(&self, deadline: Instant) {
        let mut plan = lock(&self.shared.plan);
        if plan.at.is_none_or(|at| deadline < at) {
            plan.at = Some(deadline);
            self.shared.changed.notify_one();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut plan = lock(&self.plan);
        while !plan.is_ended {
            let now = Instant::now();
            plan = match plan.at {
                Some(at) if at <= now => {
                    plan.at = None;
                    let peers = plan.peers.clone();
                    drop(plan);
                    let next = peers.iter().filter_map(|peer| peer.expire(now)).min();
                    let mut plan = lock(&self.plan);
                    plan.at = [plan.at, next].into_iter().flatten().min();
                    plan
                }
                Some(at) => {
                    let waited = self.changed.wait_timeout(plan, at - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(plan).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        lock(&self.shared.plan).is_ended = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread for deadlines panicked");
        }
    }
}
