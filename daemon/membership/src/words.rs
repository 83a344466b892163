//! What is said to etcd's JSON gateway and what it answers: keys and values in base64, numbers as texts, nothing said of a
//! number that is 0. Pure.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use super::view::{Change, KEYS_MAX, Listed, shortened};

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub why: String,
    pub kind: FailureKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The endpoint is not there, or cannot answer now: another one may.
    Away,
    /// It was understood and refused: it would be elsewhere too.
    Refused,
    /// It speaks of a lease that is no more.
    NoLease,
    /// What was asked with is not, or no longer, known: the login is to be said again.
    NoLogin,
}

impl Failure {
    pub fn away(why: impl Into<String>) -> Self {
        Self { why: why.into(), kind: FailureKind::Away }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Grant {
        ttl_s: u64,
    },
    KeepAlive {
        lease: i64,
    },
    /// This host's key, unless it is there; `over`: or is as it was at that revision.
    Claim {
        lease: i64,
        over: Option<u64>,
    },
    List,
    Revoke {
        lease: i64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Granted {
        lease: i64,
        ttl_s: u64,
    },
    /// 0: there is no such lease.
    Kept {
        ttl_s: u64,
    },
    /// As of that revision.
    Claimed {
        revision: u64,
    },
    /// The key is there, and stays as it is; `None`: it has just gone.
    Held(Option<Listed>),
    Listed {
        revision: u64,
        listed: Vec<Listed>,
    },
    Revoked,
}

/// What a watch says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    Opened,
    Changed(Vec<Change>),
    /// What it should begin with is no longer known: all has to be listed again.
    Compacted,
    Failed(Failure),
}

/// The same in every request of one host.
#[derive(Clone, Debug)]
pub struct Place {
    pub prefix: String,
    pub host: String,
    /// What is written under the host's key.
    pub value: String,
}

impl Request {
    pub fn path(&self) -> &'static str {
        match self {
            Self::Grant { .. } => "/v3/lease/grant",
            Self::KeepAlive { .. } => "/v3/lease/keepalive",
            Self::Claim { .. } => "/v3/kv/txn",
            Self::List => "/v3/kv/range",
            Self::Revoke { .. } => "/v3/lease/revoke",
        }
    }

    pub fn body(&self, place: &Place) -> Value {
        match self {
            Self::Grant { ttl_s } => json!({ "TTL": ttl_s.to_string() }),
            Self::KeepAlive { lease } | Self::Revoke { lease } => json!({ "ID": lease.to_string() }),
            Self::List => json!({
                "key": encoded(&place.prefix),
                "range_end": encoded(&end_of(&place.prefix)),
                "limit": KEYS_MAX.to_string(),
            }),
            Self::Claim { lease, over } => {
                let key = encoded(&format!("{}{}", place.prefix, place.host));
                let compare = match over {
                    None => json!({ "key": key, "target": "CREATE", "create_revision": "0" }),
                    Some(revision) => json!({ "key": key, "target": "MOD", "mod_revision": revision.to_string() }),
                };
                let put = json!({ "key": key, "value": encoded(&place.value), "lease": lease.to_string() });
                json!({
                    "compare": [compare],
                    "success": [{ "request_put": put }],
                    "failure": [{ "request_range": { "key": key } }],
                })
            }
        }
    }

    /// What the endpoint's answer means, if it is one.
    pub fn answer(&self, text: &[u8]) -> Result<Answer, Failure> {
        let value = read(text)?;
        let answer = match self {
            Self::Grant { .. } => match (number(&value, "ID"), number(&value, "TTL")) {
                (Some(lease), Some(ttl)) if lease > 0 && ttl > 0 => Some(Answer::Granted { lease, ttl_s: ttl as u64 }),
                _ => None,
            },
            Self::KeepAlive { lease } => {
                let result = &value["result"];
                let is_it = number(result, "ID") == Some(*lease);
                number(result, "TTL").filter(|_| is_it).map(|ttl| Answer::Kept { ttl_s: ttl.max(0) as u64 })
            }
            Self::Claim { .. } => match value["succeeded"].as_bool() {
                Some(true) => revision(&value).map(|revision| Answer::Claimed { revision }),
                _ => {
                    let range = &value["responses"][0]["response_range"];
                    let held = range.is_object().then(|| listed(range)).flatten();
                    held.map(|listed| Answer::Held(listed.into_iter().next()))
                }
            },
            Self::List => {
                if value["more"].as_bool() == Some(true) {
                    return Err(too_many());
                }
                let (revision, listed) = (revision(&value), listed(&value));
                revision.zip(listed).map(|(revision, listed)| Answer::Listed { revision, listed })
            }
            Self::Revoke { .. } => Some(Answer::Revoked),
        };
        answer.ok_or_else(|| strange(text))
    }
}

