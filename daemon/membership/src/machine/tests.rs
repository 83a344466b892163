use lapis_config::Member;
use proptest::prelude::*;

use super::{
    super::{
        view::{Change, Entry},
        words::FailureKind,
    },
    *,
};

mod outages;
mod world;

const TTL: Duration = Duration::from_secs(9);
const S: u64 = 1_000_000;

fn options(endpoints: usize) -> MembershipOptions {
    MembershipOptions {
        host: "own".into(),
        address: "own:1".into(),
        boot: 1 << 20,
        version: "0".into(),
        prefix: "/p/".into(),
        ttl: TTL,
        endpoints,
    }
}

fn listed(name: &str, address: &str, boot: u64, mod_revision: u64, lease: i64) -> Listed {
    let entry = Entry { address: address.into(), boot, version: "0".into() };
    Listed { key: format!("/p/{name}"), value: entry.json().into_bytes(), mod_revision, lease }
}

/// A machine whose etcd is the test.
struct Script {
    machine: Membership,
    now: Time,
}

impl Script {
    fn new(endpoints: usize) -> Self {
        Self { machine: Membership::new(Time(S), options(endpoints)), now: Time(S) }
    }

    fn asks(&mut self) -> Vec<Ask> {
        std::iter::from_fn(|| self.machine.poll_ask(self.now)).collect()
    }

    fn notes(&mut self) -> Vec<Note> {
        std::iter::from_fn(|| self.machine.poll_note()).collect()
    }

    /// The only call that is asked for now.
    fn call(&mut self) -> (u64, Request) {
        match &self.asks()[..] {
            [Ask::Call { number, request, .. }] => (*number, request.clone()),
            other => panic!("not one call: {other:?}"),
        }
    }

    fn answer(&mut self, number: u64, answer: Answer) {
        self.machine.answered(self.now, number, Ok(answer));
    }

    fn fail(&mut self, number: u64, kind: FailureKind) {
        self.machine.answered(self.now, number, Err(Failure { why: "why".into(), kind }));
    }

    fn later(&mut self, us: u64) {
        self.now = Time(self.now.0 + us);
    }

    /// Listed alone, with a watch; the watch's number.
    fn settled(endpoints: usize) -> (Self, u64) {
        let mut script = Self::new(endpoints);
        let asks = script.asks();
        let [
            Ask::Call { number: grant, request: Request::Grant { ttl_s: 9 }, .. },
            Ask::Call { number: list, request: Request::List, .. },
        ] = &asks[..]
        else {
            panic!("{asks:?}")
        };
        script.answer(*grant, Answer::Granted { lease: 7, ttl_s: 9 });
        let (claim, request) = script.call();
        assert_eq!(request, Request::Claim { lease: 7, over: None });
        // The list is older than the claim, and comes later.
        script.answer(claim, Answer::Claimed { revision: 5 });
        script.answer(*list, Answer::Listed { revision: 4, listed: vec![] });
        let asks = script.asks();
        let [Ask::Watch { number: watch, revision: 4, .. }] = asks[..] else { panic!("{asks:?}") };
        script.machine.watched(script.now, watch, Watched::Opened);
        let own = listed("own", "own:1", 1 << 20, 5, 7);
        script.machine.watched(script.now, watch, Watched::Changed(vec![Change::Put(own)]));
        assert_eq!(script.notes(), [Note::Listed { address: "own:1".into() }]);
        assert_eq!((script.asks(), script.machine.poll_members()), (vec![], Some(vec![])));
        (script, watch)
    }

    fn known_by(&self) -> KnownBy {
        self.machine.known_by(|endpoint| format!("e{endpoint}"))
    }
}

#[test]
fn a_lease_is_kept_well_within_its_time_and_one_that_is_lost_is_had_anew() {
    let (mut script, _) = Script::settled(1);
    assert_eq!(script.machine.poll_timeout(), Some(Time(script.now.0 + 3 * S)), "a third of the lease");
    script.later(3 * S);
    let (keep, request) = script.call();
    assert_eq!(request, Request::KeepAlive { lease: 7 });
    script.later(S);
    script.answer(keep, Answer::Kept { ttl_s: 9 });
    assert_eq!(script.asks(), [], "a third of the time from the asking on");
    script.later(2 * S);
    let (keep, _) = script.call();
    script.answer(keep, Answer::Kept { ttl_s: 0 });
    assert_eq!(script.notes(), [Note::Unlisted { why: "its lease has ended" }]);
    let (grant, request) = script.call();
    assert_eq!(request, Request::Grant { ttl_s: 9 });
    script.answer(grant, Answer::Granted { lease: 8, ttl_s: 9 });
    assert_eq!(script.call().1, Request::Claim { lease: 8, over: None });
    assert!(script.known_by().text.ends_with("this host is about to be listed"), "{:?}", script.known_by());
}

