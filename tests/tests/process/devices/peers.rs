//! Blocks that one GPU reads out of another's memory.

use std::fs::File;

use lapis_benches::host::Host;
use serde_json::Value;

use super::{
    super::{
        alone,
        blocks::{self, BATCH, SMALL},
        eventually,
        gpus::{Bed, registered},
        machine::{at, connect, status_when},
        worker::Worker,
    },
    BLOCKS, client, held, put,
};

/// A reader on the second GPU of blocks that lie on the first; their copies are on its stream, which has not come there.
fn reader(bed: &Bed, host: &Host, variables: &[(&str, &str)]) -> Worker {
    let mut reader = client(bed, host, "get behind a gate", 1, [0, BATCH], variables);
    let said = reader.line();
    assert_eq!((&said["hits"], &said["over"]), (&Value::from(BATCH), &Value::from(false)), "{said}");
    reader
}

/// How many slots of the first GPU a reader on the second one holds. What it read is right, though the blocks went and others
/// came before it read them.
fn held_from_the_other_gpu(of_daemon: &[(&str, &str)], of_reader: &[(&str, &str)]) -> u64 {
    let mut all = vec![("DEVICES", "2")];
    all.extend(of_daemon);
    let bed = Bed::new(&all);
    let mut host = bed.host(&[]);
    registered(&host, 2);
    put(&bed, &host, 0);
    let mut reader = reader(&bed, &host, of_reader);
    let other = connect(&mut host);
    let pool = blocks::pool(&other, SMALL);
    eventually("a purge", || other.purge(&pool, None).ok());
    let status = status_when(&host.socket(), "a purge", |status| held(status, 0, "blocks") == 0);
    let aside = held(&status, 0, "slots_aside");
    // Into every slot that is free.
    let mut writer = client(&bed, &host, "put", 0, [1000, 1448], &[]);
    assert_eq!(writer.line()["stored"], 448);
    let said = reader.ask();
    assert_eq!((&said["valid"], &said["wrong"]), (&Value::from(true), &Value::from(0)), "{said}");
    status_when(&host.socket(), "the slots of a reader that has read", |status| held(status, 0, "slots_aside") == 0);
    drop((reader, writer, other));
    host.stop_daemon().expect("it ends");
    aside
}

#[test]
fn a_gpu_reads_what_lies_on_another_that_it_reaches_and_else_by_way_of_dram() {
    let _alone = alone();
    assert_eq!(held_from_the_other_gpu(&[], &[]), BATCH);
    assert_eq!(held_from_the_other_gpu(&[], &[("WITHOUT", "peers")]), 0);
}

#[test]
fn a_gpu_reads_what_is_in_dram_too_from_there_where_the_other_one_is_far() {
    let _alone = alone();
    // Where the host's PCI devices do not tell, the driver does; and what goes over NVLink is near in any case.
    assert_eq!(held_from_the_other_gpu(&[], &[("LINK", "1")]), 0);
    assert_eq!(held_from_the_other_gpu(&[], &[("LINK", "nvlink")]), BATCH);
}

#[test]
fn a_gpu_reads_what_is_not_in_dram_from_another_however_far_that_is() {
    let _alone = alone();
    let bed = Bed::new(&[("DEVICES", "2")]);
    // Room for blocks beyond those that fill DRAM: a table of its size may be too full for one of them.
    let mut host = bed.host(&["--index-entries-max", "4096"]);
    registered(&host, 2);
    put(&bed, &host, 0);
    // Memory of the host is written over.
    let other = connect(&mut host);
    let refused = blocks::put_all(&other, &blocks::pool(&other, SMALL), 2000..4000);
    assert_eq!(refused, []);
    let moved = |status: &Value, what: &str| at(status, &format!("/hbm/{what}"));
    status_when(&host.socket(), "blocks on the GPU alone", |status| moved(status, "demotions") == BLOCKS);
    let mut reader = reader(&bed, &host, &[("LINK", "1")]);
    let said = reader.ask();
    assert_eq!((&said["valid"], &said["wrong"]), (&Value::from(true), &Value::from(0)), "{said}");
    let status = status_when(&host.socket(), "the end of the reads", |status| held(status, 0, "slots_aside") == 0);
    assert_eq!(moved(&status, "saved"), BLOCKS, "when they were put, and none of them again: {status}");
    drop((reader, other));
    host.stop_daemon().expect("it ends");
}

#[test]
fn a_gpu_reads_what_lies_on_another_by_cuda_ipc_too() {
    let _alone = alone();
    assert_eq!(held_from_the_other_gpu(&[("WITHOUT", "descriptors")], &[]), BATCH);
}

#[test]
fn a_read_from_a_gpu_that_is_lost_meanwhile_is_not_valid_and_the_next_one_comes_from_dram() {
    let _alone = alone();
    for loses in [false, true] {
        let folder = tempfile::tempdir().expect("a folder");
        let gone = folder.path().join("gone");
        let lose = ("LOSE", &*format!("0@{}", gone.display()));
        let mut of_daemon = vec![("DEVICES", "2")];
        of_daemon.extend(Some(lose).filter(|_| loses));
        let bed = Bed::new(&of_daemon);
        let mut host = bed.host(&[]);
        registered(&host, 2);
        put(&bed, &host, 0);
        let mut reader = reader(&bed, &host, &[lose]);
        File::create(&gone).expect("a file");
        if loses {
            status_when(&host.socket(), "the loss", |status| status["gpus"][0]["state"] == "lost");
        }
        let said = reader.ask();
        assert_eq!(said["valid"], false, "{said}");
        for _ in 0..2 {
            let said = reader.ask();
            let found = (&said["hits"], &said["valid"], &said["wrong"]);
            assert_eq!(found, (&Value::from(BATCH), &Value::from(true), &Value::from(0)), "{said}");
        }
        drop(reader);
        host.stop_daemon().expect("it ends");
    }
}
