//! How far the demo is: a bar on a terminal, else a line now and then. On standard error; results go to standard output.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// Lines without a terminal.
const LINES: u64 = 10;

pub struct Progress {
    total: u64,
    bar: Option<ProgressBar>,
    lines: u64,
}

impl Progress {
    /// Of `total` blocks.
    pub fn new(total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {percent:>3} %  {pos}/{len} blocks  {msg}  {eta} left");
            ProgressBar::new(total).with_style(style.expect("a template of known fields"))
        });
        Self { total, bar, lines: 0 }
    }

    pub fn set(&mut self, done: u64, hits: u64) {
        let share = || format!("{:.1} % hits", 100.0 * hits as f64 / done.max(1) as f64);
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(share());
            }
            None if done * LINES / self.total.max(1) > self.lines => {
                self.lines = done * LINES / self.total.max(1);
                eprintln!("{:>3} %  {done} of {} blocks, {}", done * 100 / self.total.max(1), self.total, share());
            }
            None => {}
        }
    }

    /// A sentence on a line of its own.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
