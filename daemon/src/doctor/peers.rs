//! Whether other hosts will know this one: its certificate, who may read its key, and its port.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

use lapis_config::Options;
use lapis_transport::peers::tls::{self, Identity, IdentityFiles, TlsError};

use super::{Finding, sockets};

const CERTIFICATE: &str = "certificate";
const KEY: &str = "key";
const PEERS: &str = "peers";

const DAY: Duration = Duration::from_secs(86_400);
/// A certificate that ends within this is to be renewed.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 86_400);

/// Nothing for a host that is alone.
pub(super) fn examine(options: &Options) -> Vec<Finding> {
    let Some(listen) = options.peers_listen else { return Vec::new() };
    let mut findings = vec![sockets::port(PEERS, listen, "--peers-listen")];
    match IdentityFiles::of(options) {
        Some(files) => {
            let loaded = Identity::load(&files, &options.peers_host).map(|identity| identity.expires());
            findings.push(certificate(&options.peers_host, loaded, SystemTime::now()).of(files.certificate.display()));
            findings.extend(mode(&files.key).map(|mode| key(mode).of(files.key.display())));
        }
        None => findings.push(Finding::ok(CERTIFICATE, "none: only daemons on this machine are peers")),
    }
    findings
}

/// Pure: what a certificate is good for that ends then, or is none.
fn certificate(host: &str, ends: Result<SystemTime, TlsError>, now: SystemTime) -> Finding {
    let ends = match ends {
        Ok(ends) => ends,
        Err(error) => {
            let advice = match error {
                TlsError::Unreadable { .. } => {
                    "give the daemon's user the right to read it, or make it with `lapis cert`"
                }
                TlsError::OtherHost { .. } => "give it to the host that it is for, or set peers.host",
                _ => "make another one, with `lapis cert` or as all of your hosts' were made",
            };
            return Finding::fail(CERTIFICATE, error.to_string(), advice);
        }
    };
    let (left, day) = (ends.duration_since(now).unwrap_or_default(), tls::day(ends));
    match left < RENEW_BEFORE {
        true => Finding::warn(
            CERTIFICATE,
            format!("of {host:?}, ends on {day}, in {} days", left.as_secs() / DAY.as_secs()),
            "make a new one before: a peer takes none that has ended, and a daemon reads it again at SIGHUP",
        ),
        false => Finding::ok(CERTIFICATE, format!("of {host:?}, valid until {day}")),
    }
}

/// `None`: it cannot be looked at, which the certificate's line says.
fn mode(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().map(|metadata| metadata.mode() & 0o7777)
}

/// Pure: who may read and write a key of this mode. Its group may be the daemon's, to read.
fn key(mode: u32) -> Finding {
    match mode & 0o027 {
        0 => Finding::ok(KEY, format!("its owner's alone (mode {mode:04o})")),
        _ => Finding::warn(
            KEY,
            format!("others may read or change it (mode {mode:04o}): who has it is this host to all peers"),
            "chmod 0600 (with the daemon's user as owner), and make a new one if somebody may have read it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{super::Level, *};

    #[test]
    fn a_certificate_is_renewed_a_month_before_it_ends() {
        let now = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let found = |days: u32| certificate("host-a", Ok(now + days * DAY), now);
        assert_eq!(found(30).to_string(), "ok    certificate    of \"host-a\", valid until 2024-11-03");
        let soon = found(29);
        assert!(soon.level == Level::Warn && soon.found == "of \"host-a\", ends on 2024-11-02, in 29 days", "{soon}");
        assert_eq!(found(0).level, Level::Warn);
    }

    #[test]
    fn a_certificate_that_is_none_fails_with_what_to_do() {
        let path = PathBuf::from("/a.pem");
        let (host, names) = ("host-b".to_owned(), vec!["host-a".to_owned()]);
        let cases = [
            (TlsError::OtherHost { path: path.clone(), host, names }, "of \"host-a\", not of \"host-b\"", "peers.host"),
            (
                TlsError::Unreadable { path: path.clone(), source: std::io::ErrorKind::NotFound.into() },
                "/a.pem",
                "read",
            ),
            (TlsError::Refused { path, reason: "ended on 2024-11-02".into() }, "ended on 2024-11-02", "lapis cert"),
        ];
        for (error, found, advice) in cases {
            let finding = certificate("host-b", Err(error), SystemTime::now());
            let said = finding.to_string();
            assert!(finding.level == Level::Fail && said.contains(found) && said.contains(advice), "{said}");
        }
    }

    #[test]
    fn a_key_is_its_owners_and_at_most_read_by_its_group() {
        for (mode, level) in [
            (0o600, Level::Ok),
            (0o400, Level::Ok),
            (0o640, Level::Ok),
            (0o660, Level::Warn),
            (0o644, Level::Warn),
            (0o602, Level::Warn),
            (0o604, Level::Warn),
        ] {
            assert_eq!(key(mode).level, level, "{mode:04o}");
        }
    }
}
