//! A daemon that stands still, and one that may not use io_uring.

use std::{
    thread,
    time::{Duration, Instant},
};

use lapis_benches::host::Host;
use lapis_client::{Client, ClientError, GetOptions, Hint, Pool, PutOptions, PutResult, Refusal, Wait};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    PATIENCE, alone,
    blocks::{self, SMALL, bytes_of, get, keys},
    filter, is_strict,
    machine::{adopted, connect},
    ssd::{DRAM, FILL, Files, fill, says, serves},
};

const DEADLINE: Duration = Duration::from_millis(150);

/// Of these, the ones that are not in memory.
fn only_on_ssd(client: &Client, pool: &Pool, ids: &[u64]) -> Vec<u64> {
    let session = client.session().expect("here");
    let there = |id: &u64| session.find(pool, &keys(*id..*id + 1)[0]).is_some_and(|found| !found.state.is_readable());
    ids.iter().copied().filter(there).collect()
}

fn signal(host: &Host, signal: Signal) {
    let pid = host.daemon_pid().and_then(|pid| Pid::from_raw(pid as i32)).expect("it runs");
    kill_process(pid, signal).expect("our child");
}

/// What a call says, which must come in time.
fn in_time<T>(what: &str, deadline: Duration, call: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let answer = call();
    // A busy machine wakes nobody on time.
    let late = if is_strict() { Duration::from_millis(20) } else { Duration::from_secs(2) };
    assert!(started.elapsed() <= deadline + late, "{what} took {:?}", started.elapsed());
    answer
}

#[test]
fn every_call_is_answered_by_its_deadline_while_the_daemon_stands_still_and_all_goes_on_after() {
    let _alone = alone();
    let files = Files::new(1);
    let mut host = files.serving(DRAM, &[]);
    let client = connect(&mut host);
    let pool = blocks::pool(&client, SMALL);
    let on_ssd = fill(&host, &client, &pool);
    signal(&host, Signal::STOP);
    let stopped = Instant::now();
    let outside = only_on_ssd(&client, &pool, &on_ssd);
    // What was evicted is on SSD; of what is in memory a slow disk may have nothing yet.
    let inside: Vec<u64> = (0..FILL).filter(|id| !outside.contains(id)).collect();
    assert!(outside.len() > 64 && inside.len() > 8, "{} and {} blocks", outside.len(), inside.len());
    let key = |id: u64| keys(id..id + 1);
    // The last of a chain: what is below a removed block goes with it.
    let leaf = outside.iter().copied().rfind(|id| id % blocks::BATCH == blocks::BATCH - 1).expect("the end of a chain");
    let options = GetOptions { deadline: Some(DEADLINE), ..GetOptions::default() };

    let there = in_time("exists", Duration::ZERO, || client.exists(&pool, &key(outside[0]))).expect("a sound call");
    assert_eq!(there.count(), 1, "the table says so");
    let (got, wrong) = in_time("a get in memory", Duration::ZERO, || get(&client, &pool, &key(inside[0]), &options));
    assert_eq!((got.hits, wrong), (1, 0));
    let (got, _) = in_time("a get from SSD", DEADLINE, || get(&client, &pool, &key(outside[0]), &options));
    assert_eq!(got.hits, 0);
    let (got, _) = in_time("a get with the default deadline", Duration::from_millis(51), || {
        get(&client, &pool, &key(outside[1]), &GetOptions::default())
    });
    assert_eq!(got.hits, 0);
    let waits = GetOptions { wait: Wait::Absent, ..options.clone() };
    let (got, _) = in_time("a waiting get", DEADLINE, || get(&client, &pool, &key(1 << 40), &waits));
    assert_eq!(got.hits, 0);
    let new = keys(FILL..FILL + 64);
    let put = PutOptions { deadline: Some(DEADLINE) };
    let results = in_time("a put", DEADLINE, || client.put_from(&pool, &new, None, &bytes_of(&new, SMALL), &put));
    for result in results.expect("a sound call").results {
        assert!(matches!(result, PutResult::Stored | PutResult::Refused(Refusal::Late)), "{result:?}");
    }
    let removed = in_time("a removal", DEADLINE, || client.remove(&pool, &key(leaf), Some(DEADLINE)));
    assert!(matches!(removed, Err(ClientError::Late { .. })), "{removed:?}");
    let hinted = in_time("hints", Duration::ZERO, || {
        client.prefetch(&pool, &key(outside[3])).and_then(|()| client.hint(&pool, &key(outside[3]), Hint::Ended))
    });
    hinted.expect("nobody waits for it");
    // Longer than any turn of its loop, so that it says so.
    thread::sleep(Duration::from_millis(1500).saturating_sub(stopped.elapsed()));
    signal(&host, Signal::CONT);
    says(&host, &["WARN", "the engine loop stood still", "ran_us=", "queued_us=", "major_faults="]);

    // What it was asked in vain it may do yet.
    let patient = GetOptions { deadline: Some(PATIENCE), ..GetOptions::default() };
    let goes_on: Vec<_> = outside[4..68].iter().flat_map(|id| key(*id)).collect();
    let (got, wrong) = get(&client, &pool, &goes_on, &patient);
    assert_eq!((got.hits, wrong), (64, 0));
    let (_, wrong) = get(&client, &pool, &new, &patient);
    assert_eq!(wrong, 0);
    assert_eq!(blocks::put_all(&client, &pool, FILL..FILL + 64), []);
    client.remove(&pool, &key(leaf), Some(PATIENCE)).expect("an answer");
    assert_eq!(client.exists(&pool, &key(leaf)).expect("a sound call").count(), 0);
    assert!(host.ended().expect("our child").is_none(), "{}", host.log_tail());
}

