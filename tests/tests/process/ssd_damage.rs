//! A real daemon over real files that were damaged, cut off, or have no room left.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use lapis_benches::host::Host;
use lapis_client::{Client, GetOptions, Pool};
use rustix::process::geteuid;

use super::{
    PATIENCE, asked, beside,
    blocks::{self, SMALL, get, keys},
    machine::{adopted, connect},
    ssd::{DRAM, FILE, FILL, Files, Served, fill, says, serves},
};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Reads all of these; how many are hits. No byte is wrong.
fn read(client: &Client, pool: &Pool, ids: &[u64]) -> usize {
    let options = GetOptions { deadline: Some(PATIENCE), ..GetOptions::default() };
    let one = |ids: &[u64]| {
        let keys: Vec<_> = ids.iter().flat_map(|id| keys(*id..*id + 1)).collect();
        let (got, wrong) = get(client, pool, &keys, &options);
        assert_eq!(wrong, 0, "wrong bytes");
        got.hits
    };
    ids.chunks(32).map(one).sum()
}

/// A daemon that was killed with blocks on its SSD, which has all that it had but for its memory.
struct Scene {
    files: Files,
    ids: Vec<u64>,
    host: Host,
    daemons: usize,
}

impl Scene {
    fn new() -> Self {
        let files = Files::new(1);
        let mut host = files.serving(DRAM, &[]);
        let client = connect(&mut host);
        let ids = fill(&host, &client, &blocks::pool(&client, SMALL));
        host.kill_daemon().expect("it can be killed");
        Self { files, ids, host, daemons: 1 }
    }

    fn file(&self) -> File {
        File::options().read(true).write(true).open(self.files.path(0)).expect("our file")
    }

    /// A start without memory: what it found.
    fn start_cold(&mut self) -> Served {
        self.host.kill_holder().expect("it can be killed");
        self.host.start_holder().expect("another holder");
        self.host.start_daemon().expect("another daemon");
        self.daemons += 1;
        let served = serves(&mut self.host, self.daemons);
        adopted(&self.host);
        served
    }

    /// The same, and how many of the blocks can be read.
    fn start(&mut self) -> (Served, usize) {
        let served = self.start_cold();
        let client = connect(&mut self.host);
        let read = read(&client, &blocks::pool(&client, SMALL), &self.ids);
        assert!(self.host.ended().expect("our child").is_none(), "{}", self.host.log_tail());
        (served, read)
    }
}

/// Where the file has bytes that are not zero, by pages.
fn written(file: &File) -> Vec<u64> {
    let mut chunk = vec![0; MIB as usize];
    let mut pages = Vec::new();
    for offset in (0..FILE).step_by(MIB as usize) {
        file.read_exact_at(&mut chunk, offset).expect("as long as it was made");
        let found = chunk.chunks(PAGE as usize).zip((offset..).step_by(PAGE as usize));
        pages.extend(found.filter(|(page, _)| page.iter().any(|byte| *byte != 0)).map(|(_, offset)| offset));
    }
    pages
}

#[test]
fn a_daemon_over_damaged_files_gives_right_blocks_or_none() {
    let _beside = beside();
    let mut scene = Scene::new();
    let (served, all) = scene.start();
    assert_eq!(all, scene.ids.len(), "{served:?}");
    let mut random = fastrand::Rng::with_seed(0xda3a);
    for round in 0..asked("LAPIS_SSD_DAMAGED_STARTS", 4) {
        scene.host.kill_daemon().expect("it can be killed");
        let file = scene.file();
        // Superblocks are another test's: without them there is no start.
        let pages: Vec<u64> = written(&file).into_iter().filter(|offset| *offset >= MIB).collect();
        for _ in 0..pages.len() / 64 {
            let (offset, other) = (pages[random.usize(..pages.len())], pages[random.usize(..pages.len())]);
            let (mut page, mut torn) = (vec![0; PAGE as usize], vec![0; PAGE as usize]);
            file.read_exact_at(&mut page, offset).expect("a page");
            file.read_exact_at(&mut torn, other).expect("a page");
            match random.u8(..4) {
                0 => page[random.usize(..PAGE as usize)] ^= 1 << random.u8(..8),
                1 => page.fill(0),
                2 => page[..512 * random.usize(1..8)].fill(0x11),
                _ => page.copy_from_slice(&torn),
            }
            file.write_all_at(&page, offset).expect("a page");
        }
        drop(file);
        let (served, read) = scene.start();
        assert!(read <= all && served.blocks <= all as u64 + FILL, "round {round}: {served:?}");
    }
}

