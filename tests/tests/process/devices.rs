//! Blocks in the memory of GPUs that processes share with the daemon, over the stand-in driver: each process has one of its
//! own, as each has NVIDIA's.

mod kills;
mod layers;
mod peers;
mod pins;
mod starts;

use std::{fs::File, process::Command};

use serde_json::Value;

use super::{
    alone, binary, eventually,
    gpus::{Bed, DRAM, registered},
    machine::{at, kill_and_restart, status_when},
    worker::Worker,
};
use lapis_benches::host::Host;

/// Blocks of 64 KiB: 4 MiB in all.
const BLOCKS: u64 = 64;

/// A client on a GPU. `variables`: of its own stand-in, without their `LAPIS_CUDA_`.
fn client(bed: &Bed, host: &Host, role: &str, gpu: u64, blocks: [u64; 2], variables: &[(&str, &str)]) -> Worker {
    let mut command = Command::new(std::env::current_exe().expect("this test's binary"));
    command.env_remove("LD_LIBRARY_PATH").env("LAPIS_CUDA_DEVICES", "2").env("LAPIS_CUDA_MISUSES", bed.misuses());
    for (name, value) in variables {
        command.env(format!("LAPIS_CUDA_{name}"), value);
    }
    let (library, socket) = (binary::cuda_stand_in().display().to_string(), host.socket().display().to_string());
    let [first, end] = blocks.map(|block| block.to_string());
    Worker::spawn(command, &format!("device {role}"), &[&library, &socket, &gpu.to_string(), &first, &end])
}

fn held(status: &Value, gpu: usize, what: &str) -> u64 {
    at(status, &format!("/gpus/{gpu}/held/{what}"))
}

/// Puts from a GPU until the blocks are there and in DRAM too.
fn put(bed: &Bed, host: &Host, gpu: usize) {
    let mut writer = client(bed, host, "put", gpu as u64, [0, BLOCKS], &[]);
    let said = writer.line();
    assert_eq!(said["stored"], BLOCKS, "{said}");
    let status = status_when(&host.socket(), "blocks on the GPU", |status| {
        held(status, gpu, "blocks") == BLOCKS && at(status, "/dram/blocks") == BLOCKS
    });
    assert_eq!((at(&status, "/hbm/puts"), at(&status, "/hbm/saved")), (BLOCKS, BLOCKS), "{status}");
    writer.let_go();
    writer.wait();
}

fn get(bed: &Bed, host: &Host, gpu: u64) {
    let mut reader = client(bed, host, "get", gpu, [0, BLOCKS], &[]);
    let said = reader.line();
    assert_eq!((&said["hits"], &said["wrong"]), (&Value::from(BLOCKS), &Value::from(0)), "{said}");
}

#[test]
fn processes_share_blocks_on_a_gpu_and_find_them_after_the_daemon_was_killed() {
    let _alone = alone();
    let bed = Bed::new(&[("DEVICES", "2")]);
    let mut host = bed.host(&[]);
    registered(&host, 2);
    put(&bed, &host, 0);
    // On the GPU where they are, and from there on the other one.
    get(&bed, &host, 0);
    get(&bed, &host, 1);
    let status =
        status_when(&host.socket(), "hits on the GPU", |status| at(status, "/hits/keys_hit_hbm") == 2 * BLOCKS);
    let [hit, in_dram] = ["/hits/keys_hit", "/hits/keys_hit_dram"].map(|path| at(&status, path));
    assert_eq!((hit, in_dram), (2 * BLOCKS, 0), "no hit counts twice: {status}");
    for _ in 0..2 {
        kill_and_restart(&mut host);
        let status = status_when(&host.socket(), "the blocks", |status| status["adopting"] == false);
        assert_eq!((held(&status, 0, "blocks"), at(&status, "/dram/blocks")), (BLOCKS, BLOCKS), "{status}");
        get(&bed, &host, 0);
    }
    status_when(&host.socket(), "the end of all clients", |status| {
        let held = |what| held(status, 0, what);
        status["clients"].as_array().is_some_and(Vec::is_empty) && held("slots_aside") + held("slots_granted") == 0
    });
    host.stop_daemon().expect("it ends");
}

