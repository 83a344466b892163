//! How connections and clients end: refused, hung up, dead, expelled, buried.
//!
//! Invariant: a client's granted slots are given back only after its processes have ended, or it said `Bye`.

use std::time::Duration;

use lapis_config::{ClientId, Time};
use lapis_transport::{
    frame::Request,
    hello::ToClient,
    wire::{ConnId, Wire},
};

use super::{Engine, FRAMES_PER_TURN, Role};
use crate::movers::Movers;

/// Granted slots of a dead client that writes by DMA wait so long after its last process ended.
const DMA_GRACE: Duration = Duration::from_secs(1);

impl<W: Wire, M: Movers> Engine<W, M> {
    pub(crate) fn client_of(&mut self, conn: ConnId) -> Option<&mut crate::client::Client> {
        match self.roles.get(&conn)? {
            Role::Client { group, id } => self.groups[*group].clients.get_mut(id),
            _ => None,
        }
    }

    /// Ends a connection with a reason that its other end can show.
    pub(crate) fn refuse(&mut self, now: Time, conn: ConnId, reason: &str) {
        tracing::warn!(conn = conn.0, reason, "connection refused");
        let message = ToClient::Refused { token: 0, reason: reason.to_owned() };
        if let Err(error) = self.wire.send(conn, &message, &[]) {
            tracing::debug!(%error, "the refused peer does not listen");
        }
        self.wire.hang_up(conn);
        self.hung_up(now, conn);
    }

    /// Ends a connection that was answered.
    pub(crate) fn end(&mut self, conn: ConnId) {
        self.roles.remove(&conn);
        self.wire.hang_up(conn);
        self.wire.forget(conn);
    }

    /// The socket is closed at either end. A client's process and lifeline stay watched.
    pub(super) fn hung_up(&mut self, now: Time, conn: ConnId) {
        match self.roles.get(&conn) {
            Some(Role::Client { group, id }) => {
                let (group, id) = (*group, *id);
                self.wire.hang_up(conn);
                self.disconnect(now, group, id);
            }
            Some(_) => {
                self.roles.remove(&conn);
                self.wire.hang_up(conn);
                self.wire.forget(conn);
            }
            None => {}
        }
    }

    /// Rings and waits of a client end; slots that it was granted stay its own until its processes ended.
    pub(crate) fn disconnect(&mut self, now: Time, index: usize, id: ClientId) {
        if !self.groups[index].clients.get(&id).is_some_and(|client| client.connected) {
            return;
        }
        let client = self.groups[index].clients.get_mut(&id).expect("looked up above");
        // First: from here on its answers are dropped, and cannot be a reason to disconnect it again.
        client.connected = false;
        client.forget_answers();
        // What it posted before it went counts: those slots were filled.
        self.last_frames(now, index, id);
        self.groups[index].core.client_lost(id);
    }

    pub(super) fn last_frames(&mut self, now: Time, index: usize, id: ClientId) {
        if self.groups[index].adoption.is_some() {
            return;
        }
        for _ in 0..FRAMES_PER_TURN {
            let Some(client) = self.groups[index].clients.get_mut(&id) else { return };
            match client.control.pop_request() {
                Ok(Some(
                    request @ (Request::Commit { .. }
                    | Request::Abort { .. }
                    | Request::CommitOnGpu { .. }
                    | Request::AbortOnGpu { .. }),
                )) => self.request(now, index, id, request),
                Ok(Some(_)) => {}
                // A frame cut short by its writer's death ends the ring like an empty one.
                Ok(None) | Err(_) => return,
            }
        }
    }

    pub(super) fn exited(&mut self, now: Time, conn: ConnId) {
        let Some(Role::Client { group, id }) = self.roles.get(&conn).cloned() else {
            // Before its `Hello` was heard: nothing else will tell of its end.
            return self.hung_up(now, conn);
        };
        self.counts.clients_died += 1;
        self.disconnect(now, group, id);
        // Its pins end with it. A forked child that reads on does so at its own risk.
        self.groups[group].core.kept_mut().remove_hazards(id);
        if let Some(client) = self.client_of(conn) {
            client.exited = true;
        }
        self.check_gone(now, conn);
    }

    pub(super) fn check_gone(&mut self, now: Time, conn: ConnId) {
        let Some(client) = self.client_of(conn) else { return };
        if client.exited && client.lifeline_ended && client.gone_at.is_none() {
            client.gone_at = Some(if client.writes_by_dma { now.after(DMA_GRACE) } else { now });
        }
    }

    /// Gives back what ended clients held.
    pub(super) fn bury_the_dead(&mut self, now: Time, index: usize) {
        let gone: Vec<(ClientId, ConnId)> = self.groups[index]
            .clients
            .values()
            .filter(|client| client.gone_at.is_some_and(|at| at <= now))
            .map(|client| (client.id, client.conn))
            .collect();
        for (id, conn) in gone {
            self.let_go(index, id, conn);
        }
    }

    /// Everything that the client held is free; its descriptors are dropped.
    pub(crate) fn let_go(&mut self, index: usize, id: ClientId, conn: ConnId) {
        let group = &mut self.groups[index];
        group.core.kept_mut().remove_hazards(id);
        group.core.client_gone(id);
        group.remove_client(id, self.keeper.as_mut());
        self.roles.remove(&conn);
        self.wire.hang_up(conn);
        self.wire.forget(conn);
    }

    /// Disconnects a client that holds too many pins and ignores its page: only its own views can then see other bytes,
    /// and `View::still_valid` tells.
    pub(super) fn expel(&mut self, now: Time, index: usize, id: ClientId) {
        let group = &mut self.groups[index];
        let Some(client) = group.clients.get_mut(&id).filter(|client| !client.expelled) else { return };
        tracing::warn!(client = id.0, name = client.name, "expelled: more bytes pinned than client.pin_bytes_max");
        client.expelled = true;
        client.control.set_expelled();
        let conn = client.conn;
        self.counts.clients_expelled += 1;
        let kept = group.core.kept_mut();
        kept.state.set_expelled(id);
        kept.remove_hazards(id);
        self.refuse(
            now,
            conn,
            "expelled: more bytes pinned than client.pin_bytes_max for longer than client.pin_age_max",
        );
    }

    /// Under pressure (slots in DRAM or on a GPU wait for readers), a client over its bound of pinned bytes is warned, then expelled.
    pub(super) fn watch_pins(&mut self, now: Time, index: usize) {
        let group = &mut self.groups[index];
        if !group.pins.due(now) {
            return;
        }
        let waiting = group.waiting();
        if !(waiting.is_anywhere() || group.pins.is_watching()) {
            return;
        }
        let counted = group.clients.values().filter(|client| waiting.is_anywhere() && !client.expelled);
        let pinned: Vec<(ClientId, u64)> =
            counted.map(|client| (client.id, group.pinned_bytes(client.id, &waiting))).collect();
        let verdicts = group.pins.judge(now, &pinned);
        for id in verdicts.warn {
            if let Some(client) = group.clients.get(&id) {
                client.control.set_warned();
            }
        }
        for id in verdicts.pardon {
            if let Some(client) = group.clients.get(&id).filter(|client| !client.expelled) {
                client.control.clear_warning();
            }
        }
        for id in verdicts.expel {
            self.expel(now, index, id);
        }
    }
}
