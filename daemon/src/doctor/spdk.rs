//! Whether the controllers of the SSD tier can be SPDK's: its libraries, huge pages, and by which driver each is had. Looks
//! first, judges without I/O; no environment is started, no controller touched.

use std::path::Path;

use lapis_config::{
    Controller, Options,
    topology::{Kind, Topology},
};
use lapis_ssd::spdk::{self, NoSpdk, find::Libraries};

use super::{Finding, facts::Facts, host::of_tier};

const CHECK: &str = "spdk";
/// Huge pages of 2 MiB for a controller: queues, requests, memory to copy by. DPDK takes more as it grows.
const PAGES: u64 = 64;
const BUILD: &str = "build SPDK with shared libraries (docs/spdk.md), or give their folder with ssd.spdk_library";

/// What was found of one controller.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// Nothing with that address.
    Nothing,
    /// Something else than an NVMe controller.
    Other,
    Nvme {
        driver: Option<String>,
        iommu_group: Option<String>,
    },
}

pub(super) fn examine(options: &Options, facts: &Facts) -> Vec<Finding> {
    let libraries = spdk::look(options.ssd_spdk_library.as_deref());
    let controllers: Vec<Controller> = options.ssd_paths.iter().filter_map(|path| Controller::of_path(path)).collect();
    let topology = if controllers.is_empty() { Topology::default() } else { Topology::here() };
    let look = |controller: Controller| {
        let found = look(Path::new("/sys"), &topology, &controller.address);
        (controller, found)
    };
    judge(options, &libraries, facts.huge_pages_free, &controllers.into_iter().map(look).collect::<Vec<_>>())
}

fn look(root: &Path, topology: &Topology, address: &str) -> Found {
    let folder = root.join("bus/pci/devices").join(address);
    match topology.device(address) {
        Some(device) if matches!(device.kind, Kind::Nvme { .. }) => {
            let group = std::fs::read_link(folder.join("iommu_group")).ok();
            let iommu_group = group.and_then(|group| Some(group.file_name()?.to_string_lossy().into_owned()));
            Found::Nvme { driver: device.driver.clone(), iommu_group }
        }
        None if !folder.exists() => Found::Nothing,
        _ => Found::Other,
    }
}

fn judge(
    options: &Options,
    libraries: &Result<Libraries, NoSpdk>,
    huge_pages_free: u64,
    controllers: &[(Controller, Found)],
) -> Vec<Finding> {
    let version = |found: &Libraries| {
        let folder = found.nvme.parent().unwrap_or(Path::new("/")).display();
        format!("libspdk_env_dpdk {} and libspdk_nvme {} in {folder}", found.env_version, found.nvme_version)
    };
    if controllers.is_empty() {
        let found = match libraries {
            Ok(found) => format!("{}, not used: no path is a controller (pci:0000:65:00.0)", version(found)),
            Err(error) => format!("not asked for: no path is a controller; {error}"),
        };
        return vec![Finding::ok(CHECK, found)];
    }
    let mut findings = vec![match libraries {
        Ok(found) => Finding::ok(CHECK, version(found)),
        Err(error) => Finding::bad(of_tier(options), CHECK, error.to_string(), BUILD),
    }];
    let needed = PAGES * controllers.len() as u64;
    if huge_pages_free < needed {
        let found = format!("{huge_pages_free} huge pages of 2 MiB free, {needed} needed beside those of dram.bytes");
        let advice = format!("sysctl vm.nr_hugepages=N with {needed} more, or HUGEMEM in scripts/setup.sh");
        let level = if huge_pages_free == 0 { of_tier(options) } else { super::Level::Warn };
        findings.push(Finding::bad(level, CHECK, found, advice));
    }
    findings
        .extend(controllers.iter().map(|(controller, found)| of_controller(options, controller, found).of(controller)));
    findings
}

