//! The identity that this host has now: replaced while connections go on.

use std::sync::{Arc, RwLock};

use super::{Identity, IdentityFiles, TlsError};

/// Shared by all that make connections: what is loaded anew counts for each connection that is made from then on.
#[derive(Clone, Debug)]
pub struct Credentials {
    host: String,
    current: Arc<RwLock<Arc<Identity>>>,
}

impl Credentials {
    /// `host`: as this host is called.
    pub fn load(files: &IdentityFiles, host: &str) -> Result<Self, TlsError> {
        let identity = Identity::load(files, host)?;
        Ok(Self { host: host.into(), current: Arc::new(RwLock::new(Arc::new(identity))) })
    }

    /// Reads and checks the files; if anything is wrong with them, what was loaded before goes on.
    pub fn reload(&self, files: &IdentityFiles) -> Result<(), TlsError> {
        let identity = Arc::new(Identity::load(files, &self.host)?);
        // A panic while it was held left it whole: it is only ever replaced.
        *self.current.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = identity;
        Ok(())
    }

    pub fn identity(&self) -> Arc<Identity> {
        self.current.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}
