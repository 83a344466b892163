//! An etcd for tests: its JSON gateway over HTTP, with every fault at hand. Leases end only when a test says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use lapis_config::Endpoint;
use serde_json::{Value, json};

/// How everything is answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Mood {
    #[default]
    Well,
    /// With this status and text.
    Saying(u16, String),
    /// Not at all.
    Silent,
    /// Half of an answer, then an end.
    Breaking,
    /// A status of 200 and bytes without an end.
    Flooding,
}

#[derive(Default)]
pub struct Etcd {
    pub mood: Mood,
    revision: u64,
    pub compacted: u64,
    pub keys: BTreeMap<String, Value>,
    pub leases: BTreeSet<i64>,
    lease_last: i64,
    history: Vec<(u64, Value)>,
    /// Watches of an earlier one are cut.
    epoch: u64,
    pub watches: usize,
    pub requests: BTreeMap<String, u64>,
    /// Who must be named, and by which tokens.
    pub login: Option<(String, String)>,
    pub tokens: BTreeSet<String>,
}

#[derive(Clone)]
pub struct Fake {
    pub address: SocketAddr,
    shared: Arc<(Mutex<Etcd>, Condvar)>,
}

impl Fake {
    pub fn start(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let etcd = Etcd { revision: 1, ..Etcd::default() };
        let fake = Self { address, shared: Arc::new((Mutex::new(etcd), Condvar::new())) };
        let of_all = fake.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (fake, tls) = (of_all.clone(), tls.clone());
                thread::spawn(move || match tls {
                    None => fake.serve(stream),
                    Some(config) => {
                        let session = rustls::ServerConnection::new(config).expect("a session");
                        fake.serve(rustls::StreamOwned::new(session, stream));
                    }
                });
            }
        });
        fake
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint { is_https: false, address: self.address.to_string() }
    }

    /// Changes something; whoever waits looks again.
    pub fn with<T>(&self, change: impl FnOnce(&mut Etcd) -> T) -> T {
        let result = change(&mut self.lock());
        self.shared.1.notify_all();
        result
    }

    /// Waits until it is so.
    pub fn until(&self, what: &str, mut is_so: impl FnMut(&Etcd) -> bool) {
        let (etcd, waited) = self
            .shared
            .1
            .wait_timeout_while(self.lock(), super::PATIENCE, |etcd| !is_so(etcd))
            .unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.timed_out(), "waited for {what}: {:?}", etcd.keys);
    }

    fn lock(&self) -> MutexGuard<'_, Etcd> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stream: impl Read + Write) {
        let mut stream = BufReader::new(stream);
        while let Some((path, token, body)) = request(&mut stream) {
            let mood = self.with(|etcd| {
                *etcd.requests.entry(path.clone()).or_default() += 1;
                etcd.mood.clone()
            });
            let out = stream.get_mut();
            match mood {
                Mood::Well if path == "/v3/watch" => return self.watch(out, token.as_deref(), &body),
                Mood::Well => {
                    let (status, answer) = self.with(|etcd| etcd.answer(&path, token.as_deref(), &body));
                    if respond(out, status, &answer.to_string()).is_err() {
                        return;
                    }
                }
                Mood::Saying(status, text) => {
                    if respond(out, status, &text).is_err() {
                        return;
                    }
                }
                Mood::Silent => {
                    let waits = self.shared.1.wait_while(self.lock(), |etcd| etcd.mood == Mood::Silent);
                    return drop(waits);
                }
                Mood::Breaking => {
                    return drop(out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"header\":"));
                }
                Mood::Flooding => {
                    let _ = out.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
                    while out.write_all(&[b'x'; 1 << 16]).is_ok() {}
                    return;
                }
            }
        }
    }

    fn watch(&self, out: &mut impl Write, token: Option<&str>, body: &Value) {
        let begin = &body["create_request"];
        let mut said: u64 = begin["start_revision"].as_str().expect("a revision").parse::<u64>().expect("a number") - 1;
        let mut etcd = self.lock();
        let epoch = etcd.epoch;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        let refusal = etcd.refuses(token).map(|(_, refusal)| json!({ "cancel_reason": refusal["error"] }));
        let compaction = || json!({ "compact_revision": etcd.compacted.to_string() });
        if let Some(mut result) = refusal.or_else(|| (said < etcd.compacted).then(compaction)) {
            drop(etcd);
            (result["header"], result["created"], result["canceled"]) = (json!({}), json!(true), json!(true));
            let line = json!({ "result": result });
            let _ = out.write_all(head.as_bytes()).and_then(|()| {
                let line = format!("{line}\n");
                write!(out, "{:x}\r\n{line}\r\n0\r\n\r\n", line.len())
            });
            return;
        }
        etcd.watches += 1;
        drop(etcd);
        self.shared.1.notify_all();
        let mut is_there = out.write_all(head.as_bytes()).is_ok();
        let mut say = |line: Value| {
            let line = format!("{line}\n");
            write!(out, "{:x}\r\n{line}\r\n", line.len()).and_then(|()| out.flush()).is_ok()
        };
        is_there = is_there && say(json!({"result": {"header": {"revision": "1"}, "created": true}}));
        while is_there {
            let events: Vec<Value> = {
                let is_quiet = |etcd: &mut Etcd| etcd.epoch == epoch && etcd.history.iter().all(|(at, _)| *at <= said);
                let etcd = self.shared.1.wait_while(self.lock(), is_quiet).unwrap_or_else(PoisonError::into_inner);
                if etcd.epoch != epoch {
                    break;
                }
                let new = etcd.history.iter().filter(|(at, _)| *at > said).map(|(_, event)| event.clone()).collect();
                said = etcd.revision;
                new
            };
            is_there = say(json!({"result": {"header": {"revision": said.to_string()}, "events": events}}));
        }
        self.with(|etcd| etcd.watches -= 1);
    }
}

