//! The one reader of where things lie, from the kernel's files. The root is a parameter (`/sys`), so that a made-up host can
//! be read as well. What is broken is said and passed over: nothing here fails.

use std::{
    fs, io,
    path::{Component, Path},
    str::FromStr,
};

use super::{Device, Kind, Node, Topology, Vendor};

const CLASS_GPU: [u32; 2] = [0x0300, 0x0302];
const CLASS_NVME: u32 = 0x0108;
const VENDOR_NVIDIA: u32 = 0x10de;
const VENDOR_AMD: u32 = 0x1002;
/// Devices below devices: a disk of a volume group of a RAID is three deep.
const SLAVES_DEEP: usize = 4;

impl Topology {
    /// This host.
    pub fn here() -> Self {
        Self::read(Path::new("/sys"))
    }

    /// The host whose `/sys` is at `root`.
    pub fn read(root: &Path) -> Self {
        let mut strange = Vec::new();
        let nodes = nodes(root, &mut strange);
        let mut devices = devices(root, &mut strange);
        let only = if let [node] = &nodes[..] { Some(node.number) } else { None };
        for device in &mut devices {
            if let Some(node) = device.node.filter(|number| nodes.iter().all(|node| node.number != *number)) {
                strange.push(format!("{} is said to be at node {node}, which there is not", device.address));
                device.node = None;
            }
            device.node = device.node.or(only);
        }
        let virtual_rdma = bind_soft_rdma(root, &mut devices);
        Self { nodes, devices, virtual_rdma, strange }
    }
}

/// The entries of a folder by name; none where there is no folder.
pub fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names: Vec<String> =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<io::Result<_>>()?;
    names.sort_unstable();
    Ok(names)
}

/// A file that cannot be read is one that says nothing: an entry of a table that is not in use is an error to read.
pub fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number<T: FromStr>(path: &Path) -> Option<T> {
    text(path)?.parse().ok()
}

/// "0x108600" and the like.
fn hex(path: &Path) -> Option<u32> {
    u32::from_str_radix(text(path)?.trim_start_matches("0x"), 16).ok()
}

/// "0-3,8,10-11". `None`: it is no list, or one of more than a kernel counts.
pub fn list(text: &str) -> Option<Vec<u32>> {
    const MOST: u32 = 8192;
    let mut numbers = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        numbers.extend(first..=last);
    }
    numbers.sort_unstable();
    numbers.dedup();
    Some(numbers)
}

fn nodes(root: &Path, strange: &mut Vec<String>) -> Vec<Node> {
    let folder = root.join("devices/system/node");
    let found = names(&folder).unwrap_or_else(|error| {
        strange.push(format!("{}: {error}", folder.display()));
        Vec::new()
    });
    let mut numbers: Vec<u32> = found.iter().filter_map(|name| name.strip_prefix("node")?.parse().ok()).collect();
    numbers.sort_unstable();
    let mut nodes: Vec<Node> = Vec::new();
    for &number in &numbers {
        let folder = folder.join(format!("node{number}"));
        let cpus = cpus(&folder.join("cpulist"), strange);
        let memory_bytes = memory_bytes(&folder.join("meminfo")).unwrap_or(0);
        let said = text(&folder.join("distance")).unwrap_or_default();
        let distances: Option<Vec<u32>> = said.split_whitespace().map(|word| word.parse().ok()).collect();
        let distances = distances.filter(|distances| distances.len() == numbers.len());
        if distances.is_none() {
            strange.push(format!("node {number}: {said:?} are no distances of {} nodes", numbers.len()));
        }
        let distances = numbers.iter().copied().zip(distances.unwrap_or_default()).collect();
        nodes.push(Node { number, cpus, memory_bytes, distances });
    }
    if nodes.is_empty() {
        let cpus = cpus(&root.join("devices/system/cpu/online"), strange);
        nodes.push(Node { number: 0, cpus, memory_bytes: 0, distances: [(0, 10)].into() });
    }
    nodes
}

