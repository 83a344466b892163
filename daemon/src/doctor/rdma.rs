//! Whether blocks can go between hosts by RDMA, by which address of which NIC, and what is missing if not. Nothing here stops
//! a daemon: what cannot go by RDMA goes by TCP.

use std::io;

use lapis_config::{Bytes, Options, Rdma};
use lapis_transport::peers::rdma::{
    rank::Rank,
    survey::{self, Survey, Surveyed},
};

use super::Finding;
use crate::limits;

const CHECK: &str = "rdma";
const PACKAGES: &str = "apt install libibverbs1 ibverbs-providers, or the driver package of the NIC's maker";

pub(super) fn examine(options: &Options) -> Vec<Finding> {
    if options.peers_rdma == Rdma::Off {
        return vec![Finding::ok(CHECK, "not asked for (peers.rdma = off)")];
    }
    if options.peers_encrypt_blocks {
        return vec![Finding::ok(CHECK, "not used: it does not encrypt blocks (peers.encrypt_blocks = true)")];
    }
    judge(options, &survey::survey(&options.peers_rdma_devices), limits::lockable_bytes())
}

/// Pure. `lockable`: bytes that the daemon may lock, `None` for all.
fn judge(options: &Options, survey: &Survey, lockable: Option<u64>) -> Vec<Finding> {
    let devices = match &survey.devices {
        Ok(devices) => devices,
        Err(error) => {
            let found = format!("/sys/class/infiniband cannot be read: {error}; blocks go by TCP");
            return vec![Finding::warn(CHECK, found, "mount /sys, and let the daemon's user read it")];
        }
    };
    let mut findings: Vec<Finding> = Vec::new();
    for missing in options.peers_rdma_devices.iter().filter(|name| !devices.contains(name)) {
        let there =
            if devices.is_empty() { "there is none".into() } else { format!("there are {}", devices.join(", ")) };
        let advice = "load the NIC's driver, or correct peers.rdma_devices";
        findings.push(Finding::warn(CHECK, format!("no such device; {there}"), advice).of(missing));
    }
    if devices.is_empty() {
        let found = match &survey.library {
            Ok(()) => "no device in /sys/class/infiniband; blocks go by TCP".into(),
            Err(error) => format!("no device in /sys/class/infiniband, and {error}; blocks go by TCP"),
        };
        findings.push(Finding::ok(CHECK, found));
        return findings;
    }
    if let Err(error) = &survey.library {
        findings.push(Finding::warn(CHECK, format!("{error}; blocks go by TCP"), PACKAGES));
    }
    findings.extend(survey.addresses.iter().map(|address| of_address(address, survey.library.is_ok())));
    let used = survey.addresses.iter().filter(|address| matches!(address.verdict, Ok(Ok(())))).count();
    if used > 0 {
        findings.push(locked(options, used, lockable));
    } else if survey.addresses.iter().all(|address| address.verdict.is_err()) {
        let found = format!("none of {} has an address that can be used; blocks go by TCP", devices.join(", "));
        findings.push(Finding::warn(CHECK, found, "bring the port up and give its interface an IP address"));
    }
    findings
}

fn of_address(surveyed: &Surveyed, has_library: bool) -> Finding {
    let candidate = &surveyed.candidate;
    let of = format!("{} port {} index {}", candidate.device, candidate.port, candidate.index);
    let address = format!("{} ({})", candidate.address(), candidate.rank());
    let finding = match &surveyed.verdict {
        Err(unused) => Finding::ok(CHECK, format!("{address} not used: {unused}")),
        // Said once, for all.
        Ok(_) if !has_library => Finding::ok(CHECK, format!("{address} would be used")),
        Ok(Err(error)) => Finding::warn(CHECK, format!("{address} would be used, but {}", why(error)), cure(error)),
        Ok(Ok(())) if candidate.rank() == Rank::LinkLocal => Finding::warn(
            CHECK,
            format!("{address} used, as there is no better one: hosts behind a router do not hear it"),
            "give the interface an IP address",
        ),
        Ok(Ok(())) => Finding::ok(CHECK, format!("{address} used")),
    };
    finding.of(of)
}

fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "its device in /dev/infiniband may not be opened".into(),
        _ => format!("its device cannot be opened: {error}"),
    }
}

fn cure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "give the daemon's user read and write access to /dev/infiniband/uverbs* (a udev rule, or the group that has it)"
        }
        io::ErrorKind::NotFound => PACKAGES,
        io::ErrorKind::NetworkDown => "bring the port up",
        _ => "load ib_uverbs, and let the container or the unit see /dev/infiniband",
    }
}

/// Each NIC has all memory pinned, and each registration counts.
fn locked(options: &Options, nics: usize, lockable: Option<u64>) -> Finding {
    let needed = options.dram_bytes.saturating_mul(nics as u64);
    match lockable {
        Some(bytes) if bytes < needed => Finding::warn(
            CHECK,
            format!("memlock limit {}, {} are to be registered with {nics} NICs", Bytes(bytes), Bytes(needed)),
            "LimitMEMLOCK=infinity in the unit or ulimit -l unlimited in a shell; else what is not registered goes by TCP",
        ),
        Some(bytes) => Finding::ok(CHECK, format!("memlock limit {}, {} needed", Bytes(bytes), Bytes(needed))),
        None => Finding::ok(CHECK, format!("{} of memory can be registered: no memlock limit", Bytes(needed))),
    }
}

