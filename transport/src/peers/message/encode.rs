//! Messages as bytes: docs/formats.md, "Messages between hosts". Pure.

use lapis_config::{BATCH_KEYS_MAX, PoolKind, Wait};

use super::{
    CHANGES_MAX, HEAD_BYTES, MAGIC, MESSAGE_BYTES_MAX, NAME_BYTES_MAX, PART_BYTES_MAX, PATH_BYTES_MAX, PeerMessage,
    REASON_BYTES_MAX, VERSION_MAJOR, VERSION_MINOR, change_bytes, decode as kinds,
};
use crate::{code::Writer, hello::LABEL_BYTES_MAX};

pub(super) fn message(message: &PeerMessage, out: &mut Vec<u8>) {
    let start = out.len();
    let mut w = Writer(out);
    w.u32(MAGIC);
    w.u16(VERSION_MAJOR);
    w.u16(VERSION_MINOR);
    w.u64(0);
    let kind = body(message, &mut w);
    let bytes = out.len() - start;
    assert!(bytes <= MESSAGE_BYTES_MAX, "a message of {bytes} bytes");
    out[start + 8..start + 12].copy_from_slice(&kind.to_le_bytes());
    out[start + 12..start + HEAD_BYTES].copy_from_slice(&(bytes as u32).to_le_bytes());
}

fn body(message: &PeerMessage, w: &mut Writer<'_>) -> u32 {
    match message {
        PeerMessage::Hello(hello) => {
            w.u64(hello.boot);
            w.u64(hello.digest_bytes_max);
            w.u64(hello.data_word);
            w.u16(hello.data_port);
            w.text(&hello.host, NAME_BYTES_MAX);
            w.text(&hello.group, NAME_BYTES_MAX);
            kinds::HELLO
        }
        PeerMessage::Refused { reason } => {
            w.text(reason, REASON_BYTES_MAX);
            kinds::REFUSED
        }
        PeerMessage::Pool { pool, shape } => {
            w.pool(*pool);
            w.u16(shape.pieces);
            w.u8(u8::from(shape.kind == PoolKind::Object));
            w.u64(shape.block_bytes);
            w.bytes(&shape.namespace.0);
            w.text(&shape.label, LABEL_BYTES_MAX);
            kinds::POOL
        }
        PeerMessage::Whole(whole) => {
            w.u64(whole.epoch);
            w.u64(whole.sequence);
            w.u32(whole.buckets);
            w.u8(whole.sampling);
            kinds::WHOLE
        }
        PeerMessage::Part(part) => {
            w.u32(part.first);
            w.count(part.bytes.len(), PART_BYTES_MAX);
            w.bytes(&part.bytes);
            kinds::PART
        }
        PeerMessage::Delta(delta) => {
            w.u64(delta.epoch);
            w.u64(delta.sequence);
            w.count(delta.changes.len(), CHANGES_MAX);
            delta.changes.iter().for_each(|change| w.bytes(&change_bytes(change.name, change.added)));
            kinds::DELTA
        }
        PeerMessage::WholeWanted => kinds::WHOLE_WANTED,
        PeerMessage::Locate { token, pool, each, wait, deadline_us, keys } => {
            w.u64(*token);
            w.u64(*deadline_us);
            w.pool(*pool);
            w.u8(match wait {
                Wait::Present => 0,
                Wait::Filling => 1,
                Wait::Absent => 2,
            });
            w.u8(u8::from(*each));
            w.count(keys.len(), BATCH_KEYS_MAX);
            w.keys(keys);
            kinds::LOCATE
        }
        PeerMessage::Found { token, parent, blocks } => {
            w.u64(*token);
            w.bytes(&parent.to_bytes());
            w.count(blocks.len(), BATCH_KEYS_MAX);
            for block in blocks {
                w.u64(block.generation);
                w.u64(block.sum);
                w.u32(block.line);
                w.u32(block.slot);
                w.u32(block.bytes);
                w.u16(block.index);
                w.u8(u8::from(block.follows));
            }
            kinds::FOUND
        }
        PeerMessage::Path { said } => {
            w.count(said.len(), PATH_BYTES_MAX);
            w.bytes(said);
            kinds::PATH
        }
        PeerMessage::Release { token } => {
            w.u64(*token);
            kinds::RELEASE
        }
        PeerMessage::Offered { number, came } => {
            w.u64(*number);
            w.u32(*came);
            kinds::OFFERED
        }
        PeerMessage::Forget { pool, keys } => {
            w.pool(*pool);
            w.count(keys.len(), BATCH_KEYS_MAX);
            w.keys(keys);
            kinds::FORGET
        }
        PeerMessage::Offer { number, pool, deadline_us, keys } => {
            w.u64(*number);
            w.u64(*deadline_us);
            w.pool(*pool);
            w.count(keys.len(), BATCH_KEYS_MAX);
            w.keys(keys);
            kinds::OFFER
        }
        PeerMessage::Credit { calls } => {
            w.u32(*calls);
            kinds::CREDIT
        }
        PeerMessage::Ping { number } => {
            w.u64(*number);
            kinds::PING
        }
        PeerMessage::Pong { number } => {
            w.u64(*number);
            kinds::PONG
        }
        PeerMessage::Leaving => kinds::LEAVING,
    }
}
