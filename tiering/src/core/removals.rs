//! Removals: a call is answered when what it removed can never come back.
//!
//! Invariant: a record of a key that was dropped is removed from the log too: it never comes back by itself.

use std::collections::BTreeMap;

use lapis_config::{
    ClientId, Key, PoolId, SsdPlace,
    planted::{self, Bug},
};

use super::{Core, ssd::State};
use crate::{
    face::{Caller, Reply},
    hash::Map,
    kept::Kept,
    policy::Policy,
};

/// A call that is answered when what it removed can never come back.
struct Ticket {
    /// `None`: nobody listens any more.
    to: Option<Caller>,
    blocks: u64,
    left: u64,
}

/// A key whose records are being removed: by so many lines, and who waits for them.
#[derive(Default)]
struct Forgetting {
    lines: u32,
    tickets: Vec<u64>,
}

/// A purge that is not listed on so many devices yet, and who waits for it: its own call, and removals of what it took.
struct Purge {
    pool: PoolId,
    lines: u64,
    tickets: Vec<u64>,
}

#[derive(Default)]
pub(super) struct Removals {
    /// What was removed before it could be found, and who waits for that.
    pub removed_early: BTreeMap<(PoolId, Key), Vec<u64>>,
    pub purged_early: BTreeMap<PoolId, Vec<u64>>,
    /// The pool that is being purged: one line for all of it.
    pub purging: Option<PoolId>,
    /// Of the removal under way; 0: nobody waits.
    pub ticket: u64,
    forgetting: Map<(PoolId, Key), Forgetting>,
    /// By their tickets.
    purges: BTreeMap<u64, Purge>,
    tickets: BTreeMap<u64, Ticket>,
    ticket_last: u64,
}

impl<K: Kept, P: Policy> Core<K, P> {
    /// The record there, and all of its key before it, are not found again, after a restart either.
    pub(super) fn remove_durably(&mut self, pool: PoolId, key: Key, at: SsdPlace) {
        let device = at.segment().device();
        let Some(log) = self.ssd.log.as_mut().filter(|log| log.has_device(device)) else { return };
        if planted::is(Bug::RemovalNotListed) {
            return;
        }
        log.remove(device, pool, key);
        self.ssd.removals.forgetting.entry((pool, key)).or_default().lines += 1;
        self.wait_until_forgotten(pool, key);
    }

    /// The call under way, if one is, waits for what is being removed of the key.
    pub(super) fn wait_until_forgotten(&mut self, pool: PoolId, key: Key) {
        let ticket = self.ssd.removals.ticket;
        if let (Some(forgetting), true) = (self.ssd.removals.forgetting.get_mut(&(pool, key)), ticket != 0) {
            forgetting.tickets.push(ticket);
            self.ticket_counts(ticket);
        }
    }

    /// The call under way waits for purges of the pool: what they took from the table may still be found after a restart.
    pub(super) fn wait_until_purged(&mut self, pool: PoolId) {
        let ticket = self.ssd.removals.ticket;
        let purges = self.ssd.removals.purges.values_mut().filter(|purge| purge.pool == pool);
        let count = purges.map(|purge| purge.tickets.push(ticket)).count();
        (0..count).for_each(|_| self.ticket_counts(ticket));
    }

    /// One device's line that says that a pool was purged is there for good.
    pub(super) fn purged(&mut self, ticket: u64) {
        let purge = self.ssd.removals.purges.get_mut(&ticket).expect("counted when it was asked for");
        purge.lines -= 1;
        if purge.lines == 0 {
            let purge = self.ssd.removals.purges.remove(&ticket).expect("looked up above");
            purge.tickets.into_iter().for_each(|ticket| self.ticket_step(ticket));
        }
    }

    /// The purge of a ticket is to be listed on every device.
    pub(super) fn list_purge(&mut self, pool: PoolId, ticket: u64) {
        let lines = self.ssd.log.as_mut().map_or(0, |log| log.purge(pool, ticket));
        if lines > 0 {
            self.ticket_counts(ticket);
            self.ssd.removals.purges.insert(ticket, Purge { pool, lines, tickets: vec![ticket] });
        }
    }

    /// One line of the log that says that a key was removed is there for good.
    pub(super) fn forgotten(&mut self, pool: PoolId, key: Key) {
        let forgetting = self.ssd.removals.forgetting.get_mut(&(pool, key)).expect("counted when it was asked for");
        forgetting.lines -= 1;
        if forgetting.lines == 0 {
            let forgetting = self.ssd.removals.forgetting.remove(&(pool, key)).expect("looked up above");
            forgetting.tickets.into_iter().for_each(|ticket| self.ticket_step(ticket));
        }
    }

    /// From here on, what is removed from the log is counted for the call.
    pub(super) fn ticket_opened(&mut self, to: Caller) {
        self.ssd.removals.ticket_last += 1;
        self.ssd.removals.ticket = self.ssd.removals.ticket_last;
        self.ssd.removals.tickets.insert(self.ssd.removals.ticket, Ticket { to: Some(to), blocks: 0, left: 1 });
    }

    /// Calls that wait until something is gone for good.
    pub(super) fn tickets(&self) -> usize {
        self.ssd.removals.tickets.len()
    }

    /// The key is removed before anybody knows whether a former start left it on SSD.
    pub(super) fn removed_early(&mut self, pool: PoolId, key: &Key) {
        let ticket = self.ssd.removals.ticket;
        self.ssd.removals.removed_early.entry((pool, *key)).or_default().push(ticket);
        self.ticket_counts(ticket);
    }

    /// A purge begins, or ends: then one line of the log stands for all that was removed.
    pub(super) fn purging(&mut self, pool: PoolId, begins: bool) {
        self.ssd.removals.purging = begins.then_some(pool);
        let ticket = self.ssd.removals.ticket;
        if begins || self.ssd.state == State::Off {
            return;
        }
        if self.ssd.log.is_some() && self.ssd.state == State::On {
            self.list_purge(pool, ticket);
        } else {
            self.ticket_counts(ticket);
            self.ssd.removals.purged_early.entry(pool).or_default().push(ticket);
        }
    }

    /// All that the call removes is known.
    pub(super) fn ticket_closed(&mut self, blocks: u64) {
        let number = std::mem::take(&mut self.ssd.removals.ticket);
        self.ssd.removals.tickets.get_mut(&number).expect("opened before").blocks = blocks;
        self.ticket_step(number);
    }

    pub(super) fn ticket_counts(&mut self, number: u64) {
        if let Some(ticket) = self.ssd.removals.tickets.get_mut(&number) {
            ticket.left += 1;
        }
    }

    pub(super) fn ticket_step(&mut self, number: u64) {
        let Some(ticket) = self.ssd.removals.tickets.get_mut(&number) else { return };
        ticket.left -= 1;
        if ticket.left == 0 {
            let Ticket { to, blocks, .. } = self.ssd.removals.tickets.remove(&number).expect("looked up above");
            if let Some(to) = to {
                self.removed(to, blocks);
            }
        }
    }

    /// What the client had asked for goes on, and is not answered.
    pub(super) fn cancel_tickets(&mut self, id: ClientId) {
        for ticket in
            self.ssd.removals.tickets.values_mut().filter(|ticket| ticket.to.is_some_and(|to| to.client == id))
        {
            ticket.to = None;
        }
    }

    /// A client that is gone hears nothing.
    pub(super) fn removed(&mut self, to: Caller, blocks: u64) {
        if self.clients.get(&to.client).is_some_and(|client| client.connected) {
            self.reply(to, Reply::Removed { blocks });
        }
    }
}