fn cpus(path: &Path, strange: &mut Vec<String>) -> Vec<u32> {
    let said = text(path).unwrap_or_default();
    list(&said).unwrap_or_else(|| {
        strange.push(format!("{}: {said:?} is no list of CPUs", path.display()));
        Vec::new()
    })
}

/// "Node 0 MemTotal:       65536000 kB".
fn memory_bytes(path: &Path) -> Option<u64> {
    let text = text(path)?;
    let line = text.lines().find_map(|line| line.split_once("MemTotal:"))?.1;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn devices(root: &Path, strange: &mut Vec<String>) -> Vec<Device> {
    let bus = root.join("bus/pci/devices");
    let found = names(&bus).unwrap_or_else(|error| {
        strange.push(format!("{}: {error}", bus.display()));
        Vec::new()
    });
    found.into_iter().filter_map(|address| device(root, &bus.join(&address), address, strange)).collect()
}

/// `None` for what is of no use here: bridges, host controllers and the like.
fn device(root: &Path, entry: &Path, address: String, strange: &mut Vec<String>) -> Option<Device> {
    let folder = match entry.canonicalize() {
        Ok(folder) => folder,
        Err(error) => {
            strange.push(format!("{address}: {error}"));
            return None;
        }
    };
    let Some(class) = hex(&folder.join("class")) else {
        strange.push(format!("{address}: it has no class"));
        return None;
    };
    let kind = kind(&folder, class >> 8)?;
    let driver = fs::read_link(folder.join("driver")).ok();
    let driver = driver.and_then(|to| Some(to.file_name()?.to_string_lossy().into_owned()));
    // -1: not known.
    let node = number::<i64>(&folder.join("numa_node")).and_then(|node| u32::try_from(node).ok());
    Some(Device { node, parents: parents(root, &folder), driver, kind, address })
}

fn kind(folder: &Path, class: u32) -> Option<Kind> {
    let below = |name: &str| names(&folder.join(name)).unwrap_or_default();
    if class == CLASS_NVME {
        let controller = below("nvme").into_iter().next();
        let inside = controller.as_ref().map(|name| below(&format!("nvme/{name}"))).unwrap_or_default();
        let mut namespaces: Vec<String> = inside.iter().filter_map(|name| namespace(name)).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        return Some(Kind::Nvme { controller, namespaces });
    }
    if CLASS_GPU.contains(&class) {
        let vendor = match hex(&folder.join("vendor")) {
            Some(VENDOR_NVIDIA) => Vendor::Nvidia,
            Some(VENDOR_AMD) => Vendor::Amd,
            _ => return None,
        };
        return Some(Kind::Gpu { vendor });
    }
    let rdma = below("infiniband");
    if !rdma.is_empty() {
        return Some(Kind::Nic { rdma, interfaces: below("net") });
    }
    let blocks = blocks(folder, 0);
    (!blocks.is_empty()).then_some(Kind::Disk { blocks })
}

/// "nvme0n1" of itself, and of "nvme0c1n1", a path of several to it.
fn namespace(name: &str) -> Option<String> {
    let rest = name.strip_prefix("nvme")?;
    let (before, number) = rest.rsplit_once('n')?;
    let subsystem = before.split_once('c').map_or(before, |(subsystem, _)| subsystem);
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (plain(subsystem) && plain(number)).then(|| format!("nvme{subsystem}n{number}"))
}

/// Block devices of a device: of a virtio disk one folder below, of a SATA disk six.
fn blocks(folder: &Path, depth: usize) -> Vec<String> {
    let direct = names(&folder.join("block")).unwrap_or_default();
    if !direct.is_empty() || depth == 6 {
        return direct;
    }
    let deeper = |name: &String| ["virtio", "ata", "host", "target", "usb"].iter().any(|start| name.starts_with(start));
    let scsi = |name: &String| name.split(':').count() == 4 && name.bytes().all(|b| b.is_ascii_digit() || b == b':');
    let inside = names(folder).unwrap_or_default().into_iter().filter(|name| deeper(name) || scsi(name));
    inside.flat_map(|name| blocks(&folder.join(name), depth + 1)).collect()
}

fn parents(root: &Path, folder: &Path) -> Vec<String> {
    let devices = root.join("devices").canonicalize().unwrap_or_else(|_| root.join("devices"));
    let inner = folder.strip_prefix(&devices).unwrap_or(folder);
    let parts = inner.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        _ => None,
    });
    // Root complexes of some machines lie below a platform's folder.
    let mut parents: Vec<String> = parts.skip_while(|name| !name.starts_with("pci")).collect();
    parents.pop();
    parents
}

