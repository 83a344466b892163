//! Keys that are looked up in a peer's block table by its paths, without asking it. A look finds no parents: those are known
//! from what the client asked for, or nothing is looked up.

use std::time::Duration;

use lapis_arena::table::TableShape;
use lapis_config::{Key, PoolId, Time};
use lapis_transport::{
    peers::{
        asker::LocateBy,
        message::Located,
        paths::{Look, ToPaths},
    },
    wire::Wire,
};

use super::{
    super::Engine,
    filling::{narrow, wide},
};
use crate::{
    movers::{Job, Movers},
    peers::{Looking, Want},
};

impl<W: Wire, M: Movers> Engine<W, M> {
    /// Peers may look keys up in the table of a group that looks keys up in theirs.
    pub(super) fn show_table(&mut self, index: usize) {
        let peers = self.peers.as_ref().expect("it has just joined them");
        if peers.options.asker.locate == LocateBy::OneSided {
            let table = &self.groups[index].core.kept().table;
            let (mapping, shape) = (table.mapping().clone(), TableShape::of(table.table()));
            self.movers.submit(Job::Paths(ToPaths::Table { group: index, mapping, shape }));
        }
    }

    /// Looks up what a want needs, if the parent of each of its keys is known.
    pub(super) fn begin_look(
        &mut self,
        now: Time,
        index: usize,
        want: u64,
        pool: PoolId,
        within: Duration,
        mut looking: Looking,
    ) {
        let peers = self.peers.as_mut().expect("the pure half spoke");
        let op = peers.number();
        let own = &mut peers.groups[index];
        let parents = own.wants.get(&want).and_then(|want| parents(want, &looking.keys));
        let (Some(parents), Some(&link)) = (parents, own.to.get(&looking.peer)) else {
            return own.host.looked(now, looking.peer, looking.call, Key::default(), Vec::new());
        };
        looking.parents = parents;
        let look = Look { op: wide(index, op), link, pool, keys: looking.keys.clone(), within };
        own.looking.insert(op, looking);
        self.movers.submit(Job::Paths(ToPaths::Look(look)));
    }

    /// Paths have ended a look.
    pub(super) fn looked(&mut self, now: Time, op: u64, mut found: Vec<Located>) {
        let (index, op) = narrow(op);
        let Some(own) = self.peers.as_mut().and_then(|peers| peers.groups.get_mut(index)) else { return };
        let Some(Looking { peer, call, keys, parents }) = own.looking.remove(&op) else { return };
        for located in &mut found {
            let at = usize::from(located.index);
            let before = at.checked_sub(1).and_then(|before| keys.get(before));
            located.follows = before.is_some() && before == parents.get(at);
        }
        own.host.looked(now, peer, call, parents.first().copied().unwrap_or_default(), found);
        self.pump_peers(now, index);
    }
}

/// Of keys of a want, in its order; `None` if that of any is not known.
fn parents(want: &Want, keys: &[Key]) -> Option<Vec<Key>> {
    let mut known = want.keys.iter().zip(&want.parents);
    keys.iter().map(|key| *known.find(|(of, _)| *of == key)?.1).collect()
}
