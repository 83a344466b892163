//! Request traces in the form that Mooncake published: reading, merging, describing, making.

mod generate;
mod read;
mod stats;
mod write;

pub use generate::{Generate, REQUESTS_DEFAULT, SPAN_S_DEFAULT, generate};
pub use read::{Merged, TraceError, TraceReader, read_all};
pub use stats::Stats;
pub use write::{to_file, write};

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
