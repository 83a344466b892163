//! What the daemon makes of where things lie: which of its devices are where, and what follows for memory and threads.
//! `used` finds the GPUs of the HBM tier, `show` tells people.

pub mod show;
mod used;

use std::{
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use lapis_config::{
    Options, Rdma,
    topology::{
        Near, Spread, Topology,
        place::cpus_near,
        sysfs::{is_pci_address, pci_of_block},
    },
};
use lapis_transport::peers::rdma::{rank, said::LANES_MAX, sysfs};

pub use self::used::{SeenGpus, UsedGpus};
use crate::gpus::{self, GpuOptions};

/// Of the configuration's devices, where each is.
#[derive(Clone, Debug)]
pub struct Layout {
    pub topology: Topology,
    /// The NICs that blocks go by, if they go by RDMA.
    pub nics: Vec<Near>,
    /// In the order of `ssd.paths`.
    pub ssds: Vec<Near>,
    /// Of the HBM tier.
    pub gpus: UsedGpus,
    /// Whether memory and threads follow.
    pub(crate) follow: bool,
    /// CPUs that this process may run on.
    pub(crate) allowed: Vec<u32>,
}

impl Layout {
    pub fn here(options: &Options) -> Self {
        Self::read(Path::new("/sys"), options)
    }

    /// `root`: where `/sys` is, this host's or a copy of another's.
    pub fn read(root: &Path, options: &Options) -> Self {
        let topology = Topology::read(root);
        let nics = nics(root, &topology, options);
        let near = |path: &std::path::PathBuf| Near {
            name: path.display().to_string(),
            node: node_of_path(root, &topology, path),
        };
        let ssds = options.ssd_paths.iter().map(near).collect();
        let gpus = UsedGpus::configured(&topology, options);
        Self { topology, nics, ssds, gpus, follow: options.topology_follow, allowed: allowed() }
    }

    /// For people: of this host with what the driver of its GPUs says, if the HBM tier has any; of another host's files
    /// without.
    pub fn for_show(root: &Path, options: &Options) -> Self {
        let layout = Self::read(root, options);
        match GpuOptions::of(options).filter(|_| root == Path::new("/sys")).map(gpus::look) {
            None => layout,
            Some(Ok(seen)) => layout.with_gpus(seen),
            Some(Err(error)) => Self { gpus: layout.gpus.unseen(error.to_string()), ..layout },
        }
    }

    /// With the GPUs of the HBM tier as their driver shows them.
    pub fn with_gpus(self, seen: SeenGpus) -> Self {
        Self { gpus: UsedGpus::seen(&self.topology, seen), ..self }
    }

    /// Which node each extent comes from.
    pub fn spread(&self) -> Spread {
        if !self.follow {
            return Spread::default();
        }
        let moves = self.nics.iter().chain(&self.ssds).chain(&self.gpus.near).map(|near| near.node);
        // Without any of its own, blocks go between memory and GPUs.
        let gpus = self.topology.devices.iter().filter(|device| device.is_gpu()).map(|device| device.node);
        let devices: Vec<_> = if moves.clone().any(|node| node.is_some()) { moves.collect() } else { gpus.collect() };
        Spread::new(&self.topology, &devices)
    }

    /// The node of each device of the SSD tier, in the order of `ssd.paths`: blocks go to those of their memory's node rather.
    pub fn nodes_of_ssds(&self) -> Vec<Option<u32>> {
        self.nodes_of(&self.ssds)
    }

    /// The node of each GPU, in the order of the daemon's GPUs: what comes back from one goes rather to memory of its node.
    pub fn nodes_of_gpus(&self) -> Vec<Option<u32>> {
        self.nodes_of(&self.gpus.near)
    }

    fn nodes_of(&self, devices: &[Near]) -> Vec<Option<u32>> {
        let follows = self.follow && self.topology.has_several_nodes();
        devices.iter().map(|near| near.node.filter(|_| follows)).collect()
    }

    /// CPUs for the thread of a device of the SSD tier, by its index in `ssd.paths`; `None`: any.
    pub fn cpus_of(&self, ssd: usize) -> Option<Vec<u32>> {
        self.cpus_near(self.ssds.get(ssd)?)
    }

    /// CPUs for the thread of each GPU, in the order of the daemon's GPUs; `None`: any.
    pub fn cpus_of_gpus(&self) -> Vec<Option<Vec<u32>>> {
        self.gpus.near.iter().map(|near| self.cpus_near(near)).collect()
    }

    fn cpus_near(&self, device: &Near) -> Option<Vec<u32>> {
        cpus_near(&self.topology, device.node.filter(|_| self.follow), &self.allowed)
    }
}

fn nics(root: &Path, topology: &Topology, options: &Options) -> Vec<Near> {
    let wanted = options.peers_listen.is_some() && options.peers_rdma == Rdma::Auto && !options.peers_encrypt_blocks;
    let candidates = if wanted { sysfs::candidates_in(root).unwrap_or_default() } else { Vec::new() };
    let verdicts = rank::choose(&candidates, &options.peers_rdma_devices, LANES_MAX);
    let used = candidates.into_iter().zip(verdicts).filter(|(_, verdict)| verdict.is_ok());
    let node = |name: &String| topology.devices.iter().find(|device| device.rdma().contains(name))?.node;
    let mut nics: Vec<Near> = used.map(|(nic, _)| Near { node: node(&nic.device), name: nic.device }).collect();
    nics.dedup_by(|a, b| a.name == b.name);
    nics
}

/// The node of what a path of the SSD tier lies on: a PCI address, a block device, an NVMe device of characters, a file, or
/// one that is still to be made. `None`: of several nodes, or not known.
fn node_of_path(root: &Path, topology: &Topology, path: &Path) -> Option<u32> {
    let text = path.to_string_lossy();
    if let Some(rest) = text.strip_prefix("pci:") {
        let address = rest.split('/').next().filter(|address| is_pci_address(address))?;
        return topology.device(address)?.node;
    }
    let found = path.ancestors().find_map(|path| std::fs::metadata(path).ok())?;
    if found.file_type().is_char_device() {
        let name = path.file_name()?.to_string_lossy().strip_prefix("ng").map(|rest| format!("nvme{rest}"))?;
        return topology.devices.iter().find(|device| device.namespaces().contains(&name))?.node;
    }
    let number = if found.file_type().is_block_device() { found.rdev() } else { found.dev() };
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let nodes = pci_of_block(root, major, minor);
    let mut nodes = nodes.iter().map(|address| topology.device(address).and_then(|device| device.node));
    let first = nodes.next()??;
    nodes.all(|node| node == Some(first)).then_some(first)
}

fn allowed() -> Vec<u32> {
    let set = rustix::thread::sched_getaffinity(None).unwrap_or_default();
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).map(|cpu| cpu as u32).collect()
}

