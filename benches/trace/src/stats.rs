//! What a trace is like: its size, how much of it returns, after how long. What no cache could beat is its ceiling.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use super::{Request, TraceError};

/// A block with more children than this is a shared prefix, and who goes on from it continues no session.
const SESSION_CHILDREN_MAX: u32 = 2;
/// Turns whose continuation is told apart; the last stands for all later ones.
const TURNS: usize = 8;
/// Only requests this early have had the time to be continued.
const CONTINUED_SHARE: f64 = 0.7;

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    pub requests: u64,
    pub block_refs: u64,
    pub blocks_unique: u64,
    /// Share of references to a block that an earlier request had.
    pub reuse: f64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub span_s: f64,
    /// What an infinite cache hits: leading runs of known blocks, as shares of tokens and of blocks.
    pub ceiling_tokens: f64,
    pub ceiling_blocks: f64,
    /// Seconds from a request to the one that continues it; 10th, 50th, 90th percentile; `None` if none does.
    pub gap_s: Option<[f64; 3]>,
    /// Share of requests that a later one continues, by turn 1, 2, ... 8 and later; of the first 70 % of the span.
    pub continued: Vec<Option<f64>>,
    /// Ids that follow more than one other id; 0 unless the file is not what it says.
    pub ids_with_two_parents: u64,
}

struct Block {
    parent: Option<u64>,
    children: u32,
    mixed: bool,
    /// The last request of which this is the last full block.
    end: Option<usize>,
}

#[derive(Clone, Copy)]
struct Turn {
    at_ms: u64,
    turn: usize,
    continued: bool,
}

#[derive(Default)]
struct Tally {
    stats: Stats,
    blocks: HashMap<u64, Block>,
    turns: Vec<Turn>,
    gaps_ms: Vec<u64>,
    seen_refs: u64,
    hit_blocks: u64,
    hit_tokens: u64,
}

impl Stats {
    pub fn of(trace: impl Iterator<Item = Result<Request, TraceError>>) -> Result<Self, TraceError> {
        let mut tally = Tally::default();
        for request in trace {
            tally.add(&request?);
        }
        Ok(tally.finish())
    }
}

impl Tally {
    fn add(&mut self, request: &Request) {
        self.stats.requests += 1;
        self.stats.block_refs += request.ids.len() as u64;
        self.stats.input_tokens += request.input_length;
        self.stats.output_tokens += request.output_length;
        let hits = request.ids.iter().take_while(|id| self.blocks.contains_key(id)).count();
        self.hit_blocks += hits as u64;
        self.hit_tokens += request.tokens_of(hits);
        self.turn(request);
        self.remember(request);
    }

    /// Which request this one continues, if any.
    fn turn(&mut self, request: &Request) {
        let at_ms = request.timestamp_ms;
        let end = |id: &u64| {
            let block = self.blocks.get(id)?;
            block.end.filter(|_| block.children <= SESSION_CHILDREN_MAX)
        };
        let before = request.full_ids().iter().rev().find_map(end);
        let turn = before.map_or(1, |i| {
            self.turns[i].continued = true;
            self.gaps_ms.push(at_ms - self.turns[i].at_ms);
            self.turns[i].turn + 1
        });
        self.turns.push(Turn { at_ms, turn, continued: false });
    }

    fn remember(&mut self, request: &Request) {
        let mut parent = None;
        for id in &request.ids {
            if let Some(block) = self.blocks.get_mut(id) {
                self.seen_refs += 1;
                block.mixed |= block.parent != parent;
            } else {
                self.blocks.insert(*id, Block { parent, children: 0, mixed: false, end: None });
                if let Some(block) = parent.and_then(|parent: u64| self.blocks.get_mut(&parent)) {
                    block.children += 1;
                }
            }
            parent = Some(*id);
        }
        if let Some(block) = request.full_ids().last().and_then(|id| self.blocks.get_mut(id)) {
            block.end = Some(self.turns.len() - 1);
        }
    }

