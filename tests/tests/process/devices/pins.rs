//! A client that pins too much on a GPU for too long, while slots there wait for it.

use super::{
    super::{
        alone,
        blocks::{self, BATCH, SMALL},
        eventually,
        gpus::{Bed, registered},
        machine::{connect, status_when},
    },
    client, held, put,
};

#[test]
fn a_client_that_pins_too_much_on_a_gpu_is_expelled_and_told_so() {
    let _alone = alone();
    let bed = Bed::new(&[("DEVICES", "2")]);
    let mut host = bed.host(&["--client-pin-bytes-max", "1MiB", "--client-pin-age-max", "100ms"]);
    registered(&host, 2);
    put(&bed, &host, 0);
    // Of 2 MiB and of 512 KiB.
    let mut readers = [BATCH, BATCH / 4].map(|blocks| client(&bed, &host, "get behind a gate", 0, [0, blocks], &[]));
    for (reader, hits) in readers.iter_mut().zip([BATCH, BATCH / 4]) {
        assert_eq!(reader.line()["hits"], hits);
    }
    let other = connect(&mut host);
    let pool = blocks::pool(&other, SMALL);
    eventually("a purge", || other.purge(&pool, None).ok());
    // Both live, and only what the second one reads is kept for it.
    status_when(&host.socket(), "the first reader's end", |status| {
        (held(status, 0, "blocks"), held(status, 0, "slots_aside")) == (0, BATCH / 4)
    });
    let log = host.daemon_log();
    let expelled = |line: &&str| line.contains("expelled: more bytes pinned than client.pin_bytes_max");
    assert_eq!(log.lines().filter(expelled).count(), 2, "once, and its connection's end: {log}");
    let [first, second] = readers.each_mut().map(|reader| reader.ask());
    assert_eq!((&first["valid"], &second["valid"]), (&false.into(), &true.into()), "{first} {second}");
    assert_eq!(second["wrong"], 0);
    drop((readers, other));
    host.stop_daemon().expect("it ends");
}

#[test]
fn a_client_that_was_expelled_and_came_back_reads_the_hosts_memory_into_its_gpu_as_before() {
    let _alone = alone();
    let bed = Bed::new(&[("DEVICES", "2")]);
    let mut host = bed.host(&["--client-pin-bytes-max", "1MiB", "--client-pin-age-max", "100ms"]);
    registered(&host, 2);
    let other = connect(&mut host);
    let pool = blocks::pool(&other, SMALL);
    let put = || eventually("puts", || blocks::put_all(&other, &pool, 0..BATCH).is_empty().then_some(()));
    put();
    // Of 2 MiB in DRAM, and what reads there is not over.
    let mut reader = client(&bed, &host, "get behind a gate", 0, [0, BATCH], &[]);
    assert_eq!(reader.line()["hits"], BATCH);
    eventually("a purge", || other.purge(&pool, None).ok());
    eventually("its end", || host.daemon_log().contains("expelled: more bytes pinned").then_some(()));
    put();
    assert_eq!(reader.ask()["valid"], false);
    // The former session's memory is registered yet, and is this one's too.
    let said = eventually("hits", || Some(reader.ask()).filter(|said| said["hits"] == BATCH));
    assert_eq!((&said["valid"], &said["wrong"]), (&true.into(), &0.into()), "{said}");
    drop((reader, other));
    host.stop_daemon().expect("it ends");
}
