use std::collections::BTreeMap;

use lapis_config::{Fingerprint, PoolKind};
use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000;

fn hello(host: &str) -> PeerHello {
    let (host, group) = (host.into(), "default".into());
    PeerHello { host, group, boot: 1, digest_bytes_max: 1 << 20, data_port: 1, data_word: 2 }
}

fn shape(label: &str) -> PoolShape {
    let (namespace, kind) = (Fingerprint([1; 32]), PoolKind::Chain);
    PoolShape { namespace, label: label.into(), kind, block_bytes: 4096, pieces: 1 }
}

fn todo(asker: &mut Asker) -> Vec<Todo> {
    std::iter::from_fn(|| asker.poll()).collect()
}

fn is_hung_up(todo: &[Todo], why: &str) -> bool {
    todo.iter().any(|todo| matches!(todo, Todo::HangUp { reason } if reason.contains(why)))
}

fn asker() -> Asker {
    asker_by(LocateBy::Asked)
}

fn asker_by(locate: LocateBy) -> Asker {
    Asker::new(Time(0), hello("a"), "b".into(), AskerOptions { locate, ..AskerOptions::default() })
}

/// Greeted at 1 ms, with a pool and credit for two calls.
fn up() -> Asker {
    up_by(LocateBy::Asked)
}

fn up_by(locate: LocateBy) -> Asker {
    let mut asker = asker_by(locate);
    asker.tick(Time(0));
    asker.dialled(Time(MS));
    for message in [
        PeerMessage::Hello(hello("b")),
        PeerMessage::Pool { pool: PoolId(7), shape: shape("kv") },
        PeerMessage::Credit { calls: 2 },
    ] {
        asker.message(Time(MS), message);
    }
    let told = todo(&mut asker);
    assert_eq!(told[0], Todo::Dial);
    assert_eq!(told[2..], [Todo::Tell(News::Up(hello("b")))]);
    asker
}

fn found(token: u64, blocks: u16) -> PeerMessage {
    let block = |index| Located { index, follows: index > 0, line: 1, generation: 2, slot: 3, bytes: 4, sum: 5 };
    PeerMessage::Found { token, parent: Key::default(), blocks: (0..blocks).map(block).collect() }
}

fn locate(asker: &mut Asker, now: u64, call: u64, deadline: u64) -> Result<(), NotNow> {
    asker.locate(Time(now), call, &shape("kv"), false, Wait::Present, &[Key::default()], Time(deadline))
}

fn look(asker: &mut Asker, now: u64, call: u64, deadline: u64) -> Result<(), NotNow> {
    asker.look(Time(now), call, &shape("kv"), &[Key::default()], Time(deadline))
}

#[test]
fn a_look_is_in_the_peers_pool_and_takes_a_quarter_of_the_time() {
    assert_eq!(look(&mut up(), 2 * MS, 1, 10 * MS), Err(NotNow::Asked));
    let mut asker = up_by(LocateBy::OneSided);
    assert_eq!(look(&mut asker, 2 * MS, 1, 10 * MS), Ok(()));
    let (call, keys, within) = (1, vec![Key::default()], Duration::from_millis(2));
    assert_eq!(todo(&mut asker), [Todo::Look { call, pool: PoolId(7), keys, within }]);
    let PeerMessage::Found { parent, blocks, .. } = found(1, 2) else { unreachable!() };
    asker.looked(1, parent, blocks.clone());
    assert_eq!(todo(&mut asker), [Todo::Tell(News::Found { call: 1, parent, blocks })]);
    asker.looked(1, parent, vec![]);
    asker.release(1);
    assert_eq!(todo(&mut asker), [], "the peer holds nothing for it");
}

#[test]
fn a_look_that_is_late_fails_and_nobody_is_blamed_or_told() {
    let mut asker = up_by(LocateBy::OneSided);
    for call in 1..9 {
        look(&mut asker, 2 * MS, call, 10 * MS).expect("it is not left alone");
        todo(&mut asker);
        asker.tick(Time(4 * MS));
        assert_eq!(todo(&mut asker), [Todo::Tell(News::Failed { call })]);
        asker.looked(call, Key::default(), vec![]);
        assert_eq!(todo(&mut asker), []);
    }
    look(&mut asker, 4 * MS, 9, 10 * MS).expect("taken");
    asker.lost(Time(5 * MS));
    assert!(todo(&mut asker).contains(&Todo::Tell(News::Failed { call: 9 })));
}

