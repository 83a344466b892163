//! An etcd that goes through everything, hosts that ask it, and time that is not real.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const HOSTS: usize = 3;
const GUEST: &str = "/p/guest";
/// By then a host has noticed that nothing answers: its lease is to be kept, and three endpoints are tried.
const NOTICED_US: u64 = 10 * S;
/// Between two looks at everything, microseconds.
const STEP_US: u64 = 10_000;

/// What is done to etcd, for as long as the plan says.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing is answered; leases end meanwhile.
    Frozen,
    /// Connections are refused; leases last longer for it.
    Down,
    /// The same, and nothing is left afterwards.
    Wiped,
    /// One endpoint alone is down.
    EndpointDown(usize),
    /// Watches are cut, at once.
    Cut,
    /// Nothing of before can be watched.
    Compacted,
    /// Every other answer is an error.
    Erring,
    /// Somebody deletes a host's key.
    Deleted(usize),
    /// Somebody puts a host's key there once more, for ever, as when a backup is played back.
    Overwritten(usize),
    /// Somebody puts something else there, for ever.
    Foreign,
    /// Another host, which asks for nothing.
    GuestCame,
    /// It goes; `unseen`: no watch says so.
    GuestGone { unseen: bool },
}

pub fn plan() -> impl Strategy<Value = (Fault, u64)> {
    let fault = prop_oneof![
        Just(Fault::Frozen),
        Just(Fault::Down),
        Just(Fault::Wiped),
        (0usize..3).prop_map(Fault::EndpointDown),
        Just(Fault::Cut),
        Just(Fault::Compacted),
        Just(Fault::Erring),
        (0..HOSTS).prop_map(Fault::Deleted),
        (0..HOSTS).prop_map(Fault::Overwritten),
        Just(Fault::GuestCame),
        any::<bool>().prop_map(|unseen| Fault::GuestGone { unseen }),
        Just(Fault::Foreign),
    ];
    (fault, 1_000u64..20_000_000)
}

/// Each takes about a hundredth of a second.
pub fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(200)
}

#[derive(Default)]
struct Etcd {
    revision: u64,
    keys: BTreeMap<String, Listed>,
    /// Until when.
    leases: BTreeMap<i64, u64>,
    lease_last: i64,
    /// All changes after `compacted`.
    history: Vec<Change>,
    compacted: u64,
}

impl Etcd {
    /// Leases are numbered at random: none is given twice.
    fn new(lease_last: i64) -> Self {
        Self { revision: 1, compacted: 1, lease_last, ..Self::default() }
    }

    fn put(&mut self, key: &str, value: Vec<u8>, lease: i64) {
        self.revision += 1;
        let listed = Listed { key: key.into(), value, mod_revision: self.revision, lease };
        self.keys.insert(key.into(), listed.clone());
        self.history.push(Change::Put(listed));
    }

    fn delete(&mut self, key: &str) {
        if self.keys.remove(key).is_some() {
            self.revision += 1;
            self.history.push(Change::Deleted { key: key.into(), mod_revision: self.revision });
        }
    }

    /// Nothing of before can be watched.
    fn compact(&mut self) {
        self.history.clear();
        self.compacted = self.revision;
    }

    fn end_leases(&mut self, now: u64) {
        let ended: Vec<i64> = self.leases.iter().filter(|(_, until)| **until <= now).map(|(id, _)| *id).collect();
        for id in ended {
            self.leases.remove(&id);
            let of_it = self.keys.values().filter(|listed| listed.lease == id).map(|listed| listed.key.clone());
            let keys: Vec<String> = of_it.collect();
            keys.iter().for_each(|key| self.delete(key));
        }
    }