#[test]
fn a_name_that_another_has_is_said_once_left_alone_and_taken_when_it_is_free() {
    let (mut script, watch) = Script::settled(1);
    script.later(3 * S);
    let (keep, _) = script.call();
    script.answer(keep, Answer::Kept { ttl_s: 0 });
    let (grant, _) = script.call();
    script.answer(grant, Answer::Granted { lease: 8, ttl_s: 9 });
    script.notes();
    let other = listed("own", "other:1", 99, 6, 55);
    let (claim, _) = script.call();
    script.machine.watched(script.now, watch, Watched::Changed(vec![Change::Put(other.clone())]));
    script.answer(claim, Answer::Held(Some(other.clone())));
    let by = "other:1 (boot 99)".to_owned();
    assert_eq!(script.notes(), [Note::Taken { by: by.clone(), for_good: false }]);
    assert!(script.known_by().text.contains("not listed: its name is held by other:1"), "{:?}", script.known_by());
    // It asks again, at times, and does not overwrite.
    script.later(3 * S);
    let (keep, _) = script.call();
    script.answer(keep, Answer::Kept { ttl_s: 9 });
    let (claim, request) = script.call();
    assert_eq!(request, Request::Claim { lease: 8, over: None });
    script.answer(claim, Answer::Held(Some(other)));
    assert_eq!(script.notes(), []);
    // And at once when the other has gone.
    let gone = Change::Deleted { key: "/p/own".into(), mod_revision: 8 };
    script.machine.watched(script.now, watch, Watched::Changed(vec![gone]));
    let (claim, _) = script.call();
    script.answer(claim, Answer::Claimed { revision: 9 });
    assert_eq!(script.notes(), [Note::Listed { address: "own:1".into() }]);
}

#[test]
fn whose_key_it_is_shows_by_its_boot_and_lease() {
    let claimed = |held: Listed| {
        let mut script = Script::new(1);
        let asks = script.asks();
        let Ask::Call { number, .. } = asks[0] else { panic!("{asks:?}") };
        script.answer(number, Answer::Granted { lease: 7, ttl_s: 9 });
        let (claim, _) = script.call();
        script.answer(claim, Answer::Held(Some(held)));
        let asks = script.asks();
        (asks, script.notes())
    };
    let own = 1 << 20;
    // The answer to an earlier claim was lost.
    assert_eq!(claimed(listed("own", "own:1", own, 5, 7)), (vec![], vec![Note::Listed { address: "own:1".into() }]));
    // Under a lease that this very daemon had before: it is replaced, if nobody was faster.
    let (asks, notes) = claimed(listed("own", "own:1", own, 5, 6));
    let [Ask::Call { request: Request::Claim { lease: 7, over: Some(5) }, .. }] = asks[..] else { panic!("{asks:?}") };
    assert_eq!(notes, []);
    // Under its lease, but somebody has changed the address.
    let (asks, notes) = claimed(listed("own", "own:2", own, 5, 7));
    let [Ask::Call { request: Request::Claim { lease: 7, over: Some(5) }, .. }] = asks[..] else { panic!("{asks:?}") };
    assert_eq!(notes, []);
    // A former daemon's, which was killed; another host's; what somebody put by hand; what is no host.
    assert_eq!(claimed(listed("own", "own:1", 3, 5, 6)), (vec![], vec![Note::Former]));
    let taken = |by: &str, for_good| Note::Taken { by: by.into(), for_good };
    assert_eq!(claimed(listed("own", "b:1", 3, 5, 6)), (vec![], vec![taken("b:1 (boot 3)", false)]));
    assert_eq!(claimed(listed("own", "own:1", 3, 5, 0)), (vec![], vec![taken("own:1 (boot 3)", true)]));
    let (_, notes) = claimed(Listed { value: b"?".to_vec(), ..listed("own", "", 3, 5, 0) });
    assert!(matches!(&notes[..], [Note::Taken { by, for_good: true }] if by.contains("no host")), "{notes:?}");
}

