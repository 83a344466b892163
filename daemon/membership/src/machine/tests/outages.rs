//! How long others are held, how often etcd is asked, and what is said of it, when it is away or has begun anew.

use super::*;

fn put(name: &str, mod_revision: u64) -> Listed {
    listed(name, &format!("{name}:1"), 2, mod_revision, 9)
}

fn own(mod_revision: u64) -> Listed {
    listed("own", "own:1", 1 << 20, mod_revision, 7)
}

impl Script {
    /// Settled, and b is listed too.
    fn with_another(endpoints: usize) -> (Self, u64) {
        let (mut script, watch) = Self::settled(endpoints);
        script.machine.watched(script.now, watch, Watched::Changed(vec![Change::Put(put("b", 6))]));
        assert_eq!(script.names(), ["b"]);
        (script, watch)
    }

    fn names(&mut self) -> Vec<String> {
        let members = self.machine.poll_members().expect("they have changed");
        members.into_iter().map(|member| member.name).collect()
    }

    /// The watch is cut; the list that is asked for then is answered so. The next watch's number.
    fn list_anew(&mut self, watch: u64, revision: u64, listed: Vec<Listed>) -> u64 {
        self.machine.watched(self.now, watch, Watched::Failed(Failure::away("cut")));
        let is_list = |ask: &Ask| matches!(ask, Ask::Call { request: Request::List, .. });
        let asks = self.asks();
        let Some(Ask::Call { number, .. }) = asks.iter().find(|ask| is_list(ask)) else { panic!("{asks:?}") };
        self.answer(*number, Answer::Listed { revision, listed });
        let asks = self.asks();
        let [Ask::Watch { number, revision: of, .. }] = asks[..] else { panic!("{asks:?}") };
        assert_eq!(of, revision);
        number
    }
}

/// Keeps the lease, and nothing else, until then.
fn keep_until(script: &mut Script, until: Time) {
    while let Some(due) = script.machine.poll_timeout().filter(|due| *due < until) {
        script.now = due;
        for ask in script.asks() {
            let Ask::Call { number, request: Request::KeepAlive { .. }, .. } = ask else { panic!("{ask:?}") };
            script.answer(number, Answer::Kept { ttl_s: 9 });
        }
    }
    script.now = until;
}

#[test]
fn who_is_missing_in_an_etcd_that_counts_anew_is_held_for_one_lease() {
    let (mut script, watch) = Script::with_another(1);
    script.later(2 * S);
    // Nothing was seen to be away, but it knows less than before.
    let watch = script.list_anew(watch, 3, vec![own(3)]);
    script.machine.watched(script.now, watch, Watched::Opened);
    assert_eq!(script.machine.poll_members(), None, "b is held");
    assert!(script.known_by().text.contains("1 other host, 1 of them not back since"), "{:?}", script.known_by());
    let until = script.now.after(TTL);
    keep_until(&mut script, Time(until.0 - 1));
    assert_eq!((script.asks(), script.machine.poll_members()), (vec![], None), "a moment before");
    assert_eq!(script.machine.poll_timeout(), Some(until));
    script.now = until;
    script.asks();
    assert_eq!(script.names(), [""; 0]);
}

#[test]
fn who_is_held_stays_as_long_as_etcd_is_away_again() {
    let (mut script, watch) = Script::with_another(1);
    script.later(2 * S);
    let watch = script.list_anew(watch, 3, vec![own(3)]);
    // Opened, and away at once; for ten leases nothing is answered.
    script.machine.watched(script.now, watch, Watched::Opened);
    script.machine.watched(script.now, watch, Watched::Failed(Failure::away("refused")));
    let (until, mut rounds) = (script.now.after(TTL * 10), 0);
    while script.now < until {
        rounds += 1;
        assert!(rounds < 200, "{:?}", script.machine);
        for ask in script.asks() {
            if let Ask::Call { number, .. } = ask {
                script.fail(number, FailureKind::Away);
            }
        }
        assert_eq!(script.machine.poll_members(), None, "nobody has said that b is gone");
        script.now = script.machine.poll_timeout().expect("it goes on");
    }
    assert_eq!(script.notes(), [Note::Lost { why: "refused".into() }]);
}

#[test]
fn who_is_missing_in_a_list_of_the_same_etcd_is_gone() {
    let (mut script, watch) = Script::with_another(1);
    script.later(2 * S);
    script.list_anew(watch, 9, vec![own(5)]);
    assert_eq!(script.names(), [""; 0]);
}

#[test]
fn a_lease_that_cannot_be_had_is_asked_for_with_growing_pauses_though_others_are_seen() {
    for endpoints in [1, 3] {
        let mut script = Script::new(endpoints);
        let (began, mut grants, mut notes) = (script.now, Vec::new(), Vec::new());
        while script.now.since_us(began) < 60 * S {
            for ask in script.asks() {
                match ask {
                    Ask::Call { number, request: Request::List, .. } => {
                        script.answer(number, Answer::Listed { revision: 3, listed: vec![put("b", 2)] });
                    }
                    Ask::Call { number, .. } => {
                        grants.push(script.now);
                        script.fail(number, FailureKind::Away);
                    }
                    Ask::Watch { number, .. } => script.machine.watched(script.now, number, Watched::Opened),
                    Ask::End { .. } => {}
                }
            }
            notes.extend(script.notes());
            script.now = script.machine.poll_timeout().expect("it goes on").max(Time(script.now.0 + 1));
        }
        assert!((20..100).contains(&grants.len()), "{endpoints}: {} in a minute: {grants:?}", grants.len());
        let last = grants[grants.len() - 1].since_us(grants[grants.len() - 2]);
        assert!((S..=2 * S).contains(&last), "{endpoints}: {last}");
        assert_eq!(script.names(), ["b"]);
    }
}

#[test]
fn the_lease_counts_from_when_it_was_asked_for() {
    let mut script = Script::new(1);
    let (asked, asks) = (script.now, script.asks());
    let Ask::Call { number, .. } = asks[0] else { panic!("{asks:?}") };
    script.later(S);
    script.answer(number, Answer::Granted { lease: 7, ttl_s: 9 });
    let (claim, _) = script.call();
    script.answer(claim, Answer::Claimed { revision: 5 });
    assert_eq!(script.machine.poll_timeout(), Some(Time(asked.0 + 3 * S)));
}

#[test]
fn the_next_endpoint_is_asked_for_the_lease_at_once() {
    let (mut script, watch) = Script::settled(2);
    let first = script.machine.endpoint;
    script.machine.watched(script.now, watch, Watched::Failed(Failure::away("refused")));
    let asks = script.asks();
    let kept = |ask: &Ask| matches!(ask, Ask::Call { endpoint, request: Request::KeepAlive { lease: 7 }, .. } if *endpoint != first);
    assert!(asks.iter().any(kept), "{asks:?}");
}

#[test]
fn a_foreign_key_is_named_once() {
    let (mut script, watch) = Script::settled(1);
    let foreign = |mod_revision| Listed { value: b"?".to_vec(), ..put("readme", mod_revision) };
    let changed = |revision| Watched::Changed(vec![Change::Put(foreign(revision))]);
    script.machine.watched(script.now, watch, changed(6));
    script.machine.watched(script.now, watch, changed(7));
    let notes = script.notes();
    assert!(matches!(&notes[..], [Note::Foreign { key, .. }] if key == "/p/readme"), "{notes:?}");
}