#[test]
fn a_call_goes_out_under_the_peers_own_number_of_the_pool_and_its_answer_comes_back() {
    let mut asker = up();
    assert_eq!(locate(&mut asker, 2 * MS, 5, 10 * MS), Ok(()));
    let keys = vec![Key::default()];
    let asked =
        PeerMessage::Locate { token: 5, pool: PoolId(7), each: false, wait: Wait::Present, deadline_us: 8 * MS, keys };
    assert_eq!(todo(&mut asker), [Todo::Send(asked)]);
    let blocks = vec![Located { index: 0, follows: false, line: 1, generation: 2, slot: 3, bytes: 4, sum: 5 }];
    asker.message(Time(3 * MS), PeerMessage::Found { token: 5, parent: Key::default(), blocks: blocks.clone() });
    assert_eq!(todo(&mut asker), [Todo::Tell(News::Found { call: 5, parent: Key::default(), blocks })]);
    assert_eq!(
        asker.locate(Time(3 * MS), 6, &shape("other"), false, Wait::Present, &[], Time(9 * MS)),
        Err(NotNow::NoPool)
    );
}

#[test]
fn no_more_is_under_way_than_the_peer_allows() {
    let mut asker = up();
    assert_eq!(locate(&mut asker, 2 * MS, 1, 10 * MS), Ok(()));
    assert_eq!(locate(&mut asker, 2 * MS, 2, 10 * MS), Ok(()));
    assert_eq!(locate(&mut asker, 2 * MS, 3, 10 * MS), Err(NotNow::Busy));
    asker.message(Time(3 * MS), PeerMessage::Found { token: 1, parent: Key::default(), blocks: vec![] });
    assert_eq!(locate(&mut asker, 3 * MS, 3, 10 * MS), Ok(()));
}

#[test]
fn what_the_peer_holds_counts_until_it_is_released() {
    let mut asker = up();
    assert_eq!((locate(&mut asker, 2 * MS, 1, 10 * MS), locate(&mut asker, 2 * MS, 2, 10 * MS)), (Ok(()), Ok(())));
    asker.message(Time(3 * MS), found(1, 2));
    assert_eq!((locate(&mut asker, 3 * MS, 3, 10 * MS), asker.under_way()), (Err(NotNow::Busy), 1));
    asker.release(1);
    asker.release(1);
    assert_eq!(locate(&mut asker, 3 * MS, 3, 10 * MS), Ok(()));
    let releases = todo(&mut asker).into_iter().filter(|todo| matches!(todo, Todo::Send(PeerMessage::Release { .. })));
    assert_eq!(releases.count(), 1);
}

#[test]
fn an_answer_to_another_question_is_none() {
    let found = || PeerMessage::Found { token: 1, parent: Key::default(), blocks: vec![] };
    for (kind, answer, why) in [
        (Kind::Locate, PeerMessage::Offered { number: 1, came: 1 }, "answered an offer"),
        (Kind::Offer, found(), "blocks that it was not asked for"),
        (Kind::Look, found(), "blocks that it was not asked for"),
        (Kind::Look, PeerMessage::Offered { number: 1, came: 1 }, "answered an offer"),
    ] {
        let mut asker = up_by(LocateBy::OneSided);
        match kind {
            Kind::Locate => locate(&mut asker, 2 * MS, 1, 9 * MS),
            Kind::Look => look(&mut asker, 2 * MS, 1, 9 * MS),
            Kind::Offer => asker.offer(Time(2 * MS), 1, &shape("kv"), &[Key::default()], Time(9 * MS)),
        }
        .expect("taken");
        asker.message(Time(3 * MS), answer);
        let told = todo(&mut asker);
        assert!(is_hung_up(&told, why), "{told:?}");
        assert_eq!(told.iter().filter(|todo| **todo == Todo::Tell(News::Failed { call: 1 })).count(), 1);
    }
}

#[test]
fn a_peer_with_pools_without_end_is_hung_up_on() {
    let mut asker = up();
    let pool = |n: usize| PeerMessage::Pool { pool: PoolId(7), shape: shape(&n.to_string()) };
    (1..POOLS_MAX).for_each(|n| asker.message(Time(2 * MS), pool(n)));
    asker.message(Time(2 * MS), pool(1));
    assert_eq!(todo(&mut asker), [], "so many there may be, and one twice");
    asker.message(Time(2 * MS), pool(0));
    assert!(is_hung_up(&todo(&mut asker), "more than 1024 pools"));
}