#[test]
fn every_endpoint_is_tried_before_etcd_is_said_to_be_lost() {
    let (mut script, watch) = Script::settled(3);
    let first = script.machine.endpoint;
    script.later(3 * S);
    for round in 0..3 {
        let asks = script.asks();
        let calls: Vec<(u64, usize)> = asks
            .iter()
            .filter_map(|ask| match ask {
                Ask::Call { number, endpoint, .. } => Some((*number, *endpoint)),
                _ => None,
            })
            .collect();
        assert!(calls.iter().all(|(_, endpoint)| *endpoint == (first + round) % 3), "{asks:?}");
        assert!(script.known_by().text.starts_with("etcd at"), "{:?}", script.known_by());
        script.fail(calls[0].0, FailureKind::Away);
        if round == 0 {
            assert_eq!(script.machine.poll_ask(script.now), Some(Ask::End { number: watch }));
        }
    }
    let notes = script.notes();
    assert!(
        matches!(&notes[..], [Note::EndpointAway { .. }, Note::EndpointAway { .. }, Note::Lost { why }] if why == "why"),
        "{notes:?}"
    );
    let ends = script.asks();
    assert!(ends.iter().all(|ask| matches!(ask, Ask::End { .. })), "a pause comes first: {ends:?}");
    let due = script.machine.poll_timeout().expect("it goes on");
    assert!(due > script.now && due.since_us(script.now) <= 100_000, "{due:?}");
    assert_eq!(script.known_by().stale_since, Some(script.now));
    assert_eq!(script.machine.poll_members(), None, "nobody has gone");
}

#[test]
fn a_silent_watch_is_ended_and_the_list_asked_for_anew() {
    let (mut script, watch) = Script::settled(1);
    let opened = script.now;
    for _ in 0..9 {
        script.later(3 * S);
        match &script.asks()[..] {
            [Ask::Call { number, request: Request::KeepAlive { .. }, .. }] => {
                script.machine.answered(script.now, *number, Ok(Answer::Kept { ttl_s: 9 }));
            }
            asks => {
                assert_eq!(script.now.since_us(opened), 27 * S, "three leases");
                assert_eq!(asks[0], Ask::End { number: watch });
                assert!(
                    asks[1..].iter().any(|ask| matches!(ask, Ask::Call { request: Request::List, .. })),
                    "{asks:?}"
                );
                assert_eq!(script.notes(), [], "nothing is known to be wrong");
                return;
            }
        }
    }
    panic!("it was never ended");
}

#[test]
fn a_compacted_watch_lists_again_and_a_cut_one_says_nothing() {
    let (mut script, watch) = Script::settled(1);
    script.machine.watched(script.now, watch, Watched::Compacted);
    assert_eq!(script.asks(), [Ask::End { number: watch }], "not at once");
    script.later(PAUSE.as_micros() as u64);
    let (list, request) = script.call();
    assert_eq!(request, Request::List);
    let own = listed("own", "own:1", 1 << 20, 5, 7);
    script.answer(list, Answer::Listed { revision: 50, listed: vec![own, listed("b", "b:1", 2, 40, 9)] });
    let asks = script.asks();
    let [Ask::Watch { number: watch, revision: 50, .. }] = asks[..] else { panic!("{asks:?}") };
    let b = Member { name: "b".into(), address: "b:1".into() };
    assert_eq!(script.machine.poll_members(), Some(vec![b]));
    script.machine.watched(script.now, watch, Watched::Opened);
    script.later(2 * S);
    script.machine.watched(script.now, watch, Watched::Failed(Failure::away("cut")));
    assert_eq!(script.call().1, Request::List);
    assert_eq!(script.notes(), []);
}

