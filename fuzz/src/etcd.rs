//! What an etcd answers: each line is the answer to what was asked next, or said by the watch.

use std::{collections::VecDeque, time::Duration};

use lapis_config::Time;
use lapis_membership::{
    machine::{Ask, Membership, MembershipOptions},
    words,
};

const LINES_MAX: usize = 1000;
const OWN: &str = "a";

pub fn session(bytes: &[u8]) {
    let mut now = Time(0);
    let mut machine = Membership::new(now, options());
    let (mut calls, mut watch) = (VecDeque::new(), None);
    for line in bytes.split(|byte| *byte == b'\n').take(LINES_MAX) {
        while let Some(ask) = machine.poll_ask(now) {
            match ask {
                Ask::Call { number, request, .. } => calls.push_back((number, request)),
                Ask::Watch { number, .. } => watch = Some(number),
                Ask::End { number } => {
                    calls.retain(|(call, _)| *call != number);
                    watch = watch.filter(|watch| *watch != number);
                }
            }
            assert!(calls.len() <= 2, "a request of each kind");
        }
        match (calls.pop_front(), watch) {
            (Some((number, request)), _) => machine.answered(now, number, request.answer(line)),
            (None, Some(number)) => machine.watched(now, number, words::watched(line)),
            (None, None) => {}
        }
        while machine.poll_note().is_some() {}
        if let Some(members) = machine.poll_members() {
            assert!(members.is_sorted_by(|a, b| a.name < b.name) && members.iter().all(|member| member.name != OWN));
        }
        now = now.after(Duration::from_millis(100));
    }
    let _ = (words::refusal(400, words::WATCH_PATH, bytes), words::login_token(bytes), words::version(bytes));
}

fn options() -> MembershipOptions {
    MembershipOptions {
        host: OWN.into(),
        address: "a:1".into(),
        boot: 1,
        version: "0".into(),
        prefix: "/p/".into(),
        ttl: Duration::from_secs(10),
        endpoints: 2,
    }
}

/// As etcd 3.4 writes them: a host that is listed and sees another one, and one whose lease is not known any more.
pub fn sessions() -> Vec<Vec<u8>> {
    let header = r#""header":{"cluster_id":"9","member_id":"3","revision":"5","raft_term":"2"}"#;
    let host = r#"{"key":"L3AvYg==","create_revision":"5","mod_revision":"5","version":"1","value":"eyJhZGRyZXNzIjoiYjoxIiwiYm9vdCI6MiwidmVyc2lvbiI6IjAifQ==","lease":"8"}"#;
    let well = [
        format!(r#"{{{header},"ID":"7","TTL":"10"}}"#),
        format!(r#"{{{header},"kvs":[{host}],"count":"1"}}"#),
        format!(r#"{{{header},"succeeded":true,"responses":[{{"response_put":{{"header":{{"revision":"6"}}}}}}]}}"#),
        format!(r#"{{"result":{{{header},"created":true}}}}"#),
        format!(
            r#"{{"result":{{{header},"events":[{{"kv":{host}}},{{"type":"DELETE","kv":{{"key":"L3AvYg==","mod_revision":"7"}}}}]}}}}"#
        ),
        format!(r#"{{"result":{{{header},"canceled":true,"compact_revision":"9"}}}}"#),
    ];
    let gone = r#"{"error":"etcdserver: requested lease not found","message":"etcdserver: requested lease not found","code":5}"#;
    let away = r#"{"error":"etcdserver: no leader","message":"etcdserver: no leader","code":14}"#;
    let ill = [&well[0], &well[1], gone, &well[3], &well[0], away].map(str::to_owned);
    vec![well.join("\n").into(), ill.join("\n").into(), well[..4].join("\n").into()]
}
