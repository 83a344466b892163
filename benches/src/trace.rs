//! Request traces in the form that Mooncake published: reading, merging, describing, making. `lapis trace`.

mod generate;
mod read;
mod stats;
mod write;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

pub use generate::{Generate, generate};
pub use read::{Merged, TraceError, TraceReader, read_all};
pub use stats::Stats;
pub use write::write;

/// Tokens of the blocks that traces count in.
pub const BLOCK_TOKENS: u64 = 512;

/// One request to an engine. The same id means the same block and the same whole prefix before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Milliseconds from the start of the trace.
    pub timestamp_ms: u64,
    /// Tokens of the input.
    pub input_length: u64,
    /// Tokens of the answer; they are no blocks of this request, but of the next one of its session.
    pub output_length: u64,
    /// One id for each [`BLOCK_TOKENS`] tokens of the input, in order; the last may stand for fewer tokens.
    pub ids: Vec<u64>,
}

impl Request {
    /// Tokens in the first `blocks` blocks.
    pub fn tokens_of(&self, blocks: usize) -> u64 {
        (blocks as u64 * BLOCK_TOKENS).min(self.input_length)
    }

    /// The ids of the blocks that are full.
    pub fn full_ids(&self) -> &[u64] {
        let full = (self.input_length / BLOCK_TOKENS) as usize;
        &self.ids[..full.min(self.ids.len())]
    }
}

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
    #[arg(long, default_value_t = generate::REQUESTS_DEFAULT)]
    requests: usize,
    /// Seconds from the first to the last request, about.
    #[arg(long, default_value_t = generate::SPAN_S_DEFAULT, value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
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
                Some(path) => Ok(write::to_file(path, &trace)?),
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
