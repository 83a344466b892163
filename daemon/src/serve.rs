//! `lapis serve`: from options to a running engine loop, and its orderly end.

mod peers;

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use lapis_arena::memfd::Huge;
use lapis_config::{Effective, HugePages, Options, REGISTER_BYTES, SsdEngine, Tables, Time, Verify};
use lapis_ssd::{engine::EngineChoice, volume::open::Identity};
use lapis_state::Geometry;
use lapis_tiering::CoreOptions;
use lapis_transport::{control, hello::CallDefaults, listen::Listener, unix::UnixWire};

use crate::{
    admin,
    drives::{self, DriveOptions},
    engine::{Engine, EngineOptions},
    gpus::{self, GpuOptions},
    group::GroupOptions,
    keeper, limits, metrics,
    movers::Threads,
    pace::Pace,
    stall::StallWatch,
    tier::{Tier, TierOptions},
    topology::Layout,
};

use self::peers::Peering;
pub use self::peers::Reload;

/// Between two updates of the exported metrics.
const METRICS_EVERY_US: u64 = 250_000;
/// A draining daemon that saw nothing to do for so long has drained.
const DRAINED_US: u64 = 50_000;

/// Connections beside those of clients: people who ask for the status.
const CONNECTIONS_SPARE: usize = 16;

/// Threads that check sums: of what a restart found, and of what came from SSD, behind the clients that check first.
const VERIFY_THREADS: usize = 2;

/// CLOCK_BOOTTIME in microseconds: goes on over restarts of the daemon.
pub fn now() -> Time {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Time(time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000)
}

/// What the configuration means for the engine.
pub fn engine_options(options: &Options, layout: &Layout) -> EngineOptions {
    let spread = layout.spread();
    let extent_bytes_max = (options.dram_bytes / 64).next_multiple_of(REGISTER_BYTES).clamp(REGISTER_BYTES, 64 << 30);
    let groups = options
        .groups
        .iter()
        .enumerate()
        .map(|(index, group)| {
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
                spread: spread.clone(),
                pin_bytes_max: options.client_pin_bytes_max,
                pin_age_max: options.client_pin_age_max,
                core: CoreOptions {
                    magazine_bytes_max: options.client_magazine_bytes_max,
                    idle_recall: options.client_idle_recall,
                    write_back_ahead_bytes: group.write_back_ahead(options),
                    ssd_write_bytes_a_day: group.write_budget(options),
                    ..CoreOptions::default()
                },
                ssd_floor_bytes: group.ssd_floor,
                ssd_ceiling_bytes: group.ssd_ceiling,
                // Of the first alone: whoever maps an extent of a GPU maps all of it, and groups share nothing.
                hbm_bytes: if index == 0 { options.hbm_bytes } else { 0 },
                policy: options.policy_name,
                ghost_bytes: group.ghost_bytes(options),
            }
        })
        .collect();
    EngineOptions {
        groups,
        clients_max: options.server_clients_max as usize,
        dram_bytes: options.dram_bytes,
        extent_bytes_max,
        magazine_bytes_max: options.client_magazine_bytes_max,
        tier: tier_options(options, layout),
        call_defaults: CallDefaults {
            lookup_us: options.client_lookup_deadline.as_micros() as u64,
            get_us: options.client_get_deadline.as_micros() as u64,
            get_bytes_per_s: options.client_get_rate_min,
            put_us: options.client_put_deadline.as_micros() as u64,
            verify_always: options.verify == Verify::Always,
        },
    }
}