pub const WATCH_PATH: &str = "/v3/watch";

/// Of all that changes under the prefix after that revision.
pub fn watch_body(place: &Place, revision: u64) -> Value {
    json!({ "create_request": {
        "key": encoded(&place.prefix),
        "range_end": encoded(&end_of(&place.prefix)),
        "start_revision": (revision + 1).to_string(),
    }})
}

/// What one line of a watch means.
pub fn watched(line: &[u8]) -> Watched {
    let value = match read(line) {
        Ok(value) => value,
        Err(failure) => return Watched::Failed(failure),
    };
    let result = &value["result"];
    if result["canceled"].as_bool() == Some(true) {
        if number(result, "compact_revision").is_some_and(|revision| revision > 0) {
            return Watched::Compacted;
        }
        let why = result["cancel_reason"].as_str().unwrap_or("it did not say why");
        return Watched::Failed(Failure::away(format!("the watch was ended: {}", shortened(why))));
    }
    if result["created"].as_bool() == Some(true) {
        return Watched::Opened;
    }
    let changes = match &result["events"] {
        Value::Null if result["header"].is_object() => Some(Vec::new()),
        Value::Array(events) => events.iter().map(change).collect(),
        _ => None,
    };
    changes.map_or_else(|| Watched::Failed(strange(line)), Watched::Changed)
}

fn change(event: &Value) -> Option<Change> {
    let listed = kv(&event["kv"])?;
    match event["type"].as_str() {
        None | Some("PUT") => Some(Change::Put(listed)),
        Some("DELETE") => Some(Change::Deleted { key: listed.key, mod_revision: listed.mod_revision }),
        Some(_) => None,
    }
}

pub const LOGIN_PATH: &str = "/v3/auth/authenticate";

pub fn login_body(user: &str, password: &str) -> Value {
    json!({ "name": user, "password": password })
}

/// What is said of itself with each request from then on.
pub fn login_token(text: &[u8]) -> Result<String, Failure> {
    let value = read(text)?;
    value["token"].as_str().filter(|token| !token.is_empty()).map(str::to_owned).ok_or_else(|| strange(text))
}

pub const VERSION_PATH: &str = "/version";

pub fn version(text: &[u8]) -> Result<String, Failure> {
    let value = read(text)?;
    value["etcdserver"].as_str().map(shortened).ok_or_else(|| strange(text))
}

/// An answer whose status is not 200.
pub fn refusal(status: u16, path: &str, text: &[u8]) -> Failure {
    match serde_json::from_slice::<Value>(text) {
        Ok(value) if code(&value).is_some() || value["error"].is_string() => failure(&value),
        _ if status == 404 => Failure {
            why: format!(
                "it has no {path}: it is no etcd of version 3.4 or later, or its JSON gateway is off (--enable-grpc-gateway)"
            ),
            kind: FailureKind::Refused,
        },
        _ => Failure::away(format!("HTTP status {status} at {path}")),
    }
}

fn read(text: &[u8]) -> Result<Value, Failure> {
    let value: Value = serde_json::from_slice(text).map_err(|_| strange(text))?;
    match value.get("error") {
        None => Ok(value),
        // In a stream it is an object, else beside its code.
        Some(error @ Value::Object(_)) => Err(failure(error)),
        Some(_) => Err(failure(&value)),
    }
}

fn code(error: &Value) -> Option<i64> {
    ["code", "grpc_code"].iter().find_map(|name| number(error, name).filter(|code| *code != 0))
}

/// What an error of etcd means, by its code of gRPC and its words.
fn failure(error: &Value) -> Failure {
    let words = error["message"].as_str().or_else(|| error["error"].as_str()).unwrap_or("an error without words");
    let why = match words {
        // Its gateway speaks to it with its own certificate.
        "connection closed" => format!(
            "{words} between its gateway and itself (with --client-cert-auth its own certificate must be for clients too)"
        ),
        words => shortened(words),
    };
    // Of gRPC: 1 is cancelled, 4 over its deadline, 14 unavailable.
    let kind = match code(error) {
        Some(5) if words.contains("lease not found") => FailureKind::NoLease,
        _ if words.contains("invalid auth token") || words.contains("auth revision") => FailureKind::NoLogin,
        Some(16) => FailureKind::NoLogin,
        // Also said of a request without any login.
        _ if words.contains("user name is empty") => FailureKind::NoLogin,
        Some(1 | 4 | 14) | None => FailureKind::Away,
        Some(_) => FailureKind::Refused,
    };
    Failure { why, kind }
}

