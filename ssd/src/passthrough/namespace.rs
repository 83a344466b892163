//! An NVMe namespace by both of its names: the block device, which is what is claimed and locked, and the generic
//! character device beside it, which takes commands.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

use super::{
    Refusal,
    admin::{self, Answer},
    command::{About, Blocks},
    identify::{Controller, Format},
    limits::{Limits, Queue},
};

/// A namespace that takes commands.
#[derive(Debug)]
pub struct Namespace {
    pub(super) fd: OwnedFd,
    node: PathBuf,
    pub(super) blocks: Blocks,
    pub(super) limits: Limits,
    transport: String,
    has_paths: bool,
    model: Option<String>,
    /// Why the device itself was not asked: what is known of it is what sysfs says.
    unasked: Option<io::Error>,
}

impl Namespace {
    /// The namespace of an open block device of `block_bytes` bytes, whose number is `block`.
    pub(super) fn of(block: u64, block_bytes: u64) -> Result<Self, Refusal> {
        let folder = folder("block", block)?;
        if folder.join("partition").exists() {
            return Err(Refusal::Partition);
        }
        let name = name_of(&folder);
        let generic = generic_name(&name).ok_or(Refusal::NoNamespace)?;
        let beside = folder.with_file_name(&generic);
        if !beside.exists() {
            return Err(Refusal::NoGeneric { name: generic });
        }
        let node = Path::new("/dev").join(&generic);
        let fd = rustix::fs::open(&node, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Refusal::Node { node: node.clone(), source: e.into() })?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| Refusal::Node { node: node.clone(), source: e.into() })?;
        if self::folder("char", stat.st_rdev).ok() != fs::canonicalize(&beside).ok() {
            return Err(Refusal::OtherNode { node });
        }
        let id = admin::namespace_id(&fd)
            .map_err(|source| Refusal::Io { op: "asking for the namespace's number", source })?;
        let (said, unasked) = match identified(&fd, id)? {
            Ok(said) => (Some(said), None),
            Err(error) => (None, Some(error)),
        };
        let limits = Limits::of(&Queue::of(&folder), said.as_ref())?;
        match &said {
            Some((format, _)) if format.bytes() != block_bytes => {
                return Err(Refusal::OtherSize { expected: block_bytes, found: format.bytes() });
            }
            _ => {}
        }
        let blocks = Blocks { namespace: id, logical_bytes: limits.logical_bytes };
        let model = said.map(|(_, controller)| controller.model);
        let (transport, has_paths) = (transport(&folder), has_paths(&folder));
        Ok(Self { fd, node, blocks, limits, transport, has_paths, model, unasked })
    }

    /// The generic device.
    pub fn node(&self) -> &Path {
        &self.node
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How the controller is attached: "pcie" or a network.
    pub fn transport(&self) -> &str {
        &self.transport
    }

    /// Whether it is the kernel's choice by which of its controllers a command goes, though there may be just one.
    pub(super) fn has_paths(&self) -> bool {
        self.has_paths
    }

    /// `None` where the device could not be asked.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// Why the device itself was not asked, if it was not: what is known of it is then what sysfs says.
    pub fn unasked(&self) -> Option<&io::Error> {
        self.unasked.as_ref()
    }
}

/// The block device beside a generic device of NVMe: `/dev/nvme0n1` for `/dev/ng0n1`. `None`: `path` is no such device.
pub fn block_beside(path: &Path) -> Option<PathBuf> {
    let found = fs::metadata(path).ok().filter(|found| found.file_type().is_char_device())?;
    let folder = folder("char", found.rdev()).ok()?;
    Some(Path::new("/dev").join(block_name(&name_of(&folder))?))
}