    fn finish(mut self) -> Stats {
        let share = |part: u64, all: u64| if all == 0 { 0.0 } else { part as f64 / all as f64 };
        let mut stats = std::mem::take(&mut self.stats);
        stats.blocks_unique = self.blocks.len() as u64;
        stats.reuse = share(self.seen_refs, stats.block_refs);
        stats.ceiling_blocks = share(self.hit_blocks, stats.block_refs);
        stats.ceiling_tokens = share(self.hit_tokens, stats.input_tokens);
        let (first, last) = (self.turns.first().map_or(0, |t| t.at_ms), self.turns.last().map_or(0, |t| t.at_ms));
        stats.span_s = (last - first) as f64 / 1000.0;
        stats.ids_with_two_parents = self.blocks.values().filter(|block| block.mixed).count() as u64;
        let early = first + ((last - first) as f64 * CONTINUED_SHARE) as u64;
        stats.continued = (1..=TURNS)
            .map(|turn| {
                let of_turn = |t: &&Turn| t.turn.min(TURNS) == turn && t.at_ms < early;
                let all = self.turns.iter().filter(of_turn).count() as u64;
                let continued = self.turns.iter().filter(of_turn).filter(|t| t.continued).count() as u64;
                (all > 0).then(|| share(continued, all))
            })
            .collect();
        self.gaps_ms.sort_unstable();
        let gap = |percent: usize| self.gaps_ms[(self.gaps_ms.len() - 1) * percent / 100] as f64 / 1000.0;
        stats.gap_s = (!self.gaps_ms.is_empty()).then(|| [gap(10), gap(50), gap(90)]);
        stats
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| format!("{:.2} %", 100.0 * share);
        writeln!(f, "requests           {:>12}", self.requests)?;
        writeln!(f, "span               {:>12} s", self.span_s.round())?;
        writeln!(f, "input tokens       {:>12}", self.input_tokens)?;
        writeln!(f, "output tokens      {:>12}", self.output_tokens)?;
        writeln!(f, "block references   {:>12}", self.block_refs)?;
        writeln!(f, "unique blocks      {:>12}", self.blocks_unique)?;
        writeln!(f, "reuse              {:>14}  of references are to a block seen before", percent(self.reuse))?;
        writeln!(f, "ceiling            {:>14}  of tokens hit in an infinite cache", percent(self.ceiling_tokens))?;
        writeln!(f, "                   {:>14}  of blocks", percent(self.ceiling_blocks))?;
        match self.gap_s {
            Some([p10, p50, p90]) => {
                writeln!(f, "gap to the next turn  p10 {p10:.0} s, p50 {p50:.0} s, p90 {p90:.0} s")?;
            }
            None => writeln!(f, "gap to the next turn  no request continues another")?,
        }
        let word = |share: &Option<f64>| share.map_or("-".into(), |share| format!("{share:.2}"));
        let words: Vec<String> = self.continued.iter().map(word).collect();
        writeln!(f, "continued, by turn 1 to {TURNS}+  {}", words.join(" "))?;
        if self.ids_with_two_parents > 0 {
            writeln!(f, "{} ids follow different ids: these are no prefix hashes", self.ids_with_two_parents)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(at_s: u64, tokens: u64, ids: &[u64]) -> Result<Request, TraceError> {
        Ok(Request { timestamp_ms: at_s * 1000, input_length: tokens, output_length: 1, ids: ids.to_vec() })
    }

    #[test]
    fn runs_turns_and_gaps_are_counted() {
        let trace = [
            request(0, 1024, &[1, 2]),
            request(7, 1600, &[1, 2, 3, 4]),
            request(9, 600, &[9, 10]),
            request(10, 2048, &[1, 2, 3, 5]),
        ];
        let stats = Stats::of(trace.into_iter()).expect("good");
        assert_eq!((stats.requests, stats.block_refs, stats.blocks_unique), (4, 12, 7));
        assert_eq!((stats.reuse, stats.ceiling_blocks), (5.0 / 12.0, 5.0 / 12.0));
        assert_eq!(stats.ceiling_tokens, (1024.0 + 1536.0) / 5272.0);
        assert_eq!(stats.gap_s, Some([3.0, 3.0, 3.0]), "7 s and 3 s; percentiles round down");
        assert_eq!((stats.continued[0], stats.continued[1]), (Some(1.0), None), "the rest came after 70 %");
        assert_eq!((stats.span_s, stats.ids_with_two_parents), (10.0, 0));
    }

    #[test]
    fn an_id_after_two_others_is_noticed() {
        let trace = [request(0, 1024, &[1, 2]), request(0, 1024, &[3, 2])];
        let stats = Stats::of(trace.into_iter()).expect("good");
        assert_eq!(stats.ids_with_two_parents, 1);
        assert!(stats.to_string().contains("these are no prefix hashes"));
    }

    #[test]
    fn a_shared_prefix_continues_nobody() {
        let first = [request(0, 512, &[1]), request(1, 1024, &[1, 2]), request(2, 1024, &[1, 3])];
        let later = [request(3, 1024, &[1, 4]), request(4, 1024, &[1, 5])];
        let stats = Stats::of(first.into_iter().chain(later)).expect("good");
        assert_eq!(stats.gap_s, Some([1.0, 2.0, 2.0]), "1, 2 and 3 s; with three children block 1 is shared");
    }
}
