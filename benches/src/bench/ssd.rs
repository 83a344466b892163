//! The SSD tier beside the bare device: records through a drive (`device`), blocks through a daemon (`reads`, `writes`),
//! a whole log found again (`recovery`). All over files with O_DIRECT, on the device that TMPDIR or `--ssd-file` names.
//!
//! Each round measures the limit on a file of the same state: every byte of it was written once.

mod demotion;
mod device;
mod flood;
mod raw;
mod reads;
mod records;
mod recovery;
mod tier;
mod writes;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use lapis_config::Controller;

use self::raw::Took;
pub(super) use self::raw::cpu_of_process;
use super::{
    Name, Plan,
    report::{Figure, Goal, Report, rounded},
};
use crate::samples::{Pairs, Samples};

/// Operations under way, here and at the limit.
const DEPTH: usize = 32;
/// Block sizes, and whether the goals hold for them.
const SIZES: [(usize, bool); 4] = [(64 << 10, false), (256 << 10, true), (1 << 20, true), (2 << 20, true)];
const READ_GOAL: f64 = 0.9;
const WRITE_GOAL: f64 = 0.8;

const NAMES: [Name; 6] =
    [Name::SsdRead, Name::SsdWrite, Name::SsdThreads, Name::SsdFlood, Name::Demotion, Name::Recovery];

pub fn run(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    if !plan.wants_any(&NAMES) {
        return Ok(());
    }
    let ground = Ground::new(plan.ssd_file.as_deref())?;
    if let Some(why) = raw::without_direct(ground.folder())? {
        let folder = ground.folder().display();
        eprintln!(
            "lapis: the SSD tier is not measured: no O_DIRECT in {folder} ({why}); --ssd-file names another place"
        );
        return Ok(());
    }
    if plan.wants_any(&[Name::SsdRead, Name::SsdWrite, Name::SsdThreads]) {
        records::run(plan, &ground, report)?;
    }
    if plan.wants(Name::SsdRead) {
        reads::run(plan, &ground, report)?;
    }
    if plan.wants(Name::SsdWrite) {
        writes::run(plan, &ground, report)?;
    }
    if plan.wants(Name::SsdFlood) {
        flood::run(plan, &ground, report)?;
    }
    if plan.wants(Name::Demotion) {
        demotion::run(plan, &ground, report)?;
    }
    if plan.wants(Name::Recovery) {
        recovery::run(plan, &ground, report)?;
    }
    Ok(())
}

/// Where files are made.
pub struct Ground {
    base: PathBuf,
    _folder: Option<tempfile::TempDir>,
}

impl Ground {
    fn new(file: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(file) = file {
            ensure!(
                !Controller::is_meant(file),
                "{} is a controller of SPDK, and the bench measures over files of its own: give the controller back to the \
                 kernel (scripts/setup.sh reset) and name a file on it; ssd_rate measures a controller (docs/spdk.md)",
                file.display()
            );
            ensure!(!file.exists(), "{} is there already: the bench makes its file, and removes it", file.display());
            return Ok(Self { base: file.to_owned(), _folder: None });
        }
        let folder = tempfile::Builder::new().prefix("lapis-ssd-").tempdir().context("make a temporary folder")?;
        Ok(Self { base: folder.path().join("log"), _folder: Some(folder) })
    }

    fn folder(&self) -> &Path {
        match self.base.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        }
    }

    /// A file whose bytes were all written once; blank to a daemon.
    fn file(&self, name: &str, bytes: u64) -> anyhow::Result<ScratchFile> {
        let file = self.empty(name);
        raw::prepare(&file.0, bytes).with_context(|| format!("make {} of {bytes} bytes", file.0.display()))?;
        Ok(file)
    }

    /// The path of a file that is not there yet.
    fn empty(&self, name: &str) -> ScratchFile {
        let mut path = self.base.clone().into_os_string();
        path.push(name);
        ScratchFile(path.into())
    }
}

/// Removed when it is dropped.
pub struct ScratchFile(PathBuf);

impl ScratchFile {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            eprintln!("lapis: {} stays: {error}", self.0.display());
        }
    }
}

/// Rounds of one figure beside the bare device.
#[derive(Default)]
pub struct Rounds {
    pairs: Pairs,
    cpu: Samples,
    sums_cpu: Samples,
    limit_cpu: Samples,
}

impl Rounds {
    /// Ours and the limit's of one round. `sums`: processor time within ours that sums took.
    pub fn push(&mut self, ours: &Took, limit: &Took, sums: Option<std::time::Duration>) {
        self.pairs.push(ours.gigabytes_per_second(), limit.gigabytes_per_second());
        self.cpu.push(ours.cpu_us_per_gb());
        self.limit_cpu.push(limit.cpu_us_per_gb());
        if let Some(sums) = sums {
            self.sums_cpu.push(Took { cpu: sums, ..*ours }.cpu_us_per_gb());
        }
    }

    pub fn figure(mut self, bench: &'static str, case: &'static str, block_bytes: usize) -> Figure {
        let mut figure = Figure::throughput(bench, self.pairs);
        figure.case = Some(case);
        (figure.block_bytes, figure.depth) = (Some(block_bytes as u64), Some(DEPTH as u64));
        figure.limit_is = Some("raw io_uring");
        figure.cpu_us_per_gb = Some(rounded(self.cpu.median()));
        figure.limit_cpu_us_per_gb = Some(rounded(self.limit_cpu.median()));
        figure.sums_cpu_us_per_gb = (!self.sums_cpu.is_empty()).then(|| rounded(self.sums_cpu.median()));
        figure
    }
}

/// The goal of a ratio.
pub fn at_least(figure: &mut Figure, least: f64, what: &str) {
    let met = figure.ratio.is_some_and(|ratio| ratio >= least);
    figure.goal = Some(Goal::new(format!(">= {least} x {what}"), met));
}

#[test]
fn a_controller_is_no_place_for_files_and_what_is_to_be_done_is_said() {
    let refused = Ground::new(Some(Path::new("pci:0000:65:00.0"))).err().expect("no file").to_string();
    assert!(refused.contains("pci:0000:65:00.0") && refused.contains("ssd_rate"), "{refused}");
}