#[cfg(test)]
mod tests {
    use lapis_transport::peers::rdma::{
        rank::{Candidate, Layer, Unused},
        verbs::NoVerbs,
    };

    use super::{super::Level, *};

    fn address(index: u16, gid: [u8; 16], verdict: Result<io::Result<()>, Unused>) -> Surveyed {
        let candidate = Candidate {
            device: "rxe0".into(),
            port: 1,
            layer: Layer::Ethernet,
            state: "ACTIVE".into(),
            index,
            gid,
            is_v2: true,
            interface: None,
        };
        Surveyed { candidate, verdict }
    }

    fn ip4() -> [u8; 16] {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 77, 0, 1]
    }

    fn local() -> [u8; 16] {
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    }

    fn good() -> Survey {
        let better = Unused::Better { index: 1, rank: Rank::RoceV2Ip4 };
        let addresses = vec![address(0, local(), Err(better)), address(1, ip4(), Ok(Ok(())))];
        Survey { devices: Ok(vec!["rxe0".into()]), library: Ok(()), addresses }
    }

    fn no_library() -> Result<(), NoVerbs> {
        Err(NoVerbs::Library { reason: "libibverbs.so.1: cannot open shared object file".into() })
    }

    fn said(survey: &Survey, lockable: Option<u64>, named: &[&str]) -> Vec<(Level, String)> {
        let peers_rdma_devices = named.iter().map(|&name| name.to_owned()).collect();
        let options = Options { peers_rdma_devices, ..Options::default() };
        judge(&options, survey, lockable).into_iter().map(|finding| (finding.level, finding.to_string())).collect()
    }

    fn has(said: &[(Level, String)], level: Level, words: &[&str]) -> bool {
        said.iter().any(|(of, text)| *of == level && words.iter().all(|words| text.contains(words)))
    }

    #[test]
    fn every_address_is_told_with_why_it_is_used_or_not() {
        let said = said(&good(), None, &[]);
        assert!(has(&said, Level::Ok, &["rxe0 port 1 index 1: 10.77.0.1 (RoCE v2, IPv4) used"]), "{said:?}");
        let other = "rxe0 port 1 index 0: fe80::1 (RoCE, link-local) not used: index 1 of its port is preferred";
        assert!(has(&said, Level::Ok, &[other]), "{said:?}");
        assert!(said.iter().all(|(level, _)| *level == Level::Ok));
    }

    #[test]
    fn a_host_without_a_device_is_as_it_should_be() {
        for library in [Ok(()), no_library()] {
            let lacks = library.is_err();
            let said = said(&Survey { devices: Ok(Vec::new()), library, addresses: Vec::new() }, None, &[]);
            assert_eq!((said.len(), said[0].0), (1, Level::Ok));
            assert!(
                said[0].1.contains("blocks go by TCP") && said[0].1.contains("libibverbs.so.1") == lacks,
                "{said:?}"
            );
        }
    }

    #[test]
    fn a_device_without_the_library_is_said_with_the_packages() {
        let survey = Survey { library: no_library(), ..good() };
        let said = said(&survey, None, &[]);
        assert!(has(&said, Level::Warn, &["libibverbs.so.1", "apt install libibverbs1 ibverbs-providers"]), "{said:?}");
        assert!(has(&said, Level::Ok, &["10.77.0.1 (RoCE v2, IPv4) would be used"]), "{said:?}");
    }

    #[test]
    fn a_device_that_cannot_be_opened_is_said_with_what_to_do() {
        let cases = [
            (io::ErrorKind::PermissionDenied, "/dev/infiniband/uverbs*"),
            (io::ErrorKind::NotFound, "ibverbs-providers"),
            (io::ErrorKind::NetworkDown, "bring the port up"),
            (io::ErrorKind::Other, "ib_uverbs"),
        ];
        for (kind, cure) in cases {
            let survey = Survey { addresses: vec![address(1, ip4(), Ok(Err(kind.into())))], ..good() };
            let said = said(&survey, None, &[]);
            assert!(has(&said, Level::Warn, &["would be used, but", cure]), "{said:?}");
        }
    }

    #[test]
    fn what_makes_rdma_slow_or_impossible_is_a_warning() {
        let few = said(&good(), Some(8 << 20), &[]);
        assert!(has(&few, Level::Warn, &["memlock limit 8MiB", "LimitMEMLOCK=infinity"]), "{few:?}");
        let link = said(&Survey { addresses: vec![address(0, local(), Ok(Ok(())))], ..good() }, None, &[]);
        assert!(has(&link, Level::Warn, &["link-local", "give the interface an IP address"]), "{link:?}");
        let down = vec![address(1, ip4(), Err(Unused::State("DOWN".into())))];
        let down = said(&Survey { addresses: down, ..good() }, None, &[]);
        assert!(has(&down, Level::Warn, &["none of rxe0 has an address"]), "{down:?}");
        let named = said(&good(), None, &["mlx5_7"]);
        assert!(
            has(&named, Level::Warn, &["mlx5_7: no such device; there are rxe0", "peers.rdma_devices"]),
            "{named:?}"
        );
    }

    #[test]
    fn rdma_that_is_not_wanted_is_not_looked_for() {
        let off = Options { peers_rdma: Rdma::Off, ..Options::default() };
        assert_eq!(examine(&off), [Finding::ok(CHECK, "not asked for (peers.rdma = off)")]);
    }
}