/// What the device says of itself, or why it was not asked: identify is a matter of root's before Linux 6.2.
fn identified(fd: &OwnedFd, id: u32) -> Result<io::Result<(Format, Controller)>, Refusal> {
    let asked = |about| match admin::identify(fd, about, id) {
        Ok(Answer::Data(data)) => Ok(data),
        Ok(Answer::Failed(status)) => Err(io::Error::other(status)),
        Err(error) => Err(error),
    };
    Ok(match asked(About::Namespace).and_then(|namespace| Ok((namespace, asked(About::Controller)?))) {
        Ok((namespace, controller)) => Ok((Format::of(&namespace)?, Controller::of(&controller))),
        Err(error) => Err(error),
    })
}

/// The folder in sysfs of a device by its number.
fn folder(kind: &str, device: u64) -> Result<PathBuf, Refusal> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    fs::canonicalize(format!("/sys/dev/{kind}/{major}:{minor}"))
        .map_err(|source| Refusal::Io { op: "looking for the device in sysfs", source })
}

fn name_of(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// How its controllers are attached, each kind once; "unknown" where sysfs does not say.
fn transport(folder: &Path) -> String {
    let Some(parent) = folder.parent() else { return "unknown".into() };
    let said = |controller: &Path| fs::read_to_string(controller.join("transport")).ok();
    // The parent is a controller, or a subsystem with the controllers that lead to it.
    let controllers = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut all: Vec<String> = said(parent).into_iter().chain(controllers.filter_map(|path| said(&path))).collect();
    all.iter_mut().for_each(|one| *one = one.trim().to_owned());
    all.sort();
    all.dedup();
    if all.is_empty() { "unknown".into() } else { all.join("+") }
}

/// Whether it is a subsystem's: only those have a policy.
fn has_paths(folder: &Path) -> bool {
    folder.parent().is_some_and(|parent| parent.join("iopolicy").exists())
}

/// `ng0n1` for `nvme0n1`; `None` for partitions and for what is no namespace.
fn generic_name(block: &str) -> Option<String> {
    renamed(block, "nvme", "ng")
}

fn block_name(generic: &str) -> Option<String> {
    renamed(generic, "ng", "nvme")
}

fn renamed(name: &str, from: &str, to: &str) -> Option<String> {
    let numbers = name.strip_prefix(from)?;
    let (controller, namespace) = numbers.split_once('n')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(controller) && is_number(namespace)).then(|| format!("{to}{numbers}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_namespaces_are_told_from_all_others() {
        assert_eq!(generic_name("nvme0n1").as_deref(), Some("ng0n1"));
        assert_eq!(generic_name("nvme12n345").as_deref(), Some("ng12n345"));
        assert_eq!(block_name("ng3n2").as_deref(), Some("nvme3n2"));
        for other in ["nvme0", "nvme0n1p1", "nvme0c0n1", "sda", "nvmen1", "nvme0n", "ng0n1", "dm-0", ""] {
            assert_eq!(generic_name(other), None, "{other}");
        }
        assert!(block_beside(Path::new("/dev/null")).is_none() && block_beside(Path::new("/dev/no-such")).is_none());
    }

    #[test]
    fn the_transport_is_the_controllers_own_or_all_of_a_subsystem() {
        let folder = tempfile::tempdir().expect("a folder");
        let block = folder.path().join("nvme0n1");
        assert_eq!(transport(&block), "unknown");
        for (controller, text) in [("nvme0", "pcie\n"), ("nvme1", "tcp\n"), ("nvme2", "pcie\n")] {
            fs::create_dir(folder.path().join(controller)).expect("a folder");
            fs::write(folder.path().join(controller).join("transport"), text).expect("a file");
        }
        assert_eq!(transport(&block), "pcie+tcp");
        assert_eq!(transport(&folder.path().join("nvme0/nvme0n1")), "pcie");
        assert!(!has_paths(&block));
        fs::write(folder.path().join("iopolicy"), "numa\n").expect("a file");
        assert!(has_paths(&block) && !has_paths(&folder.path().join("nvme0/nvme0n1")));
    }

    #[test]
    fn what_is_no_block_device_has_no_namespace() {
        let null = fs::metadata("/dev/null").expect("it is everywhere").rdev();
        assert!(Namespace::of(null, 1 << 30).is_err());
    }
}
