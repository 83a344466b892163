//! Which GPUs there are, whether the HBM tier can use them, and why not. Only those are opened that a daemon would open: a
//! context takes memory, and one of a GPU that is not used is none of ours.

use std::{sync::mpsc::channel, thread, time::Duration};

use lapis_arena::hbm::{Cuda, Device, DeviceInfo, HbmError, NoCuda};
use lapis_config::{Bytes, Gpus, Options, topology::Link};

use super::{Finding, Level};
use crate::{
    gpus::{choose, described},
    topology::SeenGpus,
};

const CHECK: &str = "gpus";
/// A driver that was asleep takes some seconds for each GPU.
const ANSWER_MAX: Duration = Duration::from_secs(60);
const DRIVER: &str = "install NVIDIA's driver (nvidia-smi lists the GPUs if it works), name its library in hbm.cuda_library, \
                      or set hbm.bytes = \"0B\"";

/// A GPU that the driver shows.
#[derive(Clone, Debug)]
struct Seen {
    info: DeviceInfo,
    /// Bytes that are free, and bytes in all; `None`: not opened, as it is not used.
    memory: Option<Result<(u64, u64), Unusable>>,
    /// Indexes of those whose memory it reaches, with the way there.
    reaches: Vec<(u16, Link)>,
}

/// Why a GPU cannot be used.
#[derive(Clone, Debug)]
struct Unusable {
    why: String,
    /// A daemon goes on without it.
    is_lost: bool,
}

#[derive(Clone, Debug)]
struct Probe {
    /// 1000 * major + 10 * minor.
    version: i32,
    has_batches: bool,
    gpus: Result<Vec<Seen>, String>,
}

/// And those that are used, where there are any.
pub(super) fn examine(options: &Options) -> (Vec<Finding>, Option<SeenGpus>) {
    let (sender, receiver) = channel();
    let (library, opens) = (options.hbm_cuda_library.clone(), options.hbm_bytes > 0);
    let wanted = opens.then(|| options.hbm_gpus.clone());
    let look = move || {
        // Nobody listens any more where it comes too late.
        let _ = sender.send(Cuda::load(library.as_deref()).map(|cuda| probe(&cuda, wanted.as_ref())));
    };
    if let Err(error) = thread::Builder::new().name("gpus".into()).spawn(look) {
        let found = format!("not examined: {error}");
        return (vec![Finding::warn(CHECK, found, "raise the limit of threads")], None);
    }
    match receiver.recv_timeout(ANSWER_MAX) {
        Ok(probe) => (judge(options, probe.as_ref()), probe.ok().and_then(|probe| used(options, &probe))),
        Err(_) => {
            let found = format!("the CUDA driver has not answered for {} s", ANSWER_MAX.as_secs());
            let advice = "look at nvidia-smi and at the kernel's log (Xid)";
            (vec![Finding::bad(if opens { Level::Fail } else { Level::Warn }, CHECK, found, advice)], None)
        }
    }
}

/// The GPUs that the daemon would use.
fn used(options: &Options, probe: &Probe) -> Option<SeenGpus> {
    let gpus = probe.gpus.as_ref().ok().filter(|_| options.hbm_bytes > 0)?;
    let infos: Vec<DeviceInfo> = gpus.iter().map(|seen| seen.info.clone()).collect();
    let infos: Vec<DeviceInfo> = choose(&options.hbm_gpus, &infos).ok()?.into_iter().cloned().collect();
    let seen = |index: u16| gpus.iter().find(|seen| seen.info.index == index);
    let link = |one: &DeviceInfo, other: &DeviceInfo| {
        let ways = &seen(one.index)?.reaches;
        ways.iter().find(|(index, _)| *index == other.index).map(|(_, link)| *link)
    };
    let links = infos.iter().map(|one| infos.iter().map(|other| link(one, other)).collect()).collect();
    Some(SeenGpus { infos, links })
}

