//! TCP sockets that send from and receive into shared memory. Whoever waits in a call here is freed by `shut`, from any
//! thread.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use lapis_arena::Mapping;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, ipproto, sockopt},
};

/// Vectors of one call; the kernel takes 1024.
const VECTORS_MAX: usize = 256;
/// A connection whose other side has said nothing for so long is asked for a sign, and so often before it is ended.
const QUIET: Duration = Duration::from_secs(15);
const SIGNS: u32 = 3;

/// A range of shared memory. No reference into it is ever formed.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    pub mapping: &'a Mapping,
    pub offset: usize,
    pub bytes: usize,
}

/// What came of waiting for a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    Came,
    /// The connection ended before its first byte.
    Ended,
    /// Not a byte came for as long as the socket's patience.
    Nothing,
}

#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Takes connections at `address`; port 0 is any.
    pub fn listen(address: SocketAddr, backlog: i32) -> io::Result<Self> {
        let fd = socket(address, SocketFlags::CLOEXEC)?;
        sockopt::set_socket_reuseaddr(&fd, true)?;
        rustix::net::bind(&fd, &address)?;
        rustix::net::listen(&fd, backlog)?;
        Ok(Self { fd })
    }

    /// The next connection; waits for it.
    pub fn accept(&self) -> io::Result<Self> {
        let fd = rustix::net::accept_with(&self.fd, SocketFlags::CLOEXEC)?;
        Self { fd }.set_up()
    }

    /// Begins a connection; `connected` waits for it.
    pub fn begin(address: SocketAddr) -> io::Result<Self> {
        let fd = socket(address, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        match rustix::net::connect(&fd, &address) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Self { fd }.set_up(),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until the connection is made; from then on calls block.
    pub fn connected(&self, within: Duration) -> io::Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).expect("some seconds");
            match poll(&mut [PollFd::new(&self.fd, PollFlags::OUT)], Some(&left)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        sockopt::socket_error(&self.fd)??;
        rustix::net::getpeername(&self.fd)?;
        rustix::fs::fcntl_setfl(&self.fd, OFlags::empty())?;
        Ok(())
    }

    fn set_up(self) -> io::Result<Self> {
        sockopt::set_tcp_nodelay(&self.fd, true)?;
        sockopt::set_socket_keepalive(&self.fd, true)?;
        sockopt::set_tcp_keepidle(&self.fd, QUIET)?;
        sockopt::set_tcp_keepintvl(&self.fd, QUIET)?;
        sockopt::set_tcp_keepcnt(&self.fd, SIGNS)?;
        Ok(self)
    }

    /// From now on a receive, or a send, that waits for so long fails as `TimedOut`.
    pub fn set_patience(&self, receive: Option<Duration>, send: Option<Duration>) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Recv, receive)?;
        sockopt::set_socket_timeout(&self.fd, sockopt::Timeout::Send, send)?;
        Ok(())
    }

    pub fn local_address(&self) -> io::Result<SocketAddr> {
        Ok(rustix::net::getsockname(&self.fd)?.try_into()?)
    }

    pub fn remote_address(&self) -> io::Result<SocketAddr> {
        Ok(rustix::net::getpeername(&self.fd)?.ok_or(Errno::NOTCONN)?.try_into()?)
    }

    /// Ends the connection; calls that wait return.
    pub fn shut(&self) {
        // Its only error is that there is no connection.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }

    /// Sends all of `head` or nothing, without waiting: it is short, and little else is on its way.
    pub fn send_at_once(&self, head: &[u8]) -> io::Result<()> {
        match rustix::net::send(&self.fd, head, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) if sent == head.len() => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Fills `head`. Its patience being over after the first byte is an error.
    pub fn receive_head(&self, head: &mut [u8]) -> io::Result<Head> {
        let mut done = 0;
        while done < head.len() {
            match rustix::net::recv(&self.fd, &mut head[done..], RecvFlags::WAITALL) {
                Ok((_, 0)) if done == 0 => return Ok(Head::Ended),
                Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((_, bytes)) => done += bytes,
                Err(Errno::AGAIN) if done == 0 => return Ok(Head::Nothing),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(timed_out(errno.into())),
            }
        }
        Ok(Head::Came)
    }

    /// Some bytes; 0 if the connection has ended. Waits for them.
    pub fn receive_some(&self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::net::recv(&self.fd, &mut *bytes, RecvFlags::empty()) {
                Ok((_, came)) => return Ok(came),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(timed_out(errno.into())),
            }
        }
    }

    /// Sends `head` and then the bytes at `places`, as they lie there at that time.
    pub fn send(&self, head: &[u8], places: &[Place<'_>]) -> io::Result<()> {
        let mut head_left = head;
        let mut vectors = Vectors::new(places);
        while !head_left.is_empty() || !vectors.is_done() {
            let before = iovec(head_left.as_ptr().cast_mut(), head_left.len());
            let more = if vectors.fill(before) { libc::MSG_MORE } else { 0 };
            let message = vectors.message();
            // SAFETY: the message names vectors that live until the call returns; the first one is `head_left`, the
            // others were checked by `fill` to lie in mappings that `places` keeps. The kernel only reads; what somebody
            // changes meanwhile fails its sum at the reader.
            let sent = unsafe { libc::sendmsg(self.fd.as_raw_fd(), &message, libc::MSG_NOSIGNAL | more) };
            let sent = moved(sent)?;
            let of_head = sent.min(head_left.len());
            head_left = &head_left[of_head..];
            vectors.advance(sent - of_head);
        }
        Ok(())
    }

    /// Fills `places`, one after the other. Returns how many bytes came; with the reason, if those are not all.
    pub fn receive(&self, places: &[Place<'_>]) -> (usize, io::Result<()>) {
        assert!(places.iter().all(|place| place.mapping.is_writable()), "received into read-only memory");
        let (mut vectors, mut done) = (Vectors::new(places), 0);
        while !vectors.is_done() {
            vectors.fill(iovec(std::ptr::null_mut(), 0));
            let mut message = vectors.message();
            // SAFETY: the message names vectors that live until the call returns, checked by `fill` to lie in mappings
            // that `places` keeps. Others may map them too: no reference is formed.
            let came = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &mut message, libc::MSG_WAITALL) };
            match moved(came) {
                Ok(0) if came == 0 => return (done, Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(bytes) => {
                    done += bytes;
                    vectors.advance(bytes);
                }
                Err(error) => return (done, Err(error)),
            }
        }
        (done, Ok(()))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Places as the kernel wants them, a part at a time.
struct Vectors<'a> {
    places: &'a [Place<'a>],
    /// Of the first place, done already.
    done: usize,
    vectors: Vec<libc::iovec>,
}

impl<'a> Vectors<'a> {
    fn new(places: &'a [Place<'a>]) -> Self {
        let mut vectors = Self { places, done: 0, vectors: Vec::with_capacity(places.len().min(VECTORS_MAX) + 1) };
        vectors.advance(0);
        vectors
    }

    fn is_done(&self) -> bool {
        self.places.is_empty()
    }

    /// The next vectors, behind `before`. True if that is not all.
    fn fill(&mut self, before: libc::iovec) -> bool {
        self.vectors.clear();
        self.vectors.push(before);
        let mut done = self.done;
        for place in self.places.iter().take(VECTORS_MAX) {
            let end = place.offset.checked_add(place.bytes);
            assert!(end.is_some_and(|end| end <= place.mapping.len()), "a place within its mapping: {place:?}");
            self.vectors.push(iovec(place.mapping.as_ptr(place.offset + done), place.bytes - done));
            done = 0;
        }
        self.places.len() > VECTORS_MAX
    }

    /// Valid until the next `fill`.
    fn message(&mut self) -> libc::msghdr {
        // SAFETY: all zeros are a message without address, vectors and control bytes.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.vectors.as_mut_ptr();
        message.msg_iovlen = self.vectors.len() as _;
        message
    }

    fn advance(&mut self, bytes: usize) {
        self.done += bytes;
        while let Some(place) = self.places.first().filter(|place| place.bytes <= self.done) {
            self.done -= place.bytes;
            self.places = &self.places[1..];
        }
        assert!(self.done == 0 || !self.places.is_empty(), "more was moved than there is");
    }
}

fn iovec(base: *mut u8, bytes: usize) -> libc::iovec {
    libc::iovec { iov_base: base.cast(), iov_len: bytes }
}

/// What a call moved; 0 if a signal came first.
fn moved(result: isize) -> io::Result<usize> {
    if let Ok(bytes) = usize::try_from(result) {
        return Ok(bytes);
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        error => Err(timed_out(error)),
    }
}

/// Calls that block say `WouldBlock` when their patience is over.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

fn socket(address: SocketAddr, flags: SocketFlags) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?)
}
