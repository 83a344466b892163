//! The real thing: the `lapis` binary, shared memory, clients in processes of their own, all of which get killed.
//!
//! Every block's bytes follow from its key, so each one that is read is judged. Longer forms: `LAPIS_KILLS=200`,
//! `LAPIS_CLIENT_KILLS=2000` and `LAPIS_SSD_KILLS=500`; `LAPIS_STRICT=1` holds latencies to their promise rather than to what a busy machine allows.

mod bad_input;
mod binary;
mod blocks;
mod c_abi;
mod certificates;
mod client_kills;
mod daemon_kills;
mod device_roles;
mod devices;
mod etcd;
mod expelled;
mod filter;
mod floods;
mod fsck;
mod gpu_demo;
mod gpu_roles;
mod gpus;
mod groups;
mod machine;
mod many_hosts;
mod nvme;
mod offline;
mod peers;
mod quiet;
mod rdma;
mod replay_daemon;
mod roles;
mod signals;
mod spdk;
mod ssd;
mod ssd_damage;
mod ssd_devices;
mod ssd_kills;
mod ssd_starts;
mod ssd_stops;
mod topology;
mod unread_answers;
mod worker;

use std::{
    env,
    sync::{PoisonError, RwLock},
    thread,
    time::{Duration, Instant},
};

/// Longer than anything takes that works, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// Not a test of its own: what the tests run in processes of their own.
#[test]
fn the_clients_of_these_tests_run_in_processes_of_their_own() {
    roles::run_if_asked();
}

static TURNS: RwLock<()> = RwLock::new(());

/// No other test meanwhile: it needs all the CPUs there are.
fn alone() -> impl Drop {
    TURNS.write().unwrap_or_else(PoisonError::into_inner)
}

/// Beside others of its kind: it waits for most of its time.
fn beside() -> impl Drop {
    TURNS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Looks until there is something.
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        thread::sleep(LOOK_EVERY);
    }
}

/// A count out of the environment.
fn asked(variable: &str, default: u64) -> u64 {
    env::var(variable).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// Whether latencies are held to their promise.
fn is_strict() -> bool {
    env::var_os("LAPIS_STRICT").is_some_and(|value| value == "1")
}

/// The `per_mille`th of `times`, which get sorted.
fn quantile(times: &mut [Duration], per_mille: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * per_mille).div_ceil(1000).clamp(1, times.len()) - 1]
}

/// "p50 1.2 ms, p99 3.4 ms, ...".
fn quantiles(times: &mut [Duration]) -> String {
    let named = [("p50", 500), ("p95", 950), ("p99", 990), ("p99.9", 999), ("longest", 1000)];
    let text = named.map(|(name, at)| format!("{name} {:.2} ms", quantile(times, at).as_secs_f64() * 1e3));
    format!("{} ({} times)", text.join(", "), times.len())
}
