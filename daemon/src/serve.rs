//! `lapis serve`: from options to a running engine loop, and its orderly end.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use lapis_arena::memfd::Huge;
use lapis_config::{Effective, HugePages, Options, REGISTER_BYTES, Tables, Time, Verify};
use lapis_tiering::CoreOptions;
use lapis_transport::{control, hello::CallDefaults, listen::Listener, unix::UnixWire};

use crate::{
    admin,
    engine::{Engine, EngineOptions},
    group::GroupOptions,
    keeper, metrics,
    movers::Threads,
    state::Geometry,
};

/// After the last frame or event, the loop looks at the rings so long before it sleeps: longer than a client takes to
/// copy and sum a block of 2 MiB (about 200 us here), so that a batch of puts pays one wake-up, not one a block. A woken
/// daemon may also be put on its client's CPU: one switch a doorbell was seen. An idle daemon takes no CPU.
const SPIN: Duration = Duration::from_micros(300);
/// Turns between two looks at sockets while rings keep the loop busy.
const TURNS_PER_LISTEN: u32 = 64;
/// Between two updates of the exported metrics.
const METRICS_EVERY_US: u64 = 250_000;
/// A draining daemon that saw nothing to do for so long has drained.
const DRAINED_US: u64 = 50_000;

/// Connections beside those of clients: people who ask for the status.
const CONNECTIONS_SPARE: usize = 16;

/// CLOCK_BOOTTIME in microseconds: goes on over restarts of the daemon.
pub fn now() -> Time {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Time(time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000)
}

/// What the configuration means for the engine.
pub fn engine_options(options: &Options) -> EngineOptions {
    let extent_bytes_max = (options.dram_bytes / 64).next_multiple_of(REGISTER_BYTES).clamp(REGISTER_BYTES, 64 << 30);
    let groups = options
        .groups
        .iter()
        .map(|group| {
            let tables = Tables::of(options, group, control::BYTES);
            GroupOptions {
                name: group.name.clone(),
                uids: group.uids.clone(),
                may_put: group.may_put,
                geometry: Geometry {
                    lines: tables.lines,
                    dram_bytes: options.dram_bytes,
                    floor_bytes: group.dram_floor,
                    ceiling_bytes: group.dram_ceiling,
                },
                huge: match options.dram_huge_pages {
                    HugePages::Auto => Huge::Try,
                    HugePages::Off => Huge::Never,
                },
                lock: options.dram_lock,
                pin_bytes_max: options.client_pin_bytes_max,
                pin_age_max: options.client_pin_age_max,
                core: CoreOptions {
                    magazine_bytes_max: options.client_magazine_bytes_max,
                    idle_recall: options.client_idle_recall,
                    ..CoreOptions::default()
                },
            }
        })
        .collect();
    EngineOptions {
        groups,
        clients_max: options.server_clients_max as usize,
        dram_bytes: options.dram_bytes,
        extent_bytes_max,
        magazine_bytes_max: options.client_magazine_bytes_max,
        call_defaults: CallDefaults {
            lookup_us: options.client_lookup_deadline.as_micros() as u64,
            get_us: options.client_get_deadline.as_micros() as u64,
            get_bytes_per_s: options.client_get_rate_min,
            put_us: options.client_put_deadline.as_micros() as u64,
            verify_always: options.verify == Verify::Always,
        },
    }
}

/// Runs the daemon until a signal ends it.
pub fn run(effective: &Effective) -> anyhow::Result<()> {
    let started = Instant::now();
    let options = &effective.options;
    for note in &effective.notes {
        tracing::warn!("{note}");
    }
    raise_descriptor_limit();
    keeper::store_suffices(options)?;
    if options.dram_lock {
        may_lock(options.dram_bytes)?;
    }
    let signals = Signals::install().context("install signal handlers")?;
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let exporter = recorder.handle();
    ::metrics::set_global_recorder(recorder).context("install the metrics recorder")?;
    metrics::describe();

    let mut passed = keeper::passed().context("take the descriptors that systemd passed")?;
    // The sockets first: their locks keep a second daemon from touching anything of the first.
    let mut wire = UnixWire::new().context("make an epoll")?;
    for group in &options.groups {
        let listener = match passed.sockets.remove(&group.name) {
            Some(socket) => Listener::from_listening(socket),
            None => Listener::bind(&group.socket, options.server_socket_mode),
        }
        .with_context(|| format!("listen for group {:?} (choose a socket with --server-socket)", group.name))?;
        wire.listen(listener, options.server_clients_max as usize + CONNECTIONS_SPARE).context("watch a socket")?;
    }
    let (keeper, found) = keeper::open(options.hold_socket.as_deref(), passed.kept)?;
    let waker = wire.waker();
    let movers =
        Threads::start(options.dram_populate_threads as usize, move || waker.wake()).context("start movers")?;
    signals.wake_with(wire.waker());
    let entropy = Box::new(|| {
        let mut bytes = [0u8; 8];
        // The pool is ready long before a daemon starts; a failure would be the kernel's.
        let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        u64::from_le_bytes(bytes) | 1
    });
    let mut engine = Engine::open(now(), engine_options(options), wire, movers, keeper, found, entropy)?;
    let _admin = match options.metrics_listen {
        Some(address) => Some(start_admin(address, exporter)?),
        None => None,
    };
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("tell systemd that we are ready")?;
    tracing::info!(
        sockets = ?options.groups.iter().map(|g| g.socket.display().to_string()).collect::<Vec<_>>(),
        us = started.elapsed().as_micros() as u64,
        "ready"
    );
    run_loop(&mut engine, &signals, options.drain_timeout)
}

