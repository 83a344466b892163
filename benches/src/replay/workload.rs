//! What a replay is driven with: the requests of a trace, and perhaps a scan between them.

use std::collections::HashMap;

use lapis_trace::{BLOCK_TOKENS, Request};

/// A tenant that reads and never returns: after each `every`-th request one of `blocks` blocks that nobody asks for
/// again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    pub blocks: u32,
    pub every: u32,
}

/// Requests whose block ids are the numbers from 0 on, in the order of first use: a table by block is a `Vec`.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    pub requests: Vec<Request>,
    /// Distinct blocks, those of the scan included; ids are less than this.
    pub blocks: u64,
    /// Distinct blocks of the trace itself; ids from here on are the scan's.
    pub real_blocks: u64,
}

impl Workload {
    /// Numbers the blocks of a trace.
    pub fn of(mut trace: Vec<Request>) -> Self {
        let mut numbers = HashMap::new();
        for id in trace.iter_mut().flat_map(|request| &mut request.ids) {
            let next = numbers.len() as u64;
            *id = *numbers.entry(*id).or_insert(next);
        }
        let blocks = numbers.len() as u64;
        Self { requests: trace, blocks, real_blocks: blocks }
    }

    /// The same requests with a scan between them.
    pub fn with_scan(self, scan: Scan) -> Self {
        let (every, length) = (scan.every as usize, u64::from(scan.blocks));
        let mut requests = Vec::with_capacity(self.requests.len() + self.requests.len() / every);
        let mut blocks = self.blocks;
        for (index, request) in self.requests.into_iter().enumerate() {
            let timestamp_ms = request.timestamp_ms;
            requests.push(request);
            if (index + 1) % every == 0 {
                let ids = (blocks..blocks + length).collect();
                requests.push(Request { timestamp_ms, input_length: length * BLOCK_TOKENS, output_length: 0, ids });
                blocks += length;
            }
        }
        Self { requests, blocks, real_blocks: self.real_blocks }
    }

    /// Whether the request is one of the trace, not of the scan.
    pub fn is_real(&self, request: &Request) -> bool {
        request.ids.first().is_none_or(|id| *id < self.real_blocks)
    }

    /// From the first request to the last.
    pub fn span_ms(&self) -> u64 {
        let ends = self.requests.first().zip(self.requests.last());
        ends.map_or(0, |(first, last)| last.timestamp_ms - first.timestamp_ms)
    }

    pub fn block_refs(&self) -> u64 {
        self.requests.iter().map(|request| request.ids.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(ids: &[u64]) -> Request {
        Request { input_length: ids.len() as u64 * BLOCK_TOKENS, ids: ids.into(), ..Request::default() }
    }

    #[test]
    fn blocks_are_numbered_in_order_of_first_use() {
        let workload = Workload::of(vec![request(&[9, 1 << 60]), request(&[9, 4])]);
        let ids: Vec<&[u64]> = workload.requests.iter().map(|request| &request.ids[..]).collect();
        assert_eq!((ids, workload.blocks, workload.block_refs()), (vec![&[0, 1][..], &[0, 2]], 3, 4));
    }

    #[test]
    fn a_scan_comes_after_each_so_many_requests_and_never_twice() {
        let trace = (0..5).map(|id| request(&[id])).collect();
        let workload = Workload::of(trace).with_scan(Scan { blocks: 2, every: 2 });
        let ids: Vec<&[u64]> = workload.requests.iter().map(|request| &request.ids[..]).collect();
        assert_eq!(ids, [&[0][..], &[1], &[5, 6], &[2], &[3], &[7, 8], &[4]]);
        let real = workload.requests.iter().filter(|request| workload.is_real(request)).count();
        assert_eq!((real, workload.real_blocks, workload.blocks), (5, 5, 9));
        assert_eq!(workload.requests[2].input_length, 2 * BLOCK_TOKENS);
    }
}
