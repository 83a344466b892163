//! A listening socket at a path of the file system. One process serves a path: it holds a lock on `PATH.lock`, which
//! names its pid.

use std::{
    fs,
    io::{Read, Seek, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, Mode},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};

use crate::{error::TransportError, peer};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// How long the end of a killed server is waited for, and between two looks.
const FORMER_END_MAX: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// A listening SEQPACKET socket. Its file goes when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    /// None if the socket was handed to us: then its file is not ours either.
    _bound: Option<Bound>,
}

#[derive(Debug)]
struct Bound {
    path: PathBuf,
    /// Device and inode of the socket's file: another one at the same path stays.
    file: (u64, u64),
    lock_path: PathBuf,
    _lock: fs::File,
}

impl Listener {
    /// Listens at `path`, whose directory is made if it is missing and whose file gets `mode`. A file that a dead
    /// process left there is replaced.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, TransportError> {
        let failed = |op| move |source| TransportError::Path { op, path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed("make the directory of"))?;
        }
        let mut lock_path = path.to_owned().into_os_string();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let lock = lock(path, &lock_path)?;
        make_way(path)?;
        let os = |op| move |errno: rustix::io::Errno| failed(op)(errno.into());
        let socket = seqpacket()?;
        let address = SocketAddrUnix::new(path).map_err(os("name a socket"))?;
        // Before the bind, so that at no moment more may connect than `mode` says; after it, against the umask.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode)).map_err(os("set the mode of"))?;
        rustix::net::bind(&socket, &address).map_err(os("bind a socket to"))?;
        let file = fs::symlink_metadata(path).map_err(failed("look at"))?;
        let bound = Bound { path: path.to_owned(), file: (file.dev(), file.ino()), lock_path, _lock: lock };
        let listener = Self { socket, _bound: Some(bound) };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("set the mode of"))?;
        rustix::net::listen(&listener.socket, BACKLOG).map_err(os("listen at"))?;
        Ok(listener)
    }

    /// A socket that listens already: systemd's socket activation.
    pub fn from_listening(socket: OwnedFd) -> Result<Self, TransportError> {
        let kind = rustix::net::sockopt::socket_type(&socket).map_err(TransportError::io("look at a passed socket"))?;
        let listens = rustix::net::sockopt::socket_acceptconn(&socket);
        if kind != SocketType::SEQPACKET || !listens.map_err(TransportError::io("look at a passed socket"))? {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "no listening SEQPACKET socket");
            return Err(TransportError::Io { op: "serve a passed socket", source });
        }
        rustix::io::ioctl_fionbio(&socket, true).map_err(TransportError::io("prepare a passed socket"))?;
        Ok(Self { socket, _bound: None })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket's file stays");
        }
        // While we hold the lock: whoever locks this very file next finds that it is not at the path any more.
        if let Err(error) = fs::remove_file(&self.lock_path) {
            tracing::warn!(path = %self.lock_path.display(), %error, "the lock's file stays");
        }
    }
}

/// A new socket of the kind that all of Lapis uses on one host.
pub(crate) fn seqpacket() -> Result<OwnedFd, TransportError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    socket.map_err(TransportError::io("make a socket"))
}

/// Locks the file at `lock_path` and writes our pid there, or says who has it.
fn lock(path: &Path, lock_path: &Path) -> Result<fs::File, TransportError> {
    let failed = |op| move |source| TransportError::Path { op, path: lock_path.to_owned(), source };
    let give_up = Instant::now() + FORMER_END_MAX;
    loop {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o644);
        let mut file = options.open(lock_path).map_err(failed("open"))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            // A killed process has its lock until its memory is torn down.
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < give_up => {
                std::thread::sleep(LOCK_PAUSE);
                continue;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(TransportError::Served { path: path.to_owned(), pid: pid_in(&mut file) });
            }
            Err(errno) => return Err(failed("lock")(errno.into())),
        }
        // Its former owner may have removed it between our open and our lock: then this lock is on nothing.
        let (ours, there) = (file.metadata().map_err(failed("look at"))?, fs::metadata(lock_path));
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            file.set_len(0).map_err(failed("write"))?;
            file.rewind().map_err(failed("write"))?;
            writeln!(file, "{}", std::process::id()).map_err(failed("write"))?;
            return Ok(file);
        }
    }
}

/// The pid in a lock file; 0 if its owner has not written it yet.
fn pid_in(file: &mut fs::File) -> u32 {
    let mut text = String::new();
    match file.take(16).read_to_string(&mut text) {
        Ok(_) => text.trim().parse().unwrap_or(0),
        Err(_) => 0,
    }
}

/// Removes what a dead process left at `path`; whoever answers there keeps it.
fn make_way(path: &Path) -> Result<(), TransportError> {
    let failed = |op| move |source| TransportError::Path { op, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
        Ok(file) if !file.file_type().is_socket() => return Err(TransportError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    let probe = seqpacket()?;
    let address = SocketAddrUnix::new(path).map_err(|errno| failed("name a socket")(errno.into()))?;
    match rustix::net::connect(&probe, &address) {
        // AGAIN: somebody listens, but does not keep up.
        Ok(()) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::PROTOTYPE) => {
            let pid = peer::of(probe.as_fd()).map_or(0, |peer| peer.pid);
            Err(TransportError::Served { path: path.to_owned(), pid })
        }
        Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove")(error)),
            _ => Ok(()),
        },
        Err(errno) => Err(failed("probe")(errno.into())),
    }
}
