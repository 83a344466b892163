//! Records through `Drive` and `Volume` over an engine, as a daemon's thread of a device moves them; and the engine
//! `threads` beside `uring`.

use lapis_arena::Mapping;
use lapis_config::SsdPlace;
use lapis_ssd::engine::EngineChoice;

use super::{
    super::{Name, Plan, report::Report},
    DEPTH, Ground, READ_GOAL, Rounds, SIZES, WRITE_GOAL, at_least,
    device::Device,
    raw::{Raw, Way, shared},
};

const FILE_BYTES: u64 = 1 << 30;
/// Bytes of one turn.
const TURN_BYTES: usize = 256 << 20;

pub fn run(plan: &Plan, ground: &Ground, report: &mut Report) -> anyhow::Result<()> {
    let log = ground.file(".log", FILE_BYTES)?;
    let memory = shared(DEPTH)?;
    let mut device = Device::open_over(log.path(), FILE_BYTES, EngineChoice::Uring, DEPTH, memory.clone())?;
    let mut raw = Raw::over(log.path(), DEPTH, memory.clone())?;
    let mut rng = fastrand::Rng::with_seed(1);
    let rounds = if plan.quick { 3 } else { 11 };
    for (bench, name, way, goal) in
        [("ssd_read", Name::SsdRead, Way::Read, READ_GOAL), ("ssd_write", Name::SsdWrite, Way::Write, WRITE_GOAL)]
    {
        for (bytes, counts) in SIZES.into_iter().filter(|_| plan.wants(name)) {
            let mut figure = Rounds::default();
            let mut places = device.places(bytes);
            for round in 0..rounds {
                plan.stop.check()?;
                let turn = turn(&mut places, &mut rng, way, bytes);
                let offsets: Vec<u64> = turn.iter().map(|at| device.offset(*at)).collect();
                let (ours, limit) = if round % 2 == 0 {
                    let ours = device.run(way, bytes, turn)?;
                    (ours, raw.run(way, bytes, &offsets)?)
                } else {
                    let limit = raw.run(way, bytes, &offsets)?;
                    (device.run(way, bytes, turn)?, limit)
                };
                figure.push(&ours, &limit, None);
            }
            let mut figure = figure.figure(bench, "drive", bytes);
            if counts {
                at_least(&mut figure, goal, "raw");
            }
            report.add(&figure)?;
        }
    }
    if plan.wants(Name::SsdThreads) {
        threads(plan, ground, &mut device, memory, report)?;
    }
    Ok(())
}

/// The places of one turn: reads at random, writes one after the other as a log has them.
fn turn<'a>(places: &'a mut [SsdPlace], rng: &mut fastrand::Rng, way: Way, bytes: usize) -> &'a [SsdPlace] {
    let count = (TURN_BYTES / bytes).min(places.len());
    match way {
        Way::Read => rng.shuffle(places),
        Way::Write => places.rotate_left(count),
    }
    &places[..count]
}

fn threads(
    plan: &Plan,
    ground: &Ground,
    uring: &mut Device,
    memory: Mapping,
    report: &mut Report,
) -> anyhow::Result<()> {
    const BYTES: usize = 1 << 20;
    let log = ground.file(".threads", FILE_BYTES)?;
    let mut threads = Device::open_over(log.path(), FILE_BYTES, EngineChoice::Threads, DEPTH, memory)?;
    let mut rng = fastrand::Rng::with_seed(2);
    for (case, way) in [("reads by threads", Way::Read), ("writes by threads", Way::Write)] {
        let (mut figure, mut places) = (Rounds::default(), threads.places(BYTES));
        for _ in 0..if plan.quick { 3 } else { 11 } {
            plan.stop.check()?;
            let turn = turn(&mut places, &mut rng, way, BYTES);
            let ours = threads.run(way, BYTES, turn)?;
            figure.push(&ours, &uring.run(way, BYTES, turn)?, None);
        }
        let mut figure = figure.figure("ssd_threads", case, BYTES);
        figure.limit_is = Some("uring");
        at_least(&mut figure, 0.7, "uring");
        report.add(&figure)?;
    }
    Ok(())
}
