//! Where descriptors outlive the daemon: systemd's descriptor store, `lapis hold`, or nowhere.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use lapis_config::Options;
use lapis_transport::{
    TransportError,
    hold::{HoldClient, Keeper, Nothing},
};

use crate::gpus;

/// How long a starting daemon waits for the end of the former one that the holder still sees.
const FORMER_END_MAX: Duration = Duration::from_secs(5);

/// Between two tries to reach a holder again: each may stop the loop for a second if the holder hangs, so they become
/// rare.
const HOLDER_RETRY_MIN: Duration = Duration::from_secs(1);
const HOLDER_RETRY_MAX: Duration = Duration::from_secs(60);

/// Names with this prefix are listening sockets of units, not kept memory.
const SOCKET_PREFIX: &str = "lapis-socket-";

/// Descriptors that the keeper may have to hold: four memfds a group, its extents, two for each client; extents of GPUs,
/// and two memfds and one more for each client of the group that has these.
fn kept_max(options: &Options) -> u64 {
    let groups = options.groups.len() as u64;
    let extents = groups * lapis_config::EXTENTS_MAX as u64 + gpus::extents_max(options);
    let of_gpus = if options.hbm_bytes > 0 { 2 + options.server_clients_max } else { 0 };
    groups * 4 + extents + groups * options.server_clients_max * 2 + of_gpus
}

/// Whether systemd keeps descriptors for this process.
pub fn is_store() -> bool {
    // systemd sets FDSTORE from 254 on; the unit sets it for older ones.
    std::env::var_os("FDSTORE").is_some_and(|max| max != "0") && std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// systemd drops what is more than its store takes, and says nothing: a later start would be a cold one.
pub fn store_suffices(options: &Options) -> anyhow::Result<()> {
    let store: Option<u64> = std::env::var("FDSTORE").ok().and_then(|max| max.parse().ok());
    match store {
        Some(max) if max > 0 && max < kept_max(options) => anyhow::bail!(
            "systemd's descriptor store takes {max} descriptors, {} may be needed: raise FileDescriptorStoreMax (and \
             FDSTORE) in the unit, or lower server.clients_max",
            kept_max(options)
        ),
        _ => Ok(()),
    }
}

/// What systemd passed: kept descriptors by name, and listening sockets by group name.
#[derive(Debug, Default)]
pub struct Passed {
    pub kept: Vec<(String, OwnedFd)>,
    pub sockets: BTreeMap<String, OwnedFd>,
}

/// Takes the passed descriptors out of the environment. Sockets are told apart by their names: `lapis-socket-GROUP`.
pub fn passed() -> io::Result<Passed> {
    let mut passed = Passed::default();
    for (name, fd) in listen_fds()? {
        match name.strip_prefix(SOCKET_PREFIX) {
            Some(group) => {
                passed.sockets.insert(group.trim_end_matches(".socket").to_owned(), fd);
            }
            None => passed.kept.push((name, fd)),
        }
    }
    Ok(passed)
}

/// A keeper, and what it kept from the former daemon, by name.
pub type Opened = (Box<dyn Keeper>, Vec<(String, OwnedFd)>);

/// Chooses the keeper: systemd's store if this is a service with one, else the holder at `hold`, else nothing.
pub fn open(hold: Option<&Path>, kept: Vec<(String, OwnedFd)>) -> anyhow::Result<Opened> {
    if is_store() {
        return Ok((Box::new(FdStore), kept));
    }
    let Some(path) = hold else {
        return Ok((Box::new(Nothing), Vec::new()));
    };
    let mut client = HoldClient::connect(path)
        .with_context(|| format!("reach the holder at {0} (start it with: lapis hold {0})", path.display()))?;
    let found =
        client.take_all(FORMER_END_MAX).with_context(|| format!("take what the holder at {} keeps", path.display()))?;
    let mut kept = BTreeMap::new();
    for (name, fd) in &found {
        kept.insert(name.clone(), fd.try_clone().context("duplicate a kept descriptor")?);
    }
    let (path, client) = (path.to_owned(), Some(client));
    Ok((Box::new(HeldBy { path, client, kept, retry_at: Instant::now(), pause: HOLDER_RETRY_MIN }), found))
}

/// `lapis hold`, and what to do when it ends: the daemon serves on, and gives everything to the next holder at that
/// path.
struct HeldBy {
    path: PathBuf,
    client: Option<HoldClient>,
    /// What the holder should have.
    kept: BTreeMap<String, OwnedFd>,
    retry_at: Instant,
    pause: Duration,
}

impl HeldBy {
    /// Does what `ask` does with the holder; a holder that fails is lost.
    fn with(&mut self, ask: impl FnOnce(&mut HoldClient) -> io::Result<()>) {
        let Some(client) = &mut self.client else { return };
        if let Err(error) = ask(client) {
            tracing::error!(
                %error,
                holder = %self.path.display(),
                "the holder is lost: a kill of this daemon would lose its DRAM until one runs there again"
            );
            self.client = None;
        }
    }

    fn reach(&self) -> Result<HoldClient, anyhow::Error> {
        let mut client = HoldClient::connect(&self.path)?;
        // A holder that lived on has most of it; what it has beyond is of a daemon before us.
        for (name, _) in client.take_all(Duration::ZERO)? {
            if !self.kept.contains_key(&name) {
                client.forget(&name)?;
            }
        }
        for (name, fd) in &self.kept {
            client.keep(name, fd.as_fd())?;
        }
        Ok(client)
    }
}

fn is_silence(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(TransportError::TimedOut { .. })))
}