impl Etcd {
    /// Watches end without a word.
    pub fn cut(&mut self) {
        self.epoch += 1;
    }

    /// As after a loss of all data, but for what is watched.
    pub fn lose_leases(&mut self) {
        self.leases.clear();
        let keys: Vec<String> = self.keys.keys().cloned().collect();
        keys.iter().for_each(|key| self.delete(key));
    }

    pub fn wipe(&mut self) {
        self.cut();
        (self.revision, self.compacted) = (1, 0);
        self.keys.clear();
        self.leases.clear();
        self.history.clear();
    }

    pub fn compact(&mut self) {
        self.compacted = self.revision;
        self.history.clear();
    }

    pub fn put(&mut self, key: &str, value: &str, lease: &str) {
        self.revision += 1;
        let kv = json!({
            "key": BASE64.encode(key), "value": BASE64.encode(value), "mod_revision": self.revision.to_string(), "lease": lease,
        });
        self.keys.insert(key.into(), kv.clone());
        self.history.push((self.revision, json!({ "kv": kv })));
    }

    pub fn delete(&mut self, key: &str) {
        if self.keys.remove(key).is_some() {
            self.revision += 1;
            let kv = json!({ "key": BASE64.encode(key), "mod_revision": self.revision.to_string() });
            self.history.push((self.revision, json!({ "type": "DELETE", "kv": kv })));
        }
    }

    fn refuses(&self, token: Option<&str>) -> Option<(u16, Value)> {
        let (status, code, words) = match (&self.login, token) {
            (None, _) => return None,
            (Some(_), None) => (400, 3, "etcdserver: user name is empty"),
            (Some(_), Some(token)) if !self.tokens.contains(token) => (401, 16, "etcdserver: invalid auth token"),
            _ => return None,
        };
        Some((status, json!({ "error": words, "code": code, "message": words })))
    }

