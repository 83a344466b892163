//! `lapis trace`: makes a request trace, or describes traces.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use lapis_trace::{Generate, Merged, REQUESTS_DEFAULT, SPAN_S_DEFAULT, Stats, generate, to_file, write};

/// Makes a trace, or describes traces.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct TraceArgs {
    #[command(flatten)]
    generate: GenerateArgs,
    #[command(subcommand)]
    command: Option<TraceCommand>,
}

#[derive(Args, Debug)]
struct GenerateArgs {
    /// The same seed gives the same trace.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Requests to make.
    #[arg(long, default_value_t = REQUESTS_DEFAULT)]
    requests: usize,
    /// Seconds from the first to the last request, about.
    #[arg(long, default_value_t = SPAN_S_DEFAULT, value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    span: u64,
    /// Where to write; compressed if the name ends in .zst; standard output if not given.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
enum TraceCommand {
    /// Describes traces, merged by time: requests, blocks, reuse, what an infinite cache would hit, gaps.
    Stats {
        /// Files in Mooncake form, .jsonl or .jsonl.zst.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// `lapis trace`.
pub fn run(args: &TraceArgs) -> anyhow::Result<()> {
    match &args.command {
        Some(TraceCommand::Stats { files, json }) => {
            let stats = Stats::of(Merged::open(files)?)?;
            let text = if *json { serde_json::to_string(&stats)? + "\n" } else { stats.to_string() };
            print(text.as_bytes())
        }
        None => {
            let GenerateArgs { seed, requests, span, out } = &args.generate;
            let trace = generate(&Generate { seed: *seed, requests: *requests, span_s: *span });
            match out {
                Some(path) => Ok(to_file(path, &trace)?),
                None => {
                    let mut text = Vec::new();
                    write(&mut text, &trace)?;
                    print(&text)
                }
            }
        }
    }
}

/// To standard output; a reader that has seen enough is no error.
pub(crate) fn print(text: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
