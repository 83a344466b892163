//! What a host needs of the connections to other hosts. Implemented by TCP with TLS (`tcp`) and by the simulator.

use std::net::SocketAddr;

use super::message::PeerMessage;

/// A connection, either way. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

#[derive(Debug)]
pub enum LinkEvent {
    /// One that was asked for by `dial` is made. `certified` as in `Accepted`.
    Dialled {
        link: LinkId,
        certified: Option<String>,
        local: SocketAddr,
        remote: SocketAddr,
    },
    /// Another host made a connection. `certified`: the name in its certificate, which our authority has signed; `None`
    /// where there are no certificates.
    Accepted {
        link: LinkId,
        certified: Option<String>,
        remote: SocketAddr,
    },
    Message {
        link: LinkId,
        message: PeerMessage,
    },
    /// A link whose `has_room` was false takes messages again.
    Room {
        link: LinkId,
    },
    /// It ended, was not made, or said what is no message; the reason is for the log. Nothing comes of it any more.
    Closed {
        link: LinkId,
        reason: String,
    },
}

pub trait Links {
    /// Makes a connection to a host and port, as in "10.0.0.2:7450" or "host-b:7450"; `name` must be in its certificate
    /// where there are certificates. `Dialled` or `Closed` says what came of it, at the latest after some seconds.
    fn dial(&mut self, name: &str, address: &str) -> LinkId;
    /// Never blocks, and takes any message; whoever sends much asks `has_room` first. After `Closed` nothing is sent.
    fn send(&mut self, link: LinkId, message: PeerMessage);
    /// Whether little of what was sent still waits. If not, `Room` will say when.
    fn has_room(&mut self, link: LinkId) -> bool;
    /// Sends what waits, for some seconds at most, and closes. No event of this link comes after it.
    fn hang_up(&mut self, link: LinkId);
    /// What happened; `None`: nothing more now. Whoever drives this is woken when there is something.
    fn poll(&mut self) -> Option<LinkEvent>;
}
