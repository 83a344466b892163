//! What a session has mapped of the group's memory: the table and the extents. Kept over daemon restarts, and alive
//! while any view of it is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lapis_arena::{Access, ArenaError, Extents, MappedWords, Mapping, Table, memfd, table};

use super::Welcome;

/// Read-only table, and extents that are writable if the client may put.
#[derive(Debug)]
pub struct Maps {
    pub(crate) table: Table,
    pub(crate) extents: Extents,
    table_mapping: Mapping,
    may_put: bool,
    /// Whether the extents' memory is accounted to our own user, so that it can be seen what is populated.
    owned: bool,
}

impl Maps {
    pub(super) fn open(welcome: &Welcome, table: BorrowedFd<'_>) -> Result<Self, ArenaError> {
        let bytes = table::bytes_for(welcome.geometry.lines);
        memfd::check(table, bytes)?;
        let mapping = Mapping::shared(table, bytes, Access::ReadOnly)?;
        let words = MappedWords::new(&mapping, 0, mapping.len() / 8);
        let own = rustix::process::geteuid().as_raw();
        let owned = rustix::fs::fstat(table).is_ok_and(|stat| stat.st_uid == own) || own == 0;
        Ok(Self {
            table: Table::open(words)?,
            extents: Extents::new(),
            table_mapping: mapping,
            may_put: welcome.may_put,
            owned,
        })
    }

    /// Whether a returning client can go on with these maps.
    pub(super) fn serve(&self, welcome: &Welcome) -> bool {
        self.table.table_id() == welcome.geometry.table_id && self.may_put == welcome.may_put
    }

    /// Maps those of the extents that are new. They come in order, so `first` is at most the number we have.
    pub(super) fn add(&self, first: u32, extents_bytes: &[u64], fds: &[OwnedFd]) -> Result<(), ArenaError> {
        let access = if self.may_put { Access::ReadWrite } else { Access::ReadOnly };
        for (index, (bytes, fd)) in (first as usize..).zip(extents_bytes.iter().zip(fds)) {
            if index == self.extents.len() {
                memfd::check(fd.as_fd(), *bytes)?;
                self.extents.push(Mapping::shared(fd.as_fd(), *bytes, access)?);
            }
        }
        Ok(())
    }

    pub(crate) fn table_mapping(&self) -> &Mapping {
        &self.table_mapping
    }

    /// True if what the daemon has populated can be told from what it has not.
    pub(crate) fn is_owned(&self) -> bool {
        self.owned
    }
}