    fn answer(&mut self, now: u64, host: usize, boot: u64, request: &Request) -> Result<Answer, Failure> {
        let until = now + TTL.as_micros() as u64;
        let key = format!("/p/h{host}");
        Ok(match request {
            Request::Grant { ttl_s } => {
                self.lease_last += 1;
                self.leases.insert(self.lease_last, until);
                Answer::Granted { lease: self.lease_last, ttl_s: *ttl_s }
            }
            Request::KeepAlive { lease } => {
                let kept = self.leases.get_mut(lease).map(|end| *end = until);
                Answer::Kept { ttl_s: if kept.is_some() { TTL.as_secs() } else { 0 } }
            }
            Request::Claim { lease, .. } if !self.leases.contains_key(lease) => {
                return Err(Failure { why: "no lease".into(), kind: FailureKind::NoLease });
            }
            Request::Claim { lease, over } => {
                let held = self.keys.get(&key).cloned();
                if held.as_ref().map(|held| held.mod_revision) != *over {
                    return Ok(Answer::Held(held));
                }
                let entry = Entry { address: format!("h{host}:1"), boot, version: "0".into() };
                self.put(&key, entry.json().into_bytes(), *lease);
                Answer::Claimed { revision: self.revision }
            }
            Request::List => Answer::Listed { revision: self.revision, listed: self.keys.values().cloned().collect() },
            Request::Revoke { .. } => unreachable!("no host stops"),
        })
    }

    fn changes_after(&self, revision: u64) -> Vec<Change> {
        let at = |change: &Change| match change {
            Change::Put(listed) => listed.mod_revision,
            Change::Deleted { mod_revision, .. } => *mod_revision,
        };
        self.history.iter().filter(|change| at(change) > revision).cloned().collect()
    }
}

#[derive(Clone)]
struct UnderWay {
    answered: u64,
    late: u64,
    endpoint: usize,
    request: Request,
}

#[derive(Clone, Copy)]
struct Watching {
    number: u64,
    endpoint: usize,
    /// Up to this revision it has said everything.
    said: u64,
    is_open: bool,
    /// By then it is open, or failed.
    late: u64,
}

struct Host {
    machine: Membership,
    boot: u64,
    is_running: bool,
    calls: BTreeMap<u64, UnderWay>,
    watch: Option<Watching>,
    members: BTreeSet<String>,
    /// Whether etcd was said to be lost, and not to be back.
    says_lost: bool,
    asked: u64,
}

struct World {
    now: u64,
    etcd: Etcd,
    hosts: Vec<Host>,
    random: fastrand::Rng,
    /// Until when.
    frozen: u64,
    down: u64,
    erring: u64,
    endpoint_down: (usize, u64),
    /// Until then hosts may be dropped: they were deleted, or were not heard of while others were.
    excused: u64,
}

pub fn run(seed: u64, endpoints: usize, plan: &[(Fault, u64)]) {
    let host = |at: usize| Host::new(0, at, 1000 + at as u64, endpoints);
    let mut world = World {
        now: 0,
        etcd: Etcd::new(0),
        hosts: (0..HOSTS).map(host).collect(),
        random: fastrand::Rng::with_seed(seed),
        frozen: 0,
        down: 0,
        erring: 0,
        endpoint_down: (0, 0),
        excused: 0,
    };
    world.until(2 * S);
    world.all_know_all("at first");
    for (fault, us) in plan {
        world.begin(fault, *us);
        let (asked, until) = (world.asked(), world.now + us);
        world.until(until);
        if matches!(fault, Fault::Frozen | Fault::Down | Fault::Wiped) {
            world.is_said_to_be_lost(*us, &asked, endpoints as u64);
        }
    }
    // The longest pause, a lease that must end first, and those who are held.
    let healed = world.now + 4 * TTL.as_micros() as u64;
    world.until(healed);
    world.all_know_all("in the end");
    world.one_dies_and_comes_back(endpoints);
}

impl Host {
    fn new(now: u64, at: usize, boot: u64, endpoints: usize) -> Self {
        let (host, address) = (format!("h{at}"), format!("h{at}:1"));
        let machine = Membership::new(Time(now), MembershipOptions { host, address, boot, ..options(endpoints) });
        let (calls, members) = (BTreeMap::new(), BTreeSet::new());
        Self { machine, boot, is_running: true, calls, watch: None, members, says_lost: false, asked: 0 }
    }
}

impl World {
    fn all_know_all(&self, when: &str) {
        for (at, host) in self.hosts.iter().enumerate() {
            let others = (0..HOSTS).filter(|other| *other != at).map(|other| format!("h{other}"));
            let guest = self.etcd.keys.contains_key(GUEST).then(|| "guest".into());
            assert_eq!(host.members, others.chain(guest).collect(), "{when}, h{at}: {:?}", host.machine);
            assert!(!host.says_lost, "{when}, h{at}: {:?}", host.machine);
            let lease = self.etcd.keys[&format!("/p/h{at}")].lease;
            assert!(self.etcd.leases.contains_key(&lease), "{when}, h{at} would stay for ever: {:?}", host.machine);
            assert!(matches!(host.machine.claim, Claim::Made { .. }), "{when}, h{at}: {:?}", host.machine);
            assert_eq!(host.machine.known_by(|_| String::new()).stale_since, None, "{when}, h{at}");
        }
    }