/// Runs the daemon until a signal ends it. `reload` gives the configuration anew, on SIGHUP.
pub fn run(effective: &Effective, reload: Reload) -> anyhow::Result<()> {
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
    let gpus = GpuOptions::of(options)
        .map(gpus::find)
        .transpose()
        .context("open the GPUs of the HBM tier (lapis doctor tells more)")?;
    let signals = Signals::install().context("install signal handlers")?;
    let layout = Layout::here(options);
    let layout = match &gpus {
        Some(found) => layout.with_gpus(found.seen()),
        None => layout,
    };
    let drives = drive_options(options, &layout);
    may_open(options, &drives)?;
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
    let (keeper, mut found) = keeper::open(options.hold_socket.as_deref(), passed.kept)?;
    let kept = gpus::take_kept(&mut found);
    let waker = wire.waker();
    // Shorter, as JSON keeps no more of a number.
    let boot = entropy() >> 11 | 1;
    let mut peering = Peering::start(options, boot, Arc::new(move || waker.wake()))?;
    let waker = wire.waker();
    let movers = Threads::start(options.dram_populate_threads as usize, VERIFY_THREADS, drives, move || waker.wake())
        .context("start movers")?;
    signals.wake_with(wire.waker());
    let mut engine =
        Engine::open(now(), engine_options(options, &layout), wire, movers, keeper, found, Box::new(entropy))?;
    start_gpus(&mut engine, gpus, kept, &layout)?;
    if let Some(peering) = &mut peering {
        peering.join(now(), &mut engine)?;
    }
    let _admin = match options.metrics_listen {
        Some(address) => Some(start_admin(address)?),
        None => None,
    };
    let ready = || {
        tracing::info!(
            sockets = ?options.groups.iter().map(|g| g.socket.display().to_string()).collect::<Vec<_>>(),
            us = started.elapsed().as_micros() as u64,
            "ready"
        );
        sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("tell systemd that we are ready")
    };
    let mut tend_peers = |at: Time, engine: &mut Engine<UnixWire, Threads>, is_reload: bool| match &mut peering {
        Some(peering) if is_reload => peering.reload(at, engine, &reload),
        Some(peering) => peering.tend(at, engine),
        None if is_reload => {
            tracing::warn!("SIGHUP reloads other hosts and certificates; this host is alone (peers.listen)");
        }
        None => {}
    };
    let ended = run_loop(&mut engine, &signals, options.drain_timeout, ready, &mut tend_peers);
    // Off the list before the connections go, which takes as long as memory is unmapped.
    drop(peering);
    ended
}

/// Opens memory on the GPUs, and starts their threads. After the groups: what was kept is used only if its group is a former
/// daemon's too.
fn start_gpus(
    engine: &mut Engine<UnixWire, Threads>,
    gpus: Option<gpus::Found>,
    kept: Vec<(String, OwnedFd)>,
    layout: &Layout,
) -> anyhow::Result<()> {
    let Some(gpus) = gpus else { return Ok(gpus::give_back(kept, engine.keeper.as_mut())?) };
    let known = engine.known_gpu_memory();
    let opened =
        gpus.open(kept, &known, engine.keeper.as_mut()).context("take memory of the GPUs (lapis doctor tells more)")?;
    let shown = opened.iter().map(|gpu| gpu.shown.clone()).collect();
    engine.movers_mut().start_gpus(opened, &layout.cpus_of_gpus()).context("start the threads of GPUs")?;
    engine.set_gpus(now(), shown, &layout.nodes_of_gpus());
    Ok(())
}

/// A number that nobody else has, and not 0.
pub(crate) fn entropy() -> u64 {
    let mut bytes = [0u8; 8];
    // The pool is ready long before a daemon starts; a failure would be the kernel's.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_le_bytes(bytes) | 1
}

/// The devices of the SSD tier.
fn drive_options(options: &Options, layout: &Layout) -> Vec<DriveOptions> {
    let engine = match options.ssd_engine {
        // Of files and namespaces: controllers are SPDK's in any case.
        SsdEngine::Auto | SsdEngine::Spdk => EngineChoice::Auto,
        SsdEngine::Passthrough => EngineChoice::Passthrough { polled: false },
        SsdEngine::PassthroughPolled => EngineChoice::Passthrough { polled: true },
        SsdEngine::Uring => EngineChoice::Uring,
        SsdEngine::Threads => EngineChoice::Threads,
    };
    let (depth, threads) = (options.ssd_queue_depth as usize, options.ssd_threads as usize);
    let of = |(index, path): (usize, &PathBuf)| DriveOptions {
        path: path.clone(),
        bytes: options.ssd_bytes,
        engine,
        depth,
        threads,
        spdk_library: options.ssd_spdk_library.clone(),
        cpus: layout.cpus_of(index),
    };
    options.ssd_paths.iter().enumerate().map(of).collect()
}

/// A tier that cannot be had stops the start before anybody is told that the daemon is ready. A device that a former
/// daemon still has is waited for later.
fn may_open(options: &Options, drives: &[DriveOptions]) -> anyhow::Result<()> {
    for drive in drives.iter().filter(|_| options.ssd_required) {
        match drives::may_open(drive) {
            Err(error) if !error.is_transient() => {
                return Err(error).context(
                    "open a device of the SSD tier (lapis doctor tells more; ssd.required = false serves DRAM alone)",
                );
            }
            _ => {}
        }
    }
    Ok(())
}

/// /etc/machine-id, and the daemon's own name among several on the host.
fn identity(options: &Options) -> Identity {
    let text = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let host = u128::from_str_radix(text.trim(), 16).unwrap_or(0).to_be_bytes();
    let mut instance = [0; 16];
    instance.copy_from_slice(&blake3::derive_key("lapis: instance of a daemon", options.ssd_instance.as_bytes())[..16]);
    Identity { host, instance }
}

