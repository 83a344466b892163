//! One raw TCP stream: whoever is asked writes as much as was asked for out of a buffer, whoever asks reads it into one. No
//! block, no sum, no slot. The limit of what moves blocks over TCP, and what it is compared with to choose how.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    thread,
};

use anyhow::{Context, ensure};
use io_uring::{IoUring, opcode, types};

/// Of one call. Buffers are reused, as iperf does: no memory is cold.
const BUFFER_BYTES: usize = 1 << 20;
/// Operations of a ring under way, each with a buffer.
const DEPTH: usize = 4;

/// How the kernel is asked to move bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// read and write.
    Plain,
    /// Sends with MSG_ZEROCOPY, and reads.
    ZeroCopy,
    /// send and recv of io_uring, `DEPTH` at a time.
    Uring,
    /// Sends without a copy out of registered buffers, receives into registered ones.
    UringFixed,
}

impl Way {
    const ALL: [Self; 4] = [Self::Plain, Self::ZeroCopy, Self::Uring, Self::UringFixed];

    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::ZeroCopy => "MSG_ZEROCOPY",
            Self::Uring => "io_uring",
            Self::UringFixed => "io_uring registered",
        }
    }
}

/// Serves raw streams at any port of loopback, for as long as the process lives. Returns the port.
pub fn serve() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || {
                if let Err(error) = stream.map_err(anyhow::Error::from).and_then(send) {
                    eprintln!("lapis: a raw stream failed: {error:#}");
                }
            });
        }
    });
    Ok(port)
}

/// Sends what is asked for, until there are no more asks.
fn send(mut stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut way = [0];
    stream.read_exact(&mut way)?;
    let way = *Way::ALL.get(usize::from(way[0])).context("no such way")?;
    let buffers = vec![vec![0x5a; BUFFER_BYTES]; DEPTH];
    let mut ring = Ring::new(way, &buffers)?;
    if way == Way::ZeroCopy {
        rustix_zerocopy(&stream)?;
    }
    let mut ask = [0; 8];
    loop {
        match stream.read_exact(&mut ask) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let bytes = u64::from_le_bytes(ask) as usize;
        match way {
            Way::Plain => {
                let mut left = bytes;
                while left > 0 {
                    left -= stream.write(&buffers[0][..left.min(BUFFER_BYTES)])?;
                }
            }
            Way::ZeroCopy => send_zerocopy(&stream, &buffers[0], bytes)?,
            Way::Uring | Way::UringFixed => ring.as_mut().context("a ring")?.send(&stream, &buffers, bytes)?,
        }
    }
}

fn rustix_zerocopy(stream: &TcpStream) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes a `c_int`, which lives until the call returns.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// As many calls as it takes; completions are taken from the error queue before more than a few are under way.
fn send_zerocopy(stream: &TcpStream, buffer: &[u8], bytes: usize) -> io::Result<()> {
    let (mut left, mut under_way) = (bytes, 0u32);
    while left > 0 || under_way > 0 {
        if left > 0 && under_way < DEPTH as u32 {
            // SAFETY: the buffer is valid for its length, and lives until all completions were taken below; its bytes
            // never change.
            let sent = unsafe {
                let bytes = left.min(buffer.len());
                libc::send(stream.as_raw_fd(), buffer.as_ptr().cast(), bytes, libc::MSG_ZEROCOPY)
            };
            match sent {
                0.. => {
                    left -= sent as usize;
                    under_way += 1;
                }
                _ => return Err(io::Error::last_os_error()),
            }
            continue;
        }
        under_way -= completed(stream)?;
    }
    Ok(())
}

/// Waits for completions of sends, and says of how many.
fn completed(stream: &TcpStream) -> io::Result<u32> {
    let mut control = [0u64; 16];
    // SAFETY: all zeros are a message without anything; the control buffer lives until the call returns.
    let (received, message) = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control) as _);
        (libc::recvmsg(stream.as_raw_fd(), &mut message, libc::MSG_ERRQUEUE), message)
    };
    if received < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(error);
        }
        let mut wait = libc::pollfd { fd: stream.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: one descriptor that lives.
        unsafe { libc::poll(&mut wait, 1, -1) };
        return Ok(0);
    }
    // SAFETY: the kernel filled the control buffer as `message` says.
    let header = unsafe { libc::CMSG_FIRSTHDR(&message) };
    if header.is_null() {
        return Ok(0);
    }
    // SAFETY: the error queue of a TCP socket gives an extended error as the first control message.
    let error = unsafe { libc::CMSG_DATA(header).cast::<libc::sock_extended_err>().read_unaligned() };
    Ok(error.ee_data - error.ee_info + 1)
}

/// The reading end of a raw stream.
pub struct RawClient {
    stream: TcpStream,
    buffers: Vec<Vec<u8>>,
    ring: Option<Ring>,
}