#[test]
fn a_file_that_was_cut_off_is_a_shorter_cache() {
    let _beside = beside();
    let mut scene = Scene::new();
    scene.file().set_len(100 * MIB).expect("it can be cut off");
    let (served, read) = scene.start();
    assert!(served.blocks > 0 && read > 0, "{served:?}, {read} of {}", scene.ids.len());
}

#[test]
fn a_file_that_shrinks_under_a_daemon_costs_the_device_and_not_the_service() {
    let _beside = beside();
    let mut scene = Scene::new();
    // Nothing is read before: on a slow disk fewer blocks got there than memory takes, and all would be in memory by now.
    scene.start_cold();
    scene.file().set_len(2 * MIB).expect("it can be cut off");
    let client = connect(&mut scene.host);
    let pool = blocks::pool(&client, SMALL);
    assert!(read(&client, &pool, &scene.ids) < scene.ids.len(), "blocks that are nowhere");
    dram_serves(&client, &pool, 5_000);
    says(&scene.host, &["WARN", "an operation of a device failed"]);
    says(&scene.host, &["WARN", "it is not written"]);
    assert!(scene.host.ended().expect("our child").is_none(), "{}", scene.host.log_tail());
}

/// Puts go on, of more than memory holds, and what was put last is there.
fn dram_serves(client: &Client, pool: &Pool, first: u64) {
    let refused = blocks::put_all(client, pool, first..first + FILL);
    assert!(refused.len() as u64 * 10 < FILL, "{} of {FILL} puts refused: {:?}", refused.len(), refused.first());
    let last = first + FILL - 64..first + FILL;
    assert!(blocks::hits(client, pool, last) > 0, "nothing is stored");
}

/// A file system on a file of its own, without extents: nothing can be allocated there ahead of its being written.
struct Loop {
    folder: tempfile::TempDir,
}

impl Loop {
    /// `None` where that cannot be made.
    fn new(bytes: u64) -> Option<Self> {
        if !geteuid().is_root() {
            println!("skipped: only root may mount");
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let image = folder.path().join("image");
        File::create(&image).and_then(|file| file.set_len(bytes)).expect("a sparse file");
        fs::create_dir(folder.path().join("mount")).expect("a folder");
        let made = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let this = Self { folder };
        let ok = made(Command::new("mkfs.ext4").args(["-q", "-F", "-O", "^64bit,^extent,^has_journal"]).arg(&image))
            && made(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(this.path()));
        if !ok {
            println!("skipped: no mkfs.ext4, or no loop devices");
        }
        ok.then_some(this)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("mount")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

/// Takes all the room that is left.
fn take_room(folder: &Path) {
    let mut file = File::create(folder.join("others")).expect("a file");
    let chunk = vec![1; 1 << 16];
    while file.write_all(&chunk).is_ok() {}
    // The kernel may hold some back for what it has not written yet.
    let _ = file.sync_all();
}

#[test]
fn a_disk_that_runs_full_is_a_device_that_fails_and_dram_serves_on() {
    let _beside = beside();
    let Some(disk) = Loop::new(FILE + FILE / 4) else { return };
    let path = disk.path().join("0.ssd");
    File::create(&path).and_then(|file| file.set_len(FILE)).expect("a sparse file");
    let flags = ["--ssd-paths", path.to_str().expect("a plain name"), "--ssd-bytes", "512MiB"];
    let mut host = super::machine::host_with(DRAM, &flags);
    serves(&mut host, 1);
    let client = connect(&mut host);
    let pool = blocks::pool(&client, SMALL);
    assert_eq!(blocks::put_all(&client, &pool, 0..FILL), []);
    let there = blocks::hits(&client, &pool, 0..FILL);
    take_room(&disk.path());
    dram_serves(&client, &pool, 10_000);
    dram_serves(&client, &pool, 20_000);
    says(&host, &["WARN", "an operation of a device failed"]);
    says(&host, &["WARN", "it is not written"]);
    assert!(host.ended().expect("our child").is_none(), "{}", host.log_tail());
    println!("{there} hits before the disk was full");
    host.kill_daemon().expect("it can be killed");
    // The next start needs no room that it has not got: what was allocated is enough to read, and it says the rest.
    drop(host);
}