fn probe(cuda: &std::sync::Arc<Cuda>, wanted: Option<&Gpus>) -> Probe {
    let seen = |info: &DeviceInfo, all: &[DeviceInfo]| {
        // Where that fails, nothing is opened, and it is said why.
        let is_used = wanted.is_some_and(|wanted| choose(wanted, all).is_ok_and(|chosen| chosen.contains(&info)));
        let memory = || Device::open(cuda, info.index)?.memory();
        let unusable = |error: HbmError| Unusable { why: error.to_string(), is_lost: error.is_lost() };
        let way = |other: &DeviceInfo| Some((other.index, cuda.link(info.index, other.index).ok()??));
        Seen {
            info: info.clone(),
            memory: is_used.then(|| memory().map_err(unusable)),
            reaches: all.iter().filter_map(way).collect(),
        }
    };
    let gpus = cuda.devices().map(|all| all.iter().map(|info| seen(info, &all)).collect());
    Probe { version: cuda.version(), has_batches: cuda.has_batches(), gpus: gpus.map_err(|error| error.to_string()) }
}

/// Pure.
fn judge(options: &Options, probe: Result<&Probe, &NoCuda>) -> Vec<Finding> {
    let wanted = options.hbm_bytes > 0;
    let probe = match probe {
        Err(_) if !wanted => return vec![Finding::ok(CHECK, "no CUDA driver; none used (hbm.bytes = 0B)")],
        // What it says to do is said at the end of the line.
        Err(NoCuda::Library { reason }) => {
            return vec![Finding::fail(CHECK, format!("no CUDA driver ({reason})"), DRIVER)];
        }
        Err(error) => return vec![Finding::fail(CHECK, error.to_string(), DRIVER)],
        Ok(probe) => probe,
    };
    let (major, minor) = (probe.version / 1000, probe.version % 1000 / 10);
    let batches = if probe.has_batches { "copies in batches" } else { "copies one by one (batches came with 12.8)" };
    let mut findings = vec![Finding::ok(CHECK, format!("CUDA driver {major}.{minor}, {batches}"))];
    let gpus = match &probe.gpus {
        Ok(gpus) => gpus,
        Err(error) => {
            let level = if wanted { Level::Fail } else { Level::Warn };
            findings.push(Finding::bad(
                level,
                CHECK,
                error.clone(),
                "look at nvidia-smi and at the kernel's log (Xid)",
            ));
            return findings;
        }
    };
    let infos: Vec<DeviceInfo> = gpus.iter().map(|seen| seen.info.clone()).collect();
    if !wanted {
        let of = |seen: &Seen| {
            let found = format!("{}, not used: hbm.bytes = 0B; --hbm-bytes 8GiB would use it", Bytes(seen.info.bytes));
            Finding::ok(CHECK, found).of(described(&seen.info))
        };
        findings.extend(gpus.iter().map(of));
        findings.extend(gpus.is_empty().then(|| Finding::ok(CHECK, "none there, none used (hbm.bytes = 0B)")));
        return findings;
    }
    let chosen: Vec<u16> = match choose(&options.hbm_gpus, &infos) {
        Ok(chosen) => chosen.into_iter().map(|info| info.index).collect(),
        Err(error) => {
            findings.push(Finding::fail(CHECK, error.to_string(), "see hbm.gpus and hbm.bytes"));
            return findings;
        }
    };
    findings.extend(gpus.iter().map(|seen| match chosen.contains(&seen.info.index) {
        true => of_used(options, seen).of(described(&seen.info)),
        false => Finding::ok(CHECK, "not used: not named in hbm.gpus").of(described(&seen.info)),
    }));
    let used: Vec<&Seen> = gpus.iter().filter(|seen| chosen.contains(&seen.info.index)).collect();
    if used.len() > 1 {
        findings.push(Finding::ok(CHECK, format!("from each to each: {}", matrix(&used))));
    }
    findings
}

