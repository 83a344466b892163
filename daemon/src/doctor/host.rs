//! The host's memory, limits and io_uring, judged against the options. Pure.

use lapis_config::{Bytes, EXTENTS_MAX, HugePages, Options, SsdEngine, Tables};
use lapis_transport::control;
use rustix::io::Errno;

use super::{Finding, Level, facts::Facts};

const HUGE_BYTES: u64 = 2 << 20;
/// Descriptors of a connected client: socket, control memory, two doorbells, process, lifeline.
const CLIENT_DESCRIPTORS: u64 = 6;
/// Of the daemon itself, its devices apart: memory of a group, rings, sockets, connections that only ask.
const OWN_DESCRIPTORS: u64 = 64;

pub(super) fn judge(options: &Options, facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![
        memory(options, facts.available_bytes),
        huge_pages(options, facts),
        locked(options, facts.lockable_bytes),
        descriptors(options, facts.descriptors),
    ];
    if !options.ssd_paths.is_empty() {
        let uring = uring(options, facts);
        let registers = uring.level == Level::Ok && options.ssd_engine != SsdEngine::Threads;
        findings.push(uring);
        if registers {
            findings.push(registered(options, facts.lockable_bytes));
        }
        findings.push(machine_id(options, facts.machine_id.as_deref()));
    }
    findings
}

/// What is wrong with the SSD tier stops the daemon, or the tier alone.
pub(super) fn of_tier(options: &Options) -> Level {
    if options.ssd_required { Level::Fail } else { Level::Warn }
}

fn memory(options: &Options, available: Option<u64>) -> Finding {
    let tables: u64 = options.groups.iter().map(|g| Tables::of(options, g, control::BYTES).resident_bytes()).sum();
    let needed = options.dram_bytes + tables;
    let asked = format!("{} of blocks and {} of tables", size(options.dram_bytes), size(tables));
    match available {
        Some(available) if available < needed => Finding::warn(
            "memory",
            format!("{asked}, {} available now", size(available)),
            "lower dram.bytes or free memory, unless a running daemon has it",
        ),
        Some(available) => Finding::ok("memory", format!("{asked}, {} available", size(available))),
        None => Finding::ok("memory", format!("{asked}; what is available is not known here")),
    }
}

fn huge_pages(options: &Options, facts: &Facts) -> Finding {
    const CHECK: &str = "huge pages";
    let needed = options.dram_bytes.div_ceil(HUGE_BYTES);
    if options.dram_huge_pages == HugePages::Off {
        return Finding::ok(CHECK, "not asked for (dram.huge_pages = off)");
    }
    if facts.huge_pages_free >= needed {
        return Finding::ok(CHECK, format!("{} of 2 MiB free, {needed} needed", facts.huge_pages_free));
    }
    let reserved = format!("{} of 2 MiB reserved, {} free, {needed} needed", facts.huge_pages, facts.huge_pages_free);
    let transparent = ["[always]", "[within_size]", "[advise]", "[force]"];
    if transparent.iter().any(|on| facts.shmem_enabled.contains(on)) {
        return Finding::ok(CHECK, format!("{reserved}; transparent ones are permitted for shared memory"));
    }
    Finding::warn(
        CHECK,
        format!("{reserved}, transparent ones not permitted for shared memory; 4 KiB pages will do, slower"),
        format!(
            "sysctl vm.nr_hugepages={}, or echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
            facts.huge_pages + needed.saturating_sub(facts.huge_pages_free)
        ),
    )
}

/// `dram.lock`: the daemon refuses to start without.
fn locked(options: &Options, lockable: Option<u64>) -> Finding {
    const CHECK: &str = "memlock";
    let limit = lockable.map_or("no limit".into(), |bytes| format!("limit {}", Bytes(bytes)));
    match lockable {
        _ if !options.dram_lock => Finding::ok(CHECK, format!("{limit}; nothing is locked (dram.lock = false)")),
        Some(bytes) if bytes < options.dram_bytes => Finding::fail(
            CHECK,
            format!("{limit}, dram.lock needs {}", Bytes(options.dram_bytes)),
            "LimitMEMLOCK=infinity in the unit, ulimit -l unlimited in a shell, or dram.lock = false",
        ),
        _ => Finding::ok(CHECK, format!("{limit}, dram.lock needs {}", Bytes(options.dram_bytes))),
    }
}

/// Each device's ring registers the whole arena, and each registration counts against the limit.
fn registered(options: &Options, lockable: Option<u64>) -> Finding {
    const CHECK: &str = "registration";
    let needed = options.dram_bytes.saturating_mul(options.ssd_paths.len() as u64);
    match lockable {
        Some(bytes) if bytes < needed => Finding::warn(
            CHECK,
            format!("memlock limit {}, {} would be registered with io_uring", Bytes(bytes), Bytes(needed)),
            "LimitMEMLOCK=infinity in the unit or ulimit -l unlimited in a shell; else every operation pins its memory",
        ),
        Some(bytes) => Finding::ok(CHECK, format!("memlock limit {}, {} needed", Bytes(bytes), Bytes(needed))),
        None => Finding::ok(CHECK, "no memlock limit"),
    }
}

