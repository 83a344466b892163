//! The watcher: one thread that sleeps on the socket, so that a hang-up is known at once, and reconnects by itself.

use std::{os::fd::AsFd, sync::Arc, time::Duration};

use lapis_transport::hello::ToClient;

use super::{
    link::{Greeted, Link, greet},
    populate,
    shared::{Live, Shared},
    wait,
};
use crate::Session;

/// First pause between two tries to reconnect; doubled up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Runs until the client is dropped.
pub(super) fn run(shared: &Arc<Shared>) {
    while !shared.is_stopping() {
        let live = shared.live();
        match &live.link {
            Some(link) => {
                watch(shared, &live.session, link);
                if !shared.is_stopping() {
                    hung_up(shared, &live);
                }
            }
            None => reconnect(shared, &live),
        }
    }
}

/// Returns when the connection is over, or the client is.
fn watch(shared: &Arc<Shared>, session: &Session, link: &Link) {
    let waiters = &shared.waiters;
    while !shared.is_stopping() && !session.is_broken() {
        let (spoke, nudged);
        if let Some(seen) = waiters.try_lead(session) {
            let mut rung = false;
            let mut completions = session.completions();
            if session.events() == seen && session.control().falls_asleep(&completions) {
                [spoke, nudged, rung] = wait::sleep([link.watched(), waiters.nudge.as_fd(), link.doorbell()], None);
            } else {
                (spoke, nudged) = (false, false);
            }
            session.control().awake();
            if rung {
                link.quieten();
            }
            let taken = session.drain(&mut completions);
            drop(completions);
            waiters.step_down(taken);
        } else {
            [spoke, nudged] = wait::sleep([link.watched(), waiters.nudge.as_fd()], None);
        }
        if nudged {
            waiters.nudge.lower();
        }
        if spoke && !listen(shared, session, link) {
            return;
        }
    }
}

/// Takes in what the daemon said. False once it has hung up.
fn listen(shared: &Arc<Shared>, session: &Session, link: &Link) -> bool {
    loop {
        let received = link.socket().recv_timeout(Duration::ZERO);
        match received {
            Ok(None) => return true,
            Ok(Some((ToClient::Extents { first, extents_bytes }, fds))) => {
                match session.add_extents(first, &extents_bytes, &fds) {
                    Ok(()) => populate::start(shared, session),
                    Err(error) => tracing::error!(%error, first, "new extents cannot be mapped: misses"),
                }
            }
            Ok(Some((ToClient::Pool { token, pool, slot_bytes }, _))) => {
                shared.mail.deliver(token, Ok((pool, slot_bytes)));
            }
            Ok(Some((ToClient::Recall { pool }, _))) => {
                // What came and was not looked at yet belongs to the magazine, too.
                shared.waiters.taken_in(session.poll() > 0);
                session.recalled(pool);
                shared.live().ring();
            }
            Ok(Some((ToClient::Refused { token: 0, reason }, _))) => {
                tracing::warn!(reason, "the daemon ended the connection");
            }
            Ok(Some((ToClient::Refused { token, reason }, _))) => shared.mail.deliver(token, Err(reason)),
            Ok(Some((message, _))) => tracing::warn!(?message, "the daemon said what was not asked"),
            Err(error) => {
                tracing::debug!(%error, "the connection is over");
                return false;
            }
        }
    }
}

fn hung_up(shared: &Shared, live: &Live) {
    *crate::session::lock(&live.farewell) = None;
    live.session.lost();
    shared.publish(Live { session: live.session.clone(), link: None, farewell: live.farewell.clone() });
    shared.mail.lose_all();
    shared.waiters.alarm();
}

fn reconnect(shared: &Arc<Shared>, live: &Live) {
    let mut pause = PAUSE_MIN;
    let mut said = None;
    while !shared.is_stopping() {
        match greet(&shared.path, &shared.options, &shared.pools, Some(&live.session)) {
            Ok(greeted) => {
                welcome_back(shared, live, greeted);
                return;
            }
            Err(error) => {
                // Said once each: a daemon that stays away is no news.
                let text = error.to_string();
                if said.as_ref() != Some(&text) {
                    tracing::info!(error = text, cause = ?std::error::Error::source(&error), "reconnecting");
                    said = Some(text);
                }
            }
        }
        let [nudged] = wait::sleep([shared.waiters.nudge.as_fd()], Some(pause));
        if nudged {
            shared.waiters.nudge.lower();
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn welcome_back(shared: &Arc<Shared>, live: &Live, greeted: Greeted) {
    match greeted {
        Greeted::Resumed(link) => {
            let link = Arc::new(link);
            *crate::session::lock(&live.farewell) = Some(link.clone());
            shared.publish(Live { session: live.session.clone(), link: Some(link), farewell: live.farewell.clone() });
        }
        Greeted::New(session, link) => {
            tracing::info!(
                former = live.session.client().0,
                client = session.client().0,
                cold = session.table_id() != live.session.table_id(),
                "connected anew"
            );
            populate::start(shared, &session);
            shared.publish(Live::new(session, link));
            live.session.retire();
        }
    }
}
