//! How fetches from one peer are spread over its streams: which part goes where, when a stream is opened, and how long a
//! peer that fails is left alone. Pure: calls come with the time, what is to be done is taken with `next`.
//!
//! Invariant: a part that was pushed leaves once: by `done`, by `lost`, by `expire` or `end`, or as `Todo::Fail`.
//! Invariant: a stream's number is used again only after its thread has said `lost`.

use std::{
    collections::VecDeque,
    ops::Range,
    time::{Duration, Instant},
};

/// Parts that are asked for on one stream: the second one, so that the owner never waits for the next.
const ASKED_MAX: usize = 2;

#[derive(Clone, Copy, Debug)]
pub(super) struct SpreadOptions {
    pub streams: usize,
    /// Bytes that are worth a stream of their own.
    pub part_bytes_min: u64,
    /// Bytes after which another stream may go on.
    pub part_bytes_max: u64,
    /// Before a peer that failed is tried again: the first pause, doubled up to the last.
    pub pause_min: Duration,
    pub pause_max: Duration,
}

#[derive(Clone, Debug)]
pub(super) struct Part<T> {
    pub what: T,
    pub bytes: u64,
    pub deadline: Instant,
}

#[derive(Debug)]
pub(super) enum Todo<T> {
    /// Start a thread that makes the connection; `up` or `lost` says what came of it.
    Open { stream: usize },
    /// Ask for it on this stream.
    Ask { stream: usize, what: T },
    /// Nobody can be asked for it.
    Fail(T),
}

#[derive(Debug)]
enum Stream<T> {
    Closed,
    Opening,
    Up(VecDeque<Part<T>>),
    /// It was shut, and its thread has not said so yet.
    Ending(VecDeque<Part<T>>),
}

#[derive(Debug)]
pub(super) struct Spread<T> {
    options: SpreadOptions,
    streams: Vec<Stream<T>>,
    waiting: VecDeque<Part<T>>,
    pause: Duration,
    open_at: Option<Instant>,
    is_ended: bool,
}

impl<T: Clone> Spread<T> {
    pub fn new(options: SpreadOptions) -> Self {
        Self {
            streams: (0..options.streams).map(|_| Stream::Closed).collect(),
            waiting: VecDeque::new(),
            pause: options.pause_min,
            open_at: None,
            is_ended: false,
            options,
        }
    }

    /// Cuts blocks of so many bytes into runs, a part each.
    pub fn cut(&self, blocks: &[u64]) -> Vec<Range<usize>> {
        let total: u64 = blocks.iter().sum();
        let even = total.div_ceil(self.options.streams as u64);
        let wanted = even.max(self.options.part_bytes_min).min(self.options.part_bytes_max);
        let (mut parts, mut start, mut bytes) = (Vec::new(), 0, 0);
        for (at, block) in blocks.iter().enumerate() {
            bytes += block;
            if bytes >= wanted || at + 1 == blocks.len() {
                parts.push(start..at + 1);
                (start, bytes) = (at + 1, 0);
            }
        }
        parts
    }

    pub fn push(&mut self, part: Part<T>) {
        self.waiting.push_back(part);
    }

    /// What is to be done; called until `None` after every input.
    pub fn next(&mut self, now: Instant) -> Option<Todo<T>> {
        if self.waiting.is_empty() {
            return None;
        }
        if self.is_ended {
            return self.waiting.pop_front().map(|part| Todo::Fail(part.what));
        }
        if let Some(stream) = self.with_room(1) {
            return self.ask(stream);
        }
        let may_open = self.open_at.is_none_or(|at| at <= now);
        let opening = self.streams.iter().filter(|stream| matches!(stream, Stream::Opening)).count();
        let closed = self.streams.iter().position(|stream| matches!(stream, Stream::Closed));
        if let Some(stream) = closed.filter(|_| may_open && opening < self.waiting.len()) {
            self.streams[stream] = Stream::Opening;
            return Some(Todo::Open { stream });
        }
        if let Some(stream) = self.with_room(ASKED_MAX) {
            return self.ask(stream);
        }
        let is_alone = opening == 0 && !self.streams.iter().any(|stream| matches!(stream, Stream::Up(_)));
        if is_alone && !may_open {
            return self.waiting.pop_front().map(|part| Todo::Fail(part.what));
        }
        None
    }