fn descriptors(options: &Options, limit: Option<u64>) -> Finding {
    const CHECK: &str = "open files";
    let group = EXTENTS_MAX as u64 + options.server_clients_max * CLIENT_DESCRIPTORS;
    let needed = options.groups.len() as u64 * group + options.ssd_paths.len() as u64 * 4 + OWN_DESCRIPTORS;
    match limit {
        Some(limit) if limit < needed => Finding::warn(
            CHECK,
            format!("hard limit {limit}, {needed} with server.clients_max = {} connected", options.server_clients_max),
            format!("LimitNOFILE={needed} in the unit, or lower server.clients_max"),
        ),
        Some(limit) => Finding::ok(CHECK, format!("hard limit {limit}, at most {needed} needed")),
        None => Finding::ok(CHECK, "no limit"),
    }
}

fn uring(options: &Options, facts: &Facts) -> Finding {
    const CHECK: &str = "io_uring";
    let engine = options.ssd_engine;
    let Err(errno) = facts.uring else {
        let unused = if engine == SsdEngine::Threads { "; not used (ssd.engine = threads)" } else { "" };
        return Finding::ok(CHECK, format!("allowed{unused}"));
    };
    if engine == SsdEngine::Threads {
        return Finding::ok(
            CHECK,
            format!("{}; not needed (ssd.engine = threads)", refusal(errno, facts.uring_disabled)),
        );
    }
    let cure = match (errno, facts.uring_disabled) {
        (_, Some(1 | 2)) => "sysctl kernel.io_uring_disabled=0",
        (Errno::NOSYS, None) => "a kernel with io_uring, or a seccomp profile that lets its calls pass",
        (Errno::NOMEM, _) => "raise the memlock limit",
        _ => "let the container's seccomp profile pass io_uring_setup, io_uring_enter and io_uring_register",
    };
    let found = refusal(errno, facts.uring_disabled);
    match engine {
        SsdEngine::Uring => Finding::bad(of_tier(options), CHECK, found, format!("{cure}, or ssd.engine = auto")),
        _ => Finding::warn(CHECK, format!("{found}; {} threads a device instead", options.ssd_threads), cure),
    }
}

/// Why there is no ring, in words.
fn refusal(errno: Errno, disabled: Option<u8>) -> String {
    match (errno, disabled) {
        (_, Some(2)) => "forbidden to all (kernel.io_uring_disabled = 2)".into(),
        (Errno::PERM, Some(1)) => "forbidden to this user (kernel.io_uring_disabled = 1)".into(),
        (Errno::PERM | Errno::ACCESS, _) => "forbidden, by a seccomp filter most likely (EPERM)".into(),
        (Errno::NOSYS, _) => "not there: not in the kernel, or hidden by a seccomp filter (ENOSYS)".into(),
        (errno, _) => format!("refused: {errno}"),
    }
}

/// Devices are told apart by host; without a number of its own none would be ours.
fn machine_id(options: &Options, id: Option<&str>) -> Finding {
    const CHECK: &str = "machine-id";
    const ADVICE: &str = "systemd-machine-id-setup, or mount the host's /etc/machine-id into the container";
    match id {
        Some(id) if id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) && id.bytes().any(|b| b != b'0') => {
            Finding::ok(CHECK, "there")
        }
        Some(id) => {
            let found = format!("/etc/machine-id holds {:?}, which is none", short(id));
            Finding::bad(of_tier(options), CHECK, found, ADVICE)
        }
        None => Finding::bad(of_tier(options), CHECK, "/etc/machine-id cannot be read", ADVICE),
    }
}

/// As much of a foreign text as a line has room for.
fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