/// Has the calling thread run on these CPUs. One that may not runs where it likes.
pub fn keep_on(cpus: &[u32]) {
    let mut set = rustix::thread::CpuSet::new();
    let known = |cpu: &&u32| (**cpu as usize) < rustix::thread::CpuSet::MAX_CPU;
    cpus.iter().filter(known).for_each(|cpu| set.set(*cpu as usize));
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::debug!(%error, ?cpus, "a thread is not kept near its device");
    }
}

#[cfg(test)]
mod tests {
    use lapis_config::{
        LoadInput,
        topology::{Device, Kind, Node, Vendor},
    };

    use super::*;

    #[test]
    fn a_thread_runs_where_it_was_kept() {
        let first = allowed()[0];
        std::thread::spawn(move || {
            keep_on(&[first]);
            assert_eq!(allowed(), [first]);
            keep_on(&[u32::MAX]);
            assert_eq!(allowed(), [first], "no CPU is none to run on");
        })
        .join()
        .expect("it runs");
    }

    /// The unit takes all of `@resources` away, which both belong to.
    #[test]
    fn the_unit_lets_memory_and_threads_be_placed() {
        let unit = include_str!("../ops/lapis.service");
        let lines = unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter="));
        let after: Vec<&str> = lines.skip_while(|list| !list.starts_with('~')).skip(1).collect();
        assert!(after.iter().all(|list| !list.starts_with('~')), "nothing is taken away after: {after:?}");
        let allowed = |call: &str| after.iter().any(|list| list.split_whitespace().any(|word| word == call));
        assert!(allowed("mbind") && allowed("sched_setaffinity"), "{after:?}");
    }

