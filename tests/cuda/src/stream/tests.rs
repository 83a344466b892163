use std::collections::BTreeSet;

use super::*;

/// A thread of the stream that has no processor meanwhile is one that was never begun.
#[test]
fn who_has_heard_that_a_context_failed_may_unmap_what_it_was_to_copy() {
    const CONTEXT: u64 = 0x7;
    let mut held = world::lock();
    let id = held.handle();
    let context = world::Context { device: 0, sticky: None, legacy: None, peers: BTreeSet::new() };
    held.contexts.insert(CONTEXT, context);
    let [from, to] = [0x1000, 0x9000].map(|at| Place { side: Side::Device, at });
    let work = Work::Copy(vec![Piece { to, from, bytes: 64, pageable: false }]);
    let queued = Queued { work, call: "cuMemcpyPeerAsync", known: Clock::default() };
    let stream = Stream {
        context: CONTEXT,
        blocking: false,
        priority: 0,
        actor: 1,
        clock: Clock::default(),
        queue: VecDeque::from([queued]),
        running: None,
        closed: false,
        rng: Rng::with_seed(1),
    };
    held.streams.insert(id, stream);
    assert_eq!(held.pending(0x9000, 64), Some("cuMemcpyPeerAsync"));
    held.fall(CONTEXT, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(world::unless_fallen(held, CONTEXT).is_err());
    let mut held = world::lock();
    assert_eq!(held.pending(0x9000, 64), None);
    held.streams.remove(&id);
    held.contexts.remove(&CONTEXT);
}

#[test]
fn a_word_is_waited_for_as_cuda_has_it() {
    assert!(Until::AtLeast(5).holds(5) && Until::AtLeast(5).holds(9) && !Until::AtLeast(5).holds(4));
    assert!(Until::AtLeast(u32::MAX).holds(1), "cyclic");
    assert!(Until::Equal(5).holds(5) && !Until::Equal(5).holds(6));
    assert!(Until::And(6).holds(2) && !Until::And(6).holds(9));
    assert!(Until::Nor(!1).holds(0) && !Until::Nor(!1).holds(1));
}