    fn answer(&mut self, path: &str, token: Option<&str>, body: &Value) -> (u16, Value) {
        let header = json!({ "revision": self.revision.to_string() });
        let number = |name: &str| body[name].as_str().and_then(|text| text.parse::<i64>().ok());
        let text = |value: &Value| {
            String::from_utf8(BASE64.decode(value.as_str().expect("a text")).expect("base64")).expect("text")
        };
        match path {
            "/version" => return (200, json!({ "etcdserver": "3.4.99", "etcdcluster": "3.4.0" })),
            "/v3/auth/authenticate" => {
                let given =
                    (body["name"].as_str().unwrap_or("").into(), body["password"].as_str().unwrap_or("").into());
                if self.login.as_ref() != Some(&given) {
                    let words = "etcdserver: authentication failed, invalid user ID or password";
                    return (400, json!({ "error": words, "code": 3, "message": words }));
                }
                let token = format!("token.{}", self.tokens.len() + 1);
                self.tokens.insert(token.clone());
                return (200, json!({ "token": token }));
            }
            _ => {}
        }
        if let Some(refusal) = self.refuses(token) {
            return refusal;
        }
        let answer = match path {
            "/v3/lease/grant" => {
                self.lease_last += 1;
                self.leases.insert(self.lease_last);
                json!({ "header": header, "ID": self.lease_last.to_string(), "TTL": body["TTL"] })
            }
            "/v3/lease/keepalive" => match number("ID").filter(|lease| self.leases.contains(lease)) {
                Some(_) => json!({ "result": { "header": header, "ID": body["ID"], "TTL": "3" } }),
                None => json!({ "result": { "header": header, "ID": body["ID"] } }),
            },
            "/v3/lease/revoke" => {
                let lease = number("ID").expect("a lease");
                self.leases.remove(&lease);
                let lease = lease.to_string();
                let of_it = self.keys.iter().filter(|(_, kv)| kv["lease"] == *lease);
                let keys: Vec<String> = of_it.map(|(key, _)| key.clone()).collect();
                keys.iter().for_each(|key| self.delete(key));
                json!({ "header": header })
            }
            "/v3/kv/txn" => {
                let (compare, put) = (&body["compare"][0], &body["success"][0]["request_put"]);
                let key = text(&put["key"]);
                let lease = put["lease"].as_str().expect("a lease");
                if !self.leases.contains(&lease.parse().expect("a number")) {
                    let words = "etcdserver: requested lease not found";
                    return (404, json!({ "error": words, "code": 5, "message": words }));
                }
                let fits = match self.keys.get(&key) {
                    None => compare["target"] == "CREATE",
                    Some(kv) => compare["mod_revision"] == kv["mod_revision"],
                };
                if fits {
                    self.put(&key, &text(&put["value"]), lease);
                    json!({ "header": { "revision": self.revision.to_string() }, "succeeded": true })
                } else {
                    let kvs: Vec<&Value> = self.keys.get(&key).into_iter().collect();
                    json!({ "header": header, "responses": [{ "response_range": { "kvs": kvs } }] })
                }
            }
            "/v3/kv/range" => {
                let (from, to) = (text(&body["key"]), text(&body["range_end"]));
                let kvs: Vec<&Value> = self.keys.range(from..to).map(|(_, kv)| kv).collect();
                json!({ "header": header, "kvs": kvs })
            }
            _ => return (404, json!("404 page not found")),
        };
        (200, answer)
    }
}

/// Path, token and body.
fn request<S: Read>(stream: &mut BufReader<S>) -> Option<(String, Option<String>, Value)> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let (mut token, mut length) = (None, 0);
    loop {
        line.clear();
        stream.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
        match line.trim_end().split_once(": ") {
            None => break,
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => token = Some(value.to_owned()),
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().ok()?,
            Some(_) => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((path, token, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

fn respond(out: &mut impl Write, status: u16, text: &str) -> std::io::Result<()> {
    write!(out, "HTTP/1.1 {status} Whatever\r\nContent-Length: {}\r\n\r\n{text}", text.len())?;
    out.flush()
}

/// Nobody listens there, and nobody else will.
pub fn refusing() -> (Endpoint, TcpStream) {
    // A socket that is bound and does not listen keeps its port.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    let address = client.local_addr().expect("an address").to_string();
    (Endpoint { is_https: false, address }, client)
}