    /// What a path lies on here, found with this host's own numbers in a made-up tree.
    #[test]
    fn paths_lead_to_their_nodes() {
        let sys = tempfile::tempdir().expect("a folder");
        let root = sys.path();
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).and_then(|()| std::fs::write(path, text))
        };
        let link = |at: &str, to: &str| {
            let at = root.join(at);
            std::fs::create_dir_all(at.parent().expect("a folder"))
                .and_then(|()| std::os::unix::fs::symlink(root.join(to), at))
        };
        for (node, cpus) in [(0, "0-3"), (1, "4-7")] {
            let folder = format!("devices/system/node/node{node}");
            write(&format!("{folder}/cpulist"), cpus).expect("room");
            write(&format!("{folder}/distance"), "10 20").expect("room");
            write(&format!("{folder}/meminfo"), &format!("Node {node} MemTotal: 1024 kB\n")).expect("room");
        }
        let device = "devices/pci0000:10/0000:10:01.0";
        write(&format!("{device}/class"), "0x010802").expect("room");
        write(&format!("{device}/numa_node"), "1").expect("room");
        write(&format!("{device}/nvme/nvme4/nvme4n1/size"), "8").expect("room");
        link("bus/pci/devices/0000:10:01.0", device).expect("room");
        let file = root.join("log");
        std::fs::write(&file, "").expect("room");
        let number = std::fs::metadata(&file).expect("it is there").dev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        link(&format!("dev/block/{major}:{minor}"), &format!("{device}/nvme/nvme4/nvme4n1")).expect("room");
        let mut options = Options::load(&LoadInput::default()).expect("the defaults hold together").options;
        let to_be_made = root.join("not/yet/there");
        options.ssd_paths = ["pci:0000:10:01.0/2".into(), file, to_be_made, "pci:0000:99:00.0".into(), "pci:".into()]
            .into_iter()
            .collect();
        let layout = Layout::read(root, &options);
        let nodes: Vec<_> = layout.ssds.iter().map(|near| near.node).collect();
        assert_eq!(nodes, [Some(1), Some(1), Some(1), None, None], "{layout:?}");
        assert_eq!(layout.spread().node_of(0), Some(1));
        let layout = Layout { allowed: vec![0, 5, 6], ..layout };
        assert_eq!((layout.cpus_of(0), layout.cpus_of(3)), (Some(vec![5, 6]), None));
        options.topology_follow = false;
        let free = Layout { allowed: vec![5], ..Layout::read(root, &options) };
        assert_eq!((free.spread().node_of(0), free.cpus_of(0)), (None, None));
    }

    #[test]
    fn gpus_that_are_used_get_memory_of_their_nodes_and_threads_there() {
        let options = Options { topology_follow: true, ..Options::default() };
        let node = |number: u32| Node {
            number,
            cpus: vec![2 * number, 2 * number + 1],
            memory_bytes: 1 << 30,
            ..Node::default()
        };
        let gpu = |address: &str, node| Device {
            address: address.into(),
            node: Some(node),
            parents: Vec::new(),
            driver: None,
            kind: Kind::Gpu { vendor: Vendor::Nvidia },
        };
        let devices = vec![gpu("0000:40:00.0", 1), gpu("0000:41:00.0", 0), gpu("0000:42:00.0", 1)];
        let layout = Layout {
            topology: Topology { nodes: vec![node(0), node(1)], devices, ..Topology::default() },
            nics: Vec::new(),
            ssds: Vec::new(),
            gpus: UsedGpus::default(),
            follow: options.topology_follow,
            allowed: vec![0, 2, 3],
        };
        let extents = |layout: &Layout| (0..6).map(|extent| layout.spread().node_of(extent)).collect::<Vec<_>>();
        let (zero, one) = (Some(0), Some(1));
        assert_eq!(extents(&layout), [one, zero, one, one, zero, one], "none is used: by all that there are");
        let seen = |indexes: &[u16]| {
            let infos: Vec<_> = indexes.iter().map(|&index| gpus::info(index)).collect();
            SeenGpus { links: vec![vec![None; infos.len()]; infos.len()], infos }
        };
        let used = layout.clone().with_gpus(seen(&[2, 3]));
        assert_eq!(extents(&used), [one; 6], "what is not used moves nothing");
        assert_eq!((used.nodes_of_gpus(), used.cpus_of_gpus()), (vec![one, None], vec![Some(vec![2, 3]), None]));
        let ssd = Near { name: "/dev/nvme0n1".into(), node: zero };
        let beside = Layout { ssds: vec![ssd], ..used };
        assert_eq!(extents(&beside), [zero, one, zero, one, zero, one], "they count as drives do");
        let free = Layout { follow: false, ..beside };
        assert_eq!(
            (extents(&free), free.nodes_of_gpus(), free.cpus_of_gpus()),
            (vec![None; 6], vec![None; 2], vec![None; 2])
        );
    }
}
