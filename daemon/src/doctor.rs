//! `lapis doctor`: whether this host can do what a configuration asks for, before a daemon is started on it. Changes
//! nothing that stays.
//!
//! Facts are gathered first, judged by functions without I/O, so that a test can be any host.

use std::fmt;

use lapis_config::{Controller, Effective};
use serde::Serialize;

mod engines;
mod etcd;
mod facts;
mod gpus;
mod host;
mod peers;
mod rdma;
mod sockets;
mod spdk;
mod ssd;
mod topology;
mod uring;

/// How good a finding is; the worst decides over the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// The daemon runs, slower or with less than was asked for.
    Warn,
    /// The daemon does not start, or not with what the configuration requires.
    Fail,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    pub check: &'static str,
    /// What the check is about, where there are several: a path, a group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    pub found: String,
    /// What to do; always there if the finding is not ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { level: Level::Ok, check, of: None, found: found.into(), advice: None }
    }

    fn bad(level: Level, check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level, check, of: None, found: found.into(), advice: Some(advice.into()) }
    }

    fn warn(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::bad(Level::Warn, check, found, advice)
    }

    fn fail(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::bad(Level::Fail, check, found, advice)
    }

    fn of(self, of: impl fmt::Display) -> Self {
        Self { of: Some(of.to_string()), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "fail",
        };
        write!(f, "{level:4}  {:13}  ", self.check)?;
        if let Some(of) = &self.of {
            write!(f, "{of}: ")?;
        }
        write!(f, "{}", self.found)?;
        match &self.advice {
            Some(advice) => write!(f, ": {advice}"),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The worst level of all.
    pub level: Level,
    pub checks: Vec<Finding>,
}

/// Examines this host, as the user who asks.
pub fn examine(effective: &Effective) -> Report {
    let options = &effective.options;
    let facts = facts::Facts::here();
    let mut checks = host::judge(options, &facts);
    let files = options.ssd_paths.iter().filter(|path| !Controller::is_meant(path));
    let probes: Vec<ssd::Probe> = files.map(|path| ssd::probe(path)).collect();
    checks.extend(ssd::judge(options, &probes));
    let of_paths = options.ssd_paths.iter().filter(|path| !Controller::is_meant(path));
    checks
        .extend(of_paths.map(|path| engines::judge(options, path, &engines::try_commands(options, path), facts.uring)));
    checks.extend(spdk::examine(options, &facts));
    checks.extend(sockets::examine(options));
    checks.extend(peers::examine(options));
    checks.extend(etcd::examine(options));
    checks.extend(rdma::examine(options));
    let (of_gpus, gpus) = gpus::examine(options);
    checks.extend(topology::examine(options, gpus));
    checks.extend(of_gpus);
    Report { level: checks.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok), checks }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.checks.iter().try_for_each(|finding| writeln!(f, "{finding}"))
    }
}

/// Prints the report; an error if the daemon would not run as the configuration asks.
pub fn run(effective: &Effective, json: bool) -> anyhow::Result<()> {
    let report = examine(effective);
    match json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print!("{report}"),
    }
    let failed = report.checks.iter().filter(|finding| finding.level == Level::Fail).count();
    anyhow::ensure!(failed == 0, "{failed} of {} checks failed", report.checks.len());
    Ok(())
}

#[test]
fn a_finding_is_one_line_with_what_to_do() {
    let finding = Finding::warn("huge pages", "none reserved", "reserve 8").of("node 0");
    assert_eq!(finding.to_string(), "warn  huge pages     node 0: none reserved: reserve 8");
    assert_eq!(Finding::ok("memory", "64GiB").to_string(), "ok    memory         64GiB");
    assert!(Level::Fail > Level::Warn && Level::Warn > Level::Ok);
}