#[test]
fn slots_that_a_killed_client_was_reading_on_a_gpu_come_back() {
    let _alone = alone();
    let bed = Bed::new(&[("DEVICES", "2")]);
    let mut host = bed.host(&[]);
    registered(&host, 2);
    put(&bed, &host, 0);
    let mut reader = client(&bed, &host, "hold", 0, [0, BLOCKS], &[("LATENCY_US", "60000000-60000000")]);
    let said = reader.line();
    assert_eq!((&said["hits"], &said["over"]), (&Value::from(BLOCKS), &Value::from(false)), "{said}");
    // All go; what is being read stays where it is.
    let other = super::machine::connect(&mut host);
    let pool = super::blocks::pool(&other, super::blocks::SMALL);
    eventually("a purge", || other.purge(&pool, None).ok());
    let status = status_when(&host.socket(), "slots that wait for their reader", |status| {
        held(status, 0, "blocks") == 0 && held(status, 0, "slots_aside") == BLOCKS
    });
    assert_eq!(held(&status, 0, "slots_granted"), 0);
    reader.kill();
    reader.wait();
    status_when(&host.socket(), "their slots", |status| held(status, 0, "slots_aside") == 0);
    drop(other);
    put_again(&bed, &host);
    host.stop_daemon().expect("it ends");
}

#[test]
fn blocks_in_dram_that_are_read_into_a_gpu_again_get_a_copy_there() {
    let _alone = alone();
    let bed = Bed::new(&[("DEVICES", "2")]);
    let mut host = bed.host(&[]);
    registered(&host, 2);
    let writer = super::machine::connect(&mut host);
    let pool = super::blocks::pool(&writer, super::blocks::SMALL);
    eventually("puts", || super::blocks::put_all(&writer, &pool, 0..BLOCKS).is_empty().then_some(()));
    status_when(&host.socket(), "copies on the GPU that reads", |status| {
        // Each time in another tenth of a second: a process takes longer than that to begin.
        get(&bed, &host, 1);
        held(status, 1, "blocks") == BLOCKS && held(status, 0, "blocks") == 0
    });
    let mut reader = client(&bed, &host, "hold", 1, [0, BLOCKS], &[("LATENCY_US", "60000000-60000000")]);
    assert_eq!(reader.line()["hits"], BLOCKS);
    eventually("a purge", || writer.purge(&pool, None).ok());
    // So that is where it reads.
    status_when(&host.socket(), "slots that wait for their reader", |status| held(status, 1, "slots_aside") == BLOCKS);
    drop((reader, writer));
    host.stop_daemon().expect("it ends");
}

#[test]
fn memory_that_is_shared_by_cuda_ipc_is_read_and_written_by_others_too() {
    let _alone = alone();
    let bed = Bed::new(&[("DEVICES", "2"), ("WITHOUT", "descriptors")]);
    let mut host = bed.host(&[]);
    registered(&host, 2);
    put(&bed, &host, 1);
    get(&bed, &host, 1);
    // What was on the GPU ends with the daemon, and what is in DRAM does not.
    kill_and_restart(&mut host);
    status_when(&host.socket(), "a daemon whose GPUs are empty", |status| {
        status["adopting"] == false && held(status, 1, "blocks") == 0
    });
    get(&bed, &host, 1);
    host.stop_daemon().expect("it ends");
}

fn put_again(bed: &Bed, host: &Host) {
    let mut writer = client(bed, host, "put", 0, [0, BLOCKS], &[]);
    assert_eq!(writer.line()["stored"], BLOCKS);
    get(bed, host, 0);
}

#[test]
fn a_gpu_that_the_daemon_loses_under_load_takes_no_wrong_byte_along() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let gone = folder.path().join("gone");
    let bed = Bed::new(&[("DEVICES", "2"), ("LOSE", &format!("1@{}", gone.display()))]);
    let mut host = bed.host(&[]);
    registered(&host, 2);
    let mut clients: Vec<Worker> =
        (0..2).map(|gpu| client(&bed, &host, "load", gpu, [1000 * gpu, 1000 * gpu + 128], &[])).collect();
    let sound = |clients: &mut [Worker]| -> Vec<u64> {
        let said: Vec<Value> = clients.iter_mut().map(Worker::ask).collect();
        assert!(said.iter().all(|said| said["wrong"] == 0), "{said:?}");
        said.iter().map(|said| said["hits"].as_u64().expect("a number")).collect()
    };
    let before = sound(&mut clients);
    assert!(before.iter().all(|hits| *hits > 0), "{before:?}");
    File::create(&gone).expect("a file");
    status_when(&host.socket(), "the loss", |status| {
        let _ = sound(&mut clients);
        status["gpus"][1]["state"] == "lost"
    });
    let then = sound(&mut clients);
    let after = sound(&mut clients);
    assert!(then.iter().zip(&after).all(|(then, after)| then < after), "both go on: {then:?} {after:?}");
    drop(clients);
    host.stop_daemon().expect("it ends");
}