    fn asked(&self) -> Vec<u64> {
        self.hosts.iter().map(|host| host.asked).collect()
    }

    /// All say so when it takes long, and nobody hammers at it.
    fn is_said_to_be_lost(&self, us: u64, before: &[u64], endpoints: u64) {
        for (at, (host, before)) in self.hosts.iter().zip(before).enumerate() {
            let known_by = host.machine.known_by(|_| String::new());
            let is_said = host.says_lost && known_by.stale_since.is_some() && known_by.text.starts_with("etcd is lost");
            assert!(is_said || us < NOTICED_US, "h{at}: {known_by:?}: {:?}", host.machine);
            // Pauses grow to a second and more within six rounds, of two calls to each endpoint.
            let most = (8 + us / S) * 2 * endpoints;
            assert!(host.asked - before <= most, "h{at} has asked {} times in {us} us", host.asked - before);
        }
    }

    /// It is dropped with its lease, and found again as soon as it is there.
    fn one_dies_and_comes_back(&mut self, endpoints: usize) {
        self.hosts[0].is_running = false;
        self.excused = u64::MAX;
        self.until(self.now + TTL.as_micros() as u64 + S);
        for (at, host) in self.hosts.iter().enumerate().skip(1) {
            assert!(!host.members.contains("h0"), "h{at} has kept who is dead: {:?}", host.machine);
        }
        self.hosts[0] = Host::new(self.now, 0, 2000, endpoints);
        self.until(self.now + 2 * S);
        self.all_know_all("after a death");
    }

    fn begin(&mut self, fault: &Fault, us: u64) {
        let (until, ttl_us) = (self.now + us, TTL.as_micros() as u64);
        match fault {
            Fault::Frozen => self.frozen = until,
            Fault::Down => {
                self.down = until;
                self.cut();
                self.etcd.leases.values_mut().for_each(|end| *end = until + ttl_us);
            }
            Fault::Wiped => {
                self.down = until;
                self.cut();
                self.etcd = Etcd::new(self.etcd.lease_last);
            }
            Fault::EndpointDown(endpoint) => self.endpoint_down = (*endpoint, until),
            Fault::Cut => self.cut(),
            Fault::Compacted => self.etcd.compact(),
            Fault::Erring => {
                self.erring = until;
                self.excused = until + ttl_us;
            }
            Fault::Deleted(host) => {
                self.excused = self.excused.max(self.now + ttl_us);
                self.etcd.delete(&format!("/p/h{host}"));
            }
            Fault::Overwritten(host) => {
                let key = format!("/p/h{host}");
                if let Some(own) = self.etcd.keys.get(&key).cloned() {
                    self.etcd.put(&key, own.value, 0);
                }
            }
            Fault::GuestCame => {
                let entry = Entry { address: "guest:1".into(), boot: 1, version: String::new() };
                self.etcd.put(GUEST, entry.json().into_bytes(), 0);
            }
            Fault::GuestGone { unseen } => {
                self.etcd.delete(GUEST);
                if *unseen {
                    self.etcd.compact();
                    self.cut();
                }
            }
            Fault::Foreign => self.etcd.put("/p/readme", b"not a host".to_vec(), 0),
        }
    }

    fn is_down(&self, endpoint: usize) -> bool {
        self.now < self.down || endpoint == self.endpoint_down.0 && self.now < self.endpoint_down.1
    }

    fn cut(&mut self) {
        let now = Time(self.now);
        for host in &mut self.hosts {
            if let Some(watch) = host.watch.take() {
                host.machine.watched(now, watch.number, Watched::Failed(Failure::away("cut")));
            }
        }
    }

    fn until(&mut self, until: u64) {
        while self.now < until {
            if self.now >= self.frozen && self.now >= self.down {
                self.etcd.end_leases(self.now);
            }
            for at in 0..HOSTS {
                if self.hosts[at].is_running {
                    self.turn(at);
                }
            }
            self.now += STEP_US;
        }
    }