#[test]
fn what_is_refused_is_said_once_and_others_are_seen_all_the_same() {
    let mut script = Script::new(1);
    for round in 0..3 {
        let asks = script.asks();
        let Some(Ask::Call { number, request: Request::Grant { .. }, .. }) = asks.first() else { panic!("{asks:?}") };
        script.fail(*number, FailureKind::Refused);
        if let [_, Ask::Call { number, .. }] = &asks[..] {
            script.answer(*number, Answer::Listed { revision: 3, listed: vec![listed("b", "b:1", 2, 2, 9)] });
            let asks = script.asks();
            let [Ask::Watch { number, .. }] = asks[..] else { panic!("{asks:?}") };
            script.machine.watched(script.now, number, Watched::Opened);
        }
        let expected = if round == 0 { vec![Note::Refused { why: "why".into() }] } else { vec![] };
        assert_eq!(script.notes(), expected);
        script.later(3 * S);
    }
    assert_eq!(script.machine.poll_members().map(|members| members.len()), Some(1));
    let known_by = script.known_by();
    assert!(known_by.text.contains("1 other host; this host is not listed: why"), "{known_by:?}");
    assert_eq!(known_by.stale_since, None);
}

#[test]
fn a_key_that_may_not_be_written_is_said_once_though_its_lease_is_kept() {
    let mut script = Script::new(1);
    let asks = script.asks();
    let Ask::Call { number, .. } = asks[0] else { panic!("{asks:?}") };
    script.answer(number, Answer::Granted { lease: 7, ttl_s: 9 });
    let mut said = Vec::new();
    for _ in 0..3 {
        let (claim, request) = script.call();
        assert_eq!(request, Request::Claim { lease: 7, over: None });
        script.fail(claim, FailureKind::Refused);
        said.extend(script.notes());
        script.later(3 * S);
        let (keep, _) = script.call();
        script.answer(keep, Answer::Kept { ttl_s: 9 });
    }
    assert_eq!(said, [Note::Refused { why: "why".into() }]);
    assert_eq!(script.machine.refused.as_deref(), Some("why"), "its lease does not make it listed");
    let (claim, _) = script.call();
    script.answer(claim, Answer::Claimed { revision: 5 });
    assert_eq!(script.notes(), [Note::Listed { address: "own:1".into() }]);
    assert_eq!(script.machine.refused, None);
}

#[test]
fn a_key_that_somebody_has_changed_is_put_again() {
    let (mut script, watch) = Script::settled(1);
    for (changed, revision) in [(listed("own", "own:2", 1 << 20, 6, 7), 6), (listed("own", "own:1", 1 << 20, 8, 0), 8)]
    {
        script.machine.watched(script.now, watch, Watched::Changed(vec![Change::Put(changed.clone())]));
        assert_eq!(script.notes(), [Note::Unlisted { why: "its key was overwritten" }]);
        let (claim, _) = script.call();
        script.answer(claim, Answer::Held(Some(changed)));
        let (claim, request) = script.call();
        assert_eq!(request, Request::Claim { lease: 7, over: Some(revision) });
        script.answer(claim, Answer::Claimed { revision: revision + 1 });
        let put = listed("own", "own:1", 1 << 20, revision + 1, 7);
        script.machine.watched(script.now, watch, Watched::Changed(vec![Change::Put(put)]));
        assert_eq!(script.notes(), [Note::Listed { address: "own:1".into() }]);
    }
}

#[test]
fn at_the_end_the_lease_is_revoked_and_nothing_else_is_asked() {
    let (mut script, _) = Script::settled(1);
    script.machine.stop();
    let (revoke, request) = script.call();
    assert_eq!(request, Request::Revoke { lease: 7 });
    assert!(!script.machine.is_stopped());
    script.fail(revoke, FailureKind::Away);
    assert_eq!(script.notes(), [Note::Unrevoked { why: "why".into() }]);
    assert!(script.machine.is_stopped() && script.asks().is_empty() && script.machine.poll_timeout().is_none());
    // Without a lease there is nothing to revoke.
    let mut script = Script::new(1);
    script.machine.stop();
    assert!(script.asks().is_empty() && script.machine.is_stopped());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(world::cases()))]

    /// Whatever etcd goes through: nobody is dropped or overwritten for it, and in the end all know all.
    #[test]
    fn hosts_find_each_other_again_after_whatever_etcd_went_through(
        seed: u64,
        endpoints in 1usize..4,
        plan in prop::collection::vec(world::plan(), 0..8),
    ) {
        world::run(seed, endpoints, &plan);
    }
}

/// A host's key is put, and the history compacted before a watch that is open has told of it.
#[test]
fn what_was_compacted_before_it_was_told_is_listed_anew() {
    let plan = [(world::Fault::Wiped, 1_140_001), (world::Fault::Cut, 590_001), (world::Fault::Compacted, 1_000)];
    world::run(10730795866175942395, 3, &plan);
}