fn of_used(options: &Options, seen: &Seen) -> Finding {
    let asked = Bytes(options.hbm_bytes);
    let (free, total) = match &seen.memory {
        Some(Ok(memory)) => *memory,
        Some(Err(Unusable { why, is_lost: true })) => {
            let found = format!("{why}: a daemon goes on without it");
            return Finding::warn(CHECK, found, "look at nvidia-smi and at the kernel's log (Xid)");
        }
        Some(Err(Unusable { why, is_lost: false })) => {
            return Finding::fail(CHECK, why.clone(), "look at nvidia-smi and at the kernel's log (Xid)");
        }
        None => return Finding::ok(CHECK, "not opened"),
    };
    if total < options.hbm_bytes {
        return Finding::fail(CHECK, format!("has {} in all, hbm.bytes is {asked}", Bytes(total)), "lower hbm.bytes");
    }
    if free < options.hbm_bytes {
        return Finding::warn(
            CHECK,
            format!("{} free of {}, hbm.bytes is {asked}", Bytes(free), Bytes(total)),
            "lower hbm.bytes or end what has the memory (nvidia-smi lists it), unless a running daemon has it",
        );
    }
    let memory = format!("{asked} of {} free, {} in all", Bytes(free), Bytes(total));
    match seen.info.has_descriptors {
        true => Finding::ok(CHECK, format!("{memory}; shared by descriptors, kept over restarts of the daemon")),
        false => Finding::warn(
            CHECK,
            format!(
                "{memory}; the driver shares memory by CUDA IPC alone: each start of the daemon finds this GPU empty"
            ),
            "update the driver, or leave virtualization that takes away virtual memory management or descriptors",
        ),
    }
}

