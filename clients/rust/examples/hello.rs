//! Connect, put, find, get, view: `cargo run -p lapis-client --example hello [SOCKET]`, beside a running daemon.
//! With a second argument N it then reads the same blocks N times, to be watched by strace.

use std::error::Error;

use lapis_client::{
    Client, ConnectOptions, GetOptions, HitPolicy, Key, Namespace, PoolKind, PoolShape, PutOptions, PutResult,
};

const BLOCKS: usize = 8;
const BLOCK_BYTES: usize = 64 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().unwrap_or_else(|| "/run/lapis/lapis.sock".into());
    let rounds: u32 = arguments.next().map_or(Ok(0), |rounds| rounds.parse())?;
    let client = Client::connect(&socket, ConnectOptions::default())?;

    // Whatever changes the bytes of a block and not its key belongs here.
    let namespace = Namespace::new("hello").dtype("u8").tokens_per_block(16).fingerprint();
    let block_bytes = BLOCK_BYTES as u64;
    let shape = PoolShape { namespace, label: "kv".into(), kind: PoolKind::Chain, block_bytes, pieces: 1 };
    let pool = client.pool(&shape)?;

    let keys: Vec<Key> = (0..BLOCKS).map(|i| Key::new(format!("block {i}").as_bytes())).collect();
    let blocks: Vec<u8> = (0..BLOCKS * BLOCK_BYTES).map(|i| (i / BLOCK_BYTES) as u8).collect();
    let put = client.put_from(&pool, &keys, None, &blocks, &PutOptions::default())?;
    let existed = put.results.iter().filter(|result| **result == PutResult::Exists).count();
    println!("put: {} stored, {existed} existed, {} refused", put.stored(), put.refused());

    let matched = client.match_prefix(&[(pool.clone(), HitPolicy::Prefix)], &keys)?;
    println!("match_prefix: {matched} of {BLOCKS}");

    let mut copy = vec![0; blocks.len()];
    let got = client.get_into(&pool, &keys, &mut copy, &GetOptions::default())?;
    println!(
        "get_into: {} hits, {}",
        got.hits,
        if copy == blocks { "the same bytes" } else { "not all the same bytes" }
    );

    for (key, view) in keys.iter().zip(client.view(&pool, &keys)?.iter()) {
        match view {
            Some(view) => println!("view: {} bytes at {:?}", view.len(), view.as_ptr()),
            None => println!("view: {key:?} is a miss"),
        }
    }
    let mut hits = 0;
    for _ in 0..rounds {
        hits += client.get_into(&pool, &keys, &mut copy, &GetOptions::default())?.hits;
        hits += client.view(&pool, &keys)?.hits();
        hits += client.exists(&pool, &keys)?.count();
    }
    if rounds > 0 {
        println!("{hits} hits in {rounds} rounds");
    }
    Ok(())
}
