//! From the rings to the core and back: frames become calls, replies become completions.

use std::time::Duration;

use lapis_config::{ClientId, LineId, PoolId, Refusal, Time};
use lapis_tiering::face::{Caller, CommitItem, Parent, Put, Reply, Reserved};
use lapis_transport::{
    frame::{self, Completion, ParentRef, PutResult, Request, ReserveResult},
    hello::ToClient,
    wire::Wire,
};

use super::{Engine, FRAMES_PER_TURN};
use crate::movers::Movers;

/// Touches taken from one client in a turn: a flood makes only its own entries late.
const TOUCHES_PER_TURN: usize = 256;
/// No call waits longer in a core, whatever its client asks.
const DEADLINE_MAX: Duration = Duration::from_secs(60);

impl<W: Wire, M: Movers> Engine<W, M> {
    pub(super) fn serve_rings(&mut self, now: Time, index: usize) -> bool {
        let ids: Vec<ClientId> =
            self.groups[index].clients.values().filter(|client| client.connected).map(|client| client.id).collect();
        let mut busy = false;
        for id in ids {
            busy |= self.serve_ring(now, index, id);
        }
        busy
    }

    pub(super) fn serve_ring(&mut self, now: Time, index: usize, id: ClientId) -> bool {
        let mut busy = false;
        for _ in 0..FRAMES_PER_TURN {
            let group = &mut self.groups[index];
            let Some(client) = group.clients.get_mut(&id) else { return busy };
            match client.control.pop_request() {
                Ok(Some(request)) => {
                    busy = true;
                    self.counts.frames += 1;
                    self.counts.put_frames += u64::from(is_of_put(&request));
                    self.request(now, index, id, request);
                }
                Ok(None) => break,
                Err(fault) => {
                    self.counts.client_faults += 1;
                    let (conn, reason) = (client.conn, fault.to_string());
                    self.refuse(now, conn, &reason);
                    return true;
                }
            }
        }
        let group = &mut self.groups[index];
        let Some(client) = group.clients.get_mut(&id) else { return busy };
        let core = &mut group.core;
        let (mut touches, uses_gpus) = (0, client.uses_gpus);
        client.control.drain_touches(TOUCHES_PER_TURN, &mut |touch| {
            match touch.gpu.filter(|_| uses_gpus) {
                Some(gpu) => core.read_into(now, gpu, LineId(touch.line), touch.bind_low, touch.hit),
                None => core.touched(now, LineId(touch.line), touch.bind_low, touch.hit, touch.asked),
            }
            touches += 1;
        });
        busy |= touches == TOUCHES_PER_TURN;
        if client.flush() {
            busy = true;
            // It emptied the ring and went to sleep before these were in it.
            if client.control.client_sleeping() {
                let conn = client.conn;
                self.wire.ring(conn);
            }
        }
        busy
    }

    pub(super) fn request(&mut self, now: Time, index: usize, id: ClientId, request: Request) {
        let draining = self.draining;
        let group = &mut self.groups[index];
        let caller = |token| Caller { client: id, token };
        let core = &mut group.core;
        let may_put = group.clients.get(&id).is_some_and(|client| client.may_put);
        let refused = |token, reason| Some((id, Completion::Refused { token, reason }));
        let until = |deadline_us| now.after(Duration::from_micros(deadline_us).min(DEADLINE_MAX));
        let answer = match request {
            Request::Commit { token, pool, items } => {
                self.puts.clear();
                core.commit(now, id, pool, &commit_items(&items), &mut self.puts);
                let results = self.puts.iter().map(|put| put_result(*put)).collect();
                Some((id, Completion::Committed { token, results }))
            }
            Request::CommitOnGpu { token, gpu, pool, items } => {
                self.puts.clear();
                core.commit_on_gpu(now, id, gpu, pool, &commit_items(&items), &mut self.puts);
                let results = self.puts.iter().map(|put| put_result(*put)).collect();
                Some((id, Completion::Committed { token, results }))
            }
            Request::Refill { token, .. } | Request::Reserve { token, .. } | Request::ReserveOnGpu { token, .. }
                if draining =>
            {
                refused(token, Refusal::Draining)
            }
            Request::Remove { token, .. } | Request::Purge { token, .. } if !may_put => {
                refused(token, Refusal::ReadOnly)
            }
            Request::HintKeys { .. } if !may_put => None,
            Request::Refill { token, pool, slot_bytes, count, deadline_us } => {
                core.refill(now, caller(token), pool, slot_bytes, count, until(deadline_us));
                None
            }
            Request::Reserve { token, pool, slot_bytes, parent: of, deadline_us, keys } => {
                core.reserve(now, caller(token), pool, slot_bytes, &keys, parent(of), until(deadline_us));
                None
            }
            Request::Abort { slots } => {
                core.abort(now, id, &slots);
                None
            }
            Request::ReserveOnGpu { token, gpu, pool, parent: of, keys } => {
                core.reserve_on_gpu(now, caller(token), gpu, pool, &keys, parent(of));
                None
            }
            Request::AbortOnGpu { gpu, slots } => {
                core.abort_on_gpu(now, id, gpu, &slots);
                None
            }
            Request::Get { token, asks, wait, deadline_us, keys } => {
                self.get(now, index, caller(token), asks, keys, wait, until(deadline_us), None);
                None
            }
            Request::GetFrom { token, peer, asks, wait, deadline_us, keys } => {
                self.get(now, index, caller(token), asks, keys, wait, until(deadline_us), Some(&peer));
                None
            }
            Request::Offer { token, peer, pool, deadline_us, keys } => {
                self.offer(now, index, caller(token), &peer, pool, &keys, until(deadline_us));
                None
            }
            Request::Release { token } => {
                core.release(caller(token));
                None
            }
            Request::Prefetch { pool, keys } => {
                core.prefetch(now, pool, &keys);
                self.prefetch_from_peers(now, index, pool, &keys);
                None
            }
            Request::HintKeys { pool, hint, keys } => {
                core.hint(now, pool, &keys, hint);
                None
            }
            Request::Remove { token, pool, keys } => {
                core.remove(now, caller(token), pool, &keys);
                self.tell_removed(now, index, pool, &keys);
                None
            }
            Request::Purge { token, pool } => {
                core.purge(now, caller(token), pool);
                self.tell_removed(now, index, pool, &[]);
                None
            }
        };
        if let Some((id, completion)) = answer {
            self.answer(now, index, id, completion);
        }
    }