fn start_admin(
    address: SocketAddr,
    exporter: metrics_exporter_prometheus::PrometheusHandle,
) -> anyhow::Result<std::thread::JoinHandle<()>> {
    admin::start(address, exporter)
        .with_context(|| format!("serve metrics on {address} (choose another with --metrics-listen, or off)"))
}

/// Turns the engine until it is told to stop. Sleeps when there is nothing to do; clients ring then.
fn run_loop(engine: &mut Engine<UnixWire, Threads>, signals: &Signals, drain_timeout: Duration) -> anyhow::Result<()> {
    let (mut busy_at, mut metrics_at, mut turns) = (now(), Time(0), 0u32);
    let mut drain_until: Option<Time> = None;
    let watchdog_us = watchdog_interval_us();
    let mut watchdog_at = now();
    loop {
        let at = now();
        turns = turns.wrapping_add(1);
        let mut busy = engine.work(at);
        // While a former daemon's lines are taken over, every turn: clients are welcomed meanwhile.
        if turns.is_multiple_of(TURNS_PER_LISTEN) || !engine.adopted() {
            busy |= engine.listen(at, Some(Duration::ZERO))?;
        }
        if busy {
            busy_at = at;
        }
        match (signals.stops(), drain_until) {
            (0, _) => {}
            (1, None) => {
                tracing::info!("draining: new puts are refused; a second signal stops at once");
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
                engine.drain();
                drain_until = Some(at.after(drain_timeout));
            }
            (1, Some(until)) => {
                if at >= until || at.since_us(busy_at) >= DRAINED_US {
                    tracing::info!("drained");
                    return Ok(());
                }
            }
            _ => {
                tracing::info!("stopped at once");
                return Ok(());
            }
        }
        if at.since_us(metrics_at) >= METRICS_EVERY_US {
            metrics::publish(engine, at);
            engine.tend_keeper();
            metrics_at = at;
        }
        if watchdog_us.is_some_and(|us| at.since_us(watchdog_at) >= us) {
            // From this loop alone: a stalled loop must be restarted.
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            watchdog_at = at;
        }
        if at.since_us(busy_at) < SPIN.as_micros() as u64 {
            // Not a bare spin: woken by a client, this thread often sits on that client's processor, and would keep it
            // from filling the next block (500 in place of 110 us for 32 blocks of 64 KiB).
            std::thread::yield_now();
            continue;
        }
        engine.set_sleeping(true);
        if engine.rings_waiting() {
            engine.set_sleeping(false);
            busy_at = at;
            continue;
        }
        let mut sleep_us = METRICS_EVERY_US.min(watchdog_us.unwrap_or(u64::MAX));
        if drain_until.is_some() {
            sleep_us = sleep_us.min(DRAINED_US / 4);
        }
        if let Some(due) = engine.next_timeout() {
            sleep_us = sleep_us.min(due.since_us(at));
        }
        let woken = engine.listen(at, Some(Duration::from_micros(sleep_us)))?;
        engine.set_sleeping(false);
        if woken {
            busy_at = now();
        }
    }
}

/// Half the interval that systemd wants to see signs of life in.
fn watchdog_interval_us() -> Option<u64> {
    let usec: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    Some((usec / 2).max(1))
}

/// Whether so much memory may be locked; asked before anything is made.
fn may_lock(bytes: u64) -> anyhow::Result<()> {
    use rustix::process::{Resource, getrlimit};
    const CAP_IPC_LOCK: u64 = 1 << 14;
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    match getrlimit(Resource::Memlock).current {
        Some(limit) if limit < bytes && capabilities & CAP_IPC_LOCK == 0 => anyhow::bail!(
            "dram.lock: the memlock limit is {limit} B, dram.bytes is {bytes} B: set LimitMEMLOCK=infinity in the unit \
             (or ulimit -l unlimited), or --dram-lock=false"
        ),
        _ => Ok(()),
    }
}

/// Every client takes six descriptors, kept memory some more.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "the limit of open descriptors stays at {:?}", limit.current);
    }
}

/// SIGTERM and SIGINT, counted: the first drains, the second stops at once.
struct Signals {
    count: Arc<AtomicU32>,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self { count: Arc::new(AtomicU32::new(0)) })
    }

    /// From now on signals count and wake the loop.
    fn wake_with(&self, waker: lapis_transport::unix::Waker) {
        let count = self.count.clone();
        let signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT]);
        let mut signals = match signals {
            Ok(signals) => signals,
            Err(error) => {
                tracing::error!(%error, "signals cannot be handled: a stop will be a kill, which is safe");
                return;
            }
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for _ in signals.forever() {
                    count.fetch_add(1, Ordering::Relaxed);
                    waker.wake();
                }
            })
            .map_or_else(|error| tracing::error!(%error, "no thread for signals"), drop);
    }

    fn stops(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }
}
