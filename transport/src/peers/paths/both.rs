//! Two kinds of paths as one: blocks go the fast way where it stands, else the slow one.

use std::collections::VecDeque;

use super::{Fetch, FromPaths, Paths, ToPaths};

/// Paths that stand at times only.
pub trait Fast: Paths {
    /// Whether all of this can be fetched by it now, as far as it knows.
    fn takes(&self, fetch: &Fetch) -> bool;
    /// Whether keys can be looked up in the table of who answers on this link now, as far as it knows.
    fn looks(&self, link: super::LinkId) -> bool;
}

/// Of what was said: for whom.
const SLOW: u8 = 0;
const FAST: u8 = 1;

/// Blocks by the fast paths while they stand for a link, by the slow ones otherwise: before they are connected, after a
/// failure until they are again, and with hosts that have none. Both are told of everything, so that either can begin at any
/// time.
pub struct BothPaths<F, S> {
    fast: Option<F>,
    slow: S,
    /// Whose turn it is to be asked for news: neither can keep the other from being heard.
    fast_next: bool,
    /// Looks that nobody can make.
    unseen: VecDeque<FromPaths>,
}

impl<F: Fast, S: Paths> BothPaths<F, S> {
    /// `fast`: none on a host that has none. Both sides of a link have a `BothPaths`, with or without.
    pub fn new(fast: Option<F>, slow: S) -> Self {
        Self { fast, slow, fast_next: true, unseen: VecDeque::new() }
    }

    fn heard(&mut self, link: super::LinkId, mut said: Vec<u8>) {
        match said.pop() {
            Some(SLOW) => self.slow.submit(ToPaths::Heard { link, said }),
            Some(FAST) => {
                if let Some(fast) = &mut self.fast {
                    fast.submit(ToPaths::Heard { link, said });
                }
            }
            whose => {
                tracing::warn!(link = link.0, ?whose, "the peer's paths said something for paths that are not known")
            }
        }
    }

    fn poll_fast(&mut self) -> Option<FromPaths> {
        Some(marked(self.fast.as_mut()?.poll()?, FAST))
    }

    fn poll_slow(&mut self) -> Option<FromPaths> {
        Some(marked(self.slow.poll()?, SLOW))
    }
}

fn marked(from: FromPaths, whose: u8) -> FromPaths {
    match from {
        FromPaths::Say { link, mut said } => {
            said.push(whose);
            FromPaths::Say { link, said }
        }
        ended @ (FromPaths::Fetched { .. } | FromPaths::Looked { .. }) => ended,
    }
}

impl<F: Fast, S: Paths> Paths for BothPaths<F, S> {
    fn submit(&mut self, job: ToPaths) {
        match job {
            ToPaths::Fetch(fetch) => match &mut self.fast {
                Some(fast) if fast.takes(&fetch) => fast.submit(ToPaths::Fetch(fetch)),
                _ => self.slow.submit(ToPaths::Fetch(fetch)),
            },
            ToPaths::Look(look) => match &mut self.fast {
                Some(fast) if fast.looks(look.link) => fast.submit(ToPaths::Look(look)),
                _ => self.unseen.push_back(FromPaths::Looked { op: look.op, found: None }),
            },
            ToPaths::Heard { link, said } => self.heard(link, said),
            job => {
                if let Some(fast) = &mut self.fast {
                    fast.submit(job.clone());
                }
                self.slow.submit(job);
            }
        }
    }

    fn poll(&mut self) -> Option<FromPaths> {
        if let Some(unseen) = self.unseen.pop_front() {
            return Some(unseen);
        }
        self.fast_next = !self.fast_next;
        match self.fast_next {
            true => self.poll_slow().or_else(|| self.poll_fast()),
            false => self.poll_fast().or_else(|| self.poll_slow()),
        }
    }

    fn data_port(&self) -> u16 {
        self.slow.data_port()
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::VecDeque, rc::Rc, time::Duration};

    use lapis_config::{Key, PoolId};

    use super::{super::Look, *};
    use crate::peers::{
        links::LinkId,
        message::PATH_BYTES_MAX,
        paths::{Came, PathKind},
    };

    /// Ends each fetch at once, remembers what it was told, says what it is given to say.
    struct Plain {
        kind: PathKind,
        stands: Rc<Cell<bool>>,
        told: Vec<String>,
        out: VecDeque<FromPaths>,
    }

    impl Plain {
        fn new(kind: PathKind) -> (Self, Rc<Cell<bool>>) {
            let stands = Rc::new(Cell::new(true));
            (Self { kind, stands: stands.clone(), told: Vec::new(), out: VecDeque::new() }, stands)
        }
    }

    impl Paths for Plain {
        fn submit(&mut self, job: ToPaths) {
            self.told.push(format!("{job:?}"));
            if let ToPaths::Fetch(fetch) = job {
                let came = if self.stands.get() { Came::Whole } else { Came::Not };
                self.out.push_back(FromPaths::Fetched { op: fetch.op, came: vec![came], by: self.kind });
            }
        }

        fn poll(&mut self) -> Option<FromPaths> {
            self.out.pop_front()
        }

