//! A client that pinned too much for too long: what it still views may be other blocks' memory, and it is told so.

use super::{
    alone,
    blocks::{self, SMALL, keys},
    eventually,
    machine::{adopted, connect, host_with},
};

const DRAM: u64 = 64 << 20;
/// Beyond `client.pin_bytes_max` together.
const VIEWED: std::ops::Range<u64> = 0..64;

#[test]
fn an_expelled_client_is_one_under_the_next_daemon_too() {
    let _alone = alone();
    let flags = ["--client-pin-bytes-max", "1MiB", "--client-pin-age-max", "100ms"];
    let mut host = host_with(DRAM, &flags);
    let (reader, writer) = (connect(&mut host), connect(&mut host));
    let [readers, writers] = [&reader, &writer].map(|client| blocks::pool(client, SMALL));
    assert_eq!(blocks::put_all(&writer, &writers, VIEWED), [], "refused puts");
    let views: Vec<_> = VIEWED.map(|id| reader.view(&readers, &keys(id..id + 1)).expect("few views")).collect();
    let valid = || views.iter().filter(|view| view[0].as_ref().expect("a hit").still_valid()).count();
    assert_eq!(valid(), views.len());
    let mut next = 1_000;
    let flood = |next: &mut u64| {
        blocks::put_all(&writer, &writers, *next..*next + 256);
        *next += 256;
    };
    eventually("the reader's end", || {
        flood(&mut next);
        (valid() == 0).then_some(())
    });
    host.kill_daemon().expect("it can be killed");
    host.start_daemon().expect("another daemon");
    adopted(&host);
    eventually("the writer's return", || writer.is_connected().then_some(()));
    // The memory is needed again, and pins are looked at, over and over.
    for _ in 0..32 {
        flood(&mut next);
        assert_eq!(valid(), 0, "its page does not count any more");
    }
}
