//! Descriptors that outlive the simulated daemon.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lapis_transport::hold::Keeper;

use super::kill::Fuse;

/// What is kept, by name.
#[derive(Clone, Default)]
pub struct Store(Arc<Mutex<BTreeMap<String, OwnedFd>>>);

impl Store {
    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn take_all(&self) -> Vec<(String, OwnedFd)> {
        let duplicate = |(name, fd): (&String, &OwnedFd)| (name.clone(), fd.try_clone().expect("a descriptor is free"));
        self.kept().iter().map(duplicate).collect()
    }

    pub fn clear(&self) {
        self.kept().clear();
    }

    pub fn names(&self) -> Vec<String> {
        self.kept().keys().cloned().collect()
    }
}

/// One daemon's way to the store. It may die before or after each change.
pub struct SimKeeper {
    pub store: Store,
    pub fuse: Fuse,
}

impl Keeper for SimKeeper {
    fn keep(&mut self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.fuse.burn();
        let copy = fd.try_clone_to_owned()?;
        self.store.kept().insert(name.to_owned(), copy);
        self.fuse.burn();
        Ok(())
    }

    fn forget(&mut self, name: &str) -> io::Result<()> {
        self.fuse.burn();
        self.store.kept().remove(name);
        self.fuse.burn();
        Ok(())
    }
}
