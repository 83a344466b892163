//! Blocks whose bytes follow from their keys, and the calls that put and judge them.

use std::ops::Range;

use lapis_benches::pattern::{self, Pattern};
use lapis_client::{
    Client, GetOptions, Got, Key, Namespace, Pool, PoolKind, PoolShape, Put, PutOptions, PutResult, Refusal,
};

pub const SMALL: usize = 64 << 10;
/// Most blocks in one call.
pub const BATCH: u64 = 32;
const SEED: u64 = 0x70c5;

pub fn shape(block_bytes: usize) -> PoolShape {
    let namespace = Namespace::new("process tests").fingerprint();
    let (label, block_bytes) = (format!("of {block_bytes}"), block_bytes as u64);
    PoolShape { namespace, label, kind: PoolKind::Chain, block_bytes, pieces: 1 }
}

/// The pool of blocks of that size.
pub fn pool(client: &Client, block_bytes: usize) -> Pool {
    client.pool(&shape(block_bytes)).expect("a pool of our blocks")
}

pub fn keys(ids: Range<u64>) -> Vec<Key> {
    ids.map(|id| pattern::key(SEED, id)).collect()
}

/// The bytes under these keys, one block after the other.
pub fn bytes_of(keys: &[Key], block_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; keys.len() * block_bytes];
    keys.iter().zip(bytes.chunks_exact_mut(block_bytes)).for_each(|(key, block)| Pattern::of(key).fill(block));
    bytes
}

/// Puts the blocks as a chain.
pub fn put(client: &Client, pool: &Pool, keys: &[Key]) -> Put {
    let bytes = bytes_of(keys, pool.block_bytes() as usize);
    client.put_from(pool, keys, None, &bytes, &PutOptions::default()).expect("a sound call")
}

/// Puts `ids`, batch after batch; what was refused, and why.
pub fn put_all(client: &Client, pool: &Pool, ids: Range<u64>) -> Vec<Refusal> {
    let results = batches(ids).flat_map(|batch| put(client, pool, &keys(batch)).results);
    let refused = results.filter_map(|result| match result {
        PutResult::Refused(reason) => Some(reason),
        PutResult::Stored | PutResult::Exists => None,
    });
    refused.collect()
}

pub fn batches(ids: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = ids.end;
    ids.step_by(BATCH as usize).map(move |first| first..(first + BATCH).min(end))
}

/// Reads blocks and judges every byte of the hits.
pub fn get(client: &Client, pool: &Pool, keys: &[Key], options: &GetOptions) -> (Got, u64) {
    let mut buffer = vec![0; keys.len() * pool.block_bytes() as usize];
    let got = client.get_into(pool, keys, &mut buffer, options).expect("a sound call");
    let wrong = wrong_bytes(pool, keys, &got, &buffer);
    (got, wrong)
}

/// Bytes of hits that are not their key's.
pub fn wrong_bytes(pool: &Pool, keys: &[Key], got: &Got, buffer: &[u8]) -> u64 {
    let blocks = buffer.chunks_exact(pool.block_bytes() as usize);
    let hits = keys.iter().zip(&got.statuses).zip(blocks).filter(|((_, status), _)| status.is_hit());
    hits.map(|((key, _), block)| Pattern::of(key).wrong_bytes(block)).sum()
}

/// Reads all of `ids`: how many are hits. No byte is wrong.
pub fn hits(client: &Client, pool: &Pool, ids: Range<u64>) -> u64 {
    let mut hits = 0;
    for batch in batches(ids) {
        let (got, wrong) = get(client, pool, &keys(batch), &GetOptions::default());
        assert_eq!(wrong, 0, "wrong bytes");
        hits += got.hits as u64;
    }
    hits
}
