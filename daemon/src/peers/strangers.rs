//! Hosts that have said hello before this one has heard of them. Where hosts are found, one that joins dials at once, and may
//! be here before the news of it. Pure.
//!
//! Invariant: no connection waits twice, nor for longer than `WAIT`.

use std::{collections::BTreeMap, time::Duration};

use lapis_config::Time;
use lapis_transport::peers::{links::LinkId, message::PeerHello};

/// For the news; whoever said hello waits for two seconds.
const WAIT: Duration = Duration::from_millis(1500);
const WAITING_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Stranger {
    pub certified: Option<String>,
    pub hello: PeerHello,
    until: Time,
}

#[derive(Debug, Default)]
pub(crate) struct Strangers {
    waiting: BTreeMap<LinkId, Stranger>,
}

impl Strangers {
    /// False: it cannot wait.
    pub fn wait(&mut self, now: Time, link: LinkId, certified: Option<String>, hello: PeerHello) -> bool {
        let has_room = self.waiting.len() < WAITING_MAX && !self.waiting.contains_key(&link);
        if has_room {
            self.waiting.insert(link, Stranger { certified, hello, until: now.after(WAIT) });
        }
        has_room
    }

    pub fn gone(&mut self, link: LinkId) {
        self.waiting.remove(&link);
    }

    /// Those that are known now wait no more.
    pub fn take_known(&mut self, is_known: impl Fn(&str) -> bool) -> Vec<(LinkId, Stranger)> {
        self.take(|stranger| is_known(&stranger.hello.host))
    }

    /// Those of which nothing was heard in time.
    pub fn take_unknown(&mut self, now: Time) -> Vec<(LinkId, Stranger)> {
        self.take(|stranger| now >= stranger.until)
    }

    fn take(&mut self, is_it: impl Fn(&Stranger) -> bool) -> Vec<(LinkId, Stranger)> {
        let all = std::mem::take(&mut self.waiting).into_iter();
        let (taken, waiting) = all.partition::<BTreeMap<_, _>, _>(|(_, stranger)| is_it(stranger));
        self.waiting = waiting;
        taken.into_iter().collect()
    }

    pub fn poll_timeout(&self) -> Option<Time> {
        self.waiting.values().map(|stranger| stranger.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(host: &str) -> PeerHello {
        let (host, group) = (host.into(), "default".into());
        PeerHello { host, group, boot: 1, digest_bytes_max: 1, data_port: 1, data_word: 1 }
    }

    fn links(taken: &[(LinkId, Stranger)]) -> Vec<u64> {
        taken.iter().map(|(link, _)| link.0).collect()
    }

    #[test]
    fn a_stranger_waits_until_it_is_known_its_time_is_over_or_it_is_gone() {
        let mut strangers = Strangers::default();
        for (at, (link, host)) in [(1, "b"), (2, "c"), (3, "b"), (4, "d")].into_iter().enumerate() {
            assert!(strangers.wait(Time(at as u64), LinkId(link), None, hello(host)));
        }
        strangers.gone(LinkId(4));
        assert_eq!(links(&strangers.take_known(|host| host == "b")), [1, 3], "two groups of one host");
        let due = Time(1).after(WAIT);
        assert_eq!((strangers.poll_timeout(), strangers.take_unknown(Time(due.0 - 1)).len()), (Some(due), 0));
        assert_eq!((links(&strangers.take_unknown(due)), strangers.poll_timeout()), (vec![2], None));
    }

    #[test]
    fn no_connection_waits_twice_and_not_too_many_wait() {
        let mut strangers = Strangers::default();
        assert!(strangers.wait(Time(0), LinkId(0), None, hello("b")));
        assert!(!strangers.wait(Time(1), LinkId(0), None, hello("b")), "its time would begin anew");
        let waiting = (1..200).filter(|&link| strangers.wait(Time(0), LinkId(link), None, hello("b"))).count();
        assert_eq!(waiting, WAITING_MAX - 1);
    }
}
