//! Who may read from here, and what: kept by the engine's thread, looked up by the threads of streams, so that a read
//! wakes no engine.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use super::{head::STREAMS_MAX, lock, wire::Wire};
use crate::peers::{links::LinkId, paths::Lent};

#[derive(Default)]
pub(super) struct Guests {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_link: HashMap<LinkId, Arc<Guest>>,
    by_word: HashMap<u64, Arc<Guest>>,
}

/// A link on which a peer asks.
pub(super) struct Guest {
    pub link: LinkId,
    word: u64,
    lent: Mutex<HashMap<u64, Arc<[Lent]>>>,
    /// `None`: it has gone.
    streams: Mutex<Option<[Option<Arc<Wire>>; STREAMS_MAX as usize]>>,
}

impl Guests {
    pub fn add(&self, link: LinkId, word: u64) {
        let streams = Mutex::new(Some(Default::default()));
        let guest = Arc::new(Guest { link, word, lent: Mutex::default(), streams });
        let mut known = lock(&self.known);
        known.by_word.insert(word, Arc::clone(&guest));
        let former = known.by_link.insert(link, guest);
        drop(known);
        former.inspect(|guest| guest.leave());
    }

    pub fn remove(&self, link: LinkId) {
        let mut known = lock(&self.known);
        let Some(guest) = known.by_link.remove(&link) else { return };
        known.by_word.remove(&guest.word);
        drop(known);
        guest.leave();
    }

    pub fn lend(&self, link: LinkId, token: u64, blocks: Vec<Lent>) {
        if let Some(guest) = self.of_link(link) {
            lock(&guest.lent).insert(token, blocks.into());
        }
    }

    pub fn unlend(&self, link: LinkId, token: u64) {
        if let Some(guest) = self.of_link(link) {
            lock(&guest.lent).remove(&token);
        }
    }

    pub fn of_word(&self, word: u64) -> Option<Arc<Guest>> {
        lock(&self.known).by_word.get(&word).cloned()
    }

    fn of_link(&self, link: LinkId) -> Option<Arc<Guest>> {
        lock(&self.known).by_link.get(&link).cloned()
    }
}

impl Guest {
    pub fn lent(&self, token: u64) -> Option<Arc<[Lent]>> {
        lock(&self.lent).get(&token).cloned()
    }

    /// Takes a stream in, in place of an older one of its number. False if the guest has gone.
    pub fn enter(&self, number: u16, wire: &Arc<Wire>) -> bool {
        let mut streams = lock(&self.streams);
        let Some(streams) = streams.as_mut() else { return false };
        if let Some(former) = streams[usize::from(number)].replace(Arc::clone(wire)) {
            former.socket.shut();
        }
        true
    }

    /// That stream has ended.
    pub fn left(&self, number: u16, wire: &Arc<Wire>) {
        if let Some(streams) = lock(&self.streams).as_mut() {
            let stream = &mut streams[usize::from(number)];
            if stream.as_ref().is_some_and(|stream| Arc::ptr_eq(stream, wire)) {
                *stream = None;
            }
        }
    }

    fn leave(&self) {
        lock(&self.lent).clear();
        for wire in lock(&self.streams).take().into_iter().flatten().flatten() {
            wire.socket.shut();
        }
    }
}
