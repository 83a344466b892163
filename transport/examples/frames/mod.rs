//! Messages of peers on a connection without TLS, for programs of the test bed.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

use lapis_transport::peers::message::{HEAD_BYTES, PeerMessage, head};

pub fn send(stream: &mut TcpStream, message: &PeerMessage) -> io::Result<()> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    stream.write_all(&bytes)
}

/// Waits for the next one.
pub fn receive(stream: &mut TcpStream) -> anyhow::Result<PeerMessage> {
    let mut start = [0; HEAD_BYTES];
    stream.read_exact(&mut start)?;
    let (kind, bytes) = head(&start)?;
    let mut body = vec![0; bytes];
    stream.read_exact(&mut body)?;
    Ok(PeerMessage::decode(kind, &body)?)
}