#[test]
fn a_gpu_that_was_opened_ahead_misses_nothing_at_its_first_call() {
    let _alone = alone();
    let bed = Bed::new(&[("DEVICES", "2")]);
    let mut host = bed.host(&[]);
    registered(&host, 2);
    let writer = super::machine::connect(&mut host);
    let pool = super::blocks::pool(&writer, super::blocks::SMALL);
    eventually("puts", || super::blocks::put_all(&writer, &pool, 0..8).is_empty().then_some(()));
    for gpu in 0..2 {
        let said = client(&bed, &host, "open", gpu, [0, 8], &[("REGISTER_US", "500000")]).line();
        assert_eq!((&said["early"], &said["begun"], &said["bytes"]), (&0.into(), &0.into(), &DRAM.into()), "{said}");
        assert_eq!((&said["whole"], &said["registered"]), (&true.into(), &DRAM.into()), "{said}");
        assert_eq!((&said["hits"], &said["valid"], &said["wrong"]), (&8.into(), &true.into(), &0.into()), "{said}");
    }
    drop(writer);
    host.stop_daemon().expect("it ends");
}

#[test]
fn a_gpu_reads_the_hosts_memory_when_the_one_is_lost_that_was_to_register_it() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let loss = format!("0@{}", folder.path().join("gone").display());
    let bed = Bed::new(&[("DEVICES", "2")]);
    let mut host = bed.host(&[]);
    registered(&host, 2);
    let writer = super::machine::connect(&mut host);
    let pool = super::blocks::pool(&writer, super::blocks::SMALL);
    eventually("puts", || super::blocks::put_all(&writer, &pool, 0..8).is_empty().then_some(()));
    let variables = [("REGISTER_US", "500000"), ("LOSE", loss.as_str())];
    let said = client(&bed, &host, "open when another is lost", 1, [0, 8], &variables).line();
    assert_eq!((&said["begun"], &said["whole"]), (&0.into(), &true.into()), "{said}");
    assert_eq!((&said["hits"], &said["wrong"]), (&8.into(), &0.into()), "{said}");
    drop(writer);
    host.stop_daemon().expect("it ends");
}

#[test]
fn a_gpu_whose_driver_does_not_say_what_has_ended_is_asked_again_and_is_not_lost() {
    let _alone = alone();
    let bed = Bed::new(&[("DEVICES", "2")]);
    let mut host = bed.host(&[]);
    registered(&host, 2);
    // While copies are under way: what they read and write is nobody else's until they are over.
    let variables = [("ERRORS", "query=1x40"), ("LATENCY_US", "200-500")];
    let said = client(&bed, &host, "put", 0, [0, BLOCKS], &variables).line();
    assert_eq!(said["stored"], BLOCKS, "{said}");
    let said = client(&bed, &host, "get", 1, [0, BLOCKS], &variables).line();
    assert_eq!((&said["hits"], &said["wrong"]), (&BLOCKS.into(), &0.into()), "{said}");
    host.stop_daemon().expect("it ends");
}

#[test]
fn without_a_driver_a_client_says_so_and_all_else_goes_on() {
    let _alone = alone();
    let bed = Bed::new(&[("DEVICES", "2")]);
    let mut host = bed.host(&[]);
    registered(&host, 2);
    let mut command = Command::new(std::env::current_exe().expect("this test's binary"));
    command.env_remove("LD_LIBRARY_PATH");
    let words = ["/nowhere/libcuda.so".to_owned(), host.socket().display().to_string()];
    let mut client = Worker::spawn(command, "device without a driver", &[&words[0], &words[1]]);
    let said = client.line();
    if said["driver"] == true {
        return eprintln!("skipped: a driver is here");
    }
    let of = |call: &str| said[call].as_str().expect("an error").to_owned();
    let named = "/nowhere/libcuda.so, named as the CUDA library, cannot be loaded";
    assert!(of("load").contains(named), "{said}");
    for call in ["get", "put"] {
        let why = of(call);
        let starts = "loading CUDA's driver: the CUDA driver's library is not to be had";
        assert!(why.starts_with(starts) && why.contains("install NVIDIA's driver"), "{said}");
    }
    assert_eq!((&said["refused"], &said["hits"]), (&Value::from(0), &Value::from(4)), "{said}");
    host.stop_daemon().expect("it ends");
}
