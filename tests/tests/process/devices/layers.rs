//! Blocks that come to a GPU layer by layer.

use lapis_benches::host::Host;
use serde_json::Value;

use super::{
    super::{
        alone,
        blocks::{self, BATCH, SMALL},
        gpus::{Bed, registered},
        machine::{at, connect, status},
        ssd::{FILL, Files, serves},
    },
    BLOCKS, client, put,
};

fn said_of(bed: &Bed, host: &Host, role: &str, gpu: u64, blocks: [u64; 2], variables: &[(&str, &str)]) -> Value {
    client(bed, host, role, gpu, blocks, variables).line()
}

fn expect(said: &Value, hits: u64) {
    assert_eq!((&said["hits"], &said["wrong"]), (&Value::from(hits), &Value::from(0)), "{said}");
}

#[test]
fn layers_come_one_after_the_other_and_flags_of_missing_blocks_are_written_too() {
    let _alone = alone();
    let bed = Bed::new(&[("DEVICES", "2")]);
    let mut host = bed.host(&[]);
    registered(&host, 2);
    put(&bed, &host, 0);
    // The last half of them was never put.
    for role in ["layers", "layers with flags of the host"] {
        for gpu in 0..2 {
            expect(&said_of(&bed, &host, role, gpu, [0, 2 * BLOCKS], &[("LATENCY_US", "100-500")]), BLOCKS);
        }
    }
    host.stop_daemon().expect("it ends");
}

#[test]
fn flags_are_written_where_a_copy_is_refused() {
    let _alone = alone();
    let bed = Bed::new(&[("DEVICES", "2")]);
    let mut host = bed.host(&[]);
    registered(&host, 2);
    put(&bed, &host, 0);
    // The first copy, then one among all layers', from the GPU itself, from the other one and from DRAM.
    let no_more: &[_] = &[];
    let cases = [
        (0, "copy=1x1", "0", no_more),
        (0, "copy=50x1", "1", no_more),
        (0, "copy=50x1", "2", no_more),
        (1, "copy=50x1", "3", no_more),
        (1, "copy=50x1", "4", &[("WITHOUT", "peers")]),
    ];
    for (gpu, errors, seed, more) in cases {
        let mut variables = vec![("ERRORS", errors), ("SEED", seed), ("LATENCY_US", "100-500")];
        variables.extend(more);
        let said = said_of(&bed, &host, "layers of which a copy is refused", gpu, [0, BATCH], &variables);
        expect(&said, BATCH);
        assert!(said["error"].as_str().is_some_and(|why| why.starts_with("copying blocks to a GPU: ")), "{said}");
    }
    host.stop_daemon().expect("it ends");
}

#[test]
fn a_load_of_which_a_copy_is_refused_waits_for_no_more_blocks() {
    let _alone = alone();
    let bed = Bed::new(&[("DEVICES", "2")]);
    let mut host = bed.host(&[]);
    registered(&host, 2);
    put(&bed, &host, 0);
    let role = "layers of which a copy is refused and others are awaited";
    let said = said_of(&bed, &host, role, 0, [BLOCKS - BATCH / 2, BLOCKS + BATCH / 2], &[("ERRORS", "copy=1x1")]);
    assert!(said["error"].as_str().is_some_and(|why| why.starts_with("copying blocks to a GPU: ")), "{said}");
    assert_eq!(said["waited"], false, "{said}");
    host.stop_daemon().expect("it ends");
}

#[test]
fn flags_wait_for_blocks_that_come_from_ssd_while_others_are_there() {
    let _alone = alone();
    let (bed, files) = (Bed::new(&[("DEVICES", "2")]), Files::new(1));
    let flags = files.flags();
    let mut host = bed.host(&flags.iter().map(String::as_str).collect::<Vec<_>>());
    serves(&mut host, 1);
    registered(&host, 2);
    let writer = connect(&mut host);
    let pool = blocks::pool(&writer, SMALL);
    assert_eq!(blocks::put_all(&writer, &pool, 0..FILL), [], "refused puts");
    let from_ssd = || at(&status(&host.socket()).expect("a status"), "/hits/keys_hit_ssd");
    let mut read = from_ssd();
    // The first of all on SSD, the last in DRAM; and others of the first for another GPU.
    for gpu in 0..2 {
        let blocks = [gpu * BATCH, FILL - gpu * BATCH];
        let said = said_of(&bed, &host, "layers that come later", gpu, blocks, &[("LATENCY_US", "100-500")]);
        expect(&said, BATCH);
        let before = std::mem::replace(&mut read, from_ssd());
        assert!(read >= before + BATCH / 2, "{} of {BATCH} came from SSD", read - before);
    }
    drop(writer);
    host.stop_daemon().expect("it ends");
}
