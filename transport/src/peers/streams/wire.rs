//! A stream's connection, plain or encrypted. Plain, bytes go between socket and slots without a copy in user space.
//! Encrypted, by TLS 1.3 between hosts that have shown their certificates, they are copied once at either end beside what
//! encryption itself does: out of the slot before, and into it after.
//!
//! Invariant: nobody waits for the other side while `Sealed::connection` is locked, so that an ask can be sent while the
//! stream's thread waits for an answer.

use std::{
    io::{self, BufRead, ErrorKind, Write},
    mem::MaybeUninit,
    ops::Range,
    sync::Mutex,
};

use rustls::{ClientConnection, Connection, ServerConnection};

use super::{
    lock,
    socket::{Head, Place, Socket},
};
use crate::peers::tls::{Credentials, TlsError, check_peer, server_name};

/// Bytes taken from the socket at once, and of slots that are encrypted together: some records of 16 KiB.
const CHUNK_BYTES: usize = 64 << 10;

/// Why a connection could not be encrypted.
#[derive(Debug, thiserror::Error)]
pub(super) enum SealError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{}", crate::peers::tls::reason(.0))]
    Handshake(io::Error),
}

pub(super) struct Wire {
    pub socket: Socket,
    sealed: Option<Sealed>,
}

struct Sealed {
    connection: Mutex<Connection>,
    /// What came and is not decrypted yet; of the stream's thread alone.
    inbox: Mutex<Inbox>,
}

struct Inbox {
    bytes: Box<[u8]>,
    left: Range<usize>,
}

impl Wire {
    pub fn plain(socket: Socket) -> Self {
        Self { socket, sealed: None }
    }

    /// Prepares to be encrypted: `seal` shakes hands.
    pub fn to_owner(socket: Socket, credentials: Option<&Credentials>, host: &str) -> Result<Self, SealError> {
        let Some(credentials) = credentials else { return Ok(Self::plain(socket)) };
        let (config, name) = (credentials.identity().client().clone(), server_name(host)?);
        let connection = ClientConnection::new(config, name).map_err(handshake)?;
        Ok(Self { socket, sealed: Some(Sealed::new(connection.into())) })
    }

    pub fn to_reader(socket: Socket, credentials: Option<&Credentials>) -> Result<Self, SealError> {
        let Some(credentials) = credentials else { return Ok(Self::plain(socket)) };
        let connection = ServerConnection::new(credentials.identity().server().clone()).map_err(handshake)?;
        Ok(Self { socket, sealed: Some(Sealed::new(connection.into())) })
    }

    /// Shakes hands, where the stream is encrypted. `host`: whose certificate must be shown; at the owner any of the
    /// authority's will do, as the word is known to one host only.
    pub fn seal(&self, host: Option<&str>) -> Result<(), SealError> {
        let Some(sealed) = &self.sealed else { return Ok(()) };
        sealed.shake_hands(&self.socket).map_err(SealError::Handshake)?;
        if let Some(host) = host {
            check_peer(&lock(&sealed.connection), host)?;
        }
        Ok(())
    }

