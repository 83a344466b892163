//! Makes traces like real ones: chats of several turns under shared system prompts, agents in their tool loops, and
//! documents that are read once. Pure: the same seed gives the same trace.
//!
//! Lengths, gaps and the chance of another turn are those measured in the traces that Mooncake and others published
//! (one hour of a chat service: gaps of 40, 140 and 510 s at the 10th, 50th and 90th percentile; agents: 9, 17 and
//! about 100 s). The default is as large as that hour, and an infinite cache hits about as much of it.

use super::{BLOCK_TOKENS, Request};

/// As many as in one hour of conversations.
pub const REQUESTS_DEFAULT: usize = 12_031;
pub const SPAN_S_DEFAULT: u64 = 3_537;
/// No input is longer, tokens.
const INPUT_LENGTH_MAX: u64 = 126_195;
/// Blocks of each system prompt after the one block that all requests begin with; the n-th is chosen 1/n as often as
/// the first.
const PROMPT_BLOCKS: [u64; 12] = [0, 1, 0, 2, 0, 6, 0, 1, 12, 0, 4, 8];

#[derive(Clone, Copy, Debug)]
pub struct Generate {
    pub seed: u64,
    pub requests: usize,
    pub span_s: u64,
}

impl Default for Generate {
    fn default() -> Self {
        Self { seed: 1, requests: REQUESTS_DEFAULT, span_s: SPAN_S_DEFAULT }
    }
}

/// A trace of exactly `requests` requests, in order of time.
pub fn generate(options: &Generate) -> Vec<Request> {
    let mut maker = Maker::new(options);
    let mut trace: Vec<Request> = Vec::with_capacity(options.requests);
    while trace.len() < options.requests {
        let room = options.requests - trace.len();
        maker.session(&mut trace, room);
    }
    // Stable: turns of one session that fall on one millisecond keep their order.
    trace.sort_by_key(|request| request.timestamp_ms);
    renumber(&mut trace);
    trace
}

/// Ids in order of first use, and time from 0, as in the published traces.
fn renumber(trace: &mut [Request]) {
    let start_ms = trace.first().map_or(0, |request| request.timestamp_ms);
    let mut numbers = std::collections::HashMap::new();
    for request in trace {
        request.timestamp_ms -= start_ms;
        for id in &mut request.ids {
            let next = numbers.len() as u64;
            *id = *numbers.entry(*id).or_insert(next);
        }
    }
}

/// How sessions of one kind go. Token counts and gaps are log-normal: a median, and the standard deviation of the
/// logarithm.
struct Kind {
    /// Of 10,000 sessions.
    share: u32,
    /// Tokens of the first request after its system prompt.
    first_tokens: (f64, f64),
    /// Tokens that a turn adds, the answer before it included.
    turn_tokens: (f64, f64),
    output_tokens: (f64, f64),
    /// Chance of another turn after turn 1, 2, ...; the last goes on.
    continued: &'static [f64],
    gap_s: (f64, f64),
    /// Now and then a person stands between two turns: how often, and the gap then.
    pause: (f64, (f64, f64)),
}

const CHAT: Kind = Kind {
    share: 9_391,
    first_tokens: (4_750.0, 1.15),
    turn_tokens: (1_050.0, 1.0),
    output_tokens: (310.0, 0.6),
    continued: &[0.27, 0.41, 0.56, 0.61, 0.72, 0.72, 0.72, 0.86],
    gap_s: (140.0, 1.0),
    pause: (0.0, (140.0, 1.0)),
};

const AGENT: Kind = Kind {
    share: 9,
    first_tokens: (8_000.0, 0.4),
    turn_tokens: (600.0, 0.8),
    output_tokens: (230.0, 0.9),
    continued: &[0.85, 0.98, 0.96],
    gap_s: (15.0, 0.5),
    pause: (0.12, (120.0, 0.6)),
};

const DOCUMENT: Kind = Kind {
    share: 600,
    first_tokens: (20_000.0, 0.7),
    turn_tokens: (0.0, 0.0),
    output_tokens: (300.0, 0.6),
    continued: &[0.0],
    gap_s: (1.0, 0.0),
    pause: (0.0, (1.0, 0.0)),
};

struct Maker {
    rng: fastrand::Rng,
    span_ms: u64,
    /// Ids of the blocks of each system prompt, all beginning with the same one.
    prompts: Vec<Vec<u64>>,
    /// The next id that nobody has.
    next_id: u64,
}

impl Maker {
    fn new(options: &Generate) -> Self {
        let mut next_id = 1;
        let prompt = |blocks: u64| {
            let own = next_id..next_id + blocks;
            next_id = own.end;
            std::iter::once(0).chain(own).collect()
        };
        let prompts = PROMPT_BLOCKS.into_iter().map(prompt).collect();
        let rng = fastrand::Rng::with_seed(options.seed);
        Self { rng, span_ms: options.span_s.saturating_mul(1000).max(1), prompts, next_id }
    }

