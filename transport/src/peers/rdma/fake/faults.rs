//! What goes wrong with NICs of a test.

/// How often what goes wrong, in a million.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::peers::rdma) struct Faults {
    /// Of READs: it fails, its pair with it.
    pub error: u32,
    /// Of READs: neither it nor anything after it ever completes.
    pub stuck: u32,
    /// Of completions: it is told twice; it is not told.
    pub twice: u32,
    pub absent: u32,
    /// Of chunks: they lie somewhere for a while between being read and being written; they are read and written again.
    pub delayed: u32,
    pub again: u32,
    /// Of posts: some are not taken, as the NIC is full; none is, as the pair is broken.
    pub full: u32,
    pub broken: u32,
    /// Of attempts to make or to connect a pair.
    pub refused: u32,
}

impl Faults {
    /// A little of everything.
    pub(in crate::peers::rdma) fn all() -> Self {
        Self {
            error: 2_000,
            stuck: 500,
            twice: 20_000,
            absent: 10_000,
            delayed: 50_000,
            again: 20_000,
            full: 20_000,
            broken: 1_000,
            refused: 100_000,
        }
    }
}
