//! `lapis bench`: every figure of the data path beside its limit on this machine, measured in the same rounds.

mod copies;
mod directory;
mod lookups;
mod peers;
mod report;
mod ssd;
mod starts;
mod streams;
mod sums;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use self::report::Report;
use crate::stop::Stop;

/// Measures this machine: every figure beside its limit.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Blocks of another host: `remote_get` alone, between two daemons on loopback
    #[arg(long)]
    pub peers: bool,
    /// Fewer rounds, under a minute
    #[arg(long)]
    pub quick: bool,
    /// A file on the device that the SSD tier is to be measured on: made, and removed afterwards; by default in TMPDIR
    #[arg(long, value_name = "PATH")]
    pub ssd_file: Option<PathBuf>,
    /// The other process of `streams`
    #[arg(long, hide = true)]
    pub streams_owner: bool,
    /// What to measure; everything if not given
    #[arg(value_enum, value_name = "NAME")]
    pub names: Vec<Name>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Name {
    Ready,
    Exists,
    MatchPrefix,
    GetInto,
    PutFrom,
    GetOne,
    View,
    Adopt,
    IndexBytes,
    SsdRead,
    SsdWrite,
    SsdThreads,
    SsdFlood,
    Demotion,
    Recovery,
    Sums,
    Streams,
    RawTcp,
    Directory,
    RemoteGet,
}

/// What a run was asked for.
pub(crate) struct Plan {
    quick: bool,
    names: Vec<Name>,
    ssd_file: Option<PathBuf>,
    stop: Stop,
}

impl Plan {
    fn wants_any(&self, names: &[Name]) -> bool {
        names.iter().any(|name| self.wants(*name))
    }

    fn wants(&self, name: Name) -> bool {
        self.names.is_empty() || self.names.contains(&name)
    }
}

/// `lapis bench`.
pub fn run(args: BenchArgs) -> anyhow::Result<()> {
    if args.streams_owner {
        return streams::run_owner();
    }
    let names = if args.peers { [args.names, vec![Name::RemoteGet]].concat() } else { args.names };
    let plan = Plan { quick: args.quick, names, ssd_file: args.ssd_file, stop: Stop::on_signals()? };
    let mut report = Report::new(args.json);
    starts::run(&plan, &mut report)?;
    lookups::run(&plan, &mut report)?;
    copies::run(&plan, &mut report)?;
    sums::run(&plan, &mut report)?;
    ssd::run(&plan, &mut report)?;
    streams::run(&plan, &mut report)?;
    directory::run(&plan, &mut report)?;
    peers::run(&plan, &mut report)?;
    report.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        bench: BenchArgs,
    }

    #[test]
    fn benches_are_called_by_their_names_and_unknown_ones_refused() {
        let args = Cli::try_parse_from(["bench", "--quick", "get_into", "match_prefix"]).expect("good names").bench;
        let plan = Plan { quick: args.quick, names: args.names, ssd_file: None, stop: Stop::default() };
        assert!(plan.quick && plan.wants(Name::MatchPrefix) && !plan.wants(Name::Ready));
        let Err(error) = Cli::try_parse_from(["bench", "get-into"]) else { panic!("no such bench") };
        assert!(error.to_string().contains("get_into"), "{error}");
    }
}
