//! A host with an SSD tier of real files, and what can be known of it from outside.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use lapis_benches::host::{Host, HostOptions};
use lapis_client::{Client, Pool};
use lapis_config::Entry;
use tempfile::TempDir;

use super::{
    binary,
    blocks::{self, SMALL, keys},
    eventually,
    machine::{MIB, status_when},
};

#[path = "../../../ssd/tests/standin/build.rs"]
mod build;

/// The stand-in for SPDK.
mod standin {
    pub use super::build::build;

    pub const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../ssd/tests/standin");
}

/// The least that the configuration takes for a path.
pub const FILE: u64 = 512 * MIB;
/// Little memory, so that blocks go to SSD.
pub const DRAM: u64 = 64 * MIB;
/// Blocks of twice that.
pub const FILL: u64 = 2 * DRAM / SMALL as u64;
/// What a daemon says when its tier serves.
const SERVES: &str = "the SSD tier serves";

/// Files for a tier, gone with this; or devices in their place.
pub struct Files {
    paths: Vec<PathBuf>,
    engine: &'static str,
    /// Controllers are drives of SPDK's stand-in, which lies here.
    spdk: Option<PathBuf>,
    _folder: TempDir,
}

impl Files {
    pub fn new(count: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = (0..count).map(|index| folder.path().join(format!("{index}.ssd"))).collect();
        Self { paths, engine: "auto", spdk: None, _folder: folder }
    }

    /// Devices, driven so.
    pub fn over(paths: Vec<PathBuf>, engine: &'static str) -> Self {
        Self { paths, engine, spdk: None, _folder: tempfile::tempdir().expect("a folder") }
    }

    /// Controllers of SPDK's stand-in, one with sectors of 512 bytes and then one with 4096. `None`: no C compiler.
    pub fn controllers(count: usize) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        standin::build(Path::new(standin::SOURCES), folder.path())?;
        let address = |index| format!("0000:0{index}:00.0");
        for index in 0..count {
            let drive = folder.path().join(format!("{}.{}", address(index), [512, 4096][index % 2]));
            File::create(drive).and_then(|file| file.set_len(FILE)).expect("a sparse file");
        }
        let paths = (0..count).map(|index| format!("pci:{}", address(index)).into()).collect();
        Some(Self { paths, engine: "auto", spdk: Some(folder.path().to_owned()), _folder: folder })
    }

    pub fn path(&self, index: usize) -> PathBuf {
        self.paths[index].clone()
    }

    /// What goes wrong with a controller, as the stand-in's plans say it, from the next daemon on.
    pub fn plan(&self, index: usize, plan: &str) {
        let folder = self.spdk.as_ref().expect("controllers of the stand-in");
        fs::write(folder.join(format!("0000:0{index}:00.0.plan")), plan).expect("room");
    }

    /// Where the stand-in's libraries are.
    pub fn spdk(&self) -> Option<PathBuf> {
        self.spdk.clone()
    }

    /// Flags of `lapis serve` that name them.
    pub fn flags(&self) -> Vec<String> {
        let paths: Vec<String> = self.paths.iter().map(|path| path.display().to_string()).collect();
        let mut flags = vec!["--ssd-paths".to_owned(), paths.join(",")];
        // What a test asks for itself is given once.
        if self.engine != "auto" {
            flags.extend(["--ssd-engine".to_owned(), self.engine.to_owned()]);
        }
        flags.extend(match &self.spdk {
            Some(library) => ["--ssd-spdk-library".to_owned(), library.display().to_string()],
            None => ["--ssd-bytes".to_owned(), format!("{FILE}B")],
        });
        flags
    }

    /// A running host over these files, with more flags; it may not serve from them yet.
    pub fn host(&self, dram_bytes: u64, flags: &[&str]) -> Host {
        let more = flags.iter().map(|flag| flag.to_string());
        let flags = self.flags().into_iter().chain(more).collect();
        Host::start(HostOptions { binary: binary::lapis(), dram_bytes, ssd_bytes: None, hold: true, flags })
            .expect("a host")
    }

    /// The same, once it serves from them.
    pub fn serving(&self, dram_bytes: u64, flags: &[&str]) -> Host {
        let mut host = self.host(dram_bytes, flags);
        serves(&mut host, 1);
        host
    }
}

/// What a daemon said of its tier when it began to serve.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    pub blocks: u64,
    pub us: u64,
}

/// Waits until `daemons` of this host have served from their tier; what the last one said of it.
pub fn serves(host: &mut Host, daemons: usize) -> Served {
    host.until("the SSD tier", |host| {
        let log = host.daemon_log();
        Ok(log
            .lines()
            .filter(|line| line.contains(SERVES))
            .nth(daemons - 1)
            .map(|line| Served { blocks: number(line, "blocks="), us: number(line, "us=") }))
    })
    .expect("the tier is opened")
}

fn number(line: &str, name: &str) -> u64 {
    let word = line.split_whitespace().find_map(|word| word.strip_prefix(name));
    word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no number {name} in {line:?}"))
}

/// Waits until a line of the daemons' logs has all these words.
pub fn says(host: &Host, words: &[&str]) -> String {
    eventually(&format!("a line with {words:?}"), || {
        let log = host.daemon_log();
        log.lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
    })
}

/// What the daemon keeps of its blocks beside the table: it outlives the daemon with the holder, which has it open.
pub struct Entries(File);

impl Entries {
    pub fn of(host: &Host) -> Self {
        let holder = host.holder_pid().expect("a holder");
        let found = eventually("the holder's descriptors", || {
            let all = fs::read_dir(format!("/proc/{holder}/fd")).expect("our child").flatten();
            all.map(|entry| entry.path())
                .find(|path| fs::read_link(path).is_ok_and(|link| link.to_string_lossy().contains("default.entries")))
        });
        Self(File::open(found).expect("our own"))
    }

    /// Of these ids, those that the daemon counts as on SSD. Exact while no daemon runs.
    pub fn on_ssd(&self, client: &Client, pool: &Pool, ids: impl Iterator<Item = u64>) -> Vec<u64> {
        let session = client.session().expect("here");
        let at = std::mem::offset_of!(Entry, ssd) as u64;
        let counted = |id: &u64| {
            session.find(pool, &keys(*id..*id + 1)[0]).is_some_and(|found| {
                let mut place = [0; 8];
                let offset = u64::from(found.line.0) * size_of::<Entry>() as u64 + at;
                self.0.read_exact_at(&mut place, offset).expect("an entry for every line");
                u64::from_le_bytes(place) != 0
            })
        };
        ids.filter(counted).collect()
    }
}

/// Puts twice what memory holds; which of it is on SSD by then.
pub fn fill(host: &Host, client: &Client, pool: &Pool) -> Vec<u64> {
    assert_eq!(blocks::put_all(client, pool, 0..FILL), [], "refused puts");
    let on_ssd = Entries::of(host).on_ssd(client, pool, 0..FILL);
    assert!(on_ssd.len() as u64 >= FILL * 2 / 5, "{} of {FILL} blocks; {}", on_ssd.len(), host.daemon_log());
    on_ssd
}

/// Waits for a daemon that answers.
pub fn answers(socket: &Path) {
    status_when(socket, "the daemon", |_| true);
}
