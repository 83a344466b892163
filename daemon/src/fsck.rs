//! `lapis fsck`: what is whole on devices of the SSD tier, what is torn, and why. Reads only.

mod controller;

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, FileTypeExt},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use lapis_config::Controller;
use lapis_ssd::{
    fsck::{self, Checked, ReadAt},
    passthrough::block_beside,
};
use rustix::fs::FlockOperation;
use serde_json::{Value, json};

/// Nothing is wrong; something is torn or broken; something could not be looked at.
const WHOLE: u8 = 0;
const DAMAGED: u8 = 1;
const UNREADABLE: u8 = 2;

#[derive(Args, Clone, Debug)]
pub struct FsckArgs {
    /// Files, block devices or controllers (pci:0000:65:00.0) of the SSD tier; of any log, each is judged by itself
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
    /// Read every block too, and compare it with its sum: as long as reading the device takes
    #[arg(long)]
    pub payload: bool,
    /// Go on although a daemon has the device: what it writes meanwhile may look torn
    #[arg(long)]
    pub force: bool,
    /// Folder of SPDK's shared libraries, for controllers, if they are not where an installation puts them
    #[arg(long, value_name = "FOLDER", env = "LAPIS_SSD_SPDK_LIBRARY")]
    pub spdk_library: Option<PathBuf>,
    /// One JSON document instead of text
    #[arg(long)]
    pub json: bool,
}

/// What came of one path.
enum Looked {
    Checked(Box<Checked>),
    /// No superblock, and what there is in its place.
    NoLog(String),
    Failed(anyhow::Error),
}

/// `lapis fsck`. Exit status 0: all is whole; 1: damage was found; 2: something could not be read or is no log.
pub fn run(args: &FsckArgs) -> ExitCode {
    let looked: Vec<(&Path, Looked)> =
        args.paths.iter().map(|path| (path.as_path(), look(path, args).unwrap_or_else(Looked::Failed))).collect();
    let text = if args.json {
        let all: Vec<Value> = looked.iter().map(|(path, looked)| to_json(path, looked)).collect();
        format!("{:#}\n", Value::from(all))
    } else {
        looked.iter().map(|(path, looked)| to_text(path, looked, args.payload)).collect()
    };
    // A reader that has gone wants no more.
    let _ = io::Write::write_all(&mut io::stdout(), text.as_bytes());
    ExitCode::from(looked.iter().map(|(_, looked)| status(looked)).max().unwrap_or(WHOLE))
}

fn status(looked: &Looked) -> u8 {
    match looked {
        Looked::Checked(checked) if checked.device.is_none() => UNREADABLE,
        Looked::Checked(checked) if checked.is_whole() => WHOLE,
        Looked::Checked(_) => DAMAGED,
        Looked::NoLog(_) | Looked::Failed(_) => UNREADABLE,
    }
}

fn look(path: &Path, args: &FsckArgs) -> anyhow::Result<Looked> {
    if Controller::is_meant(path) {
        let mut reads = controller::Reads::open(path, args.spdk_library.as_deref())?;
        return check(reads.bytes(), |offset, out: &mut [u8]| reads.read(offset, out), args.payload);
    }
    // A namespace's generic device is another name of its block device.
    let file = File::open(block_beside(path).as_deref().unwrap_or(path)).context("cannot be opened")?;
    // What is written by NVMe commands the page cache does not see; it lasts as long as a daemon has the device open.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    let kind = file.metadata().context("cannot be looked at")?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        bail!("is neither a regular file nor a block device");
    }
    let started = Instant::now();
    let mut held = is_held(&file)?;
    while held && !args.force && started.elapsed() < ENDED_WAIT {
        std::thread::sleep(ENDED_WAIT / 100);
        held = is_held(&file)?;
    }
    if held && !args.force {
        bail!(
            "a daemon has it open: stop that first, or look all the same with --force (what it writes meanwhile may \
             look torn)"
        );
    }
    let bytes = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).context("has no end")?;
    check(bytes, |offset, out: &mut [u8]| file.read_exact_at(out, offset), args.payload)
}

fn check(bytes: u64, mut read: impl ReadAt, payload: bool) -> anyhow::Result<Looked> {
    Ok(match no_log(&mut read, bytes) {
        Some(what) => Looked::NoLog(what),
        None => Looked::Checked(Box::new(fsck::check(bytes, read, payload))),
    })
}

/// The kernel lets go of an ended daemon's files a little later than of its process: that is waited for.
const ENDED_WAIT: Duration = Duration::from_secs(1);

/// Whether a daemon has it. Taken and given back at once: a daemon that starts meanwhile waits for a lock.
fn is_held(file: &File) -> anyhow::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            rustix::fs::flock(file, FlockOperation::Unlock).context("cannot be unlocked")?;
            Ok(false)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        // Some network file systems lock only what may be written.
        Err(rustix::io::Errno::BADF) => Ok(false),
        Err(error) => Err(error).context("cannot be locked"),
    }
}

/// What is there in place of a log, if both superblocks' pages are blank.
fn no_log(read: &mut impl ReadAt, bytes: u64) -> Option<String> {
    let page = lapis_ssd::format::PAGE_BYTES;
    if bytes < 2 * page as u64 {
        return Some(format!("{bytes} bytes: too short for a log"));
    }
    let mut pages = vec![0; 2 * page];
    // What cannot be read is the check's to tell.
    read(0, &mut pages).ok()?;
    let blank = pages.iter().all(|byte| *byte == 0);
    blank.then(|| "no log: its first pages are blank, as those of a device that no daemon has used yet".into())
}

fn to_text(path: &Path, looked: &Looked, payload: bool) -> String {
    let name = path.display();
    match looked {
        Looked::Failed(error) => format!("{name}: {error:#}\n"),
        Looked::NoLog(what) => format!("{name}: {what}\n"),
        Looked::Checked(checked) => {
            let verdict = match status(looked) {
                WHOLE if payload => "whole, and so is every block",
                WHOLE => "whole (blocks were not read: --payload does)",
                DAMAGED => "DAMAGED: what is named below is left out by the next start, everything else is kept",
                _ => "no log of Lapis, or both its superblocks are damaged",
            };
            let details: String = checked.to_string().lines().map(|line| format!("  {line}\n")).collect();
            format!("{name}: {verdict}\n{details}")
        }
    }
}

fn to_json(path: &Path, looked: &Looked) -> Value {
    let verdict = ["whole", "damaged", "unreadable"][usize::from(status(looked))];
    let mut value = json!({ "path": path.display().to_string(), "verdict": verdict });
    match looked {
        Looked::Failed(error) => value["error"] = format!("{error:#}").into(),
        Looked::NoLog(what) => value["error"] = what.as_str().into(),
        Looked::Checked(checked) => value["checked"] = json!(**checked),
    }
    value
}
