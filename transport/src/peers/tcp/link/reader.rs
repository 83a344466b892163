//! What the other side says, and why it cannot be read any more.

use std::{io, sync::Arc};

use tokio::{
    io::{AsyncReadExt, BufReader, ReadHalf},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::super::socket::Stream;
use crate::peers::{
    message::{self, HEAD_BYTES, MAGIC, MESSAGE_BYTES_MAX, MessageError, PeerMessage},
    tls,
};

/// Bytes of a link's messages that may wait until they are polled: then it is read no further.
const UNPOLLED_BYTES_MAX: usize = 4 << 20;
/// What is read at once, bytes.
const READ_BYTES: usize = 16 << 10;

const _: () = assert!(UNPOLLED_BYTES_MAX >= MESSAGE_BYTES_MAX, "the longest message can be taken in");

/// Why a connection is not read any more.
pub(in super::super) enum Unread {
    /// It ended or broke.
    Lost(String),
    /// What came is no message.
    Wrong(MessageError),
}

impl Unread {
    /// What the other side is told, if it is one that understands.
    pub(in super::super) fn answer(&self) -> Option<String> {
        match self {
            Self::Wrong(MessageError::Magic { .. }) | Self::Lost(_) => None,
            Self::Wrong(error) => Some(spelled(error)),
        }
    }

    pub(in super::super) fn reason(self) -> String {
        match self {
            Self::Lost(reason) => reason,
            Self::Wrong(MessageError::Magic { magic }) if magic & 0xffff == TLS_RECORD => {
                "the other side speaks TLS, and this host has no certificates (peers.ca)".into()
            }
            Self::Wrong(error) => spelled(&error),
        }
    }
}

/// The first two bytes of a handshake of TLS, as a little-endian number.
const TLS_RECORD: u32 = 0x0316;

fn spelled(error: &MessageError) -> String {
    match error {
        MessageError::Body { source, .. } => format!("{error}: {source}"),
        error => error.to_string(),
    }
}

pub(super) fn broken(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "the other side cut the connection".into()
        }
        io::ErrorKind::TimedOut => "the other side gives no sign any more".into(),
        _ => tls::reason(error),
    }
}

fn lost(error: &io::Error) -> Unread {
    Unread::Lost(broken(error))
}

/// A message, and its bytes' share of what may wait until it is polled: given back when it is dropped.
pub(in super::super) struct Came {
    pub(in super::super) message: PeerMessage,
    pub(in super::super) room: OwnedSemaphorePermit,
}

pub(in super::super) struct Reader {
    stream: BufReader<ReadHalf<Stream>>,
    unpolled: Arc<Semaphore>,
}

impl Reader {
    pub(super) fn new(stream: ReadHalf<Stream>) -> Self {
        let unpolled = Arc::new(Semaphore::new(UNPOLLED_BYTES_MAX));
        Self { stream: BufReader::with_capacity(READ_BYTES, stream), unpolled }
    }

    /// The next one, of at most `bytes_max` with its head.
    pub(in super::super) async fn message(&mut self, bytes_max: usize) -> Result<Came, Unread> {
        let head = self.head().await?;
        let (kind, length) = message::head(&head).map_err(Unread::Wrong)?;
        let bytes = HEAD_BYTES + length;
        if bytes > bytes_max {
            return Err(Unread::Lost(format!(
                "a message of {bytes} bytes before it was greeted, the limit is {bytes_max}"
            )));
        }
        let room = self.unpolled.clone().acquire_many_owned(bytes as u32).await.expect("it is never closed");
        // It grows by what comes: a head alone is no reason to take memory.
        let mut body = Vec::new();
        (&mut self.stream).take(length as u64).read_to_end(&mut body).await.map_err(|error| lost(&error))?;
        if body.len() < length {
            return Err(Unread::Lost(CUT.into()));
        }
        let message = PeerMessage::decode(kind, &body).map_err(Unread::Wrong)?;
        Ok(Came { message, room })
    }

    async fn head(&mut self) -> Result<[u8; HEAD_BYTES], Unread> {
        let mut head = [0; HEAD_BYTES];
        let mut have = 0;
        while have < HEAD_BYTES {
            match self.stream.read(&mut head[have..]).await {
                Ok(0) if have == 0 => return Err(Unread::Lost("the other side closed the connection".into())),
                // Of what speaks something else, less than a head may come.
                Ok(0) => return Err(cut(&head[..have])),
                Ok(bytes) => have += bytes,
                Err(error) => return Err(lost(&error)),
            }
        }
        Ok(head)
    }

    /// Reads to the end of the connection.
    pub(super) async fn discard(&mut self) {
        let mut bytes = [0; 4096];
        while self.stream.read(&mut bytes).await.is_ok_and(|bytes| bytes > 0) {}
    }
}

const CUT: &str = "the other side closed the connection within a message";

fn cut(have: &[u8]) -> Unread {
    match have.first_chunk().map(|first| u32::from_le_bytes(*first)) {
        Some(magic) if magic != MAGIC => Unread::Wrong(MessageError::Magic { magic }),
        _ => Unread::Lost(CUT.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Cursor,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    fn reader(bytes: Vec<u8>) -> Reader {
        let stream: Stream = Box::new(tokio::io::join(Cursor::new(bytes), tokio::io::sink()));
        Reader::new(tokio::io::split(stream).0)
    }

    /// What comes at once.
    fn now(reader: &mut Reader) -> Poll<Result<Came, Unread>> {
        pin!(reader.message(MESSAGE_BYTES_MAX)).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn what_nobody_polls_is_read_no_further_than_its_bound() {
        let message = PeerMessage::Path { said: vec![1; 16 << 10] };
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let each = bytes.len();
        let mut reader = reader(bytes.repeat(600));
        let mut unpolled = Vec::new();
        while let Poll::Ready(came) = now(&mut reader) {
            let came = came.unwrap_or_else(|unread| panic!("{}", unread.reason()));
            assert_eq!(came.message, message);
            unpolled.push(came.room);
        }
        assert_eq!(unpolled.len(), UNPOLLED_BYTES_MAX / each);
    }

    #[test]
    fn who_promises_more_than_comes_is_cut() {
        let mut head = Vec::new();
        PeerMessage::Leaving.encode(&mut head);
        head[12..16].copy_from_slice(&(MESSAGE_BYTES_MAX as u32).to_le_bytes());
        let Poll::Ready(Err(unread)) = now(&mut reader(head)) else { panic!("it was cut") };
        assert_eq!(unread.reason(), CUT);
    }
}