fn of_controller(options: &Options, controller: &Controller, found: &Found) -> Finding {
    let bad = |found: String, advice: String| Finding::bad(of_tier(options), CHECK, found, advice);
    let address = &controller.address;
    let bind = format!("PCI_ALLOWED={address} scripts/setup.sh in SPDK's folder binds it to vfio-pci");
    match found {
        Found::Nothing => bad("no such PCI device".into(), "lspci -D -d ::0108 lists NVMe controllers".into()),
        Found::Other => bad("is no NVMe controller".into(), "lspci -D -d ::0108 lists those that are".into()),
        Found::Nvme { driver: None, .. } => bad("has no driver".into(), bind),
        Found::Nvme { driver: Some(driver), .. } if driver == "nvme" => bad(
            "is the kernel's (driver nvme)".into(),
            format!("make sure that nothing on it is mounted, then: {bind}"),
        ),
        Found::Nvme { driver: Some(driver), iommu_group } if driver == "vfio-pci" => match iommu_group {
            Some(group) => {
                Finding::ok(CHECK, format!("bound to vfio-pci, IOMMU group {group}: /dev/vfio/{group} must be ours"))
            }
            None => Finding::warn(
                CHECK,
                "bound to vfio-pci without an IOMMU: only huge pages are reached, the rest is copied, and nothing keeps it off \
                 other memory",
                "switch the IOMMU on (intel_iommu=on, or in the firmware)",
            ),
        },
        Found::Nvme { driver: Some(driver), .. } => Finding::warn(
            CHECK,
            format!("bound to {driver}: only huge pages are reached, and nothing keeps it off other memory"),
            format!("switch the IOMMU on, then: {bind}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    fn libraries() -> Result<Libraries, NoSpdk> {
        Ok(Libraries {
            env: "/opt/spdk/lib/libspdk_env_dpdk.so.16.1".into(),
            nvme: "/opt/spdk/lib/libspdk_nvme.so.17.0".into(),
            env_version: "16.1".into(),
            nvme_version: "17.0".into(),
        })
    }

    fn none() -> Result<Libraries, NoSpdk> {
        Err(NoSpdk::NotFound { looked: "/usr/lib".into() })
    }

    fn nvme(driver: &str, group: Option<&str>) -> Found {
        Found::Nvme { driver: Some(driver.into()), iommu_group: group.map(Into::into) }
    }

    fn said(
        libraries: &Result<Libraries, NoSpdk>,
        pages: u64,
        found: &[Found],
        required: bool,
    ) -> Vec<(Level, String)> {
        let controller = Controller::parse("pci:0000:65:00.0").expect("an address");
        let controllers: Vec<_> = found.iter().map(|found| (controller.clone(), found.clone())).collect();
        let options = Options { ssd_required: required, ..Options::default() };
        let findings = judge(&options, libraries, pages, &controllers);
        findings.into_iter().map(|finding| (finding.level, finding.to_string())).collect()
    }

    #[test]
    fn a_controller_that_spdk_can_have_is_found_good() {
        let found = said(&libraries(), 64, &[nvme("vfio-pci", Some("41"))], true);
        assert!(found.iter().all(|(level, _)| *level == Level::Ok), "{found:?}");
        assert!(found[0].1.contains("libspdk_env_dpdk 16.1 and libspdk_nvme 17.0 in /opt/spdk/lib"), "{found:?}");
        assert!(found[1].1.contains("pci:0000:65:00.0: bound to vfio-pci, IOMMU group 41"), "{found:?}");
    }

    #[test]
    fn a_host_that_wants_none_is_told_whether_it_could() {
        for (libraries, words) in [(libraries(), "libspdk_nvme 17.0"), (none(), "docs/spdk.md")] {
            let found = said(&libraries, 0, &[], true);
            assert!(found.len() == 1 && found[0].0 == Level::Ok && found[0].1.contains(words), "{found:?}");
        }
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_run() {
        let good = [nvme("vfio-pci", Some("41"))];
        let missing = said(&none(), 64, &good, true);
        assert!(missing[0].0 == Level::Fail && missing[0].1.contains("ssd.spdk_library"), "{missing:?}");
        assert_eq!(said(&none(), 64, &good, false)[0].0, Level::Warn, "it may go without the tier");
        let few = said(&libraries(), 63, &good, true);
        assert!(few[1].0 == Level::Warn && few[1].1.contains("63 huge pages of 2 MiB free, 64 needed"), "{few:?}");
        assert_eq!(said(&libraries(), 0, &good, true)[1].0, Level::Fail, "DPDK does not start");
        let cases = [
            (Found::Nothing, Level::Fail, "no such PCI device"),
            (Found::Other, Level::Fail, "is no NVMe controller"),
            (nvme("nvme", None), Level::Fail, "PCI_ALLOWED=0000:65:00.0 scripts/setup.sh"),
            (Found::Nvme { driver: None, iommu_group: None }, Level::Fail, "has no driver"),
            (nvme("vfio-pci", None), Level::Warn, "without an IOMMU"),
            (nvme("uio_pci_generic", None), Level::Warn, "bound to uio_pci_generic"),
        ];
        for (found, level, words) in cases {
            let said = said(&libraries(), 64, &[found], true);
            assert!(said[1].0 == level && said[1].1.contains(words), "{said:?} has no {words:?}");
        }
    }

    #[test]
    fn a_controller_is_looked_up_in_the_files_of_the_kernel() {
        let sys = tempfile::tempdir().expect("a folder");
        let root = sys.path();
        let device = |address: &str, class: &str| {
            let folder = root.join("bus/pci/devices").join(address);
            std::fs::create_dir_all(&folder).expect("room");
            std::fs::write(folder.join("class"), class).expect("room");
            folder
        };
        let nvme = device("0000:65:00.0", "0x010802");
        device("0000:66:00.0", "0x020000");
        std::os::unix::fs::symlink("../../../kernel/iommu_groups/41", nvme.join("iommu_group")).expect("a link");
        std::os::unix::fs::symlink("../../../bus/pci/drivers/vfio-pci", nvme.join("driver")).expect("a link");
        let topology = Topology::read(root);
        let found = |address: &str| look(root, &topology, address);
        let bound = Found::Nvme { driver: Some("vfio-pci".into()), iommu_group: Some("41".into()) };
        assert_eq!(found("0000:65:00.0"), bound);
        assert_eq!((found("0000:66:00.0"), found("0000:67:00.0")), (Found::Other, Found::Nothing));
    }
}