    /// Sends something short without waiting.
    pub fn send_at_once(&self, head: &[u8]) -> io::Result<()> {
        let Some(sealed) = &self.sealed else { return self.socket.send_at_once(head) };
        let mut connection = lock(&sealed.connection);
        connection.writer().write_all(head)?;
        let mut records = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut records)?;
        }
        // Still locked: records have an order.
        self.socket.send_at_once(&records)
    }

    /// Sends `head` and then the bytes at `places`. Nobody else sends on this stream.
    pub fn send(&self, head: &[u8], places: &[Place<'_>]) -> io::Result<()> {
        let Some(sealed) = &self.sealed else { return self.socket.send(head, places) };
        let (mut chunk, mut records) = ([const { MaybeUninit::uninit() }; CHUNK_BYTES], Vec::new());
        sealed.encrypt(head, &mut records)?;
        for place in places {
            for start in (0..place.bytes).step_by(CHUNK_BYTES) {
                let chunk = &mut chunk[..CHUNK_BYTES.min(place.bytes - start)];
                let bytes = lapis_arena::copy::out(
                    place.mapping,
                    place.offset + start,
                    chunk,
                    lapis_arena::copy::Kernel::Plain,
                );
                sealed.encrypt(bytes, &mut records)?;
                if records.len() >= CHUNK_BYTES {
                    self.socket.send(&records, &[])?;
                    records.clear();
                }
            }
        }
        self.socket.send(&records, &[])
    }

    pub fn receive_head(&self, head: &mut [u8]) -> io::Result<Head> {
        let Some(sealed) = &self.sealed else { return self.socket.receive_head(head) };
        let mut done = 0;
        while done < head.len() {
            let more = sealed.decrypted(&self.socket, head.len() - done, |bytes| {
                head[done..done + bytes.len()].copy_from_slice(bytes);
                done += bytes.len();
            });
            match more {
                Ok(true) => {}
                Ok(false) if done == 0 => return Ok(Head::Ended),
                Ok(false) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error) if done == 0 && error.kind() == ErrorKind::TimedOut => return Ok(Head::Nothing),
                Err(error) => return Err(error),
            }
        }
        Ok(Head::Came)
    }

    /// Fills `places`, one after the other. Returns how many bytes came; with the reason, if those are not all.
    pub fn receive(&self, places: &[Place<'_>]) -> (usize, io::Result<()>) {
        let Some(sealed) = &self.sealed else { return self.socket.receive(places) };
        let mut all = 0;
        for place in places {
            let mut done = 0;
            while done < place.bytes {
                let more = sealed.decrypted(&self.socket, place.bytes - done, |bytes| {
                    place.mapping.copy_in(place.offset + done, bytes);
                    done += bytes.len();
                    all += bytes.len();
                });
                match more {
                    Ok(true) => {}
                    Ok(false) => return (all, Err(ErrorKind::UnexpectedEof.into())),
                    Err(error) => return (all, Err(error)),
                }
            }
        }
        (all, Ok(()))
    }
}

impl Sealed {
    fn new(connection: Connection) -> Self {
        let inbox = Inbox { bytes: vec![0; CHUNK_BYTES].into(), left: 0..0 };
        Self { connection: Mutex::new(connection), inbox: Mutex::new(inbox) }
    }

    fn shake_hands(&self, socket: &Socket) -> io::Result<()> {
        loop {
            let mut records = Vec::new();
            let is_done = {
                let mut connection = lock(&self.connection);
                while connection.wants_write() {
                    connection.write_tls(&mut records)?;
                }
                !connection.is_handshaking()
            };
            socket.send(&records, &[])?;
            if is_done {
                return Ok(());
            }
            if !self.take_in(socket)? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn encrypt(&self, bytes: &[u8], records: &mut Vec<u8>) -> io::Result<()> {
        let mut connection = lock(&self.connection);
        let mut left = bytes;
        while !left.is_empty() {
            let taken = connection.writer().write(left)?;
            left = &left[taken..];
            while connection.wants_write() {
                connection.write_tls(records)?;
            }
        }
        Ok(())
    }

    /// Gives some decrypted bytes, `most` at most, to `take`. False if the other side has ended the stream.
    fn decrypted(&self, socket: &Socket, most: usize, take: impl FnOnce(&[u8])) -> io::Result<bool> {
        loop {
            {
                let mut connection = lock(&self.connection);
                let mut reader = connection.reader();
                match reader.fill_buf() {
                    Ok([]) => return Ok(false),
                    Ok(bytes) => {
                        let taken = bytes.len().min(most);
                        take(&bytes[..taken]);
                        reader.consume(taken);
                        return Ok(true);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    // It ended without a word of TLS: whatever is missing is missed by whoever counts.
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
                    Err(error) => return Err(error),
                }
            }
            if !self.take_in(socket)? {
                return Ok(false);
            }
        }
    }

    /// Takes what came further in, or waits for it. False at its end.
    fn take_in(&self, socket: &Socket) -> io::Result<bool> {
        let mut inbox = lock(&self.inbox);
        if inbox.left.is_empty() {
            let bytes = socket.receive_some(&mut inbox.bytes)?;
            if bytes == 0 {
                return Ok(false);
            }
            inbox.left = 0..bytes;
        }
        let mut connection = lock(&self.connection);
        let mut bytes = &inbox.bytes[inbox.left.clone()];
        let taken = connection.read_tls(&mut bytes)?;
        inbox.left.start += taken;
        if let Err(error) = connection.process_new_packets() {
            // It may hear why; the reason here is the first one.
            let mut records = Vec::new();
            while connection.wants_write() {
                connection.write_tls(&mut records)?;
            }
            drop(socket.send_at_once(&records));
            return Err(io::Error::new(ErrorKind::InvalidData, error));
        }
        Ok(true)
    }
}

fn handshake(error: rustls::Error) -> SealError {
    SealError::Handshake(io::Error::new(ErrorKind::InvalidData, error))
}
