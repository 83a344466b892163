//! Views: blocks read where they lie, without a copy, by the caller or by a device that it steers.
//!
//! Invariant: a view's slot is named on the hazard page from before its line was checked until the view is dropped.

use std::{fmt, mem::MaybeUninit, ops::Deref, sync::Arc};

use lapis_arena::{Found, Mapping};
use lapis_config::{Key, PoolKind};

use super::{Session, Verify};
use crate::{ClientError, Pool, keys, sums};

/// One block in place. Other processes map it too, so there is no slice of it: use the address, or copy.
pub struct View {
    session: Arc<Session>,
    found: Found,
    /// Of the hazard page.
    entry: u16,
    mapping: Mapping,
    offset: usize,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View({} bytes at slot {})", self.found.bytes, self.found.slot.0)
    }
}

impl View {
    /// Where the block starts. Good while this view lives and [`Self::still_valid`].
    pub fn as_ptr(&self) -> *const u8 {
        self.mapping.as_ptr(self.offset)
    }

    /// Bytes of the block.
    pub fn len(&self) -> usize {
        self.found.bytes as usize
    }

    pub fn is_empty(&self) -> bool {
        self.found.bytes == 0
    }

    /// Copies `dst.len()` bytes from `offset` on.
    pub fn copy_to(&self, offset: usize, dst: &mut [u8]) -> Result<(), ClientError> {
        let end = offset.checked_add(dst.len());
        if end.is_none_or(|end| end > self.len()) {
            let (offset, block_bytes) = (offset as u64, self.len() as u64);
            return Err(ClientError::Range { offset, bytes: dst.len(), block_bytes });
        }
        // SAFETY: initialised bytes may be written as if they were not; only initialised ones are written back.
        let dst = unsafe { std::slice::from_raw_parts_mut(dst.as_mut_ptr().cast::<MaybeUninit<u8>>(), dst.len()) };
        self.mapping.copy_out(self.offset + offset, dst);
        Ok(())
    }

    /// Where the block starts, for those who copy it by other means.
    #[cfg(feature = "cuda")]
    pub(super) fn place(&self) -> (&Mapping, usize) {
        (&self.mapping, self.offset)
    }

    /// Whether what was read so far through this view was the block. False once the daemon gave the client up (too many
    /// pins for too long) or came back cold; ask after the last read.
    pub fn still_valid(&self) -> bool {
        self.session.views_are_heeded() && self.session.maps.table.still(&self.found)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // In a forked child the entry is the parent's.
        if self.session.here().is_ok() {
            self.session.pins.clear(self.entry);
        }
    }
}

/// The views of one batch, in the order of its keys; `None` is a miss.
#[derive(Debug, Default)]
pub struct Views(Vec<Option<View>>);

impl Views {
    /// How many of the keys have a view.
    pub fn hits(&self) -> usize {
        self.0.iter().flatten().count()
    }

    /// How many leading keys have a view.
    pub fn prefix(&self) -> usize {
        self.0.iter().take_while(|view| view.is_some()).count()
    }

    /// The single views, each to be released by itself.
    pub fn into_vec(self) -> Vec<Option<View>> {
        self.0
    }
}

impl Deref for Views {
    type Target = [Option<View>];
    fn deref(&self) -> &[Option<View>] {
        &self.0
    }
}

impl Session {
    /// Views of those blocks that are in memory. All hazards are set, then fenced once, then every line is checked.
    pub fn view(self: &Arc<Self>, pool: &Pool, keys: &[Key], verify: Option<Verify>) -> Result<Views, ClientError> {
        if self.here().is_err() {
            return Err(ClientError::Closed);
        }
        keys::check(keys.len())?;
        let mut views: Vec<Option<View>> = Vec::with_capacity(keys.len());
        let mut short = false;
        if let Some(id) = self.pool_id(pool).filter(|_| self.views_are_safe()) {
            self.maps.table.find_while(id, keys, |_, found| {
                let pinned = found.map_or(Pinned::Miss, |found| self.pin(pool, found));
                short = matches!(pinned, Pinned::NoEntry);
                views.push(pinned.view());
                !short
            });
        }
        if short {
            let just_pinned = views.iter().flatten().count();
            return Err(ClientError::Views { wanted: keys.len(), held: self.pins.held() - just_pinned });
        }
        views.resize_with(keys.len(), || None);
        self.pins.fence();
        if !self.views_are_safe() {
            views.iter_mut().for_each(|view| *view = None);
        }
        for (view, key) in views.iter_mut().zip(keys) {
            if view.as_ref().is_some_and(|view| !self.maps.table.still(&view.found)) {
                *view = self.view_again(pool, key);
            }
            if view.as_ref().is_some_and(|view| !self.is_sound(view, pool, key, verify)) {
                *view = None;
            }
        }
        let (hits, bytes) = views.iter().flatten().fold((0, 0), |(n, bytes), view| (n + 1, bytes + view.len() as u64));
        let deepest = views.iter().rev().flatten().next().map(|view| view.found);
        self.report(deepest, hits, keys.len(), bytes);
        Ok(Views(views))
    }

    /// The second and last try for a line whose bond changed between look-up and pin.
    #[cold]
    fn view_again(self: &Arc<Self>, pool: &Pool, key: &Key) -> Option<View> {
        self.counts.retried();
        let view = self.pin(pool, self.find(pool, key)?).view()?;
        self.pins.fence();
        (self.views_are_safe() && self.maps.table.still(&view.found)).then_some(view)
    }

    #[inline]
    pub(super) fn pin(self: &Arc<Self>, pool: &Pool, found: Found) -> Pinned {
        if !found.state.is_readable() || self.is_corrupt(&found) {
            return Pinned::Miss;
        }
        let bytes = match pool.kind() {
            PoolKind::Chain if u64::from(found.bytes) != pool.block_bytes() => return Pinned::Miss,
            PoolKind::Chain => u64::from(pool.slot_bytes()),
            PoolKind::Object => lapis_config::sizes::slot_bytes(pool.shape(), u64::from(found.bytes)),
        };
        let Some((mapping, offset)) = self.maps.extents.locate(found.slot, bytes) else { return Pinned::Miss };
        let Some(entry) = self.pins.set(found.slot) else { return Pinned::NoEntry };
        Pinned::View(View { session: self.clone(), found, entry, mapping: mapping.clone(), offset })
    }

    pub(super) fn is_sound(&self, view: &View, pool: &Pool, key: &Key, verify: Option<Verify>) -> bool {
        if !self.must_check(&view.found, verify) {
            return true;
        }
        let fits = sums::slot_fits(pool, key, &view.found, &view.mapping, view.offset);
        // A pinned slot is nobody else's: what does not fit is damaged, not torn.
        if !fits {
            self.remember_corrupt(&view.found);
        }
        fits
    }

    pub(super) fn views_are_heeded(&self) -> bool {
        !self.retired.load(std::sync::atomic::Ordering::Acquire)
            && self.control.warning() != lapis_transport::control::Warning::Expelled
    }
}

pub(super) enum Pinned {
    Miss,
    /// No entry of the page is free.
    NoEntry,
    View(View),
}

impl Pinned {
    pub fn view(self) -> Option<View> {
        match self {
            Self::View(view) => Some(view),
            Self::Miss | Self::NoEntry => None,
        }
    }
}
