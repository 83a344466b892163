//! What all clones of a client and its threads share: the session, the way to its daemon, who waits for what.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use lapis_config::{PoolId, Refusal};
use lapis_transport::frame::Request;

use super::{
    ConnectOptions,
    link::{Farewell, Link},
    wait::Waiters,
};
use crate::{
    ClientError, Pool, Pools, Session,
    fork::Birthplace,
    session::{self, Answer, Busy, Step, Token},
};

/// Pause when a ring is full.
const FULL_PAUSE: Duration = Duration::from_millis(1);
/// Pause between two looks at whether a call was interrupted.
const LISTEN_EVERY: Duration = Duration::from_millis(100);
/// Longer than anybody waits, and short enough to be added to any time.
const DEADLINE_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

/// When a deadline that begins now is over. A caller may mean "for ever" by it.
pub(super) fn end_of(deadline: Duration) -> Instant {
    Instant::now() + bounded(deadline)
}

pub(super) fn bounded(deadline: Duration) -> Duration {
    deadline.min(DEADLINE_MAX)
}

/// The session now, and how to reach its daemon.
#[derive(Debug)]
pub(super) struct Live {
    pub session: Arc<Session>,
    pub link: Option<Arc<Link>>,
    pub farewell: Arc<Mutex<Option<Arc<Link>>>>,
}

impl Live {
    pub fn new(session: Arc<Session>, link: Link) -> Self {
        let link = Arc::new(link);
        let farewell = Arc::new(Mutex::new(Some(link.clone())));
        session.set_last(Box::new(Farewell(farewell.clone())));
        Self { session, link: Some(link), farewell }
    }

    /// Of a get of so many bytes.
    pub fn get_deadline(&self, bytes: u64) -> Duration {
        self.deadline(self.session.defaults().get_us, bytes)
    }

    /// Of a put of so many bytes: others may have to be written to SSD before there is room for them.
    pub fn put_deadline(&self, bytes: u64) -> Duration {
        self.deadline(self.session.defaults().put_us, bytes)
    }

    fn deadline(&self, least_us: u64, bytes: u64) -> Duration {
        let seconds = bytes as f64 / self.session.defaults().get_bytes_per_s.max(1) as f64;
        Duration::from_micros(least_us) + Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX / 2)
    }

    /// Wakes the daemon, if it sleeps and frames wait for it.
    pub fn ring(&self) {
        if self.session.must_ring()
            && let Some(link) = &self.link
        {
            link.ring();
        }
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    pub path: PathBuf,
    pub options: ConnectOptions,
    pub live: RwLock<Arc<Live>>,
    pub pools: Pools,
    pub waiters: Waiters,
    pub mail: Mail,
    pub stop: Arc<AtomicBool>,
    pub threads: Mutex<Vec<JoinHandle<()>>>,
    #[cfg(feature = "cuda")]
    pub flights: super::device::Flights,
    pub birthplace: Birthplace,
}

