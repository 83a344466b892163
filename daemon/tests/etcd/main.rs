//! Membership by etcd over real sockets, with an etcd that the test can break.

mod fake;

use std::{
    fs,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use lapis::membership::{
    EtcdOptions,
    driver::{Driver, News},
};
use lapis_config::{Endpoint, Time};
use lapis_membership::{KnownBy, machine::MembershipOptions};

use self::fake::{Fake, Mood};

/// Longer than anything takes that works, however busy the machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

fn clock() -> Time {
    lapis::serve::now()
}

/// A driver, and what it said last.
struct Host {
    driver: Driver,
    members: Vec<String>,
    /// Since there was one.
    fewest: usize,
    known_by: KnownBy,
    woken: Arc<(Mutex<bool>, Condvar)>,
}

impl Host {
    fn start(etcd: EtcdOptions, name: &str, boot: u64) -> Self {
        let options = MembershipOptions {
            host: name.into(),
            address: format!("{name}-{boot}:1"),
            boot,
            version: "0".into(),
            prefix: "/p/".into(),
            ttl: Duration::from_secs(3),
            endpoints: etcd.endpoints.len(),
        };
        let woken = Arc::new((Mutex::new(false), Condvar::new()));
        let wake = Arc::clone(&woken);
        let wake = move || {
            *wake.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
            wake.1.notify_all();
        };
        let driver = Driver::start(etcd, options, clock, Arc::new(wake)).expect("a thread");
        Self { driver, members: Vec::new(), fewest: usize::MAX, known_by: KnownBy::default(), woken }
    }

    fn of(fake: &Fake, name: &str, boot: u64) -> Self {
        Self::start(plain(vec![fake.endpoint()]), name, boot)
    }

    /// Waits until it has said so.
    fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        loop {
            while let Some(news) = self.driver.news() {
                match news {
                    News::Members(members) => {
                        if !self.members.is_empty() || !members.is_empty() {
                            self.fewest = self.fewest.min(members.len());
                        }
                        self.members = members.iter().map(ToString::to_string).collect();
                    }
                    News::KnownBy(known_by) => self.known_by = known_by,
                }
            }
            if is_so(self) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "waited for {what}: {:?} {:?}", self.members, self.known_by);
            let woken = self.woken.0.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = self.woken.1.wait_timeout_while(woken, PATIENCE, |woken| !*woken);
            *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
        }
    }

    fn until_members(&mut self, members: &[&str]) {
        self.until(&format!("{members:?}"), |host| host.members == members);
    }

    fn until_listed(&mut self) {
        self.until("its place in the list", |host| host.known_by.text.ends_with("; this host is listed"));
    }

    fn until_lost(&mut self, why: &str) {
        self.until(why, |host| host.known_by.text.starts_with("etcd is lost") && host.known_by.text.contains(why));
        assert!(self.known_by.stale_since.is_some());
    }

    fn until_back(&mut self) {
        self.until("etcd's return", |host| {
            host.known_by.text.starts_with("etcd at") && host.known_by.stale_since.is_none()
        });
    }
}

fn plain(endpoints: Vec<Endpoint>) -> EtcdOptions {
    EtcdOptions { endpoints, authority: None, identity: None, login: None }
}

#[test]
fn hosts_find_each_other_and_one_that_stops_is_gone_at_once() {
    let fake = Fake::start(None);
    let (mut a, mut b) = (Host::of(&fake, "a", 1), Host::of(&fake, "b", 2));
    a.until_members(&["b=b-2:1"]);
    b.until_members(&["a=a-1:1"]);
    b.until_listed();
    fake.with(|etcd| etcd.put("/p/readme", "not a host", "0"));
    drop(b);
    a.until_members(&[]);
    fake.with(|etcd| assert_eq!((etcd.leases.len(), etcd.keys.len()), (1, 2), "its lease was revoked"));
    a.until_listed();
    assert_eq!(a.known_by.stale_since, None);
}

