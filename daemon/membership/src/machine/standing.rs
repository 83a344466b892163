//! This host's own standing: a lease that is kept alive, and its key under it. Pure.

use std::time::Duration;

use lapis_config::Time;

use super::{
    super::{
        view::{Entry, Listed},
        words::{Answer, Failure, FailureKind, Request},
    },
    Call, Claim, Lease, Membership, Note, PAUSE,
};

impl Membership {
    pub(super) fn stand(&mut self, now: Time) {
        if self.call.is_some() || now < self.standing_at {
            return;
        }
        let request = match (self.lease, &self.claim) {
            (None, _) => Request::Grant { ttl_s: self.ttl_us().div_ceil(1_000_000) },
            (Some(lease), _) if now >= lease.keep_at => Request::KeepAlive { lease: lease.id },
            (Some(lease), Claim::Wanted { at, over }) if now >= *at => Request::Claim { lease: lease.id, over: *over },
            _ => return,
        };
        let number = self.ask(request.clone());
        self.call = Some(Call { number, request, sent: now });
    }

    pub(super) fn stands(&mut self, now: Time, call: &Call, answer: Answer) {
        self.standing_failures = 0;
        match answer {
            Answer::Granted { lease, ttl_s } => {
                // etcd may give more than was asked for, and never keeps for longer than that.
                let ttl_us = ttl_s.saturating_mul(1_000_000).min(self.ttl_us().next_multiple_of(1_000_000));
                let keep_at = call.sent.after(Duration::from_micros(ttl_us / 3));
                self.lease = Some(Lease { id: lease, ttl_us, keep_at });
                self.claim = Claim::Wanted { at: now, over: None };
            }
            Answer::Kept { ttl_s: 0 } => self.lease_lost(now),
            Answer::Kept { .. } => {
                if let Some(lease) = &mut self.lease {
                    lease.keep_at = call.sent.after(Duration::from_micros(lease.ttl_us / 3));
                }
                if matches!(self.claim, Claim::Made { .. }) {
                    self.refused = None;
                }
            }
            Answer::Claimed { revision } => self.claimed(revision),
            Answer::Held(None) => self.claim = Claim::Wanted { at: now.after(PAUSE), over: None },
            Answer::Held(Some(held)) => self.held(now, &held),
            Answer::Revoked | Answer::Listed { .. } => {}
        }
    }

    pub(super) fn does_not_stand(&mut self, now: Time, call: &Call, failure: Failure) {
        if self.stopping {
            return self.notes.push_back(Note::Unrevoked { why: failure.why });
        }
        match failure.kind {
            FailureKind::Away => {
                self.standing_failures = self.standing_failures.saturating_add(1);
                // Of the first endpoints, the next one is asked at once.
                if self.standing_failures as usize >= self.options.endpoints {
                    self.standing_at = now.after(self.pause(self.standing_failures));
                }
                self.trouble(now, failure.why);
            }
            FailureKind::NoLease if matches!(call.request, Request::Claim { .. } | Request::KeepAlive { .. }) => {
                self.lease_lost(now);
            }
            FailureKind::Refused | FailureKind::NoLogin | FailureKind::NoLease => {
                if self.refused.as_ref() != Some(&failure.why) {
                    self.notes.push_back(Note::Refused { why: failure.why.clone() });
                }
                self.refused = Some(failure.why);
                self.standing_at = now.after(Duration::from_micros(self.ttl_us() / 3));
            }
        }
    }

    fn lease_lost(&mut self, now: Time) {
        match self.claim {
            Claim::Made { .. } => self.notes.push_back(Note::Unlisted { why: "its lease has ended" }),
            Claim::Wanted { .. } => self.standing_at = now.after(PAUSE),
        }
        self.lease = None;
        self.claim = Claim::Wanted { at: now, over: None };
    }

    fn claimed(&mut self, revision: u64) {
        if !matches!(self.claim, Claim::Made { .. }) {
            self.notes.push_back(Note::Listed { address: self.options.address.clone() });
        }
        self.claim = Claim::Made { revision };
        // A lease alone does not say so: it is also given to those who may not write.
        (self.refused, self.taken) = (None, None);
    }

    /// Whether this host's key is as it was put, under the lease that it has now.
    pub(super) fn is_as_put(&self, own: &Listed) -> bool {
        self.lease.is_some_and(|lease| lease.id == own.lease) && own.value == self.options.value().as_bytes()
    }

    /// The key is there. Whose is it?
    fn held(&mut self, now: Time, held: &Listed) {
        let Some(lease) = self.lease else { return };
        self.refused = None;
        if self.is_as_put(held) {
            return self.claimed(held.mod_revision);
        }
        let entry = Entry::read(&held.value);
        if entry.as_ref().is_ok_and(|entry| entry.boot == self.options.boot) {
            // Under a lease that this host had before, or changed by somebody. It is seldom told twice.
            let at = if matches!(self.claim, Claim::Wanted { over: Some(_), .. }) { now.after(PAUSE) } else { now };
            self.claim = Claim::Wanted { at, over: Some(held.mod_revision) };
            return;
        }
        let by = match &entry {
            Ok(entry) => format!("{} (boot {})", entry.address, entry.boot),
            Err(why) => format!("something that is no host: {why}"),
        };
        let is_former = entry.is_ok_and(|entry| entry.address == self.options.address) && held.lease != 0;
        if self.taken.as_ref() != Some(&by) {
            self.notes.push_back(match is_former {
                true => Note::Former,
                false => Note::Taken { by: by.clone(), for_good: held.lease == 0 },
            });
        }
        self.taken = Some(by);
        self.claim = Claim::Wanted { at: now.after(Duration::from_micros(lease.ttl_us / 3)), over: None };
    }
}