    pub(super) fn answer(&mut self, now: Time, index: usize, id: ClientId, completion: Completion) {
        let Some(client) = self.groups[index].clients.get_mut(&id) else { return };
        if !client.connected {
            return;
        }
        let conn = client.conn;
        let kept_up = client.answer(completion);
        if client.control.client_sleeping() {
            self.wire.ring(conn);
        }
        if !kept_up {
            self.counts.client_faults += 1;
            self.refuse(now, conn, "the completion ring is full and too many answers wait: the client does not read");
        }
    }

    pub(super) fn recall(&mut self, now: Time, index: usize, id: ClientId, pool: PoolId) {
        let Some(client) = self.groups[index].clients.get(&id).filter(|client| client.connected) else { return };
        let conn = client.conn;
        if let Err(error) = self.wire.send(conn, &ToClient::Recall { pool }, &[]) {
            self.refuse(now, conn, &format!("the socket does not take a recall: {error}"));
        }
    }
}

/// Whether more frames follow this one at once: a batch of puts comes in parts.
fn is_of_put(request: &Request) -> bool {
    matches!(
        request,
        Request::Commit { .. }
            | Request::Refill { .. }
            | Request::Reserve { .. }
            | Request::CommitOnGpu { .. }
            | Request::ReserveOnGpu { .. }
    )
}

fn commit_items(items: &[frame::CommitItem]) -> Vec<CommitItem> {
    let of = |item: &frame::CommitItem| CommitItem {
        slot: item.slot,
        key: item.key,
        parent: parent(item.parent),
        bytes: item.bytes,
        sum: item.sum,
    };
    items.iter().map(of).collect()
}

fn parent(parent: ParentRef) -> Parent {
    match parent {
        ParentRef::None => Parent::None,
        ParentRef::Previous => Parent::Previous,
        ParentRef::Key(key) => Parent::Key(key),
    }
}

fn put_result(put: Put) -> PutResult {
    match put {
        Put::Stored => PutResult::Stored,
        Put::Exists => PutResult::Exists,
        Put::Refused(reason) => PutResult::Refused(reason),
    }
}

pub(super) fn completion(token: u64, reply: Reply) -> Option<Completion> {
    Some(match reply {
        Reply::Got { hit } => Completion::Got { token, hit },
        Reply::Granted { pool, slot_bytes, slots } => Completion::Granted { token, pool, slot_bytes, slots },
        Reply::Reserved { results } => Completion::Reserved {
            token,
            results: results
                .into_iter()
                .map(|result| match result {
                    Reserved::Slot(slot) => ReserveResult::Slot(slot),
                    Reserved::Exists => ReserveResult::Exists,
                    Reserved::Refused(reason) => ReserveResult::Refused(reason),
                })
                .collect(),
        },
        Reply::Committed { results } => {
            Completion::Committed { token, results: results.into_iter().map(put_result).collect() }
        }
        Reply::Removed { blocks } => Completion::Removed { token, blocks },
        Reply::Refused(reason) => Completion::Refused { token, reason },
        Reply::Done => return None,
    })
}