#[test]
fn watches_that_are_cut_or_compacted_are_begun_again_and_nothing_is_missed() {
    let fake = Fake::start(None);
    let mut a = Host::of(&fake, "a", 1);
    a.until_listed();
    for round in 0..3u64 {
        fake.until("a watch", |etcd| etcd.watches == 1);
        fake.with(|etcd| {
            // What the watch does not see any more is in the next list.
            etcd.cut();
            etcd.put("/p/b", &format!(r#"{{"address":"b:{}","boot":1}}"#, round + 1), "0");
            etcd.compact();
        });
        a.until_members(&[&format!("b=b:{}", round + 1)]);
    }
    // A watch that should begin before what is kept.
    fake.with(|etcd| {
        etcd.compact();
        etcd.compacted += 100;
        etcd.cut();
    });
    let lists = fake.with(|etcd| etcd.requests["/v3/kv/range"]);
    fake.until("more lists", |etcd| etcd.requests["/v3/kv/range"] >= lists + 3);
    fake.with(|etcd| etcd.compact());
    fake.until("a watch", |etcd| etcd.watches == 1);
    fake.with(|etcd| etcd.delete("/p/b"));
    a.until_members(&[]);
}

#[test]
fn while_etcd_is_not_itself_the_hosts_seen_last_stay_and_the_reason_is_told() {
    let fake = Fake::start(None);
    let (mut a, mut b) = (Host::of(&fake, "a", 1), Host::of(&fake, "b", 2));
    a.until_members(&["b=b-2:1"]);
    b.until_listed();
    let no_leader = r#"{"error":"etcdserver: no leader","code":14,"message":"etcdserver: no leader"}"#;
    let moods = [
        (Mood::Saying(503, no_leader.into()), "etcdserver: no leader"),
        (Mood::Saying(502, "<html>Bad gateway</html>".into()), "HTTP status 502 at /v3/"),
        (Mood::Saying(200, "<html>Welcome</html>".into()), "it does not answer as etcd does: \"<html>Welcome"),
        (Mood::Saying(404, "404 page not found".into()), "no etcd of version 3.4 or later"),
        (Mood::Breaking, "broke off"),
        (Mood::Flooding, "broke off: length limit exceeded"),
        (Mood::Silent, "no answer within 600ms"),
    ];
    for (mood, why) in moods {
        fake.with(|etcd| {
            etcd.mood = mood;
            etcd.cut();
        });
        a.until_lost(why);
        assert_eq!(a.members, ["b=b-2:1"], "{why}");
        assert!(a.known_by.text.contains(&format!("http://{}: ", fake.address)), "{:?}", a.known_by);
        fake.with(|etcd| etcd.mood = Mood::Well);
        a.until_back();
        assert_eq!(a.members, ["b=b-2:1"], "{why}");
    }
}

#[test]
fn hosts_come_back_after_etcd_has_lost_all_it_had_and_see_each_other_all_along() {
    let fake = Fake::start(None);
    let (mut a, mut b) = (Host::of(&fake, "a", 1), Host::of(&fake, "b", 2));
    a.until_members(&["b=b-2:1"]);
    b.until_members(&["a=a-1:1"]);
    let mut hosts = [a, b];
    hosts.iter_mut().for_each(Host::until_listed);
    fake.with(|etcd| etcd.wipe());
    fake.until("both", |etcd| etcd.keys.len() == 2 && etcd.watches == 2);
    // What came after it is the last that both have heard.
    fake.with(|etcd| etcd.put("/p/c", r#"{"address":"c:1","boot":1}"#, "0"));
    let [a, b] = &mut hosts;
    a.until_members(&["b=b-2:1", "c=c:1"]);
    b.until_members(&["a=a-1:1", "c=c:1"]);
    assert!(a.fewest == 1 && b.fewest == 1, "somebody was dropped");
    fake.with(|etcd| etcd.delete("/p/c"));
    a.until_members(&["b=b-2:1"]);
    b.until_members(&["a=a-1:1"]);
    // Leases alone: that is what a host looks like that was away, so it is dropped, and comes back.
    fake.with(|etcd| etcd.lose_leases());
    fake.until("both again", |etcd| etcd.keys.len() == 2);
    a.until("the other's return", |host| host.fewest == 0 && host.members == ["b=b-2:1"]);
    b.until_members(&["a=a-1:1"]);
}

#[test]
fn of_two_hosts_of_one_name_the_later_one_waits_until_the_name_is_free() {
    let fake = Fake::start(None);
    let mut first = Host::of(&fake, "a", 1);
    first.until_listed();
    let mut second = Host::of(&fake, "a", 2);
    second.until("the reason", |host| host.known_by.text.contains("its name is held by a-1:1 (boot 1)"));
    let asked = fake.with(|etcd| etcd.requests["/v3/kv/txn"]);
    fake.until("another try", |etcd| etcd.requests["/v3/kv/txn"] > asked);
    first.until_listed();
    fake.with(|etcd| assert_eq!(etcd.keys["/p/a"]["lease"], "1", "it is the first one's still"));
    drop(first);
    second.until_listed();
}

#[test]
fn an_endpoint_that_is_away_is_passed_over() {
    let fake = Fake::start(None);
    let (away, _kept) = fake::refusing();
    // Whichever is asked first.
    for boot in [2, 3] {
        let mut host = Host::start(plain(vec![away.clone(), fake.endpoint()]), "a", boot);
        host.until_listed();
        assert!(host.known_by.text.contains(&fake.address.to_string()), "{:?}", host.known_by);
    }
    let mut host = Host::start(plain(vec![away.clone()]), "b", 1);
    host.until_lost("no connection: Connection refused");
}

#[test]
fn a_login_is_said_and_said_again_when_its_token_has_ended() {
    let fake = Fake::start(None);
    fake.with(|etcd| etcd.login = Some(("root".into(), "a:b c".into())));
    let folder = tempfile::tempdir().expect("a folder");
    let login = folder.path().join("login");
    let options = |with: bool| EtcdOptions { login: with.then(|| login.clone()), ..plain(vec![fake.endpoint()]) };
    let mut host = Host::start(options(false), "a", 1);
    host.until_lost("user name is empty (it asks for a login: peers.etcd_login)");
    drop(host);
    fs::write(&login, "root:wrong\n").expect("a file");
    let mut host = Host::start(options(true), "a", 1);
    host.until_lost("the login of user \"root\"");
    assert!(host.known_by.text.contains("invalid user ID or password"), "{:?}", host.known_by);
    fs::write(&login, "root:a:b c\n").expect("a file");
    host.until_listed();
    fake.with(|etcd| {
        etcd.tokens.clear();
        etcd.cut();
    });
    fake.until("another login", |etcd| !etcd.tokens.is_empty() && etcd.watches == 1);
    fake.with(|etcd| etcd.put("/p/b", r#"{"address":"b:1","boot":1}"#, "0"));
    host.until_members(&["b=b:1"]);
    // What is no login is said before anything is begun with it.
    for text in ["", "root", ":x", "a:b\nc:d\n"] {
        fs::write(&login, text).expect("a file");
        let why = options(true).check_files().expect_err("no login");
        assert!(why.contains("is not one line USER:PASSWORD"), "{why}");
    }
}

#[test]
fn tls_takes_only_an_etcd_of_its_authority_and_shows_a_certificate_where_one_is_asked_for() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("a file");
        path
    };
    let authority = |name: &str| {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        (write(name, certificate.pem()), certificate.der().clone(), Issuer::new(params, key))
    };
    let (ca, ca_der, issuer) = authority("ca.pem");
    let (other_ca, ..) = authority("other.pem");
    let signed = |name: &str| {
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new(vec![name.into()]).expect("a name").signed_by(&key, &issuer);
        (certificate.expect("a certificate"), key)
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca_der).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let (certificate, key) = signed("127.0.0.1");
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().expect("a key"));
    let fake = Fake::start(Some(Arc::new(config.expect("a configuration"))));
    let (certificate, key) = signed("host");
    let identity = Some((write("host.pem", certificate.pem()), write("host.key", key.serialize_pem())));
    let endpoints = vec![Endpoint { is_https: true, address: fake.address.to_string() }];
    let options = EtcdOptions { endpoints, authority: Some(ca), identity, login: None };
    let mut host = Host::start(options.clone(), "a", 1);
    host.until_listed();
    drop(host);
    let mut host = Host::start(EtcdOptions { authority: Some(other_ca), ..options.clone() }, "a", 1);
    host.until_lost("is peers.etcd_ca its authority");
    let mut host = Host::start(EtcdOptions { identity: None, ..options.clone() }, "a", 1);
    host.until_lost("does it ask for peers.etcd_certificate");
    let readable = Endpoint { is_https: false, ..options.endpoints[0].clone() };
    let mut host = Host::start(plain(vec![readable]), "a", 1);
    host.until_lost("does it want https:");
    let swapped = options.identity.clone().map(|(certificate, key)| (key, certificate));
    let why = EtcdOptions { identity: swapped, ..options }.check_files().expect_err("a key is no certificate");
    assert!(why.contains("host.key") && why.contains("no certificate"), "{why}");
}