    fn turn(&mut self, at: usize) {
        self.listen(at);
        self.answer(at);
        self.ask(at);
        let host = &mut self.hosts[at];
        while let Some(note) = host.machine.poll_note() {
            let is_lost = matches!(note, Note::Lost { .. });
            if is_lost || matches!(note, Note::Back { .. }) {
                assert_ne!(is_lost, host.says_lost, "h{at} says it twice: {:?}", host.machine);
                host.says_lost = is_lost;
            }
        }
        let Some(members) = host.machine.poll_members() else { return };
        let members: BTreeSet<String> = members.into_iter().map(|member| member.name).collect();
        let dropped: Vec<&String> = host.members.difference(&members).filter(|name| *name != "guest").collect();
        assert!(dropped.is_empty() || self.now < self.excused, "h{at} has dropped {dropped:?}: {:?}", host.machine);
        host.members = members;
    }

    fn ask(&mut self, at: usize) {
        let (now, host) = (Time(self.now), &mut self.hosts[at]);
        let mut asked = 0;
        while let Some(ask) = host.machine.poll_ask(now) {
            asked += 1;
            assert!(asked < 20, "it does not come to rest: {:?}", host.machine);
            match ask {
                Ask::Call { number, endpoint, request, within_us } => {
                    host.asked += 1;
                    let answered = now.0 + self.random.u64(1_000..50_000);
                    host.calls.insert(number, UnderWay { answered, late: now.0 + within_us, endpoint, request });
                    let lists = host.calls.values().filter(|call| call.request == Request::List).count();
                    assert!(lists <= 1 && host.calls.len() - lists <= 1, "too many at once: {:?}", host.machine);
                }
                Ask::Watch { number, endpoint, revision, within_us } => {
                    assert!(host.watch.is_none(), "a second watch: {:?}", host.machine);
                    host.watch =
                        Some(Watching { number, endpoint, said: revision, is_open: false, late: now.0 + within_us });
                }
                Ask::End { number } => {
                    host.calls.remove(&number);
                    host.watch.take_if(|watch| watch.number == number);
                }
            }
        }
        let due = host.machine.poll_timeout();
        assert!(due.is_none_or(|due| due > now), "it is due and asks nothing: {:?}", host.machine);
        assert!(due.is_some() || !host.calls.is_empty(), "it waits for nothing: {:?}", host.machine);
    }

    fn answer(&mut self, at: usize) {
        let now = self.now;
        let due = self.hosts[at].calls.iter().filter(|(_, call)| call.answered <= now).map(|(number, _)| *number);
        for number in due.collect::<Vec<_>>() {
            // It may have been ended for what another one was answered.
            let Some(call) = self.hosts[at].calls.get(&number).cloned() else { continue };
            let answer = if self.is_down(call.endpoint) {
                Err(Failure::away("refused"))
            } else if now >= call.late {
                Err(Failure::away("late"))
            } else if now < self.frozen {
                continue;
            } else if now < self.erring && self.random.bool() {
                Err(Failure::away("no leader"))
            } else {
                self.etcd.answer(now, at, self.hosts[at].boot, &call.request)
            };
            let host = &mut self.hosts[at];
            host.calls.remove(&number);
            host.machine.answered(Time(now), number, answer);
            self.ask(at);
        }
    }

    fn listen(&mut self, at: usize) {
        let Some(watch) = self.hosts[at].watch else { return };
        let heard = if self.is_down(watch.endpoint) {
            Watched::Failed(Failure::away("refused"))
        } else if !watch.is_open && self.now >= watch.late {
            Watched::Failed(Failure::away("late"))
        } else if self.now < self.frozen {
            return;
        } else if watch.said < self.etcd.compacted {
            // Also of one that is open: etcd ends a watch sooner than that it passes over what it has not told.
            Watched::Compacted
        } else if !watch.is_open {
            Watched::Opened
        } else {
            match self.etcd.changes_after(watch.said) {
                changes if changes.is_empty() => return,
                changes => Watched::Changed(changes),
            }
        };
        let said = if watch.is_open { self.etcd.revision } else { watch.said };
        let is_over = matches!(heard, Watched::Failed(_) | Watched::Compacted);
        let host = &mut self.hosts[at];
        host.watch = (!is_over).then_some(Watching { said, is_open: true, ..watch });
        host.machine.watched(Time(self.now), watch.number, heard);
    }
}
