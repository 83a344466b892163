//! Keys that are looked up in tables without asking anybody: the engine's in those of other hosts, made up; the others' in the
//! engine's own table, as it is at that moment, and read from its memory as that is later.

use std::time::Duration;

use lapis_arena::table::{LINES_AT, Seen, TableShape, WINDOW_BYTES};
use lapis_config::{Key, PoolId, UNIT_BYTES};
use lapis_transport::peers::{
    links::LinkId,
    message::Located,
    paths::{FromPaths, Lent, Look},
};

use super::{
    Event, Hosts,
    stub::{PEER, POOL_FIRST},
};

/// Another host's look in the engine's table.
pub struct Looking {
    stub: usize,
    boot: u64,
    link: LinkId,
    call: u64,
    /// The engine's number of it.
    pool: PoolId,
    keys: Vec<Key>,
}

impl Hosts {
    pub(super) fn look_begins(&mut self, look: Look) {
        let cut = self.links.get(&look.link).is_none_or(|own| own.dead || !own.stub_open);
        let takes = if cut { look.within } else { self.look_takes(look.within) };
        let op = look.op;
        self.looks.insert(op, look);
        self.at(self.now.after(takes), Event::Looked(op));
    }

    fn look_takes(&mut self, within: Duration) -> Duration {
        let slow = self.plan.link_faults && self.rng.u8(..10) == 0;
        Duration::from_micros(if slow { self.rng.u64(..100_000) } else { self.rng.u64(5..200) }).min(within)
    }

    /// What another host's table says then, or its lies; or it cannot be read.
    pub(super) fn look_ends(&mut self, op: u64) {
        let Some(Look { link, pool, keys, .. }) = self.looks.remove(&op) else { return };
        let there = self.links.get(&link).filter(|own| !own.dead && own.stub_open);
        let there = there.map(|own| (own.stub, own.boot)).filter(|&(stub, boot)| self.stubs[stub].boot == boot);
        let readable = self.rng.u8(..10) > 0;
        let found = there.filter(|_| readable).map(|(stub, _)| {
            let lies = self.plan.link_faults;
            self.stubs[stub].find(usize::from(pool.0 - POOL_FIRST), &keys, lies, &mut self.rng).1
        });
        self.tally.looked += found.as_ref().map_or(0, Vec::len) as u64;
        self.said.push_back(FromPaths::Looked { op, found });
    }

    pub(super) fn end_looks(&mut self, link: LinkId) {
        let ops: Vec<u64> = self.looks.iter().filter(|(_, look)| look.link == link).map(|(&op, _)| op).collect();
        for op in ops {
            self.looks.remove(&op);
            self.said.push_back(FromPaths::Looked { op, found: None });
        }
    }

    pub(super) fn stub_looks(&mut self, at: usize, call: u64, pool: PoolId, keys: Vec<Key>, within: Duration) {
        let (now, boot) = (self.now, self.stubs[at].boot);
        let Some(link) = self.stubs[at].to else {
            return self.stubs[at].host.looked(now, PEER, call, Key::default(), Vec::new());
        };
        let due = now.after(self.look_takes(within));
        self.at(due, Event::StubLooked(Looking { stub: at, boot, link, call, pool, keys }));
    }

    pub(super) fn stub_looked(&mut self, looking: Looking) {
        if self.stubs[looking.stub].boot != looking.boot {
            return;
        }
        let reachable = self.links.get(&looking.link).is_some_and(|own| own.engine_open && !own.dead);
        let find = |(index, key)| Some(Located { index, ..self.find_in_table(looking.pool, key)? });
        let found: Vec<Located> = match reachable && self.engine_up {
            true => (0..).zip(&looking.keys).map_while(find).collect(),
            false => Vec::new(),
        };
        self.tally.lent_looked += found.len() as u64;
        self.stubs[looking.stub].host.looked(self.now, PEER, looking.call, Key::default(), found);
    }

    fn find_in_table(&self, pool: PoolId, key: &Key) -> Option<Located> {
        let (mapping, shape) = self.table.as_ref()?;
        for (home, is_first) in shape.homes(pool, key).into_iter().zip([true, false]) {
            match shape.judge(&window(mapping, shape, home), is_first, pool, key) {
                Seen::There(claim) => {
                    let (line, slot) = (claim.line.0, claim.slot.0);
                    let (generation, bytes, sum) = (claim.generation, claim.bytes, claim.sum);
                    return Some(Located { index: 0, follows: false, line, generation, slot, bytes, sum });
                }
                Seen::MayBeSecond => {}
                Seen::Absent => break,
            }
        }
        None
    }

    /// Where blocks lie, up to the first that lies nowhere.
    pub(super) fn places(&self, blocks: &[(usize, Located)]) -> Vec<Lent> {
        let place = |(_, located): &(usize, Located)| {
            let (first, mapping) = self.memory.range(..=located.slot).next_back()?;
            let offset = (u64::from(located.slot - first) * UNIT_BYTES) as usize;
            let bytes = located.bytes;
            (offset + bytes as usize <= mapping.len()).then(|| Lent { mapping: mapping.clone(), offset, bytes })
        };
        blocks.iter().map_while(place).collect()
    }
}

fn window(mapping: &lapis_arena::Mapping, shape: &TableShape, home: u64) -> Vec<u8> {
    let straight = (shape.lines_bytes() - home).min(WINDOW_BYTES.into()) as usize;
    let mut bytes = mapping.to_vec(LINES_AT + home as usize, straight);
    bytes.extend(mapping.to_vec(LINES_AT, WINDOW_BYTES as usize - straight));
    bytes
}