    /// The connection is made. False if it is not wanted any more.
    pub fn up(&mut self, stream: usize) -> bool {
        match &self.streams[stream] {
            Stream::Opening => self.streams[stream] = Stream::Up(VecDeque::new()),
            Stream::Ending(_) => return false,
            other => panic!("a stream is opened once, not while {}", other.name()),
        }
        true
    }

    /// What is to be answered next on a stream.
    pub fn front(&self, stream: usize) -> Option<&T> {
        match &self.streams[stream] {
            Stream::Up(asked) | Stream::Ending(asked) => asked.front().map(|part| &part.what),
            _ => None,
        }
    }

    /// That was answered in full.
    pub fn done(&mut self, stream: usize) {
        if let Stream::Up(asked) | Stream::Ending(asked) = &mut self.streams[stream] {
            asked.pop_front().expect("the front was answered");
            (self.pause, self.open_at) = (self.options.pause_min, None);
        }
    }

    /// Whether nothing is asked on a stream; then it is ending.
    pub fn end_idle(&mut self, stream: usize) -> bool {
        let is_idle = matches!(&self.streams[stream], Stream::Up(asked) if asked.is_empty());
        if is_idle {
            self.streams[stream] = Stream::Ending(VecDeque::new());
        }
        is_idle
    }

    /// A stream was shut: nothing more is asked on it.
    pub fn shut(&mut self, stream: usize, now: Instant) {
        match std::mem::replace(&mut self.streams[stream], Stream::Closed) {
            Stream::Closed => return,
            Stream::Opening => self.streams[stream] = Stream::Ending(VecDeque::new()),
            Stream::Up(asked) | Stream::Ending(asked) => self.streams[stream] = Stream::Ending(asked),
        }
        self.failed(now);
    }

    /// Its thread has ended; the parts that were not answered. `is_orderly`: the peer is not to blame.
    pub fn lost(&mut self, stream: usize, now: Instant, is_orderly: bool) -> VecDeque<Part<T>> {
        if !is_orderly {
            self.failed(now);
        }
        match std::mem::replace(&mut self.streams[stream], Stream::Closed) {
            Stream::Closed | Stream::Opening => VecDeque::new(),
            Stream::Up(asked) | Stream::Ending(asked) => asked,
        }
    }

    /// Parts that wait in vain, and streams on which others are late: to be shut, since bytes might still come.
    pub fn expire(&mut self, now: Instant) -> (Vec<T>, Vec<usize>) {
        let late = self.waiting.iter().filter(|part| part.deadline <= now).map(|part| part.what.clone()).collect();
        self.waiting.retain(|part| part.deadline > now);
        let is_late =
            |stream: &Stream<T>| matches!(stream, Stream::Up(asked) if asked.iter().any(|part| part.deadline <= now));
        let shut: Vec<usize> = (0..self.streams.len()).filter(|at| is_late(&self.streams[*at])).collect();
        shut.iter().for_each(|stream| self.shut(*stream, now));
        (late, shut)
    }

    /// When `expire` is due next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let asked = self.streams.iter().filter_map(|stream| match stream {
            Stream::Up(asked) => asked.iter().map(|part| part.deadline).min(),
            _ => None,
        });
        self.waiting.iter().map(|part| part.deadline).chain(asked).min()
    }

    /// The peer is gone: what waits has failed, and every stream is to be shut.
    pub fn end(&mut self) -> Vec<T> {
        self.is_ended = true;
        for stream in &mut self.streams {
            *stream = match std::mem::replace(stream, Stream::Closed) {
                Stream::Closed => Stream::Closed,
                Stream::Opening => Stream::Ending(VecDeque::new()),
                Stream::Up(asked) | Stream::Ending(asked) => Stream::Ending(asked),
            };
        }
        self.waiting.drain(..).map(|part| part.what).collect()
    }

    pub fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// The stream with the fewest bytes asked for, of those with fewer than `asked_max` parts.
    fn with_room(&self, asked_max: usize) -> Option<usize> {
        let room = self.streams.iter().enumerate().filter_map(|(at, stream)| match stream {
            Stream::Up(asked) if asked.len() < asked_max => {
                Some((asked.iter().map(|part| part.bytes).sum::<u64>(), at))
            }
            _ => None,
        });
        room.min().map(|(_, at)| at)
    }

    fn ask(&mut self, stream: usize) -> Option<Todo<T>> {
        let part = self.waiting.pop_front()?;
        let what = part.what.clone();
        let Stream::Up(asked) = &mut self.streams[stream] else { unreachable!("it has room") };
        asked.push_back(part);
        Some(Todo::Ask { stream, what })
    }

    /// Several streams that fail together are one failure.
    fn failed(&mut self, now: Instant) {
        if self.open_at.is_none_or(|at| at <= now) {
            self.open_at = Some(now + self.pause);
            self.pause = (self.pause * 2).min(self.options.pause_max);
        }
    }
}