/// Hosts could be among those that were left out.
fn too_many() -> Failure {
    let why = format!("more than {KEYS_MAX} keys lie there: give the hosts a prefix of their own (peers.etcd_prefix)");
    Failure { why, kind: FailureKind::Refused }
}

fn strange(text: &[u8]) -> Failure {
    let shown = shortened(&String::from_utf8_lossy(&text[..text.len().min(1000)]));
    Failure::away(format!("it does not answer as etcd does: {shown:?}"))
}

/// 0 where nothing is said; `None`: it is said, and is no number.
fn number(value: &Value, name: &str) -> Option<i64> {
    match (&value[name], value.is_object()) {
        (Value::Null, is_object) => is_object.then_some(0),
        (Value::String(text), _) => text.parse().ok(),
        (other, _) => other.as_i64(),
    }
}

/// Of the whole store; it is 1 when nothing was ever written.
fn revision(value: &Value) -> Option<u64> {
    let revision = number(&value["header"], "revision")?;
    u64::try_from(revision).ok().filter(|revision| *revision > 0)
}

fn listed(range: &Value) -> Option<Vec<Listed>> {
    match &range["kvs"] {
        Value::Null => Some(Vec::new()),
        Value::Array(kvs) => kvs.iter().map(kv).collect(),
        _ => None,
    }
}

fn kv(value: &Value) -> Option<Listed> {
    let bytes = |name: &str| match &value[name] {
        Value::Null => Some(Vec::new()),
        Value::String(text) => BASE64.decode(text).ok(),
        _ => None,
    };
    Some(Listed {
        key: String::from_utf8_lossy(&bytes("key").filter(|key| !key.is_empty())?).into_owned(),
        value: bytes("value")?,
        mod_revision: u64::try_from(number(value, "mod_revision")?).ok()?,
        lease: number(value, "lease")?,
    })
}

fn encoded(text: &str) -> String {
    BASE64.encode(text)
}

