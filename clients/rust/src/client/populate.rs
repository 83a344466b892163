//! Maps the pages of the arena into this process ahead of the first copy, which else pays 4 us of faults per 64 KiB.
//!
//! Invariant: only what the daemon has populated already is touched, so that none of it is charged to an engine.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use lapis_arena::{ArenaError, Mapping};

use super::shared::Shared;
use crate::{Session, session};

/// Bytes mapped between two looks at whether to stop; about 2 ms.
const CHUNK_BYTES: usize = 16 << 20;
/// Pause before looking again whether the daemon has populated more; doubled up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Starts a thread for what this session has mapped and no thread has populated; it ends by itself.
pub(super) fn start(shared: &Arc<Shared>, session: &Session) {
    if !shared.options.populate || !session.maps().is_owned() {
        return;
    }
    let maps = session.maps().clone();
    let extents: Vec<Mapping> = (0..maps.extents.len()).filter_map(|i| maps.extents.get(i).cloned()).collect();
    let weak = Arc::downgrade(shared);
    let stop = shared.stop.clone();
    let work = move || {
        // A daemon that died early never populates the rest: its memory goes when the last session and view of it do.
        let used = Arc::downgrade(&maps);
        let stopping = || stop.load(Ordering::Relaxed) || weak.strong_count() == 0 || used.strong_count() == 0;
        let table = maps.table_mapping().clone();
        drop(maps);
        // Lines that were never used have no memory: of the table what there is now, of the extents all in time.
        let table = populate(&table, false, &stopping);
        let done = table.and_then(|()| extents.iter().try_for_each(|extent| populate(extent, true, &stopping)));
        if let Err(error) = done {
            tracing::debug!(%error, "populating; the first copies pay for it instead");
        }
    };
    let mut threads = session::lock(&shared.threads);
    threads.retain(|thread| !thread.is_finished());
    match std::thread::Builder::new().name("lapis-populate".into()).spawn(work) {
        Ok(thread) => threads.push(thread),
        Err(error) => tracing::debug!(%error, "no thread to populate with; the first copies pay for it instead"),
    }
}

/// Maps what exists of a mapping; with `all`, waits for what does not exist yet.
fn populate(mapping: &Mapping, all: bool, stopping: &impl Fn() -> bool) -> Result<(), ArenaError> {
    let (mut at, mut pause) = (0, PAUSE_MIN);
    while at < mapping.len() && !stopping() {
        let end = mapping.len().min(at + CHUNK_BYTES);
        let there = existing(mapping, at, end);
        if all && there.first() != Some(&(at..end)) {
            // Woken when the client goes.
            std::thread::park_timeout(pause);
            pause = (pause * 2).min(PAUSE_MAX);
            continue;
        }
        for range in there {
            if mapping.is_writable() { mapping.populate_write(range)? } else { mapping.populate_read(range)? }
        }
        (at, pause) = (end, PAUSE_MIN);
    }
    Ok(())
}

/// The parts of a range whose pages exist already. Unknown counts as existing: the kernel tells only owners.
fn existing(mapping: &Mapping, from: usize, to: usize) -> Vec<Range<usize>> {
    let page = rustix::param::page_size();
    let mut resident = vec![0u8; (to - from).div_ceil(page)];
    // SAFETY: the range is mapped for as long as `mapping` lives and starts at a page; the vector has a byte a page.
    if unsafe { libc::mincore(mapping.as_ptr(from).cast(), to - from, resident.as_mut_ptr()) } != 0 {
        return std::iter::once(from..to).collect();
    }
    let mut ranges = Vec::new();
    let mut at = from;
    for run in resident.chunk_by(|a, b| a & 1 == b & 1) {
        let end = to.min(at + run.len() * page);
        if run[0] & 1 != 0 {
            ranges.push(at..end);
        }
        at = end;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use lapis_arena::{
        Access,
        memfd::{self, Huge},
    };

    use super::*;

    #[test]
    fn only_what_exists_is_touched() {
        let bytes = 1 << 20;
        let (fd, _) = memfd::create("sparse", bytes, Huge::Never).expect("a memfd");
        let ours = Mapping::shared(fd.as_fd(), bytes, Access::ReadWrite).expect("a mapping");
        ours.store64(3 * 4096, 1, Ordering::Relaxed);
        ours.store64(4 * 4096, 1, Ordering::Relaxed);
        let theirs = Mapping::shared(fd.as_fd(), bytes, Access::ReadOnly).expect("a mapping");
        let there = existing(&theirs, 0, theirs.len());
        assert_eq!((there.len(), there[0].clone()), (1, 3 * 4096..5 * 4096));
        populate(&theirs, false, &|| false).expect("populated");
        assert_eq!(existing(&theirs, 0, theirs.len()), there, "nothing was made");
    }
}