impl<T> Stream<T> {
    fn name(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Opening => "opening",
            Self::Up(_) => "up",
            Self::Ending(_) => "ending",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn options(streams: usize) -> SpreadOptions {
        SpreadOptions { streams, part_bytes_min: 100, part_bytes_max: 1000, pause_min: 100 * MS, pause_max: 400 * MS }
    }

    fn part(what: u32, deadline: Instant) -> Part<u32> {
        Part { what, bytes: 10, deadline }
    }

    fn all(spread: &mut Spread<u32>, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| spread.next(now))
            .map(|todo| match todo {
                Todo::Open { stream } => format!("open {stream}"),
                Todo::Ask { stream, what } => format!("ask {what} on {stream}"),
                Todo::Fail(what) => format!("fail {what}"),
            })
            .collect()
    }

    #[test]
    fn little_goes_on_one_stream_and_much_on_all_in_parts_that_are_not_too_large() {
        let spread = Spread::<u32>::new(options(3));
        let ends = |blocks: &[u64]| spread.cut(blocks).iter().map(|part| part.end).collect::<Vec<_>>();
        assert_eq!(ends(&[]), []);
        assert_eq!(ends(&[20, 30, 40]), [3]);
        assert_eq!(ends(&[60; 3]), [2, 3]);
        assert_eq!(ends(&[100; 6]), [2, 4, 6]);
        assert_eq!(ends(&[900; 6]), [2, 4, 6], "1800 a stream, but not more than 1000 and what ends it");
        assert_eq!(ends(&[1000; 4]), [1, 2, 3, 4]);
    }

    #[test]
    fn streams_are_opened_as_parts_wait_and_asked_as_they_come_up() {
        let now = Instant::now();
        let mut spread = Spread::new(options(2));
        (0..3).for_each(|n| spread.push(part(n, now + MS)));
        assert_eq!(all(&mut spread, now), ["open 0", "open 1"]);
        assert!(spread.up(1));
        assert_eq!(all(&mut spread, now), ["ask 0 on 1", "ask 1 on 1"]);
        assert!(spread.up(0));
        assert_eq!(all(&mut spread, now), ["ask 2 on 0"]);
        assert_eq!(spread.front(1), Some(&0));
        spread.done(1);
        assert_eq!(spread.front(1), Some(&1));
        assert!(!spread.end_idle(1) && spread.front(0) == Some(&2));
        spread.done(0);
        assert!(spread.end_idle(0));
        spread.push(part(3, now + MS));
        assert_eq!(all(&mut spread, now), ["ask 3 on 1"], "the other one ends");
        assert!(spread.lost(0, now, true).is_empty());
        spread.push(part(4, now + MS));
        assert_eq!(all(&mut spread, now), ["open 0"]);
    }

    #[test]
    fn a_peer_that_fails_is_left_alone_for_longer_and_longer() {
        let mut now = Instant::now();
        let mut spread = Spread::new(options(2));
        for pause in [100, 200, 400, 400] {
            spread.push(part(1, now + MS));
            spread.push(part(2, now + MS));
            assert_eq!(all(&mut spread, now), ["open 0", "open 1"]);
            assert!(spread.lost(0, now, false).is_empty() && spread.lost(1, now, false).is_empty());
            assert_eq!(all(&mut spread, now + (pause - 1) * MS), ["fail 1", "fail 2"]);
            now += pause * MS;
        }
        spread.push(part(3, now + MS));
        all(&mut spread, now);
        spread.up(0);
        all(&mut spread, now);
        spread.done(0);
        spread.lost(0, now, false);
        spread.push(part(4, now + MS));
        assert_eq!(all(&mut spread, now + 100 * MS), ["open 0"], "it had answered, so the first pause again");
    }