impl Shared {
    pub fn live(&self) -> Arc<Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn publish(&self, live: Live) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(live);
    }

    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The live session, unless this is a forked child.
    #[inline]
    pub fn here(&self) -> Result<Arc<Live>, ClientError> {
        if self.birthplace.is_here() { Ok(self.live()) } else { Err(ClientError::Closed) }
    }

    /// The same, for a call on a pool, which has to be one of this client's.
    #[inline]
    pub fn here_for(&self, pool: &Pool) -> Result<Arc<Live>, ClientError> {
        if !self.pools.own(pool) {
            return Err(ClientError::ForeignPool { label: pool.shape().label.clone() });
        }
        self.here()
    }

    /// Steps a job until it is done or its time is over. What it waits for is what came since before its last step: another
    /// thread may have taken its answer in since that looked.
    pub fn drive(&self, live: &Live, deadline: Duration, mut step: impl FnMut(Duration) -> Step) {
        // What is in memory needs neither lock nor clock.
        let mut seen = live.session.events();
        let mut next = step(deadline);
        let mut told = live.session.events();
        self.waiters.taken_in(told != seen);
        if next == Step::Done {
            return;
        }
        let until = end_of(deadline);
        let mut listen_at = self.options.interrupted.map(|_| end_of(LISTEN_EVERY));
        loop {
            // A session that was resumed meanwhile has another link.
            let now = self.live();
            let live = if Arc::ptr_eq(&now.session, &live.session) { &*now } else { live };
            live.ring();
            if live.session.poll() == 0 && next != Step::Posted {
                let until = if next == Step::Full { until.min(end_of(FULL_PAUSE)) } else { until };
                let until = listen_at.map_or(until, |at| until.min(at));
                // Without a connection all calls under way are answered already.
                match live.link.as_deref().filter(|_| live.session.is_connected()) {
                    Some(link) => self.waiters.wait(&live.session, link, seen, until),
                    // A GPU is waited for.
                    None if next == Step::Full => std::thread::sleep(until.saturating_duration_since(Instant::now())),
                    None => {}
                }
            }
            let now = Instant::now();
            let mut left = until.saturating_duration_since(now);
            if listen_at.is_some_and(|at| now >= at) {
                listen_at = Some(now + LISTEN_EVERY);
                left = if self.options.interrupted.is_some_and(|asked| asked()) { Duration::ZERO } else { left };
            }
            seen = live.session.events();
            next = step(left);
            let events = live.session.events();
            self.waiters.taken_in(events != told);
            told = events;
            if next == Step::Done || left.is_zero() {
                live.ring();
                return;
            }
        }
    }

    /// One call with one answer; `None` if it did not come in time or there is no daemon.
    pub fn ask(
        &self,
        live: &Live,
        deadline: Duration,
        request: impl Fn(u64) -> Request,
    ) -> Result<(Token, Answer), ClientError> {
        let (mut token, mut answer, mut gone) = (None, None, false);
        self.drive(live, deadline, |_| match token {
            None => match live.session.submit(&request) {
                Ok(posted) => {
                    token = Some(posted);
                    Step::Posted
                }
                Err(Busy::Full) => Step::Full,
                Err(Busy::Gone) => {
                    gone = true;
                    Step::Done
                }
            },
            Some(posted) => {
                answer = live.session.take(posted);
                if answer.is_some() { Step::Done } else { Step::Waiting }
            }
        });
        match (token, answer) {
            (_, Some(Answer::Refused(Refusal::Gone))) => Err(ClientError::Gone),
            (Some(token), Some(answer)) => Ok((token, answer)),
            _ if gone => Err(ClientError::Gone),
            (token, _) => {
                token.into_iter().for_each(|token| live.session.abandon(token));
                Err(ClientError::Late { after: deadline })
            }
        }
    }
}

/// A pool's number and the bytes of its slots, or why it was not opened.
type Opened = Result<(PoolId, u32), String>;

/// Answers of the socket that somebody waits for.
#[derive(Debug, Default)]
pub(super) struct Mail {
    waiting: Mutex<HashMap<u64, Option<Opened>>>,
    came: Condvar,
    token: AtomicU64,
}

impl Mail {
    pub fn deliver(&self, token: u64, answer: Opened) {
        if let Some(place) = session::lock(&self.waiting).get_mut(&token) {
            *place = Some(answer);
        }
        self.came.notify_all();
    }

    pub fn lose_all(&self) {
        session::lock(&self.waiting).clear();
        self.came.notify_all();
    }

    pub fn expect(&self) -> u64 {
        let token = self.token.fetch_add(1, Ordering::Relaxed) + 1;
        session::lock(&self.waiting).insert(token, None);
        token
    }

    pub fn wait(&self, token: u64, deadline: Duration) -> Result<(PoolId, u32), ClientError> {
        let until = end_of(deadline);
        let mut waiting = session::lock(&self.waiting);
        loop {
            match waiting.get_mut(&token).map(Option::take) {
                None => return Err(ClientError::Gone),
                Some(Some(answer)) => {
                    waiting.remove(&token);
                    return answer.map_err(|reason| ClientError::Refused { reason });
                }
                Some(None) => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                waiting.remove(&token);
                return Err(ClientError::Late { after: deadline });
            }
            let woken = self.came.wait_timeout(waiting, left);
            waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
