//! What happened, in order: as a hash, for comparing two runs of a seed, and its last lines for people.

use std::{collections::VecDeque, fmt, hash::Hasher};

use lapis_config::Time;
use twox_hash::XxHash3_64;

const LAST: usize = 60;

pub struct Trace {
    hasher: XxHash3_64,
    last: VecDeque<String>,
    prints: bool,
}

impl Trace {
    /// With `LAPIS_SIM_PRINT` set, every line goes to standard error too.
    pub fn new() -> Self {
        let prints = std::env::var_os("LAPIS_SIM_PRINT").is_some();
        Self { hasher: XxHash3_64::with_seed(0), last: VecDeque::with_capacity(LAST), prints }
    }

    pub fn note(&mut self, now: Time, what: fmt::Arguments<'_>) {
        use fmt::Write;
        let mut line = if self.last.len() == LAST { self.last.pop_front().expect("full") } else { String::new() };
        line.clear();
        write!(line, "{:>9} {what}", now.0).expect("a string takes all");
        self.hasher.write(line.as_bytes());
        if self.prints {
            eprintln!("{line}");
        }
        self.last.push_back(line);
    }

    pub fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    pub fn last(&self) -> String {
        let mut all = String::new();
        for line in &self.last {
            all.push_str(line);
            all.push('\n');
        }
        all
    }
}
