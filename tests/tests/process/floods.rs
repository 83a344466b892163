//! More data than memory.

use std::{ops::Range, thread};

use lapis_client::Client;

use super::{
    alone, blocks,
    machine::{MIB, at, connect, host, nothing_held, status},
};

/// Clients that put at once.
const CLIENTS: u64 = 2;

#[test]
fn three_times_the_memory_is_put_in_small_blocks_without_a_refusal() {
    flood(64 * MIB, 64 << 10);
}

#[test]
fn three_times_the_memory_is_put_in_large_blocks_without_a_refusal() {
    flood(128 * MIB, 1 << 20);
}

fn flood(dram_bytes: u64, block_bytes: usize) {
    let _alone = alone();
    let mut host = host(dram_bytes);
    // From the first moment on, while the memory is still being populated.
    let clients: Vec<Client> = (0..CLIENTS).map(|_| connect(&mut host)).collect();
    let blocks = 3 * dram_bytes / block_bytes as u64 / CLIENTS;
    let ids = |client: usize| -> Range<u64> { client as u64 * 100_000..client as u64 * 100_000 + blocks };
    let refused: Vec<_> = thread::scope(|scope| {
        let put = |(i, client): (usize, &Client)| blocks::put_all(client, &blocks::pool(client, block_bytes), ids(i));
        let putting: Vec<_> = clients.iter().enumerate().map(|each| scope.spawn(move || put(each))).collect();
        putting.into_iter().flat_map(|thread| thread.join().expect("it puts")).collect()
    });
    assert_eq!(refused, [], "refused puts");
    let said = status(&host.socket()).expect("it answers");
    // A part whose put lost its first parts, because its client stood still, is refused and then put again with them.
    let (stored, refused) = (at(&said, "/puts/stored"), at(&said, "/puts/refused"));
    assert!(
        stored == CLIENTS * blocks || refused > 0 && stored > CLIENTS * blocks,
        "{stored} stored, {refused} refused"
    );
    let there: u64 =
        (0..clients.len()).map(|i| blocks::hits(&clients[i], &blocks::pool(&clients[i], block_bytes), ids(i))).sum();
    let most = dram_bytes / block_bytes as u64;
    assert!(there > most / 2 && there <= most, "{there} blocks of {most} that fit");
    drop(clients);
    nothing_held(&host);
}
