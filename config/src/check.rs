//! Whether the options fit each other and the machine; puts numbers where "auto" was. Decides without I/O.

mod peers;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::controller::Controller;
use crate::load::{Loading, group_key};
use crate::machine::{Machine, RUNTIME_FOLDER};
use crate::mistake::{Mistake, Source};
use crate::options::{
    DRAM_STEP_BYTES, GROUPS_MAX, Group, INDEX_ENTRIES_MAX, Options, SSD_BYTES_MIN, SsdEngine, Verify,
};
use crate::quantity::{Bytes, KIB, MIB};
use crate::tables::Tables;

/// Bytes of a block for which `index.entries_max` is made by default.
const ENTRY_BYTES_DEFAULT: u64 = 64 * KIB;
/// Of what is remembered of a block that is gone.
const GHOST_BYTES: u64 = 16;

pub(crate) fn check(loading: &mut Loading, machine: &Machine) {
    dram(loading, machine);
    shares_of_dram(loading);
    hbm(loading);
    index(loading);
    if loading.options.groups.is_empty() {
        default_group(loading, machine);
    } else if loading.sources.contains_key("server.socket") {
        loading.notes.push("server.socket is not used: the file has [[group]]".into());
    }
    groups(loading);
    group_with_gpus(loading);
    ssd(loading);
    names(loading);
    table_memory(loading, machine);
    metrics(loading);
    peers::peers(loading, machine);
}

fn dram(loading: &mut Loading, machine: &Machine) {
    let source = loading.source("dram.bytes");
    let given = loading.options.dram_bytes;
    let wanted = if source == Source::Default { machine.dram_bytes_default(given) } else { given };
    if wanted < given {
        loading.notes.push(format!(
            "dram.bytes is {}, a quarter of this machine's memory, where the default is {}",
            Bytes(rounded(wanted)),
            Bytes(given)
        ));
    } else if !wanted.is_multiple_of(DRAM_STEP_BYTES) {
        loading.notes.push(format!("dram.bytes = {} is rounded down to {}", Bytes(wanted), Bytes(rounded(wanted))));
    }
    loading.options.dram_bytes = rounded(wanted);
    let Some(memory) = machine.memory_bytes.filter(|_| !loading.is_broken("dram.bytes")) else { return };
    let reserve = Machine::reserve_bytes(memory);
    if source != Source::Default && given > memory - reserve {
        loading.wrong(source, "dram.bytes", Mistake::OverMemory { given, memory, reserve });
    }
}

fn rounded(bytes: u64) -> u64 {
    bytes / DRAM_STEP_BYTES * DRAM_STEP_BYTES
}

/// How much memory a GPU has is not known here.
fn hbm(loading: &mut Loading) {
    const BYTES: &str = "hbm.bytes";
    let given = loading.options.hbm_bytes;
    if given != 0 && given < DRAM_STEP_BYTES && !loading.is_broken(BYTES) {
        let mistake = Mistake::TooSmall { given: Bytes(given).to_string(), least: Bytes(DRAM_STEP_BYTES).to_string() };
        return loading.wrong(loading.source(BYTES), BYTES, mistake);
    }
    if !given.is_multiple_of(DRAM_STEP_BYTES) {
        loading.notes.push(format!("hbm.bytes = {} is rounded down to {}", Bytes(given), Bytes(rounded(given))));
    }
    loading.options.hbm_bytes = rounded(given);
    let is_given = |name: &&str| loading.sources.contains_key(*name);
    let unused: Vec<&str> = ["hbm.gpus", "hbm.cuda_library"].into_iter().filter(is_given).collect();
    if given == 0 && !unused.is_empty() && !loading.is_broken(BYTES) {
        loading.notes.push(format!("{}: not used without hbm.bytes", unused.join(", ")));
    }
}