/// To a tenth of GiB, or of MiB where that is less.
fn size(bytes: u64) -> String {
    let (unit, name) = if bytes >= 1 << 30 { (1u64 << 30, "GiB") } else { (1 << 20, "MiB") };
    format!("{:.1} {name}", bytes as f64 / unit as f64)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use lapis_config::{LoadInput, Options};

    use super::*;

    fn options(change: impl FnOnce(&mut Options)) -> Options {
        let mut options = Options::load(&LoadInput::default()).expect("the defaults hold together").options;
        options.ssd_paths = vec![PathBuf::from("/a"), PathBuf::from("/b")];
        change(&mut options);
        options
    }

    /// A host on which nothing is wrong.
    fn good() -> Facts {
        Facts {
            lockable_bytes: None,
            descriptors: Some(1 << 20),
            huge_pages: 4096,
            huge_pages_free: 4096,
            shmem_enabled: "always within_size advise [never] deny force".into(),
            uring_disabled: Some(0),
            uring: Ok(()),
            available_bytes: Some(64 << 30),
            machine_id: Some("0123456789abcdef0123456789abcdef".into()),
        }
    }

    fn finding(options: &Options, facts: &Facts, check: &str) -> Finding {
        let findings = judge(options, facts);
        for finding in &findings {
            assert_eq!(finding.level == Level::Ok, finding.advice.is_none(), "{finding}");
            assert!(!finding.to_string().contains('\n'), "{finding}");
        }
        findings.into_iter().find(|finding| finding.check == check).unwrap_or_else(|| panic!("no {check}"))
    }

    #[test]
    fn a_good_host_is_found_good() {
        let findings = judge(&options(|o| o.dram_lock = true), &good());
        assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
        assert_eq!(findings.len(), 7);
        assert_eq!(
            judge(&options(|o| o.ssd_paths.clear()), &good()).len(),
            4,
            "without a tier nobody asks for io_uring"
        );
    }

    #[test]
    fn memory_that_others_have_is_said() {
        let found = finding(&options(|_| ()), &Facts { available_bytes: Some(1 << 30), ..good() }, "memory");
        assert!(found.level == Level::Warn && found.found.contains("1.0 GiB available"), "{found}");
        let found = finding(&options(|_| ()), &Facts { available_bytes: None, ..good() }, "memory");
        assert_eq!(found.level, Level::Ok);
    }

    #[test]
    fn without_reserved_huge_pages_transparent_ones_do_and_without_both_the_number_is_named() {
        let facts = Facts { huge_pages: 100, huge_pages_free: 90, ..good() };
        let found = finding(&options(|_| ()), &facts, "huge pages");
        assert!(found.level == Level::Warn && found.to_string().contains("vm.nr_hugepages=2058"), "{found}");
        let advise = Facts { shmem_enabled: "always within_size [advise] never".into(), ..facts.clone() };
        assert_eq!(finding(&options(|_| ()), &advise, "huge pages").level, Level::Ok);
        assert_eq!(finding(&options(|o| o.dram_huge_pages = HugePages::Off), &facts, "huge pages").level, Level::Ok);
    }

    #[test]
    fn a_memlock_limit_fails_a_lock_and_only_slows_registered_memory() {
        let facts = Facts { lockable_bytes: Some(6 << 30), ..good() };
        assert_eq!(finding(&options(|o| o.dram_lock = true), &facts, "memlock").level, Level::Ok);
        let found = finding(&options(|_| ()), &facts, "registration");
        assert!(found.level == Level::Warn && found.found.contains("8GiB would be registered"), "{found}");
        let facts = Facts { lockable_bytes: Some(8 << 20), ..good() };
        let found = finding(&options(|o| o.dram_lock = true), &facts, "memlock");
        assert!(found.level == Level::Fail && found.found.contains("limit 8MiB"), "{found}");
        assert_eq!(finding(&options(|_| ()), &facts, "memlock").level, Level::Ok);
    }

    #[test]
    fn few_descriptors_are_said_with_the_number_that_is_needed() {
        let found = finding(&options(|_| ()), &Facts { descriptors: Some(1024), ..good() }, "open files");
        assert!(found.level == Level::Warn && found.to_string().contains("LimitNOFILE=1864"), "{found}");
        let unlimited = Facts { descriptors: None, ..good() };
        assert_eq!(finding(&options(|_| ()), &unlimited, "open files").level, Level::Ok);
    }

    #[test]
    fn a_forbidden_ring_is_said_with_its_reason_and_what_is_used_instead() {
        let refused = |errno, disabled| Facts { uring: Err(errno), uring_disabled: disabled, ..good() };
        let cases = [
            (refused(Errno::PERM, Some(2)), "io_uring_disabled = 2", "io_uring_disabled=0"),
            (refused(Errno::PERM, Some(1)), "io_uring_disabled = 1", "io_uring_disabled=0"),
            (refused(Errno::PERM, Some(0)), "seccomp", "seccomp profile"),
            (refused(Errno::NOSYS, None), "ENOSYS", "a kernel with io_uring"),
        ];
        for (facts, why, cure) in cases {
            let found = finding(&options(|_| ()), &facts, "io_uring");
            assert_eq!(found.level, Level::Warn);
            assert!(found.found.contains(why) && found.found.contains("32 threads a device instead"), "{found}");
            assert!(found.advice.as_deref().is_some_and(|advice| advice.contains(cure)), "{found}");
            let of = |change: fn(&mut Options)| finding(&options(change), &facts, "io_uring").level;
            assert_eq!(of(|o| o.ssd_engine = SsdEngine::Uring), Level::Fail);
            assert_eq!(of(|o| (o.ssd_engine, o.ssd_required) = (SsdEngine::Uring, false)), Level::Warn);
            assert_eq!(of(|o| o.ssd_engine = SsdEngine::Threads), Level::Ok);
        }
    }

    #[test]
    fn a_host_without_a_number_can_own_no_device() {
        for id in [None, Some(""), Some("uninitialized"), Some("00000000000000000000000000000000")] {
            let facts = Facts { machine_id: id.map(str::to_owned), ..good() };
            assert_eq!(finding(&options(|_| ()), &facts, "machine-id").level, Level::Fail, "{id:?}");
            assert_eq!(finding(&options(|o| o.ssd_required = false), &facts, "machine-id").level, Level::Warn);
        }
    }
}
