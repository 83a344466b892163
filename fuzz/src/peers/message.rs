//! Messages of the control connection, one after the other.

use lapis_config::{Key, PoolId, Wait};
use lapis_transport::peers::{
    digest::{Change, Delta, Part, Whole},
    message::{HEAD_BYTES, Located, MESSAGE_BYTES_MAX, PeerMessage, head},
    name::ShortName,
};

use super::{encoded, hello, keys, shape};

/// Bytes as they come over a connection: what decodes is what would be sent, byte for byte, and takes no more memory than
/// its bytes justify.
pub fn message(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first_chunk::<HEAD_BYTES>() {
        let Ok((kind, length)) = head(first) else { break };
        assert!(length <= MESSAGE_BYTES_MAX - HEAD_BYTES);
        let body = &after[..length.min(after.len())];
        judge(kind, body);
        rest = &after[body.len()..];
    }
    // Without a head that fits, of the kind that the first byte says.
    if let Some((&kind, body)) = bytes.split_first() {
        judge(u32::from(kind), body);
    }
}

fn judge(kind: u32, body: &[u8]) {
    let Ok(message) = PeerMessage::decode(kind, body) else { return };
    assert!(room(&message) <= 8 * body.len(), "{} bytes kept of {}", room(&message), body.len());
    let again = encoded(std::slice::from_ref(&message));
    assert_eq!(head(again[..HEAD_BYTES].try_into().expect("a head")), Ok((kind, body.len())));
    assert_eq!(&again[HEAD_BYTES..], body, "{message:?}");
}

/// Bytes that its lists and texts take, at what they were allocated for.
fn room(message: &PeerMessage) -> usize {
    match message {
        PeerMessage::Hello(hello) => hello.host.capacity() + hello.group.capacity(),
        PeerMessage::Refused { reason } => reason.capacity(),
        PeerMessage::Pool { shape, .. } => shape.label.capacity(),
        PeerMessage::Part(part) => part.bytes.capacity(),
        PeerMessage::Delta(delta) => delta.changes.capacity() * size_of::<Change>(),
        PeerMessage::Locate { keys, .. } | PeerMessage::Offer { keys, .. } | PeerMessage::Forget { keys, .. } => {
            keys.capacity() * size_of::<Key>()
        }
        PeerMessage::Found { blocks, .. } => blocks.capacity() * size_of::<Located>(),
        PeerMessage::Path { said } => said.capacity(),
        PeerMessage::Whole(_)
        | PeerMessage::WholeWanted
        | PeerMessage::Release { .. }
        | PeerMessage::Offered { .. }
        | PeerMessage::Credit { .. }
        | PeerMessage::Ping { .. }
        | PeerMessage::Pong { .. }
        | PeerMessage::Leaving => 0,
    }
}

/// Every message, each alone and all of them in a row.
pub fn messages() -> Vec<Vec<u8>> {
    let name = |n: usize| ShortName::new(7, &keys(9)[n]);
    let block = Located { index: 0, follows: false, line: 1, generation: 2, slot: 3, bytes: 65536, sum: 5 };
    let changes = vec![Change { name: name(0), added: true }, Change { name: name(1), added: false }];
    let (token, pool, deadline_us) = (9, PoolId(3), 50_000);
    let all = [
        PeerMessage::Hello(hello("host-b")),
        PeerMessage::Refused { reason: "host \"c\" is not one of the peers".into() },
        PeerMessage::Pool { pool, shape: shape() },
        PeerMessage::Whole(Whole { epoch: 1, sequence: 2, buckets: 3, sampling: 4 }),
        PeerMessage::Part(Part { first: 0, bytes: vec![1; 24] }),
        PeerMessage::Delta(Delta { epoch: 1, sequence: 2, changes }),
        PeerMessage::WholeWanted,
        PeerMessage::Locate { token, pool, each: false, wait: Wait::Filling, deadline_us, keys: keys(2) },
        PeerMessage::Found {
            token,
            parent: keys(4)[3],
            blocks: vec![block, Located { index: 1, follows: true, ..block }],
        },
        PeerMessage::Path { said: b"a region's key".to_vec() },
        PeerMessage::Release { token },
        PeerMessage::Offer { number: 10, pool, deadline_us, keys: keys(3) },
        PeerMessage::Offered { number: 10, came: 2 },
        PeerMessage::Forget { pool, keys: keys(2) },
        PeerMessage::Credit { calls: 64 },
        PeerMessage::Ping { number: 1 },
        PeerMessage::Pong { number: 1 },
        PeerMessage::Leaving,
    ];
    let mut messages: Vec<Vec<u8>> = all.chunks(1).map(encoded).collect();
    messages.push(encoded(&all));
    messages
}
