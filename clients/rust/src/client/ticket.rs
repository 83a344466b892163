//! Calls that do not block: begun now, asked again later. The descriptor of the [`Client`] says when asking may help.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lapis_config::Key;

use super::{
    Client,
    shared::{Live, Shared, end_of},
};
use crate::{
    ClientError, Dst, GetOptions, Got, Pool, Put, PutOptions, Src,
    session::{GetJob, PutJob, Step},
};

/// What every ticket has.
struct Ticket {
    shared: Arc<Shared>,
    live: Arc<Live>,
    until: Instant,
    /// There was no room for a frame: nobody will say when there is.
    full: bool,
}

/// Pause before a ticket whose frame found no room is polled again.
const FULL_PAUSE: Duration = Duration::from_millis(1);

impl Ticket {
    fn new(shared: &Arc<Shared>, live: Arc<Live>, deadline: Duration) -> Self {
        shared.waiters.ticket_out();
        Self { shared: shared.clone(), live, until: end_of(deadline), full: false }
    }

    /// Steps a job as far as it goes; true when it is over.
    fn poll(&mut self, mut step: impl FnMut(Duration) -> Step) -> Result<bool, ClientError> {
        self.shared.here()?;
        // A session that was resumed meanwhile has another link.
        let now = self.shared.live();
        if Arc::ptr_eq(&now.session, &self.live.session) {
            self.live = now;
        }
        let before = self.live.session.events();
        self.live.session.poll();
        let over = loop {
            let left = self.until.saturating_duration_since(Instant::now());
            let next = step(left);
            self.live.ring();
            self.full = next == Step::Full;
            match next {
                Step::Done => break true,
                Step::Posted if !left.is_zero() => {}
                _ => break left.is_zero(),
            }
        };
        // What came may have been for other tickets, polled before this one.
        self.shared.waiters.taken_in(self.live.session.events() != before);
        Ok(over)
    }

    fn poll_by(&self) -> Instant {
        if self.full { self.until.min(Instant::now() + FULL_PAUSE) } else { self.until }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.shared.birthplace.is_here() {
            self.shared.waiters.ticket_back();
        }
    }
}

/// A get under way.
pub struct GetTicket<'a> {
    job: Option<GetJob<'a>>,
    ticket: Ticket,
}

impl GetTicket<'_> {
    /// The result, once: when it is complete or the deadline has passed.
    pub fn poll(&mut self) -> Result<Option<Got>, ClientError> {
        let Some(job) = &mut self.job else { return Ok(None) };
        let over = self.ticket.poll(|left| job.step(left))?;
        Ok(if over { self.job.take().map(GetJob::finish) } else { None })
    }

    /// When `poll` gives a result at the latest.
    pub fn deadline(&self) -> Instant {
        self.ticket.until
    }

    /// When to poll again though the descriptor stays quiet: at the deadline, or soon if the ring was full.
    pub fn poll_by(&self) -> Instant {
        self.ticket.poll_by()
    }
}

/// A put under way.
pub struct PutTicket<'a> {
    job: Option<PutJob<'a>>,
    ticket: Ticket,
}

impl PutTicket<'_> {
    /// The results, once: when they are complete or the deadline has passed. Copies as far as slots are granted.
    pub fn poll(&mut self) -> Result<Option<Put>, ClientError> {
        let Some(job) = &mut self.job else { return Ok(None) };
        let over = self.ticket.poll(|left| job.step(left))?;
        Ok(if over { self.job.take().map(PutJob::finish) } else { None })
    }

    /// When `poll` gives results at the latest.
    pub fn deadline(&self) -> Instant {
        self.ticket.until
    }

    /// When to poll again though the descriptor stays quiet: at the deadline, or soon if the ring was full.
    pub fn poll_by(&self) -> Instant {
        self.ticket.poll_by()
    }
}

impl Client {
    /// [`Self::get_into`] without blocking.
    pub fn begin_get<'a>(
        &self,
        pool: &Pool,
        keys: &'a [Key],
        dst: impl Into<Dst<'a>>,
        options: &GetOptions,
    ) -> Result<GetTicket<'a>, ClientError> {
        let live = self.shared().here_for(pool)?;
        let job = GetJob::new(live.session.clone(), pool, keys, dst.into(), options)?;
        let deadline = options.deadline.unwrap_or_else(|| live.get_deadline(job.bytes()));
        Ok(GetTicket { job: Some(job), ticket: Ticket::new(self.shared(), live, deadline) })
    }

    /// [`Self::put_from`] without blocking.
    pub fn begin_put<'a>(
        &self,
        pool: &Pool,
        keys: &'a [Key],
        parent: Option<Key>,
        src: impl Into<Src<'a>>,
        options: &PutOptions,
    ) -> Result<PutTicket<'a>, ClientError> {
        let live = self.shared().here_for(pool)?;
        let job = PutJob::new(live.session.clone(), pool, keys, parent, src.into())?;
        let deadline = options.deadline.unwrap_or_else(|| live.put_deadline(job.bytes()));
        let ticket = Ticket::new(self.shared(), live, deadline);
        Ok(PutTicket { job: Some(job), ticket })
    }

    /// Makes the client's descriptor quiet. Call it before polling the tickets.
    pub fn acknowledge(&self) -> Result<(), ClientError> {
        self.shared().here()?;
        self.shared().waiters.ready.lower();
        Ok(())
    }
}