        fn data_port(&self) -> u16 {
            if self.kind == PathKind::Tcp { 7 } else { 0 }
        }
    }

    impl Fast for Plain {
        fn takes(&self, _: &Fetch) -> bool {
            self.stands.get()
        }

        fn looks(&self, _: LinkId) -> bool {
            self.stands.get()
        }
    }

    fn both(fast: bool) -> (BothPaths<Plain, Plain>, Rc<Cell<bool>>) {
        let (rdma, stands) = Plain::new(PathKind::Rdma);
        (BothPaths::new(fast.then_some(rdma), Plain::new(PathKind::Tcp).0), stands)
    }

    fn fetched_by(paths: &mut BothPaths<Plain, Plain>, op: u64) -> PathKind {
        let (link, within) = (LinkId(1), Duration::from_secs(1));
        paths.submit(ToPaths::Fetch(Fetch { op, link, token: 0, first: 0, blocks: Vec::new(), within }));
        match paths.poll() {
            Some(FromPaths::Fetched { op: ended, by, .. }) if ended == op => by,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_fetch_goes_the_fast_way_while_it_stands() {
        let (mut paths, stands) = both(true);
        assert_eq!(fetched_by(&mut paths, 1), PathKind::Rdma);
        stands.set(false);
        assert_eq!(fetched_by(&mut paths, 2), PathKind::Tcp);
        stands.set(true);
        assert_eq!(fetched_by(&mut paths, 3), PathKind::Rdma);
        let (mut without, _) = both(false);
        assert_eq!(fetched_by(&mut without, 1), PathKind::Tcp);
        assert_eq!((paths.data_port(), without.data_port()), (7, 7));
    }

    #[test]
    fn a_look_goes_the_fast_way_or_is_answered_at_once() {
        let (mut paths, stands) = both(true);
        let look = |op| ToPaths::Look(Look { op, ..a_look() });
        paths.submit(look(1));
        assert_eq!(paths.fast.as_ref().expect("there").told.len(), 1);
        assert!(paths.poll().is_none(), "the fast way answers");
        stands.set(false);
        paths.submit(look(2));
        assert!(matches!(paths.poll(), Some(FromPaths::Looked { op: 2, found: None })));
        let (mut without, _) = both(false);
        without.submit(look(3));
        assert!(matches!(without.poll(), Some(FromPaths::Looked { op: 3, found: None })));
        assert!(without.slow.told.is_empty());
    }

    fn a_look() -> Look {
        let (link, pool, keys, within) = (LinkId(1), PoolId(0), vec![Key::default()], Duration::from_secs(1));
        Look { op: 0, link, pool, keys, within }
    }

    #[test]
    fn what_is_said_is_heard_by_its_like_alone() {
        let (mut here, _) = both(true);
        let (mut there, _) = both(true);
        let link = LinkId(3);
        let say = |said: &[u8]| FromPaths::Say { link, said: said.to_vec() };
        here.fast.as_mut().expect("there").out.push_back(say(b"by RDMA"));
        here.slow.out.push_back(say(b"by TCP"));
        for _ in 0..2 {
            let Some(FromPaths::Say { link, said }) = here.poll() else { panic!("something was said") };
            there.submit(ToPaths::Heard { link, said });
        }
        assert!(here.poll().is_none());
        let heard = |said: &[u8]| vec![format!("{:?}", ToPaths::Heard { link, said: said.to_vec() })];
        assert_eq!(there.fast.as_ref().expect("there").told, heard(b"by RDMA"));
        assert_eq!(there.slow.told, heard(b"by TCP"));
        let (mut without, _) = both(false);
        for said in [vec![], vec![9], b"x\x01".to_vec()] {
            without.submit(ToPaths::Heard { link, said });
        }
        assert!(without.slow.told.is_empty(), "for nobody here: {:?}", without.slow.told);
        const { assert!(PATH_BYTES_MAX > 1) };
    }

    #[test]
    fn both_are_told_of_links_and_memory() {
        let (mut paths, _) = both(true);
        let link = LinkId(1);
        paths.submit(ToPaths::Guest { group: 1, link, word: 2 });
        paths.submit(ToPaths::Lend { link, token: 1, blocks: Vec::new() });
        paths.submit(ToPaths::Unlend { link, token: 1 });
        paths.submit(ToPaths::PeerGone { link });
        paths.submit(ToPaths::GuestGone { link });
        assert_eq!(paths.slow.told.len(), 5);
        assert_eq!(paths.fast.as_ref().expect("there").told, paths.slow.told);
    }

    #[test]
    fn neither_keeps_the_other_from_being_heard() {
        let (mut paths, _) = both(true);
        let ended = |op, by| FromPaths::Fetched { op, came: Vec::new(), by };
        for op in 0..10 {
            paths.fast.as_mut().expect("there").out.push_back(ended(op, PathKind::Rdma));
            paths.slow.out.push_back(ended(op, PathKind::Tcp));
        }
        let first: Vec<PathKind> = (0..4)
            .map(|_| match paths.poll() {
                Some(FromPaths::Fetched { by, .. }) => by,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(first.iter().filter(|by| **by == PathKind::Rdma).count(), 2, "{first:?}");
    }
}