/// To SSD and back, over a warm and a cold restart. `says`: words of one line of each daemon's log.
fn round_trip(flags: &[&str], words: &[&[&str]]) {
    let files = Files::new(1);
    let mut host = files.serving(DRAM, flags);
    words.iter().for_each(|words| drop(says(&host, words)));
    let client = connect(&mut host);
    let pool = blocks::pool(&client, SMALL);
    let ids = fill(&host, &client, &pool);
    let patient = GetOptions { deadline: Some(PATIENCE), ..GetOptions::default() };
    for (restart, cold) in [None, Some(false), Some(true)].into_iter().enumerate() {
        if let Some(cold) = cold {
            host.kill_daemon().expect("it can be killed");
            if cold {
                host.kill_holder().expect("it can be killed");
                host.start_holder().expect("another holder");
            }
            host.start_daemon().expect("another daemon");
            serves(&mut host, restart + 1);
            adopted(&host);
        }
        let client = connect(&mut host);
        let pool = blocks::pool(&client, SMALL);
        // After the first round memory may hold them all, and the holder keeps it.
        let kept = restart == 1;
        assert!(kept || !only_on_ssd(&client, &pool, &ids).is_empty(), "nothing to read from SSD");
        for ids in ids.chunks(32) {
            let keys: Vec<_> = ids.iter().flat_map(|id| keys(*id..*id + 1)).collect();
            let (got, wrong) = get(&client, &pool, &keys, &patient);
            assert_eq!((got.hits, wrong), (keys.len(), 0), "restart {restart}");
        }
    }
}

#[test]
fn threads_carry_blocks_to_ssd_and_back_over_restarts() {
    let _alone = alone();
    round_trip(&["--ssd-engine", "threads"], &[&["engine=\"threads\""]]);
}

#[test]
fn where_io_uring_is_forbidden_the_daemon_says_so_and_threads_do_the_work() {
    let _alone = alone();
    // The filter is for ever: it dies with the thread, and the daemons that the thread starts inherit it.
    let forbidden = thread::spawn(|| {
        filter::forbid(&[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register]);
        round_trip(&[], &[&["WARN", "io_uring cannot be used", "engine=\"threads\""]]);
    });
    forbidden.join().expect("it serves with threads");
}