impl RawClient {
    pub fn connect(address: SocketAddr, way: Way) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(address).context("connect a raw stream")?;
        stream.set_nodelay(true)?;
        stream.write_all(&[way as u8])?;
        let buffers = vec![vec![0; BUFFER_BYTES]; DEPTH];
        let ring = Ring::new(way, &buffers)?;
        Ok(Self { stream, buffers, ring })
    }

    /// Asks for so many bytes and reads them all.
    pub fn receive(&mut self, bytes: usize) -> anyhow::Result<usize> {
        self.stream.write_all(&(bytes as u64).to_le_bytes())?;
        if let Some(ring) = &mut self.ring {
            ring.receive(&self.stream, &mut self.buffers, bytes)?;
            return Ok(bytes);
        }
        let mut left = bytes;
        while left > 0 {
            let read = self.stream.read(&mut self.buffers[0][..left.min(BUFFER_BYTES)])?;
            ensure!(read > 0, "a raw stream ended early");
            left -= read;
        }
        Ok(bytes)
    }
}

struct Ring {
    ring: IoUring,
    is_fixed: bool,
}

impl Ring {
    fn new(way: Way, buffers: &[Vec<u8>]) -> anyhow::Result<Option<Self>> {
        if !matches!(way, Way::Uring | Way::UringFixed) {
            return Ok(None);
        }
        let ring = IoUring::new(4 * DEPTH as u32).context("set io_uring up")?;
        let is_fixed = way == Way::UringFixed;
        if is_fixed {
            let vectors: Vec<libc::iovec> = buffers
                .iter()
                .map(|buffer| libc::iovec { iov_base: buffer.as_ptr().cast_mut().cast(), iov_len: buffer.len() })
                .collect();
            // SAFETY: the buffers live as long as the ring is used, with it in one frame or one struct.
            unsafe { ring.submitter().register_buffers(&vectors) }.context("register buffers")?;
        }
        Ok(Some(Self { ring, is_fixed }))
    }

    /// One send after the other, linked by waiting: a stream has an order.
    fn send(&mut self, stream: &TcpStream, buffers: &[Vec<u8>], bytes: usize) -> anyhow::Result<()> {
        let fd = types::Fd(stream.as_raw_fd());
        let (mut left, mut notices, mut turn) = (bytes, 0usize, 0);
        while left > 0 || notices > 0 {
            let mut wants = usize::from(left > 0);
            if left > 0 {
                let (at, length) = (turn % DEPTH, left.min(BUFFER_BYTES) as u32);
                turn += 1;
                let buffer = buffers[at].as_ptr();
                let entry = if self.is_fixed {
                    opcode::SendZc::new(fd, buffer, length).buf_index(Some(at as u16)).flags(libc::MSG_WAITALL).build()
                } else {
                    opcode::Send::new(fd, buffer, length).flags(libc::MSG_WAITALL).build()
                };
                // SAFETY: the buffer is valid for its length and outlives the operation: this returns after all.
                unsafe { self.ring.submission().push(&entry) }.context("a full ring")?;
            }
            while wants > 0 || (left == 0 && notices > 0) {
                self.ring.submit_and_wait(1)?;
                for entry in self.ring.completion() {
                    if io_uring::cqueue::notif(entry.flags()) {
                        notices -= 1;
                        continue;
                    }
                    ensure!(entry.result() > 0, "a send failed: {}", entry.result());
                    left -= entry.result() as usize;
                    wants -= 1;
                    notices += usize::from(io_uring::cqueue::more(entry.flags()));
                }
            }
        }
        Ok(())
    }

    fn receive(&mut self, stream: &TcpStream, buffers: &mut [Vec<u8>], bytes: usize) -> anyhow::Result<()> {
        let fd = types::Fd(stream.as_raw_fd());
        let (mut left, mut turn) = (bytes, 0);
        while left > 0 {
            let (at, length) = (turn % DEPTH, left.min(BUFFER_BYTES) as u32);
            turn += 1;
            let buffer = buffers[at].as_mut_ptr();
            let entry = if self.is_fixed {
                opcode::ReadFixed::new(fd, buffer, length, at as u16).build()
            } else {
                opcode::Recv::new(fd, buffer, length).build()
            };
            // SAFETY: the buffer is valid for its length and outlives the operation, which is waited for.
            unsafe { self.ring.submission().push(&entry) }.context("a full ring")?;
            self.ring.submit_and_wait(1)?;
            let entry = self.ring.completion().next().context("a completion")?;
            ensure!(entry.result() > 0, "a receive failed: {}", entry.result());
            left -= entry.result() as usize;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_moves_all_that_was_asked_for() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, serve().expect("a port")));
        for way in Way::ALL {
            let mut client = match RawClient::connect(address, way) {
                Ok(client) => client,
                // A host may forbid io_uring; then there is nothing to compare.
                Err(error) if matches!(way, Way::Uring | Way::UringFixed) => {
                    eprintln!("{}: {error:#}", way.name());
                    continue;
                }
                Err(error) => panic!("{}: {error:#}", way.name()),
            };
            for bytes in [1, BUFFER_BYTES, 5 * BUFFER_BYTES + 3] {
                assert_eq!(client.receive(bytes).expect("all of it"), bytes, "{}", way.name());
            }
        }
    }
}
