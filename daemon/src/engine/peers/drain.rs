//! `lapis drain`: this host is to go away, and offers its hottest blocks to the others, who read what they have room for.
//! Meanwhile it goes on serving, but takes no puts.

use std::time::Duration;

use lapis_config::{PoolId, Time};
use lapis_tiering::Piece;
use lapis_transport::{
    hello::ToClient,
    peers::{directory::PeerId, name::ShortName},
    wire::{ConnId, Wire},
};
use serde::{Deserialize, Serialize};

use super::super::Engine;
use crate::{movers::Movers, peers::Offered};

/// Offers under way with one peer: it reads the blocks of one while it is told of the next.
const OFFERS_EACH: usize = 2;
/// Keys of one offer.
const KEYS_EACH: usize = 64;
/// How long a peer may take for one offer.
const OFFER_WITHIN: Duration = Duration::from_secs(5);

/// One group's hand-over.
#[derive(Debug)]
pub(crate) struct Drain {
    /// Hottest last.
    left: Vec<Piece>,
    under_way: usize,
    began: Time,
    until: Time,
    /// Who is told of its end.
    conns: Vec<ConnId>,
    report: DrainReport,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DrainReport {
    /// Blocks in memory when it began.
    pub blocks: u64,
    /// Of them, those that other hosts had already, and those that came to be there.
    pub there: u64,
    pub moved: u64,
    /// Those that nobody has: nobody had room, nobody was there, or the time was over.
    pub left: u64,
    pub seconds: f64,
}

impl<W: Wire, M: Movers> Engine<W, M> {
    /// Begins to hand the group's blocks over. The end is told on that connection. What was begun before goes on, for as long
    /// as either may take.
    pub(crate) fn begin_drain(&mut self, now: Time, index: usize, conn: ConnId, within: Duration) {
        let until = now.after(within);
        if let Some(begun) = self.peers.as_mut().and_then(|peers| peers.groups[index].drain.as_mut()) {
            begun.conns.push(conn);
            begun.until = begun.until.max(until);
            return;
        }
        self.draining = true;
        self.groups.iter_mut().for_each(|group| group.core.set_draining(true));
        let mut left = self.groups[index].core.hottest(u64::MAX, KEYS_EACH);
        let blocks: u64 = left.iter().map(|piece| piece.keys.len() as u64).sum();
        tracing::info!(
            group = self.groups[index].options.name,
            blocks,
            "draining: peers are offered what is in memory"
        );
        left.reverse();
        let report = DrainReport { blocks, ..DrainReport::default() };
        let drain = Drain { left, under_way: 0, began: now, until, conns: vec![conn], report };
        if self.peers.is_none() {
            return self.end_drain(now, drain);
        }
        self.group_peers(index).drain = Some(drain);
        self.pump_drain(now, index);
    }

    pub(super) fn drain_answered(&mut self, now: Time, index: usize, came: u32) {
        if let Some(drain) = &mut self.group_peers(index).drain {
            drain.under_way -= 1;
            drain.report.moved += u64::from(came);
        }
        self.pump_drain(now, index);
    }

    /// Offers as much as peers take now; ends when all is offered, or the time is over.
    pub(super) fn pump_drain(&mut self, now: Time, index: usize) {
        let own = self.group_peers(index);
        let Some(mut drain) = own.drain.take() else { return };
        let peers = own.host.peers_up();
        while now < drain.until && !peers.is_empty() && drain.under_way < OFFERS_EACH * peers.len() {
            let Some(piece) = drain.left.pop() else { break };
            let wanted = own.unknown_elsewhere(piece.pool, &piece.keys);
            drain.report.there += (piece.keys.len() - wanted) as u64;
            let keys = &piece.keys[piece.keys.len() - wanted..];
            if keys.is_empty() {
                continue;
            }
            // All of a chain to one peer, so that it can be used there.
            let first = piece.root.0[0] as usize % peers.len();
            let order = peers.iter().cycle().skip(first).take(peers.len());
            let until = now.after(OFFER_WITHIN).min(drain.until);
            let mut offers = order.filter_map(|&peer: &PeerId| own.host.offer(now, peer, piece.pool, keys, until));
            match offers.next() {
                Some(offer) => {
                    own.offers.insert(offer, Offered::ByDrain);
                    drain.under_way += 1;
                }
                None if drain.under_way > 0 => {
                    // All are busy: an answer will bring us here again.
                    drain.report.there -= (piece.keys.len() - wanted) as u64;
                    drain.left.push(piece);
                    break;
                }
                // No peer has such a pool: nobody there could use the blocks.
                None => {}
            }
        }
        let is_over = drain.under_way == 0 && (drain.left.is_empty() || peers.is_empty()) || now >= drain.until;
        if is_over {
            own.offers.retain(|_, offered| *offered != Offered::ByDrain);
            own.host.go();
            return self.end_drain(now, drain);
        }
        own.drain = Some(drain);
    }

    fn end_drain(&mut self, now: Time, drain: Drain) {
        let mut report = drain.report;
        report.left = report.blocks.saturating_sub(report.there + report.moved);
        report.seconds = now.since_us(drain.began) as f64 / 1e6;
        tracing::info!(?report, "drained: what is left is only here");
        let json = serde_json::to_string(&report).expect("plain data has a JSON form");
        for conn in drain.conns {
            for message in ToClient::status(&json) {
                if let Err(error) = self.wire.send(conn, &message, &[]) {
                    tracing::debug!(%error, "who asked for the drain has gone");
                }
            }
            self.end(conn);
        }
    }

    pub(super) fn drain_timeout(&self, index: usize) -> Option<Time> {
        self.peers.as_ref()?.groups[index].drain.as_ref().map(|drain| drain.until)
    }
}

impl crate::peers::GroupPeers {
    /// Of a chain's blocks, how many from the end no other host is said to have.
    fn unknown_elsewhere(&self, pool: PoolId, keys: &[lapis_config::Key]) -> usize {
        let names: Option<Vec<ShortName>> = keys.iter().map(|key| self.host.name_of(pool, key)).collect();
        let Some(names) = names else { return keys.len() };
        let run = self.host.directory().choose(&names, 0, |_| false).map_or(0, |choice| choice.run);
        keys.len() - run
    }
}