/// Only the first group has memory on GPUs, and of it only who may put; no sum is checked there.
fn group_with_gpus(loading: &mut Loading) {
    let options = &loading.options;
    let [first, others @ ..] = &options.groups[..] else { return };
    if options.hbm_bytes == 0 {
        return;
    }
    let name = &first.name;
    if !first.may_put {
        let note = format!(
            "hbm.bytes: nobody uses the GPUs, as of the groups only the first has memory there, and group {name:?} may not put"
        );
        loading.notes.push(note);
    } else if !others.is_empty() {
        loading.notes.push(format!("hbm.bytes: only group {name:?}, the first, has memory on GPUs"));
    }
    if loading.options.verify == Verify::Always {
        loading.notes.push("hbm.bytes: with verify = \"always\" blocks are not read where they lie on GPUs".into());
    }
}

/// What may be so many bytes of the DRAM tier at most.
fn shares_of_dram(loading: &mut Loading) {
    let options = &mut loading.options;
    let dram = options.dram_bytes;
    if options.client_magazine_bytes_max == 0 {
        options.client_magazine_bytes_max = (dram / 64).clamp(MIB, 256 * MIB);
    }
    if options.client_pin_bytes_max == 0 {
        options.client_pin_bytes_max = dram / 4;
    }
    if options.ssd_write_back_ahead == 0 {
        options.ssd_write_back_ahead = (dram / 16).max(DRAM_STEP_BYTES);
    }
    let limits = [
        ("client.magazine_bytes_max", options.client_magazine_bytes_max),
        ("client.pin_bytes_max", options.client_pin_bytes_max),
        ("ssd.write_back_ahead", options.ssd_write_back_ahead),
    ];
    for (name, given) in limits {
        if given > dram && !loading.is_broken("dram.bytes") {
            loading.wrong(loading.source(name), name, Mistake::OverDram { given, dram });
        }
    }
}

fn index(loading: &mut Loading) {
    let options = &mut loading.options;
    if options.index_entries_max == 0 {
        let bytes = options.dram_bytes.saturating_add(options.ssd_bytes_of_files());
        options.index_entries_max = (bytes / ENTRY_BYTES_DEFAULT).clamp(1024, INDEX_ENTRIES_MAX);
    }
    if options.index_ghost_bytes == 0 {
        options.index_ghost_bytes = (options.index_entries_max * GHOST_BYTES).max(MIB);
    }
}

/// The group that is there when the file has none: everything, for everyone who may open the socket.
fn default_group(loading: &mut Loading, machine: &Machine) {
    let source = loading.source("server.socket");
    if source == Source::Default && machine.runtime_folder == Some(false) {
        match &machine.user_runtime_folder {
            Some(folder) => {
                let socket = folder.join("lapis/lapis.sock");
                loading.notes.push(format!("server.socket is {}: {RUNTIME_FOLDER} is not there", socket.display()));
                loading.options.server_socket = socket;
            }
            None => {
                let mistake = Mistake::NoRuntimeFolder { folder: RUNTIME_FOLDER.into() };
                loading.wrong(source, "server.socket", mistake);
            }
        }
    }
    let socket = loading.options.server_socket.clone();
    loading.options.groups.push(Group { socket, ..Group::default() });
}

/// Floors and ceilings.
fn groups(loading: &mut Loading) {
    let dram = loading.options.dram_bytes;
    let dram_known = !loading.is_broken("dram.bytes");
    let mut floors = 0u64;
    for i in 0..loading.options.groups.len() {
        let (floor_key, ceiling_key) = (group_key(i, "group.dram_floor"), group_key(i, "group.dram_ceiling"));
        let floor_known = !loading.is_broken(&floor_key);
        let ceiling_known = !loading.is_broken(&ceiling_key);
        let group = &mut loading.options.groups[i];
        group.dram_floor = rounded(group.dram_floor);
        group.dram_ceiling = if group.dram_ceiling == 0 { dram } else { rounded(group.dram_ceiling) };
        let (floor, ceiling) = (group.dram_floor, group.dram_ceiling);
        floors = floors.saturating_add(if floor_known { floor } else { 0 });
        if ceiling_known && dram_known && ceiling > dram {
            let mistake = Mistake::OverDram { given: ceiling, dram };
            loading.wrong(loading.source(&ceiling_key), "group.dram_ceiling", mistake);
        }
        if floor_known && ceiling_known && floor > ceiling && (dram_known || ceiling < dram) {
            let mistake = Mistake::FloorOverCeiling { floor, ceiling };
            loading.wrong(loading.source(&floor_key), "group.dram_floor", mistake);
        }
        if floors > dram && floors - floor <= dram && floor <= ceiling && dram_known {
            let mistake = Mistake::FloorsOverDram { floors, dram };
            loading.wrong(loading.source(&floor_key), "group.dram_floor", mistake);
        }
    }
    let count = loading.options.groups.len();
    if count > GROUPS_MAX {
        let place = loading.source(&format!("group[{GROUPS_MAX}]"));
        loading.wrong(place, "group", Mistake::TooManyGroups { count, most: GROUPS_MAX });
    }
    let may_put = |(i, group): (usize, &Group)| group.may_put || loading.is_broken(&group_key(i, "group.may_put"));
    if !loading.options.groups.iter().enumerate().any(may_put) {
        loading.wrong(loading.source(&group_key(0, "group.may_put")), "group.may_put", Mistake::NobodyMayPut);
    }
}