impl Keeper for HeldBy {
    fn keep(&mut self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.kept.insert(name.to_owned(), fd.try_clone_to_owned()?);
        self.with(|client| client.keep(name, fd));
        Ok(())
    }

    fn forget(&mut self, name: &str) -> io::Result<()> {
        self.kept.remove(name);
        self.with(|client| client.forget(name));
        Ok(())
    }

    fn tick(&mut self) {
        if self.client.is_none() && Instant::now() >= self.retry_at {
            match self.reach() {
                Ok(client) => {
                    tracing::info!(holder = %self.path.display(), kept = self.kept.len(), "a holder has everything again");
                    self.client = Some(client);
                    self.pause = HOLDER_RETRY_MIN;
                }
                Err(error) => {
                    tracing::debug!(%error, "no holder yet");
                    // A holder that is not there is refused at once; only one that hangs costs time.
                    if is_silence(&error) {
                        self.pause = (self.pause * 2).min(HOLDER_RETRY_MAX);
                    }
                }
            }
            self.retry_at = Instant::now() + self.pause;
        }
    }
}

/// Descriptors that systemd passed, with their names.
fn listen_fds() -> io::Result<Vec<(String, OwnedFd)>> {
    let names: Vec<String> =
        std::env::var("LISTEN_FDNAMES").unwrap_or_default().split(':').map(str::to_owned).collect();
    let mut passed = listenfd::ListenFd::from_env();
    let mut found = Vec::new();
    for at in 0..passed.len() {
        if let Some(raw) = passed.take_raw_fd(at)? {
            // SAFETY: systemd passed the descriptor to this process, and `take_raw_fd` gives each one out once.
            let fd = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(raw) };
            found.push((names.get(at).cloned().unwrap_or_default(), fd));
        }
    }
    Ok(found)
}

/// systemd's descriptor store: kept while the unit restarts, named by `FDNAME`.
struct FdStore;

impl Keeper for FdStore {
    fn keep(&mut self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        // FDPOLL=0: a lifeline whose writers ended must stay; that it hung up is what the next daemon wants to see.
        let states = [
            sd_notify::NotifyState::FdStore,
            sd_notify::NotifyState::FdName(name),
            sd_notify::NotifyState::Custom("FDPOLL=0"),
        ];
        sd_notify::notify_with_fds(&states, &[fd])
    }

    fn forget(&mut self, name: &str) -> io::Result<()> {
        sd_notify::notify(&[sd_notify::NotifyState::FdStoreRemove, sd_notify::NotifyState::FdName(name)])
    }
}

#[test]
fn the_units_store_takes_what_the_defaults_keep_also_with_gpus() {
    let unit = include_str!("../ops/lapis.service");
    let number = |name: &str| -> u64 {
        let value = unit.lines().find_map(|line| line.strip_prefix(name)).expect("the unit says it");
        value.parse().expect("a number")
    };
    let groups = vec![lapis_config::Group::default()];
    let options = Options { groups, hbm_bytes: 8 << 30, ..Options::default() };
    let store = number("FileDescriptorStoreMax=");
    assert!(kept_max(&options) <= store, "{} of {store}", kept_max(&options));
    assert_eq!(number("Environment=FDSTORE="), store, "older versions of systemd are told the same");
}
