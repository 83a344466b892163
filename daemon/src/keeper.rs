//! Where descriptors outlive the daemon: systemd's descriptor store, `lapis hold`, or nowhere.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use anyhow::Context;
use lapis_transport::hold::{HoldClient, Keeper, Nothing};

/// How long a starting daemon waits for the end of the former one that the holder still sees.
const FORMER_END_MAX: Duration = Duration::from_secs(5);

/// Names with this prefix are listening sockets of units, not kept memory.
const SOCKET_PREFIX: &str = "lapis-socket-";

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
    // systemd sets FDSTORE from 254 on; the unit sets it for older ones.
    if std::env::var_os("FDSTORE").is_some_and(|max| max != "0") && std::env::var_os("NOTIFY_SOCKET").is_some() {
        return Ok((Box::new(FdStore), kept));
    }
    let Some(path) = hold else {
        return Ok((Box::new(Nothing), Vec::new()));
    };
    let mut client = HoldClient::connect(path)
        .with_context(|| format!("reach the holder at {0} (start it with: lapis hold {0})", path.display()))?;
    let found =
        client.take_all(FORMER_END_MAX).with_context(|| format!("take what the holder at {} keeps", path.display()))?;
    Ok((Box::new(client), found))
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
