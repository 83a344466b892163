//! NVMe controllers that the kernel does not drive, as they are named in `ssd.paths`: "pci:0000:65:00.0", with "/2" after it
//! for another namespace than the first. Pure.

use std::{fmt, path::Path};

use crate::topology::sysfs::is_pci_address;

const PREFIX: &str = "pci:";

/// A namespace of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// "0000:65:00.0", in small letters.
    pub address: String,
    /// From 1 on.
    pub namespace: u32,
}

impl Controller {
    /// Whether a path is meant to be a controller, well written or not.
    pub fn is_meant(path: &Path) -> bool {
        path.to_string_lossy().starts_with(PREFIX)
    }

    /// `None`: it is not a controller, or not well written.
    pub fn of_path(path: &Path) -> Option<Self> {
        Self::parse(path.to_str()?)
    }

    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(PREFIX)?;
        let (address, namespace) = rest.split_once('/').unwrap_or((rest, "1"));
        let plain = namespace.bytes().all(|byte| byte.is_ascii_digit());
        // The highest number stands for all namespaces at once.
        let namespace = namespace.parse().ok().filter(|number| plain && (1..u32::MAX).contains(number))?;
        // As lspci says it of a machine with one domain.
        let address = if address.split(':').count() == 2 { format!("0000:{address}") } else { address.to_owned() };
        is_pci_address(&address).then(|| Self { address: address.to_lowercase(), namespace })
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, namespace } = self;
        match namespace {
            1 => write!(f, "{PREFIX}{address}"),
            _ => write!(f, "{PREFIX}{address}/{namespace}"),
        }
    }
}

#[test]
fn a_controller_is_written_in_one_way_and_read_in_some() {
    let read = |text: &str| Controller::parse(text).map(|controller| controller.to_string());
    for text in ["pci:0000:65:00.0", "pci:65:00.0", "pci:0000:65:00.0/1"] {
        assert_eq!(read(text).as_deref(), Some("pci:0000:65:00.0"), "{text}");
    }
    assert_eq!(read("pci:0000:E1:00.0/12").as_deref(), Some("pci:0000:e1:00.0/12"));
    let broken = ["pci:", "pci:65", "pci:0000:65:00.0/0", "pci:0000:65:00.0/x", "pci:0000:65:00.0/+1", "0000:65:00.0"];
    for text in broken.into_iter().chain(["pci:0000:65:00.0/4294967295", "pci:0000:65:00.0/", "/dev/nvme0n1"]) {
        assert_eq!(read(text), None, "{text}");
    }
    assert!(Controller::is_meant(Path::new("pci:x")) && !Controller::is_meant(Path::new("/pci:x")));
}