#[test]
fn its_digest_is_asked_for_once_until_it_begins() {
    let mut asker = up();
    asker.want_whole();
    asker.want_whole();
    assert_eq!(todo(&mut asker), [Todo::Send(PeerMessage::WholeWanted)]);
    let whole = Whole { epoch: 1, sequence: 0, buckets: 2, sampling: 0 };
    asker.message(Time(2 * MS), PeerMessage::Whole(whole));
    asker.want_whole();
    assert_eq!(todo(&mut asker)[1..], [Todo::Send(PeerMessage::WholeWanted)]);
}

#[test]
fn a_peer_that_errs_each_time_is_dialled_after_growing_pauses_and_one_that_is_lost_at_once() {
    let greeted = |asker: &mut Asker, now: Time| {
        asker.tick(now);
        asker.dialled(now);
        asker.message(now, PeerMessage::Hello(hello("b")));
    };
    let pauses = |errs: bool| {
        let (mut asker, mut now, mut pauses) = (asker(), Time(0), Vec::new());
        for _ in 0..5 {
            greeted(&mut asker, now);
            if errs {
                asker.close(now, "a digest without end")
            } else {
                asker.lost(now)
            }
            if errs {
                asker.nudge(now);
            }
            let next = asker.poll_timeout().expect("dialled again");
            pauses.push(next.since_us(now) / MS);
            now = next;
        }
        pauses
    };
    assert_eq!(pauses(true), [100, 200, 400, 800, 1_600]);
    assert_eq!(pauses(false), [100; 5]);
}

#[test]
fn a_peer_that_comes_to_ask_is_dialled_at_once() {
    let (mut asker, mut now) = (asker(), Time(0));
    for _ in 0..8 {
        asker.tick(now);
        asker.lost(now);
        now = asker.poll_timeout().expect("dialled again");
    }
    asker.tick(now);
    asker.lost(now);
    assert!(asker.poll_timeout().expect("dialled again").since_us(now) >= 10_000 * MS);
    todo(&mut asker);
    asker.nudge(now);
    assert_eq!(todo(&mut asker), [Todo::Dial]);
}

#[test]
fn a_call_fails_at_its_deadline_and_what_it_finds_later_is_let_go() {
    let mut asker = up();
    locate(&mut asker, 2 * MS, 1, 10 * MS).expect("taken");
    todo(&mut asker);
    assert_eq!(asker.poll_timeout(), Some(Time(10 * MS)));
    asker.tick(Time(10 * MS));
    let release = Todo::Send(PeerMessage::Release { token: 1 });
    assert_eq!(todo(&mut asker), [release.clone(), Todo::Tell(News::Failed { call: 1 })]);
    asker.message(Time(11 * MS), found(1, 0));
    assert_eq!(todo(&mut asker), [], "it holds nothing");
    asker.message(Time(11 * MS), found(1, 2));
    assert_eq!(todo(&mut asker), [release]);
}

#[test]
fn a_peer_that_leaves_calls_unanswered_is_left_alone_for_a_while() {
    let mut asker = up();
    for call in 0..3 {
        let now = (2 + 10 * call) * MS;
        locate(&mut asker, now, call, now + 5 * MS).expect("taken");
        asker.message(Time(now), PeerMessage::Pong { number: 0 });
        asker.tick(Time(now + 5 * MS));
    }
    assert_eq!(locate(&mut asker, 30 * MS, 9, 90 * MS), Err(NotNow::Away));
    assert_eq!(locate(&mut asker, 130 * MS, 9, 190 * MS), Ok(()), "after the pause");
}

#[test]
fn a_silent_connection_is_asked_for_a_sign_and_ended_without_one() {
    let mut asker = up();
    locate(&mut asker, 400 * MS, 1, 60_000 * MS).expect("taken");
    todo(&mut asker);
    asker.tick(Time(501 * MS));
    assert_eq!(todo(&mut asker), [Todo::Send(PeerMessage::Ping { number: 1 })]);
    asker.message(Time(600 * MS), PeerMessage::Pong { number: 1 });
    asker.tick(Time(1_100 * MS));
    assert_eq!(todo(&mut asker), [Todo::Send(PeerMessage::Ping { number: 2 })]);
    asker.tick(Time(2_099 * MS));
    assert_eq!(todo(&mut asker), [], "it has time yet");
    asker.tick(Time(2_100 * MS));
    let told = todo(&mut asker);
    assert!(is_hung_up(&told, "no sign"));
    assert_eq!(told[1..], [Todo::Tell(News::Failed { call: 1 }), Todo::Tell(News::Down)]);
}

