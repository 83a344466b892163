//! What other hosts say: messages of the control connection, digests, whole sessions, heads of streams.

mod digest;
mod host;
mod message;
mod stream;

pub use digest::{digest, digests};
pub use host::{host, sessions};
pub use message::{message, messages};
pub use stream::{heads, stream};

use lapis_config::{Fingerprint, Key, PoolKind, PoolShape};
use lapis_transport::peers::message::{HEAD_BYTES, PeerHello, PeerMessage, head};

/// The message at the front of the bytes, if it is one, and what follows it. A head that says how long it is leads to what
/// follows, whatever is in between.
fn next(bytes: &[u8]) -> Option<(Option<PeerMessage>, &[u8])> {
    let (first, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
    let (kind, length) = head(first).ok()?;
    let (body, rest) = rest.split_at_checked(length)?;
    Some((PeerMessage::decode(kind, body).ok(), rest))
}

fn encoded(messages: &[PeerMessage]) -> Vec<u8> {
    let mut bytes = Vec::new();
    messages.iter().for_each(|message| message.encode(&mut bytes));
    bytes
}

fn hello(host: &str) -> PeerHello {
    let (host, group) = (host.into(), "default".into());
    PeerHello { host, group, boot: 1, digest_bytes_max: 1 << 20, data_port: 7851, data_word: 2 }
}

fn shape() -> PoolShape {
    let (namespace, kind) = (Fingerprint([7; 32]), PoolKind::Chain);
    PoolShape { namespace, label: "kv".into(), kind, block_bytes: 65536, pieces: 1 }
}

fn keys(count: u64) -> Vec<Key> {
    (0..count).map(|n| Key([n, 0, 0, 0])).collect()
}
