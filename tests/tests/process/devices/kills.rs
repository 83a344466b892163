//! A daemon that is killed while clients put blocks from GPUs.

use std::collections::BTreeSet;

use lapis_client::GetOptions;
use serde_json::Value;

use super::{
    super::{
        alone, asked,
        blocks::{self, SMALL},
        eventually,
        gpus::{Bed, registered},
        machine::{adopted, connect, kill_and_restart, status_when},
        worker::Worker,
    },
    client, held,
};

/// Each writer's blocks begin here, one writer a GPU.
const FIRST: [u64; 2] = [0, 1 << 20];

/// The numbers under a name of what a worker said.
fn ids(said: &Value, name: &str) -> Option<Vec<u64>> {
    said[name].as_array().map(|ids| ids.iter().map(|id| id.as_u64().expect("a number")).collect())
}

/// Puts that were answered up to the end of what the writer was asked for, and the first block of the next.
fn rest(writer: &mut Worker, answered: &mut BTreeSet<u64>) -> u64 {
    loop {
        let said = writer.line();
        match ids(&said, "stored") {
            Some(stored) => answered.extend(stored),
            None => return said["next"].as_u64().expect("a number"),
        }
    }
}

#[test]
fn every_put_that_was_answered_outlives_a_kill_of_the_daemon() {
    let _alone = alone();
    let bed = Bed::new(&[("DEVICES", "2"), ("LATENCY_US", "0-300")]);
    let mut host = bed.host(&[]);
    registered(&host, 2);
    let mut writers = [0, 1]
        .map(|gpu| client(&bed, &host, "put when asked", gpu, [FIRST[gpu as usize], 0], &[("LATENCY_US", "0-300")]));
    let other = connect(&mut host);
    let pool = blocks::pool(&other, SMALL);
    let (mut rng, mut from) = (fastrand::Rng::with_seed(7), FIRST);
    for round in 0..asked("LAPIS_DEVICE_KILLS", 6) {
        let mut answered = [BTreeSet::new(), BTreeSet::new()];
        // The first answer comes from the daemon that will be killed.
        for (writer, answered) in writers.iter_mut().zip(&mut answered) {
            answered.extend(ids(&writer.ask(), "stored").expect("a put"));
        }
        for _ in 0..rng.u32(..12) {
            answered[0].extend(ids(&writers[0].line(), "stored").expect("a put"));
        }
        let before = answered.iter().map(BTreeSet::len).sum::<usize>();
        kill_and_restart(&mut host);
        adopted(&host);
        for gpu in 0..2 {
            let end = rest(&mut writers[gpu], &mut answered[gpu]);
            // On its own GPU, on the other one, and on the host.
            for reader in 0..2 {
                let said = client(&bed, &host, "get", reader, [from[gpu], end], &[]).line();
                let found = ids(&said, "found").expect("what it found").into_iter().collect();
                assert_eq!(said["wrong"], 0, "round {round}: {said}");
                let lost: Vec<&u64> = answered[gpu].difference(&found).collect();
                assert!(lost.is_empty(), "round {round}: GPU {gpu}'s puts are not found on {reader}: {lost:?}");
            }
            eventually("the client's return", || other.is_connected().then_some(()));
            let all: Vec<u64> = answered[gpu].iter().copied().collect();
            for some in all.chunks(blocks::BATCH as usize) {
                let keys: Vec<_> = some.iter().flat_map(|&id| blocks::keys(id..id + 1)).collect();
                let options = GetOptions { deadline: Some(super::super::PATIENCE), ..GetOptions::default() };
                let (got, wrong) = blocks::get(&other, &pool, &keys, &options);
                assert_eq!((got.hits, wrong), (keys.len(), 0), "round {round}: {got:?}");
            }
            from[gpu] = end;
        }
        assert!(before > 0, "nothing was answered before the kill");
        eventually("a purge", || other.purge(&pool, None).ok());
    }
    writers.iter_mut().for_each(Worker::let_go);
    writers.iter_mut().for_each(Worker::wait);
    drop(other);
    status_when(&host.socket(), "the end of all clients, with nothing granted", |status| {
        let granted: u64 = (0..2).map(|gpu| held(status, gpu, "slots_granted")).sum();
        status["clients"].as_array().is_some_and(Vec::is_empty) && granted == 0
    });
    host.stop_daemon().expect("it ends");
}