#[test]
fn it_is_dialled_again_after_pauses_that_grow_to_a_bound() {
    let mut asker = asker();
    let (mut now, mut pauses) = (Time(0), Vec::new());
    for _ in 0..12 {
        asker.tick(now);
        assert_eq!(todo(&mut asker), [Todo::Dial]);
        asker.lost(now);
        let next = asker.poll_timeout().expect("dialled again");
        pauses.push(next.since_us(now) / MS);
        now = next;
    }
    assert_eq!(pauses[..5], [100, 200, 400, 800, 1_600]);
    assert_eq!(pauses[8..], [10_000; 4]);
}

#[test]
fn whoever_answers_as_another_or_out_of_turn_is_hung_up_on() {
    let greeting = || {
        let mut asker = asker();
        asker.tick(Time(0));
        asker.dialled(Time(0));
        todo(&mut asker);
        asker
    };
    let said = |asker: &mut Asker, message, why| {
        asker.message(Time(MS), message);
        assert!(is_hung_up(&todo(asker), why), "{why}");
        assert!(!asker.is_up());
    };
    said(&mut greeting(), PeerMessage::Hello(hello("c")), "another host");
    said(&mut greeting(), PeerMessage::Hello(PeerHello { group: "x".into(), ..hello("b") }), "another group");
    said(&mut greeting(), PeerMessage::Credit { calls: 1 }, "out of turn");
    said(&mut greeting(), PeerMessage::Refused { reason: "no".into() }, "refused");
    said(&mut up(), PeerMessage::Release { token: 1 }, "is asked");
    said(&mut up(), PeerMessage::Hello(hello("b")), "is asked");
    let mut silent = greeting();
    silent.tick(Time(3_000 * MS));
    assert!(is_hung_up(&todo(&mut silent), "in time"));
}

#[test]
fn a_peer_that_leaves_is_asked_no_more() {
    let mut asker = up();
    locate(&mut asker, 2 * MS, 1, 90 * MS).expect("taken");
    asker.message(Time(3 * MS), PeerMessage::Leaving);
    assert_eq!(locate(&mut asker, 4 * MS, 2, 90 * MS), Err(NotNow::Away));
    assert_eq!((asker.under_way(), asker.is_up()), (1, false), "what it was asked before it may answer");
}

proptest! {
    /// Whatever happens: each call that was taken ends exactly once, in time.
    #[test]
    fn every_call_ends_once_and_by_its_deadline(steps in prop::collection::vec((0_u8..9, 1_u64..400 * MS), 1..300)) {
        let mut asker = asker();
        let (mut now, mut taken, mut ended) = (Time(0), BTreeMap::new(), BTreeMap::<u64, u32>::new());
        let mut dialling = false;
        for (at, (step, us)) in steps.into_iter().enumerate() {
            now.0 += us;
            asker.tick(now);
            match step {
                0 | 1 if dialling => {
                    asker.dialled(now);
                    asker.message(now, PeerMessage::Hello(hello("b")));
                    asker.message(now, PeerMessage::Pool { pool: PoolId(1), shape: shape("kv") });
                    asker.message(now, PeerMessage::Credit { calls: 4 });
                }
                2..=4 if locate(&mut asker, now.0, at as u64, now.0 + us).is_ok() => {
                    taken.insert(at as u64, now.0 + us);
                }
                5 if asker.is_up() => {
                    if let Some(&token) = taken.keys().find(|call| !ended.contains_key(*call)) {
                        asker.message(now, PeerMessage::Found { token, parent: Key::default(), blocks: vec![] });
                    }
                }
                6 if asker.is_up() => asker.message(now, PeerMessage::Pong { number: 0 }),
                7 => asker.lost(now),
                _ => {}
            }
            for todo in todo(&mut asker) {
                match todo {
                    Todo::Dial => dialling = true,
                    Todo::HangUp { .. } => dialling = false,
                    Todo::Tell(News::Found { call, .. } | News::Failed { call }) => {
                        *ended.entry(call).or_insert(0) += 1;
                        prop_assert!(taken.contains_key(&call));
                    }
                    _ => {}
                }
            }
            for (call, deadline) in &taken {
                let times = ended.get(call).copied().unwrap_or(0);
                prop_assert!(times == 1 || times == 0 && *deadline > now.0, "call {call} ended {times} times");
            }
            let next = asker.poll_timeout();
            prop_assert!(next.is_some_and(|next| next > now || dialling || next.0 >= now.0));
        }
    }
}
