//! What a start finds on GPUs after a start that came to nothing, and after a loss.

use std::fs::{self, File};

use serde_json::Value;

use super::{
    super::{
        alone, eventually,
        gpus::{Bed, registered},
        machine::{adopted, kill_and_restart, status_when},
    },
    BLOCKS, client, get, held, put,
};

const DEVICES: (&str, &str) = ("DEVICES", "2");

#[test]
fn memory_made_for_a_start_that_failed_holds_nothing_that_is_believed() {
    let _alone = alone();
    let bed = Bed::new(&[DEVICES]);
    let mut host = bed.host(&[]);
    registered(&host, 2);
    put(&bed, &host, 0);
    // The driver takes nothing of what was kept, as one that was loaded anew; and the second GPU has no room.
    bed.set(&[DEVICES, ("ERRORS", "import=1,1:memory=1")]);
    host.kill_daemon().expect("it can be killed");
    host.start_daemon().expect("a daemon");
    eventually("the end of a start that fails", || host.ended().expect("a daemon"));
    let log = host.daemon_log();
    assert!(log.contains("take memory of the GPUs (lapis doctor tells more): GPU 1 ("), "{log}");
    bed.set(&[DEVICES]);
    host.kill_daemon().expect("it has ended");
    host.start_daemon().expect("a daemon");
    let status = adopted(&host);
    // They are in DRAM too.
    get(&bed, &host, 0);
    assert_eq!(held(&status, 0, "blocks"), 0, "{status}");
    host.stop_daemon().expect("it ends");
}

/// As seen by the daemon alone: clients go on, and read what they were reading.
#[test]
fn memory_of_a_gpu_that_was_lost_is_not_written_while_a_client_reads_it() {
    const READ: u64 = 16;
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let gone = folder.path().join("gone");
    let bed = Bed::new(&[DEVICES, ("LOSE", &format!("0@{}", gone.display()))]);
    let mut host = bed.host(&[]);
    registered(&host, 2);
    put(&bed, &host, 0);
    let mut reader = client(&bed, &host, "get behind a gate", 0, [0, READ], &[]);
    let said = reader.line();
    assert_eq!((&said["hits"], &said["over"]), (&Value::from(READ), &Value::from(false)), "{said}");
    File::create(&gone).expect("a file");
    // Seen, and done: a daemon that ends before it forgot what is there leaves all of it to the next one.
    status_when(&host.socket(), "the loss", |status| {
        let gpu = &status["gpus"][0];
        gpu["state"] == "lost" && gpu["held"].is_null()
    });
    fs::remove_file(&gone).expect("it is there");
    kill_and_restart(&mut host);
    adopted(&host);
    let start = registered(&host, 2)["gpus"][0]["start"].clone();
    // Where the former ones were.
    let mut writer = client(&bed, &host, "put", 0, [1000, 1000 + BLOCKS], &[]);
    let said = writer.line();
    assert_eq!(said["stored"], BLOCKS, "{said}");
    status_when(&host.socket(), "blocks on the GPU", |status| held(status, 0, "blocks") == BLOCKS);
    let said = reader.ask();
    assert_eq!(said["wrong"], 0, "{said}, {start}");
    assert_eq!(start, "cold: nothing is known of what was kept");
    get(&bed, &host, 0);
    drop((reader, writer));
    host.stop_daemon().expect("it ends");
}
