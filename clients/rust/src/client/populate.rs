//! Maps the pages of the arena into this process ahead of the first copy, which else pays 4 us of faults per 64 KiB.
//!
//! Invariant: only what the daemon has populated already is touched, so that none of it is charged to an engine.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use lapis_arena::{ArenaError, Mapping};

use super::Shared;
use crate::{Session, session};

/// Bytes mapped between two looks at whether to stop; about 2 ms.
const CHUNK_BYTES: usize = 16 << 20;
/// Pause before looking again whether the daemon has populated more.
const PAUSE: Duration = Duration::from_millis(20);

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
        let stopping = || stop.load(Ordering::Relaxed) || weak.strong_count() == 0;
        let mut mappings = vec![(maps.table_mapping().clone(), false)];
        mappings.extend(extents.into_iter().map(|extent| (extent.clone(), extent.is_writable())));
        drop(maps);
        for (mapping, write) in mappings {
            if let Err(error) = populate(&mapping, write, &stopping) {
                tracing::debug!(%error, "populating; the first copies pay for it instead");
                return;
            }
        }
    };
    let mut threads = session::lock(&shared.threads);
    threads.retain(|thread| !thread.is_finished());
    match std::thread::Builder::new().name("lapis-populate".into()).spawn(work) {
        Ok(thread) => threads.push(thread),
        Err(error) => tracing::debug!(%error, "no thread to populate with; the first copies pay for it instead"),
    }
}

fn populate(mapping: &Mapping, write: bool, stopping: &impl Fn() -> bool) -> Result<(), ArenaError> {
    let mut at = 0;
    while at < mapping.len() && !stopping() {
        let end = mapping.len().min(at + CHUNK_BYTES);
        if !is_populated(mapping, at, end) {
            std::thread::sleep(PAUSE);
            continue;
        }
        if write {
            mapping.populate_write(at..end)?;
        } else {
            mapping.populate_read(at..end)?;
        }
        at = end;
    }
    Ok(())
}

/// Whether all pages of a range exist already. Unknown counts as yes: the kernel tells only owners.
fn is_populated(mapping: &Mapping, from: usize, to: usize) -> bool {
    let page = rustix::param::page_size();
    let mut resident = vec![0u8; (to - from).div_ceil(page)];
    // SAFETY: the range is mapped for as long as `mapping` lives and starts at a page; the vector has a byte a page.
    let told = unsafe { libc::mincore(mapping.as_ptr(from).cast(), to - from, resident.as_mut_ptr()) };
    told != 0 || resident.iter().all(|page| page & 1 != 0)
}