/// RDMA in software lies at the device of its interface. Those whose interface has none come back.
fn bind_soft_rdma(root: &Path, devices: &mut [Device]) -> Vec<String> {
    let folder = root.join("class/infiniband");
    let known: Vec<String> = devices.iter().flat_map(|device| device.rdma().to_vec()).collect();
    let all = names(&folder).unwrap_or_default();
    let mut left = Vec::new();
    for name in all.into_iter().filter(|name| !known.contains(name)) {
        let interface = text(&folder.join(&name).join("parent"));
        let pci = interface.as_ref().and_then(|interface| {
            let folder = root.join("class/net").join(interface).join("device").canonicalize().ok()?;
            innermost_pci(&folder)
        });
        let home = pci.and_then(|address| devices.iter_mut().find(|device| device.address == address));
        match home.map(|device| &mut device.kind) {
            Some(Kind::Nic { rdma, .. }) => rdma.push(name),
            _ => left.push(name),
        }
    }
    left
}

/// Addresses of the PCI devices that a block device lies on, by its number: several of a RAID or a volume.
pub fn pci_of_block(root: &Path, major: u32, minor: u32) -> Vec<String> {
    let Ok(folder) = root.join(format!("dev/block/{major}:{minor}")).canonicalize() else { return Vec::new() };
    let mut found = Vec::new();
    pci_of(&folder, 0, &mut found);
    found.sort_unstable();
    found.dedup();
    found
}

fn pci_of(folder: &Path, depth: usize, found: &mut Vec<String>) {
    if depth == SLAVES_DEEP {
        return;
    }
    // A partition's folder lies in its disk's.
    let disk = if folder.join("partition").exists() { folder.parent().unwrap_or(folder) } else { folder };
    if let Some(address) = innermost_pci(disk) {
        return found.push(address);
    }
    for slave in names(&disk.join("slaves")).unwrap_or_default() {
        if let Ok(folder) = disk.join("slaves").join(slave).canonicalize() {
            pci_of(&folder, depth + 1, found);
        }
    }
    // A namespace with several paths lies at none of them: its controllers are beside it.
    let name = disk.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(subsystem) = disk.parent().filter(|_| namespace(&name).is_some()) else { return };
    for entry in names(subsystem).unwrap_or_default() {
        let is_controller = entry.strip_prefix("nvme").is_some_and(|rest| rest.parse::<u32>().is_ok());
        if let Some(address) =
            is_controller.then(|| subsystem.join(&entry).canonicalize().ok()).flatten().and_then(|p| innermost_pci(&p))
        {
            found.push(address);
        }
    }
}

/// The last part of a path that is the address of a PCI device.
fn innermost_pci(path: &Path) -> Option<String> {
    let parts = path.components().rev().map(|part| part.as_os_str().to_string_lossy().into_owned());
    parts.into_iter().find(|part| is_pci_address(part))
}

/// "0000:65:00.0"; domains of more than 16 bits are known too.
pub fn is_pci_address(text: &str) -> bool {
    let hex = |text: &str, least: usize, most: usize| {
        (least..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let parts: Vec<&str> = text.split(':').collect();
    let [domain, bus, rest] = parts[..] else { return false };
    let Some((device, function)) = rest.split_once('.') else { return false };
    hex(domain, 4, 8) && hex(bus, 2, 2) && hex(device, 2, 2) && hex(function, 1, 1)
}
