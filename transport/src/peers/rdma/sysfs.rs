//! The NICs of this host as the kernel shows them in files: no library is needed, nor any right to use them.

use std::{io, path::Path};

use lapis_config::topology::sysfs::{names, text};

use super::rank::{Candidate, Layer};

const SYS: &str = "/sys";
const DEVICES: &str = "/sys/class/infiniband";
const INTERFACES: &str = "/sys/class/net";

/// Every address of every port, by device, port and index. No folder: no device.
pub fn candidates() -> io::Result<Vec<Candidate>> {
    candidates_in(Path::new(SYS))
}

/// Those of the host whose `/sys` is at `root`.
pub fn candidates_in(root: &Path) -> io::Result<Vec<Candidate>> {
    found_in(&root.join("class/infiniband"), &root.join("class/net"))
}

/// Every device, those without an address too.
pub fn devices() -> io::Result<Vec<String>> {
    names(Path::new(DEVICES))
}

/// The NUMA node of a device; `None` where there is but one, or of a device that is none of the bus.
pub(super) fn node_of(device: &str) -> Option<u32> {
    text(&Path::new(DEVICES).join(device).join("device/numa_node"))?.trim().parse().ok()
}

/// Where an address is in a port's table now: interfaces that come and go move it.
pub(super) fn index_of(device: &str, port: u8, wanted: [u8; 16], is_v2: bool) -> Option<u16> {
    let (mut found, folder) = (Vec::new(), Path::new(DEVICES).join(device).join("ports").join(port.to_string()));
    of_port(device, port, &folder, Path::new(INTERFACES), &mut found).ok()?;
    found.iter().find(|c| c.gid == wanted && c.is_v2 == is_v2).map(|candidate| candidate.index)
}

fn found_in(devices: &Path, interfaces: &Path) -> io::Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for device in names(devices)? {
        let ports = devices.join(&device).join("ports");
        for port in numbers::<u8>(&ports)? {
            of_port(&device, port, &ports.join(port.to_string()), interfaces, &mut found)?;
        }
    }
    Ok(found)
}

fn of_port(device: &str, port: u8, folder: &Path, interfaces: &Path, found: &mut Vec<Candidate>) -> io::Result<()> {
    let state = text(&folder.join("state")).unwrap_or_default();
    let state = state.split_once(": ").map_or(state.as_str(), |(_, name)| name).to_owned();
    let is_iwarp = text(&folder.join("../../node_type")).is_some_and(|kind| kind.contains("RNIC"));
    let layer = match text(&folder.join("link_layer")).as_deref() {
        _ if is_iwarp => Layer::Iwarp,
        Some("InfiniBand") => Layer::InfiniBand,
        _ => Layer::Ethernet,
    };
    for index in numbers::<u16>(&folder.join("gids"))? {
        let file = |name: &str| text(&folder.join(name).join(index.to_string()));
        let Some(gid) = file("gids").as_deref().and_then(gid).filter(|gid| *gid != [0; 16]) else { continue };
        let is_v2 = file("gid_attrs/types").is_some_and(|kind| kind.contains("v2"));
        let interface = file("gid_attrs/ndevs").filter(|name| !name.is_empty());
        let interface = interface.map(|name| {
            let here = interfaces.join(&name).exists();
            (name, here)
        });
        let (device, state) = (device.to_owned(), state.clone());
        found.push(Candidate { device, port, layer, state, index, gid, is_v2, interface });
    }
    Ok(())
}

/// "0000:0000:0000:0000:0000:ffff:0a4d:0001".
fn gid(text: &str) -> Option<[u8; 16]> {
    Some(text.parse::<std::net::Ipv6Addr>().ok()?.octets())
}

fn numbers<T: std::str::FromStr + Ord>(folder: &Path) -> io::Result<Vec<T>> {
    let mut numbers: Vec<T> = names(folder)?.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        }
    }

    #[test]
    fn addresses_are_found_with_their_port_kind_and_interface() {
        let root = tempfile::tempdir().expect("a folder");
        let port = "ib/rxe0/ports/1";
        write(
            root.path(),
            &[
                (&format!("{port}/state"), "4: ACTIVE\n"),
                (&format!("{port}/link_layer"), "Ethernet\n"),
                (&format!("{port}/gids/0"), "fe80:0000:0000:0000:a8f3:1eff:fe05:0bd8\n"),
                (&format!("{port}/gids/1"), "0000:0000:0000:0000:0000:ffff:0a4d:0001\n"),
                (&format!("{port}/gids/2"), "0000:0000:0000:0000:0000:0000:0000:0000\n"),
                (&format!("{port}/gids/10"), "0000:0000:0000:0000:0000:ffff:0a4d:0002\n"),
                (&format!("{port}/gid_attrs/types/0"), "IB/RoCE v1\n"),
                (&format!("{port}/gid_attrs/types/1"), "RoCE v2\n"),
                (&format!("{port}/gid_attrs/types/10"), "RoCE v2\n"),
                (&format!("{port}/gid_attrs/ndevs/1"), "v0\n"),
                (&format!("{port}/gid_attrs/ndevs/10"), "v1\n"),
                ("ib/mlx5_0/ports/2/state", "1: DOWN\n"),
                ("ib/mlx5_0/ports/2/link_layer", "InfiniBand\n"),
                ("ib/mlx5_0/ports/2/gids/0", "fe80:0000:0000:0000:9803:9b03:0001:0002\n"),
                ("ib/rxe0/node_type", "1: CA\n"),
                ("ib/iw0/node_type", "4: RNIC\n"),
                ("ib/iw0/ports/1/link_layer", "Ethernet\n"),
                ("ib/iw0/ports/1/gids/0", "aabb:0000:0000:0000:0000:0000:0000:0000\n"),
                ("net/v0/mtu", "9000\n"),
            ],
        );
        let found = found_in(&root.path().join("ib"), &root.path().join("net")).expect("readable");
        let short: Vec<_> = found.iter().map(|c| (c.device.as_str(), c.port, c.index, c.is_v2, c.layer)).collect();
        let ethernet = Layer::Ethernet;
        assert_eq!(
            short,
            [
                ("iw0", 1, 0, false, Layer::Iwarp),
                ("mlx5_0", 2, 0, false, Layer::InfiniBand),
                ("rxe0", 1, 0, false, ethernet),
                ("rxe0", 1, 1, true, ethernet),
                ("rxe0", 1, 10, true, ethernet)
            ]
        );
        assert_eq!((found[1].state.as_str(), found[3].state.as_str()), ("DOWN", "ACTIVE"));
        assert_eq!(found[2].interface, None);
        assert_eq!(found[3].interface, Some(("v0".into(), true)));
        assert_eq!(found[4].interface, Some(("v1".into(), false)));
        assert_eq!(found[3].address().to_string(), "10.77.0.1");
    }

    #[test]
    fn a_host_without_any_is_no_error() {
        let root = tempfile::tempdir().expect("a folder");
        assert_eq!(found_in(&root.path().join("ib"), root.path()).expect("readable"), []);
    }
}