/// The first key after all that begin with the prefix.
fn end_of(prefix: &str) -> String {
    let head = prefix.strip_suffix('/').expect("a prefix ends in /, as the configuration has seen");
    format!("{head}0")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place() -> Place {
        Place { prefix: "/p/".into(), host: "a".into(), value: "{}".into() }
    }

    fn all_requests() -> [Request; 6] {
        [
            Request::Grant { ttl_s: 10 },
            Request::KeepAlive { lease: 7 },
            Request::Claim { lease: 7, over: None },
            Request::Claim { lease: 7, over: Some(3) },
            Request::List,
            Request::Revoke { lease: 7 },
        ]
    }

    #[test]
    fn answers_of_etcd_3_4_are_understood() {
        let header = r#""header":{"cluster_id":"14841639068965178418","member_id":"1","revision":"5","raft_term":"2"}"#;
        let kv = r#"{"key":"L3AvYg==","create_revision":"4","mod_revision":"5","version":"1","value":"e30=","lease":"7587"}"#;
        let listed = Listed { key: "/p/b".into(), value: b"{}".to_vec(), mod_revision: 5, lease: 7587 };
        let [grant, keep, claim, _, list, revoke] = all_requests();
        let cases = [
            (&grant, r#"{H,"ID":"7587","TTL":"10"}"#, Answer::Granted { lease: 7587, ttl_s: 10 }),
            (&keep, r#"{"result":{H,"ID":"7","TTL":"10"}}"#, Answer::Kept { ttl_s: 10 }),
            (&keep, r#"{"result":{H,"ID":"7"}}"#, Answer::Kept { ttl_s: 0 }),
            (&claim, r#"{H,"succeeded":true,"responses":[{"response_put":{H}}]}"#, Answer::Claimed { revision: 5 }),
            (
                &claim,
                r#"{H,"responses":[{"response_range":{H,"kvs":[KV],"count":"1"}}]}"#,
                Answer::Held(Some(listed.clone())),
            ),
            (&claim, r#"{H,"responses":[{"response_range":{H}}]}"#, Answer::Held(None)),
            (&list, "{H}", Answer::Listed { revision: 5, listed: vec![] }),
            (&list, r#"{H,"kvs":[KV],"count":"1"}"#, Answer::Listed { revision: 5, listed: vec![listed.clone()] }),
            (&revoke, "{H}", Answer::Revoked),
        ];
        let full = |text: &str| text.replace("KV", kv).replace('H', header);
        for (request, text, answer) in cases {
            assert_eq!(request.answer(full(text).as_bytes()), Ok(answer), "{text}");
        }
        let deleted = r#"{"type":"DELETE","kv":{"key":"L3AvYg==","mod_revision":"6"}}"#;
        let cases = [
            (r#"{"result":{H,"created":true}}"#, Watched::Opened),
            (r#"{"result":{H}}"#, Watched::Changed(vec![])),
            (
                &format!(r#"{{"result":{{H,"events":[{{"kv":KV}},{deleted}]}}}}"#),
                Watched::Changed(vec![Change::Put(listed), Change::Deleted { key: "/p/b".into(), mod_revision: 6 }]),
            ),
            (r#"{"result":{H,"canceled":true,"compact_revision":"9"}}"#, Watched::Compacted),
        ];
        for (text, meaning) in cases {
            assert_eq!(watched(full(text).as_bytes()), meaning, "{text}");
        }
    }

    #[test]
    fn errors_of_etcd_are_told_apart() {
        use FailureKind::*;
        let cases = [
            (
                r#"{"error":"etcdserver: requested lease not found","code":5,"message":"etcdserver: requested lease not found"}"#,
                NoLease,
            ),
            (
                r#"{"error":"etcdserver: invalid auth token","code":16,"message":"etcdserver: invalid auth token"}"#,
                NoLogin,
            ),
            (r#"{"error":"etcdserver: user name is empty","code":3}"#, NoLogin),
            (r#"{"error":"etcdserver: permission denied","code":7}"#, Refused),
            (r#"{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader","http_status":"x"}}"#, Away),
            (r#"{"error":"etcdserver: request timed out","code":14}"#, Away),
            (r#"{"error":"etcdserver: mvcc: database space exceeded","code":8}"#, Refused),
            (r#"{"error":"without a code"}"#, Away),
        ];
        for (text, kind) in cases {
            let failure = Request::Grant { ttl_s: 1 }.answer(text.as_bytes()).expect_err("an error");
            assert_eq!(failure.kind, kind, "{text}");
            assert_eq!(refusal(400, "/v3/lease/grant", text.as_bytes()).kind, kind, "{text}");
        }
        let gateless = refusal(404, "/v3/kv/range", b"404 page not found");
        assert!(gateless.why.contains("no etcd of version 3.4") && gateless.kind == Refused, "{gateless:?}");
        let closed = refusal(503, "/v3/kv/range", br#"{"error":"connection closed","code":14}"#);
        assert!(closed.why.contains("certificate must be for clients") && closed.kind == Away, "{closed:?}");
        assert!(refusal(502, "/v3/kv/range", b"<html>").why.contains("502"));
    }

    #[test]
    fn what_is_no_answer_is_said_to_be_none() {
        let texts: [&[u8]; 8] = [
            b"",
            b"{",
            b"null",
            b"[]",
            b"7",
            b"\xff",
            br#"{"result":7}"#,
            br#"{"ID":"x","TTL":{},"kvs":{},"header":[]}"#,
        ];
        for text in texts {
            for request in &all_requests()[..5] {
                let answer = request.answer(text);
                assert!(answer.as_ref().is_err_and(|failure| failure.why.contains("as etcd does")), "{answer:?}");
            }
            assert!(matches!(watched(text), Watched::Failed(_)), "{text:?}");
        }
        // Keys of others, among which hosts would be missed.
        let cut = Request::List.answer(br#"{"header":{"revision":"1"},"kvs":[],"more":true}"#);
        assert!(cut.is_err_and(|failure| failure.why.contains("peers.etcd_prefix")));
        // A key in something else than base64; an answer that speaks of another lease.
        let list = br#"{"header":{"revision":"1"},"kvs":[{"key":"?","mod_revision":"1"}]}"#;
        assert!(Request::List.answer(list).is_err());
        assert!(Request::KeepAlive { lease: 7 }.answer(br#"{"result":{"ID":"8","TTL":"9"}}"#).is_err());
    }

    #[test]
    fn a_prefix_ends_where_the_next_one_begins() {
        let body = Request::List.body(&place());
        assert_eq!((body["key"].as_str(), body["range_end"].as_str()), (Some("L3Av"), Some("L3Aw")));
        assert_eq!(watch_body(&place(), 5)["create_request"]["start_revision"], "6");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, at in 0usize..400, with: u8) {
            let mut line = br#"{"result":{"header":{"revision":"5"},"ID":"7","TTL":"10","events":[{"type":"DELETE","kv":{"key":"L3AvYg==","mod_revision":"5","value":"e30="}}],"kvs":[{"key":"L3AvYg=="}]}}"#.to_vec();
            if let Some(byte) = line.get_mut(at) {
                *byte = with;
            }
            for text in [&bytes, &line] {
                for request in all_requests() {
                    let _ = request.answer(text);
                    let _ = refusal(400, request.path(), text);
                }
                let _ = (watched(text), login_token(text), version(text));
            }
        }
    }
}