/// Floors and ceilings of the SSD tier. How large a block device is, is not known here.
fn shares_of_ssd(loading: &mut Loading) {
    let options = &loading.options;
    let paths = options.ssd_paths.len();
    let files = !options.ssd_paths.iter().any(|path| path.starts_with("/dev"));
    let known = files && paths > 0 && !loading.is_broken("ssd.bytes") && !loading.is_broken("ssd.paths");
    let tier = if known { options.ssd_bytes_of_files() } else { u64::MAX };
    let needed = SSD_BYTES_MIN * paths as u64;
    let mut floors = 0u64;
    for i in 0..loading.options.groups.len() {
        let (floor_key, ceiling_key) = (group_key(i, "group.ssd_floor"), group_key(i, "group.ssd_ceiling"));
        let floor_known = !loading.is_broken(&floor_key);
        let ceiling_known = !loading.is_broken(&ceiling_key);
        let (floor, given) = (loading.options.groups[i].ssd_floor, loading.options.groups[i].ssd_ceiling);
        let ceiling = if given == 0 { tier } else { given };
        floors = floors.saturating_add(if floor_known { floor } else { 0 });
        if ceiling_known && ceiling > tier {
            let mistake = Mistake::OverSsd { given: ceiling, tier };
            loading.wrong(loading.source(&ceiling_key), "group.ssd_ceiling", mistake);
        }
        if ceiling_known && given != 0 && given < needed && !loading.is_broken("ssd.paths") {
            let mistake = Mistake::CeilingTooSmall { given, paths, needed };
            loading.wrong(loading.source(&ceiling_key), "group.ssd_ceiling", mistake);
        }
        if floor_known && ceiling_known && floor > ceiling && (given == 0 || ceiling <= tier) {
            let mistake = Mistake::FloorOverCeiling { floor, ceiling };
            loading.wrong(loading.source(&floor_key), "group.ssd_floor", mistake);
        }
        if floors > tier && floors - floor <= tier && floor <= ceiling {
            let mistake = Mistake::FloorsOverSsd { floors, tier };
            loading.wrong(loading.source(&floor_key), "group.ssd_floor", mistake);
        }
    }
}

/// Every group writes segments of its own, on every device.
fn ssd(loading: &mut Loading) {
    shares_of_ssd(loading);
    let options = &loading.options;
    let (given, groups, dram) = (options.ssd_bytes, options.groups.len() as u64, options.dram_bytes);
    if options.ssd_paths.is_empty() {
        if loading.is_broken("ssd.paths") {
            return;
        }
        let unused =
            |name: &&str| name.starts_with("ssd.") && *name != "ssd.paths" && loading.sources.contains_key(*name);
        let mut unused: Vec<&str> = Options::DEFINITIONS.iter().map(|d| d.name).filter(unused).collect();
        let in_groups = ["group.ssd_floor", "group.ssd_ceiling"];
        let given = |name: &&str| (0..groups as usize).any(|i| loading.sources.contains_key(&group_key(i, name)));
        unused.extend(in_groups.into_iter().filter(given));
        if !unused.is_empty() {
            loading.notes.push(format!("{}: not used without ssd.paths", unused.join(", ")));
        }
        return;
    }
    if let Some(mistake) = engine_of_paths(options) {
        return loading.wrong(loading.source("ssd.engine"), "ssd.engine", mistake);
    }
    let needed = SSD_BYTES_MIN * groups;
    if given < needed && !loading.is_broken("ssd.bytes") {
        let mistake = Mistake::SsdTooSmall { given, groups, needed, each: SSD_BYTES_MIN };
        return loading.wrong(loading.source("ssd.bytes"), "ssd.bytes", mistake);
    }
    let tier = options.ssd_bytes_of_files();
    if tier < dram && !loading.is_broken("ssd.bytes") && !loading.is_broken("dram.bytes") {
        let (tier, dram) = (Bytes(tier), Bytes(dram));
        loading.notes.push(format!("the SSD tier has {tier} if its paths are files, less than dram.bytes = {dram}"));
    }
}

