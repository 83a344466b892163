//! `lapis bench`: every figure of the data path beside its limit on this machine, measured in the same rounds.

mod report;

use clap::{Args, ValueEnum};

/// Measures this machine: every figure beside its limit.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Fewer rounds, under a minute
    #[arg(long)]
    pub quick: bool,
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
}

/// `lapis bench`.
pub fn run(_args: BenchArgs) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
