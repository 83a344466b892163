//! The yardsticks against models that are obviously right.

use std::collections::BTreeSet;

use lapis_trace::{BLOCK_TOKENS, Generate, Request, generate};
use proptest::prelude::*;

use super::{
    super::{
        cache::{Cache, drive},
        workload::Workload,
    },
    WriteThrough, Yardstick, arc, s3fifo,
};

fn request(ids: &[u64]) -> Request {
    Request { input_length: ids.len() as u64 * BLOCK_TOKENS, ids: ids.into(), ..Request::default() }
}

/// A trace as text: a letter is a block, a word a request.
fn trace(text: &str) -> Workload {
    Workload::of(text.split(' ').map(|word| request(&word.bytes().map(u64::from).collect::<Vec<_>>())).collect())
}

fn hits(workload: &Workload, yardstick: Yardstick, capacity: u64) -> u64 {
    drive(workload, &mut *yardstick.cache(workload, capacity)).hit_blocks
}

/// Requests down a random tree: an id stands for the whole prefix before it, as in real traces.
fn requests(count: usize) -> impl Strategy<Value = Workload> {
    let path = prop::collection::vec(0..2u64, 1..4);
    prop::collection::vec(path, 1..count).prop_map(|paths| {
        let chain = |path: &Vec<u64>| {
            let mut id = 1;
            let down = |step: &u64| {
                id = 2 * id + step;
                id
            };
            request(&path.iter().map(down).collect::<Vec<_>>())
        };
        Workload::of(paths.iter().map(chain).collect())
    })
}

/// The most hits from request `at` on with `kept` blocks in the cache: every choice of what to keep is tried.
fn best(workload: &Workload, capacity: usize, at: usize, kept: &BTreeSet<u64>) -> u64 {
    let Some(request) = workload.requests.get(at) else { return 0 };
    let hits = request.ids.iter().take_while(|id| kept.contains(id)).count() as u64;
    let all: Vec<u64> =
        kept.iter().copied().chain(request.ids.iter().copied()).collect::<BTreeSet<_>>().into_iter().collect();
    let choices = (0..1u32 << all.len()).filter(|choice| choice.count_ones() as usize == capacity.min(all.len()));
    let keeps = choices.map(|choice| (0..all.len()).filter(|i| choice & 1 << i != 0).map(|i| all[i]).collect());
    hits + keeps.map(|keep| best(workload, capacity, at + 1, &keep)).max().unwrap_or(0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_optimum_is_the_best_of_all_choices(workload in requests(6), capacity in 1..4usize) {
        let found = hits(&workload, Yardstick::Opt, capacity as u64);
        prop_assert_eq!(found, best(&workload, capacity, 0, &BTreeSet::new()));
    }

    #[test]
    fn the_optimum_keeps_whole_prefixes_and_no_more_than_fits(workload in requests(40), capacity in 1..8u64) {
        let mut cache = Yardstick::Opt.cache(&workload, capacity);
        for request in &workload.requests {
            cache.serve(request);
            let kept = (0..workload.blocks).filter(|id| cache.holds(*id)).count() as u64;
            prop_assert!(kept <= capacity);
            for request in &workload.requests {
                let first = request.ids.iter().take_while(|id| cache.holds(**id)).count();
                prop_assert!(request.ids[first..].iter().all(|id| !cache.holds(*id)), "a block without its parent");
            }
        }
    }

    #[test]
    fn nothing_hits_more_than_the_optimum(workload in requests(60), capacity in 1..12u64) {
        let most = hits(&workload, Yardstick::Opt, capacity);
        for yardstick in [Yardstick::Arc, Yardstick::S3Fifo] {
            prop_assert!(hits(&workload, yardstick, capacity) <= most);
        }
    }

    #[test]
    fn arc_and_s3fifo_keep_their_invariants(workload in requests(60), capacity in 1..12u64) {
        let mut arc = arc::Arc::new(workload.blocks, capacity);
        let mut s3fifo = s3fifo::S3Fifo::new(workload.blocks, capacity);
        for request in &workload.requests {
            let known = |cache: &dyn Cache| request.ids.iter().take_while(|id| cache.holds(**id)).count() as u64;
            prop_assert_eq!(known(&arc), arc.serve(request));
            prop_assert_eq!(known(&s3fifo), s3fifo.serve(request));
            arc.check();
            s3fifo.check();
        }
    }
}

#[test]
fn the_optimum_passes_by_what_does_not_return() {
    // `x` and `y` come once: `a` stays, and `bc` stays with it in a cache of three.
    let workload = trace("a bc x y a bc");
    assert_eq!((1..=3).map(|capacity| hits(&workload, Yardstick::Opt, capacity)).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn a_scan_takes_nothing_from_what_arc_has_seen_twice() {
    let workload = trace("ab ab 1 2 3 4 5 6 7 8 ab");
    assert_eq!(hits(&workload, Yardstick::Arc, 4), 4);
}

#[test]
fn s3fifo_lets_what_came_once_go_first() {
    // A small queue of one block: `a` was used twice more and moves to the main queue as the digits come.
    let workload = trace("a a a 1 2 3 4 5 6 7 8 9 a");
    assert_eq!(hits(&workload, Yardstick::S3Fifo, 4), 3);
}

#[test]
fn everything_that_fits_is_hit_the_second_time() {
    let workload = Workload::of(generate(&Generate { seed: 3, requests: 300, span_s: 900 }));
    let infinite = hits(&workload, Yardstick::Opt, workload.blocks);
    for yardstick in [Yardstick::Arc, Yardstick::S3Fifo] {
        // A tenth of S3-FIFO's room is for newcomers: it needs more to keep all.
        assert_eq!(hits(&workload, yardstick, 2 * workload.blocks), infinite, "{yardstick:?}");
    }
}

#[test]
fn write_through_writes_a_block_once_while_it_stays_on_ssd() {
    let workload = trace("ab c d ab");
    let mut cache = WriteThrough::new(workload.blocks, 1, 4, 4096);
    let hits: Vec<u64> = workload.requests.iter().map(|request| cache.serve(request)).collect();
    let counts = cache.ssd().expect("it has one");
    assert_eq!((hits, counts.hit_blocks), (vec![0, 0, 0, 2], 2));
    assert_eq!((counts.admitted_bytes, counts.readmitted_bytes, counts.device_bytes), (4 * 4096, 0, 4 * 4096));
}

#[test]
fn write_through_writes_again_what_left_the_ssd() {
    let workload = trace("a b c a");
    let mut cache = WriteThrough::new(workload.blocks, 1, 2, 4096);
    assert!(workload.requests.iter().all(|request| cache.serve(request) == 0));
    let counts = cache.ssd().expect("it has one");
    assert_eq!((counts.admitted_bytes, counts.readmitted_bytes), (3 * 4096, 4096));
}
