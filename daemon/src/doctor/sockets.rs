//! The sockets that a daemon listens on, and who keeps its memory. Looks, connects to the keeper, writes nothing.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use lapis_config::Options;
use lapis_transport::hold::HoldClient;
use rustix::fs::{Access, FlockOperation};

use super::{Finding, Level};
use crate::keeper;

const SOCKET: &str = "socket";
const KEEPER: &str = "keeper";

pub(super) fn examine(options: &Options) -> Vec<Finding> {
    let sockets = options.groups.iter().map(|group| socket(&look(&group.socket), options.server_socket_mode));
    let metrics = options.metrics_listen.map(|address| port("metrics", address, "--metrics-listen"));
    sockets.chain([kept(options)]).chain(metrics).collect()
}

/// What is at and around the path of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Site {
    path: PathBuf,
    /// Its folder or, if that is not there, the nearest one above that is.
    folder: PathBuf,
    there: bool,
    mode: u32,
    writable: bool,
    /// Something lies at the path, and it is no socket.
    occupied: bool,
    /// The pid of the daemon that has the path's lock; 0 = it did not say.
    served_by: Option<u32>,
}

fn look(path: &Path) -> Site {
    let wanted = path.parent().unwrap_or(Path::new("/"));
    let folder = wanted.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    Site {
        path: path.into(),
        folder: folder.into(),
        there: folder == wanted && folder.is_dir(),
        mode: fs::metadata(folder).map_or(0, |metadata| metadata.mode() & 0o7777),
        writable: rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok(),
        occupied: fs::symlink_metadata(path).is_ok_and(|file| !file.file_type().is_socket()),
        served_by: served_by(Path::new(&lock)),
    }
}

fn served_by(lock: &Path) -> Option<u32> {
    let file = fs::File::open(lock).ok()?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => Some(fs::read_to_string(lock).ok()?.trim().parse().unwrap_or(0)),
        _ => None,
    }
}

/// Pure: what the site is good for.
fn socket(site: &Site, socket_mode: u32) -> Finding {
    let folder = site.folder.display();
    let finding = match site {
        Site { occupied: true, .. } => {
            Finding::fail(SOCKET, "something that is no socket lies there", "remove it, or choose another path")
        }
        Site { served_by: Some(pid), .. } => Finding::warn(
            SOCKET,
            format!("a daemon serves it (pid {pid})"),
            "stop that daemon before another one starts there; figures of memory count what it has",
        ),
        Site { writable: false, .. } => Finding::fail(
            SOCKET,
            format!("{folder} cannot be written by this user (mode {:04o})", site.mode),
            "make the folder and give it to the daemon's user (RuntimeDirectory=lapis in the unit), or choose another \
             with --server-socket; run doctor as the daemon's user",
        ),
        Site { there: false, .. } => Finding::ok(SOCKET, format!("its folder will be made in {folder}")),
        // Without the sticky bit, whoever may write there can put a socket of his own in its place.
        Site { mode, .. } if mode & 0o022 != 0 && mode & 0o1000 == 0 => Finding::warn(
            SOCKET,
            format!("{folder} has mode {mode:04o}: others may replace the socket"),
            format!("chmod go-w {folder}"),
        ),
        Site { mode, .. } if (socket_mode & 0o066 != 0) && mode & 0o011 == 0 => Finding::warn(
            SOCKET,
            format!("{folder} has mode {mode:04o}: no other user gets to the socket of mode {socket_mode:04o}"),
            format!("chmod 0755 {folder}, if clients run as other users"),
        ),
        Site { mode, .. } => Finding::ok(SOCKET, format!("{folder} is writable (mode {mode:04o})")),
    };
    finding.of(site.path.display())
}

/// systemd's descriptor store, `lapis hold`, or nobody.
fn kept(options: &Options) -> Finding {
    if keeper::is_store() {
        return match keeper::store_suffices(options) {
            Ok(()) => Finding::ok(KEEPER, "systemd's descriptor store"),
            Err(error) => Finding::fail(KEEPER, "systemd's descriptor store is too small", error.to_string()),
        };
    }
    let Some(path) = &options.hold_socket else {
        return Finding::warn(
            KEEPER,
            "none: a kill of the daemon loses what is in DRAM",
            "run it under systemd with daemon/ops/lapis.service, or start `lapis hold PATH` and give --hold PATH",
        );
    };
    let finding = match HoldClient::connect(path) {
        Ok(_) => Finding::ok(KEEPER, "a holder answers"),
        Err(error) => {
            Finding::fail(KEEPER, error.to_string(), format!("start it first: lapis hold {}", path.display()))
        }
    };
    finding.of(path.display())
}

