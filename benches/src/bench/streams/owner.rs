//! The process that owns the blocks: it lends them to paths over TCP, and sends the same memory over raw streams.

use std::{
    io::{Read, Write},
    net::Ipv4Addr,
    os::fd::AsFd,
    sync::Arc,
};

use lapis_arena::{Access, Mapping, memfd};
use lapis_config::Key;
use lapis_transport::peers::{
    links::LinkId,
    paths::{Lent, Paths, ToPaths},
    streams::{StreamOptions, TcpPaths},
};

use super::{SIZES, raw};

/// Beyond any cache.
pub const BLOCKS_BYTES: usize = 256 << 20;
pub const KEY: Key = Key([1, 2, 3, 4]);
pub const SEED: u64 = 5;
pub const WORD: u64 = 0x7a11_0f1a_9155_77ed;
/// Bytes written at once when memory is filled.
const CHUNK_BYTES: usize = 1 << 20;

/// The token under which all blocks of a size are lent.
pub fn token(block_bytes: usize) -> u64 {
    block_bytes as u64
}

/// Shared memory whose bytes follow from their place, all of it touched.
pub fn memory(name: &str) -> anyhow::Result<Mapping> {
    let (fd, _) = memfd::create(name, BLOCKS_BYTES as u64, memfd::Huge::Try)?;
    memfd::clear(fd.as_fd(), 0..BLOCKS_BYTES as u64)?;
    let mapping = Mapping::shared(fd.as_fd(), BLOCKS_BYTES as u64, Access::ReadWrite)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut rng = fastrand::Rng::with_seed(7);
    for offset in (0..BLOCKS_BYTES).step_by(CHUNK_BYTES) {
        rng.fill(&mut chunk);
        mapping.copy_in(offset, &chunk);
    }
    Ok(mapping)
}

/// Lends until standard input ends. Says its two ports first.
pub fn run() -> anyhow::Result<()> {
    let blocks = memory("bench.blocks")?;
    let listen = Some((Ipv4Addr::LOCALHOST, 0).into());
    let mut paths = TcpPaths::new(StreamOptions { listen, ..StreamOptions::default() }, Arc::new(|| {}))?;
    let link = LinkId(1);
    paths.submit(ToPaths::Guest { group: 0, link, word: WORD });
    for (block_bytes, _) in SIZES {
        let lent = (0..BLOCKS_BYTES / block_bytes).map(|at| {
            let (mapping, offset) = (blocks.clone(), at * block_bytes);
            Lent { mapping, offset, bytes: block_bytes as u32 }
        });
        paths.submit(ToPaths::Lend { link, token: token(block_bytes), blocks: lent.collect() });
    }
    let raw = raw::serve()?;
    println!("{} {raw}", paths.data_port());
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
