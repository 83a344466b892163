//! Whether etcd can be asked for other hosts. Asks for its version and for the list; writes nothing there.

use std::{fs, os::unix::fs::MetadataExt, path::Path, time::Duration};

use lapis_config::Options;
use lapis_membership::{
    machine::other_hosts,
    view::View,
    words::{Answer, Failure, FailureKind, Place, Request},
};
use tokio::{task::LocalSet, time::timeout};

use super::Finding;
use crate::membership::{EtcdOptions, client::Client};

const ETCD: &str = "etcd";
/// One endpoint's time.
const WITHIN: Duration = Duration::from_secs(3);

const UNREACHABLE: &str = "see that it runs and can be reached from here; the daemon starts without it and tries again";
const REFUSED: &str = "give it what it asks for; the daemon starts without it and tries again";

/// What one endpoint said.
type Said = Result<(String, Vec<String>), Failure>;

pub(super) fn examine(options: &Options) -> Vec<Finding> {
    // Without peers.listen it is not asked.
    let Some(etcd) = EtcdOptions::of(options).filter(|_| options.peers_listen.is_some()) else { return Vec::new() };
    if let Err(why) = etcd.check_files() {
        return vec![Finding::fail(ETCD, why, "give files that the daemon's user can read and etcd knows")];
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return vec![Finding::fail(ETCD, format!("no runtime: {error}"), "raise the limit of open files")];
        }
    };
    let names: Vec<String> = etcd.endpoints.iter().map(ToString::to_string).collect();
    let findings = LocalSet::new().block_on(&runtime, async {
        let mut findings = secrets(&etcd);
        for (endpoint, name) in names.iter().enumerate() {
            let asked = timeout(WITHIN, ask(options, &etcd, endpoint)).await;
            let said = asked.unwrap_or_else(|_| Err(Failure::away(format!("no answer within {WITHIN:?}"))));
            findings.push(judge(options, said).of(name));
        }
        findings
    });
    // A name that is still being looked up is not waited for.
    runtime.shutdown_background();
    findings
}

/// Files that nobody else should read.
fn secrets(etcd: &EtcdOptions) -> Vec<Finding> {
    let key = etcd.identity.as_ref().map(|(_, key)| key);
    let files = [key, etcd.login.as_ref()].into_iter().flatten();
    let mode = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.mode() & 0o7777);
    files.filter_map(|path| secret(mode(path)).map(|finding| finding.of(path.display()))).collect()
}

/// Pure: its group may be the daemon's, to read.
fn secret(mode: u32) -> Option<Finding> {
    let found = format!("others may read or change it (mode {mode:04o}): who has it is this host to etcd");
    (mode & 0o027 != 0).then(|| Finding::warn(ETCD, found, "chmod 600, owned by the daemon's user"))
}

async fn ask(options: &Options, etcd: &EtcdOptions, endpoint: usize) -> Said {
    let (prefix, host) = (options.peers_etcd_prefix.clone(), options.peers_host.clone());
    let mut view = View::new(&prefix, &host);
    let client = Client::new(etcd.clone(), Place { prefix, host, value: String::new() });
    let version = client.version(endpoint).await?;
    if let Answer::Listed { revision, listed } = client.call(endpoint, &Request::List).await? {
        view.listed(lapis_config::Time(0), revision, listed);
    }
    let hosts = view.members().iter().map(ToString::to_string).collect();
    Ok((version, hosts))
}

/// Pure: what it is good for.
fn judge(options: &Options, said: Said) -> Finding {
    match said {
        Ok((version, hosts)) => {
            let named = if hosts.is_empty() { String::new() } else { format!(" ({})", shown(&hosts)) };
            let hosts = other_hosts(hosts.len()) + &named;
            Finding::ok(ETCD, format!("version {version}, {hosts} under {}", options.peers_etcd_prefix))
        }
        Err(failure) => {
            let advice = if failure.kind == FailureKind::Away { UNREACHABLE } else { REFUSED };
            Finding::warn(ETCD, failure.why, advice)
        }
    }
}

fn shown(hosts: &[String]) -> String {
    const SHOWN_MAX: usize = 8;
    let more = if hosts.len() > SHOWN_MAX { ", ..." } else { "" };
    format!("{}{more}", hosts[..hosts.len().min(SHOWN_MAX)].join(", "))
}

#[test]
fn a_secret_that_others_may_read_is_warned_of() {
    assert_eq!((secret(0o600), secret(0o640), secret(0)), (None, None, None));
    assert!([0o644, 0o660, 0o604].into_iter().all(|mode| secret(mode).is_some()));
}

#[test]
fn an_endpoint_is_told_with_its_version_and_hosts_or_with_what_to_do() {
    let options = Options::default();
    let hosts = |count: usize| (0..count).map(|i| format!("h{i}=h{i}:1")).collect::<Vec<_>>();
    let finding = judge(&options, Ok(("3.4.23".into(), hosts(1))));
    assert_eq!(finding.to_string(), "ok    etcd           version 3.4.23, 1 other host (h0=h0:1) under /lapis/hosts/");
    assert!(judge(&options, Ok(("3".into(), hosts(9)))).found.contains("9 other hosts (h0=h0:1, "));
    let finding = judge(&options, Err(Failure::away("no connection")));
    assert_eq!((finding.level, finding.found.as_str()), (super::Level::Warn, "no connection"));
    assert_eq!(finding.advice, Some(UNREACHABLE.into()));
    let refused = Failure { why: "permission denied".into(), kind: FailureKind::Refused };
    assert_eq!(judge(&options, Err(refused)).advice, Some(REFUSED.into()));
}