/// The port is taken and given back; `flag` chooses another one.
pub(super) fn port(check: &'static str, address: SocketAddr, flag: &str) -> Finding {
    let finding = match TcpListener::bind(address) {
        Ok(_) => Finding::ok(check, "free"),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Finding::bad(Level::Warn, check, "in use", format!("choose another with {flag}, unless a daemon serves it"))
        }
        Err(error) => Finding::fail(check, error.to_string(), format!("choose another with {flag}, or off")),
    };
    finding.of(address)
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt, net::UnixListener};

    use lapis_config::LoadInput;

    use super::*;

    fn site() -> Site {
        Site {
            path: "/run/lapis/lapis.sock".into(),
            folder: "/run/lapis".into(),
            there: true,
            mode: 0o755,
            writable: true,
            occupied: false,
            served_by: None,
        }
    }

    #[test]
    fn a_folder_is_judged_by_its_mode_and_by_who_may_write() {
        let of = |site: Site| socket(&site, 0o660);
        assert_eq!(of(site()).level, Level::Ok);
        assert!(of(Site { there: false, folder: "/run".into(), ..site() }).found.contains("will be made in /run"));
        let cases = [
            (Site { writable: false, ..site() }, Level::Fail, "cannot be written"),
            (Site { occupied: true, ..site() }, Level::Fail, "no socket"),
            (Site { served_by: Some(77), ..site() }, Level::Warn, "pid 77"),
            (Site { mode: 0o777, ..site() }, Level::Warn, "others may replace"),
            (Site { mode: 0o700, ..site() }, Level::Warn, "no other user"),
        ];
        for (site, level, words) in cases {
            let found = of(site);
            assert!(found.level == level && found.found.contains(words) && found.advice.is_some(), "{found}");
        }
        assert_eq!(of(Site { mode: 0o1777, ..site() }).level, Level::Ok, "a sticky folder");
        assert_eq!(socket(&Site { mode: 0o700, ..site() }, 0o600).level, Level::Ok, "a socket for one user");
    }

    #[test]
    fn a_look_sees_folder_socket_and_lock() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o750)).expect("our own folder");
        let path = folder.path().join("lapis.sock");
        let found = look(&path);
        assert_eq!((found.there, found.mode, found.occupied, found.served_by), (true, 0o750, false, None));
        assert!(!look(&folder.path().join("a/b/lapis.sock")).there);
        let _listener = UnixListener::bind(&path).expect("a socket");
        assert!(!look(&path).occupied);
        let (file, lock) = (folder.path().join("file"), folder.path().join("file.lock"));
        fs::write(&file, "x").and_then(|()| fs::write(&lock, "4711\n")).expect("files");
        let held = fs::File::open(&lock).expect("the lock");
        rustix::fs::flock(&held, FlockOperation::LockExclusive).expect("nobody has it");
        let found = look(&file);
        assert_eq!((found.occupied, found.served_by), (true, Some(4711)));
    }

    #[test]
    fn a_holder_that_is_not_there_fails_and_none_is_warned_of() {
        let mut options = Options::load(&LoadInput::default()).expect("the defaults hold together").options;
        assert_eq!(kept(&options).level, Level::Warn);
        options.hold_socket = Some("/nonexistent/hold.sock".into());
        let found = kept(&options);
        assert!(
            found.level == Level::Fail && found.to_string().contains("lapis hold /nonexistent/hold.sock"),
            "{found}"
        );
    }

    #[test]
    fn a_port_in_use_is_warned_of() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("some port");
        let address = taken.local_addr().expect("its address");
        let of = |address| port("peers", address, "--peers-listen");
        assert_eq!(of(address).level, Level::Warn);
        assert!(of(address).to_string().contains("in use: choose another with --peers-listen, unless a daemon"));
        assert_eq!(of(SocketAddr::from(([127, 0, 0, 1], 0))).level, Level::Ok, "any port");
        assert_eq!(of(SocketAddr::from(([192, 0, 2, 1], 0))).level, Level::Fail, "an address of another host");
    }
}
