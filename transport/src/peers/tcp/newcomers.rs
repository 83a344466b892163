//! Connections of others that have not yet said a first message: few, and no address may have all their places.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Mutex,
};

use tokio::task::AbortHandle;

pub(super) struct Newcomers {
    most: usize,
    waiting: Mutex<Vec<Newcomer>>,
}

struct Newcomer {
    id: u64,
    remote: SocketAddr,
    task: AbortHandle,
}

impl Newcomers {
    pub(super) fn new(most: usize) -> Self {
        Self { most, waiting: Mutex::new(Vec::with_capacity(most)) }
    }

    /// Makes room for one more from `ip`, and whose connection was cut for it: the oldest of the address that has most. Who
    /// means it says a first message within moments of its turn; who does not, makes room for those.
    pub(super) fn make_room(&self, ip: IpAddr) -> Option<SocketAddr> {
        let mut waiting = self.lock();
        if waiting.len() < self.most {
            return None;
        }
        let mut counts: HashMap<IpAddr, usize> = HashMap::from([(ip, 1)]);
        waiting.iter().for_each(|newcomer| *counts.entry(newcomer.remote.ip()).or_default() += 1);
        let (&greedy, _) = counts.iter().max_by_key(|&(ip, count)| (*count, *ip)).expect("the new one is among them");
        // The new one itself may be all that its address has.
        let at = waiting.iter().position(|newcomer| newcomer.remote.ip() == greedy).unwrap_or(0);
        let Newcomer { remote, task, .. } = waiting.remove(at);
        task.abort();
        Some(remote)
    }

    pub(super) fn add(&self, id: u64, remote: SocketAddr, task: AbortHandle) {
        self.lock().push(Newcomer { id, remote, task });
    }

    /// It has said a first message, or its connection has ended.
    pub(super) fn remove(&self, id: u64) {
        self.lock().retain(|newcomer| newcomer.id != id);
    }

    pub(super) fn clear(&self) {
        self.lock().drain(..).for_each(|newcomer| newcomer.task.abort());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Newcomer>> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], port))
    }

    #[tokio::test]
    async fn the_address_that_has_most_gives_up_its_oldest() {
        let newcomers = Newcomers::new(4);
        let mut tasks = Vec::new();
        let mut come = |host, port| {
            let cut = newcomers.make_room(at(host, port).ip());
            let task = tokio::spawn(std::future::pending::<()>());
            newcomers.add(port.into(), at(host, port), task.abort_handle());
            tasks.push(task);
            cut
        };
        for (host, port) in [(1, 1), (2, 2), (2, 3), (3, 4)] {
            assert_eq!(come(host, port), None, "there is room");
        }
        // With the new one two hosts have two: either gives one up, and always the same.
        assert_eq!(come(1, 5), Some(at(2, 2)));
        assert_eq!(come(1, 6), Some(at(1, 1)));
        assert_eq!(come(4, 7), Some(at(1, 5)));
        newcomers.remove(6);
        assert_eq!(come(5, 8), None);
        newcomers.clear();
        assert!(newcomers.lock().is_empty());
        for (port, task) in (1..).zip(tasks) {
            let was_cut = port != 6;
            if was_cut {
                assert!(task.await.expect_err("it never ends by itself").is_cancelled());
            } else {
                assert!(!task.is_finished(), "it had spoken");
            }
        }
    }
}