/// Which reach which without the host.
fn matrix(used: &[&Seen]) -> String {
    let of = |seen: &&Seen| {
        let (index, others) = (seen.info.index, used.iter().map(|other| other.info.index));
        let link = |other: u16| seen.reaches.iter().find(|(reached, _)| *reached == other).map(|(_, link)| link);
        let by = |link: &Link| if link.has_atomics { " (NVLink)" } else { "" };
        let reached: Vec<String> = others.filter_map(|other| Some(format!("{other}{}", by(link(other)?)))).collect();
        match reached.is_empty() {
            true => format!("{index} reaches none (blocks go by way of the host)"),
            false => format!("{index} reaches {}", reached.join(" ")),
        }
    };
    used.iter().map(of).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use lapis_config::GpuName;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn seen(index: u16, free: u64, has_descriptors: bool, reaches: &[u16]) -> Seen {
        let info = DeviceInfo {
            index,
            name: "H100".into(),
            uuid: [index as u8; 16],
            pci_bus_id: format!("0000:4{index}:00.0"),
            bytes: 80 * GIB,
            has_descriptors,
        };
        let reaches = reaches.iter().map(|&other| (other, Link::default())).collect();
        Seen { info, memory: Some(Ok((free, 80 * GIB))), reaches }
    }

    fn probe(gpus: Vec<Seen>) -> Probe {
        Probe { version: 12080, has_batches: true, gpus: Ok(gpus) }
    }

    fn said(bytes: u64, gpus: Gpus, probe: Result<&Probe, &NoCuda>) -> Vec<(Level, String)> {
        let options = Options { hbm_bytes: bytes, hbm_gpus: gpus, ..Options::default() };
        judge(&options, probe).into_iter().map(|finding| (finding.level, finding.to_string())).collect()
    }

    fn has(said: &[(Level, String)], level: Level, words: &[&str]) -> bool {
        said.iter().any(|(of, text)| *of == level && words.iter().all(|words| text.contains(words)))
    }

    fn no_library() -> NoCuda {
        NoCuda::Library { reason: "libcuda.so: cannot open shared object file".into() }
    }

    #[test]
    fn without_a_driver_only_who_wants_gpus_is_told_what_to_install() {
        let (none, wanted) = (said(0, Gpus::All, Err(&no_library())), said(GIB, Gpus::All, Err(&no_library())));
        assert!(has(&none, Level::Ok, &["no CUDA driver; none used"]) && none.len() == 1, "{none:?}");
        assert!(has(&wanted, Level::Fail, &["libcuda.so: cannot open", "hbm.cuda_library"]), "{wanted:?}");
    }

    #[test]
    fn gpus_that_will_do_are_told_with_memory_and_with_whom_they_reach() {
        let probe = probe(vec![seen(0, 70 * GIB, true, &[1]), seen(1, 70 * GIB, true, &[0]), seen(2, 0, true, &[])]);
        let gpus = Gpus::Named(vec![GpuName::Index(0), GpuName::Index(1)]);
        let said = said(8 * GIB, gpus, Ok(&probe));
        assert!(said.iter().all(|(level, _)| *level == Level::Ok), "{said:?}");
        assert!(has(&said, Level::Ok, &["CUDA driver 12.8, copies in batches"]), "{said:?}");
        assert!(
            has(&said, Level::Ok, &["GPU 1 (H100", "8GiB of 70GiB free, 80GiB in all; shared by descr"]),
            "{said:?}"
        );
        assert!(has(&said, Level::Ok, &["GPU 2", "not used: not named in hbm.gpus"]), "{said:?}");
        assert!(has(&said, Level::Ok, &["0 reaches 1; 1 reaches 0"]), "{said:?}");
    }

    #[test]
    fn those_that_are_used_are_told_on_with_the_ways_between_them() {
        let nvlink = Link { rank: Some(0), has_atomics: true };
        let mut gpus = vec![seen(0, GIB, true, &[1, 2]), seen(1, GIB, true, &[0]), seen(2, GIB, true, &[])];
        gpus[0].reaches[1].1 = nvlink;
        let named = Gpus::Named(vec![GpuName::Index(2), GpuName::Index(0)]);
        let options = |hbm_bytes| Options { hbm_bytes, hbm_gpus: named.clone(), ..Options::default() };
        let used_of = |hbm_bytes| used(&options(hbm_bytes), &probe(gpus.clone()));
        let found = used_of(GIB).expect("both are there");
        assert_eq!(found.infos.iter().map(|info| info.index).collect::<Vec<_>>(), [2, 0]);
        assert_eq!(found.links, [[None, None], [Some(nvlink), None]]);
        assert_eq!(used_of(0), None, "none is used");
        let said = said(GIB, named.clone(), Ok(&probe(gpus.clone())));
        assert!(has(&said, Level::Ok, &["0 reaches 2 (NVLink); 2 reaches none"]), "{said:?}");
    }

    #[test]
    fn what_keeps_a_gpu_from_use_is_said_with_what_to_do() {
        let full = said(8 * GIB, Gpus::All, Ok(&probe(vec![seen(0, GIB, true, &[])])));
        assert!(
            has(&full, Level::Warn, &["1GiB free of 80GiB, hbm.bytes is 8GiB", "unless a running daemon"]),
            "{full:?}"
        );
        let small = said(100 * GIB, Gpus::All, Ok(&probe(vec![seen(0, GIB, true, &[])])));
        assert!(has(&small, Level::Fail, &["has 80GiB in all, hbm.bytes is 100GiB", "lower hbm.bytes"]), "{small:?}");
        let ipc = said(GIB, Gpus::All, Ok(&probe(vec![seen(0, GIB, false, &[])])));
        assert!(has(&ipc, Level::Warn, &["CUDA IPC alone: each start of the daemon finds this GPU empty"]), "{ipc:?}");
        // As the daemon does: what is lost does not keep the others from serving.
        for (is_lost, level) in [(true, Level::Warn), (false, Level::Fail)] {
            let memory = Some(Err(Unusable { why: "no answer from device 0".into(), is_lost }));
            let said = said(GIB, Gpus::All, Ok(&probe(vec![Seen { memory, ..seen(0, GIB, true, &[]) }])));
            assert!(has(&said, level, &["no answer from device 0", "nvidia-smi"]), "{said:?}");
        }
        let missing = said(GIB, Gpus::Named(vec![GpuName::Index(4)]), Ok(&probe(vec![seen(0, GIB, true, &[])])));
        assert!(has(&missing, Level::Fail, &["names 4, which is not there", "GPU 0 (H100"]), "{missing:?}");
    }

    #[test]
    fn gpus_that_nobody_asked_for_are_told_and_left_alone() {
        let mut gpu = seen(0, GIB, true, &[]);
        gpu.memory = None;
        let said = said(0, Gpus::All, Ok(&probe(vec![gpu])));
        assert!(has(&said, Level::Ok, &["80GiB, not used: hbm.bytes = 0B; --hbm-bytes"]), "{said:?}");
        assert!(said.iter().all(|(level, _)| *level == Level::Ok));
    }
}
