//! By which engines a path of the SSD tier can be driven, and why not by others. What NVMe commands meet is tried first,
//! then judged without I/O.

use std::{
    fs::{self, OpenOptions},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::Path,
};

use lapis_config::{Bytes, Options, SsdEngine};
use lapis_ssd::passthrough::{Found, Refusal, block_beside};
use rustix::{fs::OFlags, io::Errno};

use super::{Finding, host::of_tier};
use crate::drives::chain;

const CHECK: &str = "engines";

/// What NVMe commands meet at a path: what the device is, or why they are not for it.
pub(super) type Commands = Result<Device, Refusal>;

/// A namespace that takes commands.
#[derive(Debug)]
pub(super) struct Device {
    /// In words.
    pub about: String,
    /// Why commands are not chosen by themselves, if they are not.
    pub not_best: Option<Refusal>,
}

/// Tries a read by a command; whoever has the device, nothing is changed.
pub(super) fn try_commands(options: &Options, path: &Path) -> Commands {
    let block = block_beside(path).unwrap_or_else(|| path.to_owned());
    if !fs::metadata(&block).is_ok_and(|found| found.file_type().is_block_device()) {
        return Err(Refusal::NoNamespace);
    }
    let failed = |source| Refusal::Io { op: "opening the block device", source };
    let file = OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(block).map_err(failed)?;
    let polled = options.ssd_engine == SsdEngine::PassthroughPolled;
    let found = Found::of_block(file.as_fd(), polled, options.ssd_queue_depth as usize)?;
    let (namespace, limits) = (found.namespace(), found.namespace().limits());
    let mut about = format!("{} in blocks of {} B", namespace.model().unwrap_or("a device"), limits.logical_bytes);
    about += &format!(", {} a command", Bytes(limits.transfer_bytes_max));
    about += &limits.atomic_bytes.map_or(String::new(), |bytes| format!(", writes atomic to {}", Bytes(bytes)));
    about += if limits.volatile_cache { ", volatile cache" } else { ", no volatile cache" };
    about += if limits.discard_bytes_max > 0 { ", deallocates" } else { ", does not deallocate" };
    about += if limits.can_poll { ", polled queues" } else { "" };
    if let Some(error) = namespace.unasked() {
        about += &format!(" (by sysfs, the device was not asked: {error})");
    }
    Ok(Device { about, not_best: found.is_best().err() })
}

/// `uring`: whether this host has io_uring for us; what is wrong with it is another finding.
pub(super) fn judge(options: &Options, path: &Path, commands: &Commands, uring: Result<(), Errno>) -> Finding {
    let engine = options.ssd_engine;
    let others = if uring.is_ok() { "uring, threads" } else { "threads" };
    let finding = match commands {
        Ok(Device { about, not_best: Some(refusal) }) if engine == SsdEngine::Auto => {
            Finding::ok(CHECK, format!("{others}; passthrough only if chosen, {}: {about}", chain(refusal)))
        }
        Ok(Device { about, .. }) => Finding::ok(CHECK, format!("passthrough, {others}: {about}")),
        Err(refusal) => {
            let found = format!("{others}; not passthrough: {}", chain(refusal));
            match engine {
                SsdEngine::Passthrough | SsdEngine::PassthroughPolled => {
                    Finding::bad(of_tier(options), CHECK, found, refusal.advice())
                }
                SsdEngine::Auto if refusal.is_of_namespace() => Finding::warn(CHECK, found, refusal.advice()),
                _ => Finding::ok(CHECK, found),
            }
        }
    };
    finding.of(path.display())
}

#[cfg(test)]
mod tests {
    use lapis_config::LoadInput;

    use super::*;
    use crate::doctor::Level;

    fn judged(engine: SsdEngine, commands: Commands, uring: Result<(), Errno>) -> Finding {
        let mut options = Options::load(&LoadInput::default()).expect("the defaults hold together").options;
        options.ssd_engine = engine;
        let finding = judge(&options, Path::new("/dev/nvme0n1"), &commands, uring);
        assert_eq!(finding.level == Level::Ok, finding.advice.is_none(), "{finding}");
        assert!(finding.to_string().contains("/dev/nvme0n1: ") && !finding.to_string().contains('\n'), "{finding}");
        finding
    }

    fn closed() -> Commands {
        Err(Refusal::Node { node: "/dev/ng0n1".into(), source: Errno::ACCESS.into() })
    }

    #[test]
    fn a_namespace_that_may_not_be_commanded_is_told_of_with_what_to_run() {
        let found = judged(SsdEngine::Auto, closed(), Ok(()));
        assert_eq!(found.level, Level::Warn);
        assert!(found.found.starts_with("uring, threads; not passthrough: /dev/ng0n1 cannot be opened: "), "{found}");
        assert!(found.advice.is_some_and(|advice| advice.contains("udev")));
        assert_eq!(judged(SsdEngine::Passthrough, closed(), Ok(())).level, Level::Fail);
        assert_eq!(judged(SsdEngine::Uring, closed(), Ok(())).level, Level::Ok);
    }

    #[test]
    fn a_file_is_no_namespace_which_matters_only_to_who_asked_for_one() {
        let file = || Err(Refusal::NoNamespace);
        assert_eq!(judged(SsdEngine::Auto, file(), Ok(())).level, Level::Ok);
        let found = judged(SsdEngine::PassthroughPolled, file(), Err(Errno::PERM));
        assert!(found.level == Level::Fail && found.found.starts_with("threads; not passthrough"), "{found}");
    }

    #[test]
    fn a_namespace_is_described_and_one_over_a_network_left_to_the_block_layer() {
        let device = |not_best| Ok(Device { about: "a device in blocks of 512 B".into(), not_best });
        let found = judged(SsdEngine::Auto, device(None), Ok(()));
        assert_eq!(found.found, "passthrough, uring, threads: a device in blocks of 512 B");
        let far = || device(Some(Refusal::Transport { transport: "tcp".into() }));
        let found = judged(SsdEngine::Auto, far(), Ok(()));
        assert!(
            found.found.starts_with("uring, threads; passthrough only if chosen, it is attached by tcp"),
            "{found}"
        );
        assert!(judged(SsdEngine::Passthrough, far(), Ok(())).found.starts_with("passthrough"));
    }

    #[test]
    fn what_is_no_block_device_is_not_asked() {
        let options = Options::load(&LoadInput::default()).expect("the defaults hold together").options;
        for path in ["/dev/null", "/no/such/file", "/proc/self/exe"] {
            assert!(matches!(try_commands(&options, Path::new(path)), Err(Refusal::NoNamespace)), "{path}");
        }
    }
}
