//! One datagram with descriptors, out of and into a SEQPACKET socket. Never blocks.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags,
    },
};

use crate::hello::{MESSAGE_BYTES_MAX, MESSAGE_FDS_MAX};

/// A buffer that shows an overlong datagram as such.
pub(crate) fn buffer() -> Vec<u8> {
    vec![0; MESSAGE_BYTES_MAX + 1]
}

/// What a socket gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// So many bytes of the buffer. A datagram beyond the buffer counts as filling it.
    Bytes(usize),
    Nothing,
    HungUp,
}

/// # Panics
/// If there are more than 64 descriptors: callers split.
pub(crate) fn send(socket: impl AsFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    assert!(fds.len() <= MESSAGE_FDS_MAX, "{} descriptors in one message", fds.len());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "the space is made for them");
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    retry(|| rustix::net::sendmsg(&socket, &[IoSlice::new(message)], &mut control, flags)).map(drop)
}

/// Descriptors that come along are never even made: there is no room for them in the call.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Received, Errno> {
    let flags = RecvFlags::DONTWAIT;
    let received = retry(|| rustix::net::recv(&socket, &mut *buffer, flags).map(|(bytes, _)| bytes));
    sort(&socket, received)
}

/// Like [`receive`], with the descriptors that came along, appended to `fds`.
pub(crate) fn receive_with(socket: impl AsFd, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = retry(|| {
        let mut slices = [IoSliceMut::new(buffer)];
        rustix::net::recvmsg(&socket, &mut slices, &mut control, flags)
    });
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed);
        }
    }
    // More descriptors than there was room for: the kernel closed the rest, and the message is none of ours.
    let cut_off = received.as_ref().is_ok_and(|message| message.flags.contains(ReturnFlags::CTRUNC));
    if cut_off {
        fds.clear();
    }
    sort(&socket, received.map(|message| message.bytes))
}

fn sort(socket: impl AsFd, received: Result<usize, Errno>) -> Result<Received, Errno> {
    match received {
        // The end of the stream, or an empty datagram: only the socket's state tells.
        Ok(0) if has_hung_up(socket) => Ok(Received::HungUp),
        Ok(bytes) => Ok(Received::Bytes(bytes)),
        Err(Errno::AGAIN) => Ok(Received::Nothing),
        Err(Errno::PIPE) => Ok(Received::HungUp),
        Err(errno) => Err(errno),
    }
}

/// True if the other side has closed or shut down. What it sent before may still wait to be read.
pub(crate) fn has_hung_up(socket: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&socket, PollFlags::RDHUP)];
    matches!(rustix::event::poll(&mut fds, Some(&Default::default())), Ok(1..))
}

/// Once more after a signal, and after a reset: that tells once that the other side closed without having read all, and
/// then lets us read what it had sent.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR | Errno::CONNRESET) => {}
            result => return result,
        }
    }
}