/// SPDK drives controllers, the kernel all else.
fn engine_of_paths(options: &Options) -> Option<Mistake> {
    let of_spdk = |path: &&PathBuf| Controller::is_meant(path);
    let said = |path: &PathBuf| path.display().to_string();
    match options.ssd_engine {
        SsdEngine::Auto => None,
        SsdEngine::Spdk => {
            options.ssd_paths.iter().find(|path| !of_spdk(path)).map(|path| Mistake::NotForSpdk { path: said(path) })
        }
        _ => options.ssd_paths.iter().find(of_spdk).map(|path| Mistake::NotThisEngine { path: said(path) }),
    }
}

/// No two groups of one name, no two sockets or logs of one path.
fn names(loading: &mut Loading) {
    let mut names: BTreeMap<String, Source> = BTreeMap::new();
    let mut sockets: BTreeMap<PathBuf, Source> = BTreeMap::new();
    if let Some(hold) = &loading.options.hold_socket {
        sockets.insert(hold.clone(), loading.source("hold.socket"));
    }
    let mut wrong = Vec::new();
    for path in &loading.options.ssd_paths {
        let place = loading.source("ssd.paths");
        if let Some(first) = sockets.insert(path.clone(), place.clone()) {
            wrong.push((place, "ssd.paths", path.display().to_string(), first));
        }
    }
    for (i, group) in loading.options.groups.iter().enumerate() {
        let (name_key, socket_key) = (group_key(i, "group.name"), group_key(i, "group.socket"));
        let place = loading.source(&name_key);
        if !loading.is_broken(&name_key)
            && let Some(first) = names.insert(group.name.clone(), place.clone())
        {
            wrong.push((place, "group.name", group.name.clone(), first));
        }
        // The default group's socket is called server.socket.
        let single = !loading.sources.contains_key(&socket_key);
        let key = if single { "server.socket" } else { "group.socket" };
        let place = loading.source(if single { key } else { &socket_key });
        if !loading.is_broken(&socket_key)
            && let Some(first) = sockets.insert(group.socket.clone(), place.clone())
        {
            wrong.push((place, key, group.socket.display().to_string(), first));
        }
    }
    for (place, key, name, first) in wrong {
        loading.wrong(place, key, Mistake::Duplicate { name, by: first.to_string() });
    }
}

/// The tables must fit beside the blocks.
fn table_memory(loading: &mut Loading, machine: &Machine) {
    let Some(memory) = machine.memory_bytes else { return };
    if loading.is_broken("index.entries_max") || loading.is_broken("dram.bytes") {
        return;
    }
    let options = &loading.options;
    let tables = options.groups.iter().map(|group| Tables::of(options, group, 0).resident_bytes()).sum::<u64>();
    let (dram, reserve) = (options.dram_bytes, Machine::reserve_bytes(memory));
    let room = memory - reserve;
    if dram <= room && tables > room - dram {
        let name = "index.entries_max";
        let mistake = Mistake::TablesOverMemory { tables, dram, memory, reserve };
        loading.wrong(loading.source(name), name, mistake);
    }
}

fn metrics(loading: &mut Loading) {
    let options = &loading.options;
    let Some(address) = options.metrics_listen else { return };
    if !address.ip().is_loopback() && !options.metrics_public && !loading.is_broken("metrics.public") {
        let mistake = Mistake::NotLoopback { address: address.to_string() };
        loading.wrong(loading.source("metrics.listen"), "metrics.listen", mistake);
    }
}