    #[test]
    fn what_is_late_ends_its_stream_and_no_other() {
        let now = Instant::now();
        let mut spread = Spread::new(options(2));
        (0..5).for_each(|n| spread.push(part(n, now + (n + 1) * MS)));
        all(&mut spread, now);
        spread.up(0);
        assert_eq!(all(&mut spread, now), ["ask 0 on 0", "ask 1 on 0"]);
        spread.up(1);
        assert_eq!(all(&mut spread, now), ["ask 2 on 1", "ask 3 on 1"]);
        spread.push(part(9, now + MS));
        assert_eq!(spread.next_deadline(), Some(now + MS));
        assert_eq!(spread.expire(now + MS), (vec![9], vec![0]));
        assert_eq!(spread.next_deadline(), Some(now + 3 * MS), "a stream that ends is not shut again");
        let lost: Vec<u32> = spread.lost(0, now + MS, true).into_iter().map(|part| part.what).collect();
        assert_eq!(lost, [0, 1]);
        assert_eq!(spread.end(), [4]);
        assert!(spread.is_ended() && !spread.end_idle(1));
        spread.push(part(7, now + MS));
        assert_eq!(all(&mut spread, now), ["fail 7"]);
        assert_eq!(spread.lost(1, now, true).len(), 2);
    }

    proptest! {
        /// Whatever happens in whatever order: each part leaves once, and blocks are cut without a gap.
        #[test]
        fn every_part_leaves_once(steps in prop::collection::vec((0..8u8, 0..3usize), 1..200)) {
            let mut now = Instant::now();
            let (mut spread, mut left) = (Spread::new(options(3)), Vec::new());
            let (mut opening, mut up) = (Vec::new(), Vec::new());
            let mut pushed = 0;
            for (step, stream) in steps {
                match step {
                    0 | 1 => {
                        spread.push(part(pushed, now + 5 * MS));
                        pushed += 1;
                    }
                    2 if opening.contains(&stream) => {
                        opening.retain(|at| *at != stream);
                        if spread.up(stream) { up.push(stream) } else { spread.lost(stream, now, true); }
                    }
                    3 if spread.front(stream).is_some() => {
                        left.extend(spread.front(stream).copied());
                        spread.done(stream);
                    }
                    4 if opening.contains(&stream) || up.contains(&stream) => {
                        left.extend(spread.lost(stream, now, false).into_iter().map(|part| part.what));
                        opening.retain(|at| *at != stream);
                        up.retain(|at| *at != stream);
                    }
                    5 => left.extend(spread.expire(now).0),
                    6 => { spread.end_idle(stream); }
                    _ => now += 2 * MS,
                }
                while let Some(todo) = spread.next(now) {
                    match todo {
                        Todo::Open { stream } => {
                            prop_assert!(!opening.contains(&stream) && !up.contains(&stream));
                            opening.push(stream);
                        }
                        Todo::Ask { stream, .. } => prop_assert!(up.contains(&stream)),
                        Todo::Fail(what) => left.push(what),
                    }
                }
            }
            left.extend(spread.end());
            for stream in opening.into_iter().chain(up) {
                left.extend(spread.lost(stream, now, true).into_iter().map(|part| part.what));
            }
            left.sort_unstable();
            prop_assert_eq!(left, (0..pushed).collect::<Vec<_>>());
        }

        #[test]
        fn blocks_are_cut_without_a_gap(blocks in prop::collection::vec(0..2000u64, 0..50), streams in 1..5usize) {
            let parts = Spread::<u32>::new(options(streams)).cut(&blocks);
            let covered: Vec<usize> = parts.iter().cloned().flatten().collect();
            prop_assert_eq!(covered, (0..blocks.len()).collect::<Vec<_>>());
            prop_assert!(parts.iter().all(|part| !part.is_empty()));
        }
    }
}