fn tier_options(options: &Options, layout: &Layout) -> Option<TierOptions> {
    let wall_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |at| at.as_secs());
    (!options.ssd_paths.is_empty()).then(|| TierOptions {
        names: options.ssd_paths.iter().map(|path| path.display().to_string()).collect(),
        nodes: layout.nodes_of_ssds(),
        identity: identity(options),
        segment_bytes_min: lapis_config::SSD_SEGMENT_BYTES_MIN,
        list_after_us: options.ssd_list_after.as_micros() as u64,
        durable: options.ssd_durable,
        required: options.ssd_required,
        wall_s,
    })
}

fn start_admin(address: SocketAddr) -> anyhow::Result<std::thread::JoinHandle<()>> {
    admin::start(address)
        .with_context(|| format!("serve metrics on {address} (choose another with --metrics-listen, or off)"))
}

/// Once a turn; true: the configuration is to be read anew.
type TendPeers<'a> = dyn FnMut(Time, &mut Engine<UnixWire, Threads>, bool) + 'a;

/// Turns the engine until it is told to stop. Sleeps when there is nothing to do; clients ring then. `ready` is called
/// once, when nothing but the failure of a device can come between: clients are served before.
fn run_loop(
    engine: &mut Engine<UnixWire, Threads>,
    signals: &Signals,
    drain_timeout: Duration,
    ready: impl FnOnce() -> anyhow::Result<()>,
    tend_peers: &mut TendPeers,
) -> anyhow::Result<()> {
    let mut ready = Some(ready);
    let (mut pace, mut metrics_at, mut stalls) = (Pace::new(now()), Time(0), StallWatch::new(now()));
    let mut drain_until: Option<Time> = None;
    let watchdog_us = watchdog_interval_us();
    let mut watchdog_at = now();
    loop {
        let at = now();
        engine.counts.stalls += u64::from(stalls.turn(at));
        tend_peers(at, engine, signals.take_reload());
        let puts = engine.counts().put_frames;
        let mut busy = engine.work(at);
        if engine.counts().put_frames != puts {
            pace.fed(at);
        }
        if let Some(reason) = engine.tier().and_then(Tier::fatal) {
            anyhow::bail!("{reason}");
        }
        if engine.tier().is_none_or(Tier::lets_start)
            && let Some(ready) = ready.take()
        {
            ready()?;
        }
        // While a former daemon's lines are taken over, every turn: clients are welcomed meanwhile.
        if pace.listens(at) || !engine.adopted() {
            busy |= engine.listen(at, Some(Duration::ZERO))?;
            pace.listened(at);
        }
        if busy {
            pace.busy(at);
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
                if at >= until || pace.idle_us(at) >= DRAINED_US && engine.is_flushed() {
                    match engine.unflushed_blocks() {
                        Some(blocks) => tracing::info!(not_on_ssd = blocks, "drained"),
                        None => tracing::info!("drained"),
                    }
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
        if pace.spins(at) {
            // Not a bare spin: woken by a client, this thread often sits on that client's processor, and would keep it
            // from filling the next block (500 in place of 110 us for 32 blocks of 64 KiB).
            std::thread::yield_now();
            continue;
        }
        if busy {
            // What was done may have made more to do.
            continue;
        }
        engine.set_sleeping(true);
        if engine.rings_waiting() {
            engine.set_sleeping(false);
            pace.busy(at);
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
        let at = now();
        pace.listened(at);
        if woken {
            pace.busy(at);
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
    match limits::lockable_bytes() {
        Some(limit) if limit < bytes => anyhow::bail!(
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

/// SIGTERM and SIGINT, counted: the first drains, the second stops at once. SIGHUP: the configuration is to be reloaded.
struct Signals {
    count: Arc<AtomicU32>,
    reload: Arc<AtomicBool>,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self { count: Arc::new(AtomicU32::new(0)), reload: Arc::new(AtomicBool::new(false)) })
    }

    /// From now on signals count and wake the loop.
    fn wake_with(&self, waker: lapis_transport::unix::Waker) {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let (count, reload) = (self.count.clone(), self.reload.clone());
        let signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]);
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
                for signal in signals.forever() {
                    match signal {
                        SIGHUP => reload.store(true, Ordering::Relaxed),
                        _ => drop(count.fetch_add(1, Ordering::Relaxed)),
                    }
                    waker.wake();
                }
            })
            .map_or_else(|error| tracing::error!(%error, "no thread for signals"), drop);
    }

    fn take_reload(&self) -> bool {
        self.reload.swap(false, Ordering::Relaxed)
    }

    fn stops(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }
}