    /// Appends one session's requests within the span, `room` at most.
    fn session(&mut self, trace: &mut Vec<Request>, room: usize) {
        let kind = self.kind();
        let mut ids = self.prompt();
        let mut tokens = ids.len() as u64 * BLOCK_TOKENS + self.tokens(kind.first_tokens);
        let mut at_ms = self.rng.u64(0..self.span_ms);
        for turn in 0..room {
            if tokens > INPUT_LENGTH_MAX && turn > 0 {
                return;
            }
            tokens = tokens.min(INPUT_LENGTH_MAX);
            trace.push(self.request(at_ms, tokens, &mut ids, kind));
            let continued = kind.continued[turn.min(kind.continued.len() - 1)];
            at_ms = at_ms.saturating_add(self.gap_ms(kind));
            if at_ms >= self.span_ms || self.rng.f64() >= continued {
                return;
            }
            tokens += self.tokens(kind.turn_tokens);
        }
    }

    /// The request of `tokens` tokens whose full blocks begin with `ids`, which grows by the new full ones.
    fn request(&mut self, timestamp_ms: u64, tokens: u64, ids: &mut Vec<u64>, kind: &Kind) -> Request {
        while (ids.len() as u64) < tokens / BLOCK_TOKENS {
            ids.push(self.fresh_id());
        }
        let mut all = ids.clone();
        if !tokens.is_multiple_of(BLOCK_TOKENS) {
            // A partial block is another block once it has grown.
            all.push(self.fresh_id());
        }
        let output_length = self.tokens(kind.output_tokens).min(2_000);
        Request { timestamp_ms, input_length: tokens, output_length, ids: all }
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn kind(&mut self) -> &'static Kind {
        let mut ticket = self.rng.u32(0..CHAT.share + AGENT.share + DOCUMENT.share);
        for kind in [&CHAT, &AGENT] {
            if ticket < kind.share {
                return kind;
            }
            ticket -= kind.share;
        }
        &DOCUMENT
    }

    fn prompt(&mut self) -> Vec<u64> {
        let weight = |n: usize| 1.0 / (n + 1) as f64;
        let mut ticket = self.rng.f64() * (0..self.prompts.len()).map(weight).sum::<f64>();
        let chosen = (0..self.prompts.len()).find(|n| {
            ticket -= weight(*n);
            ticket < 0.0
        });
        self.prompts[chosen.unwrap_or(0)].clone()
    }

    fn gap_ms(&mut self, kind: &Kind) -> u64 {
        let (chance, pause) = kind.pause;
        let gap = if self.rng.f64() < chance { pause } else { kind.gap_s };
        (self.log_normal(gap) * 1000.0) as u64
    }

    fn tokens(&mut self, shape: (f64, f64)) -> u64 {
        (self.log_normal(shape) as u64).clamp(1, INPUT_LENGTH_MAX)
    }

    fn log_normal(&mut self, (median, sigma): (f64, f64)) -> f64 {
        // Box and Muller; the logarithm's argument is above 0.
        let (u, v) = (1.0 - self.rng.f64(), self.rng.f64());
        let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        median * (sigma * normal).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stats;

    fn stats(seed: u64) -> Stats {
        let trace = generate(&Generate { seed, ..Generate::default() });
        Stats::of(trace.into_iter().map(Ok)).expect("in memory")
    }

    #[test]
    fn the_default_is_as_large_as_an_hour_of_conversations_and_as_reusable() {
        let near = |value: f64, wanted: f64, share: f64| (value / wanted - 1.0).abs() < share;
        for seed in 1..4 {
            let s = stats(seed);
            assert_eq!((s.requests, s.ids_with_two_parents), (12_031, 0));
            assert!(near(s.block_refs as f64, 288_500.0, 0.1), "{s}");
            assert!(near(s.blocks_unique as f64, 182_790.0, 0.1), "{s}");
            assert!(near(s.ceiling_tokens, 0.37, 0.15) && near(s.span_s, 3_537.0, 0.02), "{s}");
            let [p10, p50, p90] = s.gap_s.expect("sessions go on");
            assert!((8.0..60.0).contains(&p10) && (60.0..160.0).contains(&p50) && (300.0..600.0).contains(&p90), "{s}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_trace_and_another_another() {
        let make = |seed| generate(&Generate { seed, requests: 500, span_s: 600 });
        assert_eq!(make(7), make(7));
        assert_ne!(make(7), make(8));
        assert_eq!(make(7).len(), 500);
    }

    #[test]
    fn requests_are_in_order_and_have_an_id_for_each_block() {
        let mut before_ms = 0;
        for request in generate(&Generate { requests: 2_000, ..Generate::default() }) {
            assert!(request.timestamp_ms >= before_ms && request.timestamp_ms < SPAN_S_DEFAULT * 1000);
            assert_eq!(request.ids.len() as u64, request.input_length.div_ceil(BLOCK_TOKENS));
            before_ms = request.timestamp_ms;
        }
        assert!(generate(&Generate { requests: 0, ..Generate::default() }).is_empty());
    }
}
