//! Other hosts: their names, where they are, and the files of certificates. Pure.

use std::{fmt, net::IpAddr, path::PathBuf};

use super::{Described, Raw, Unit};
use crate::mistake::Mistake;

/// Longest name of a host, bytes, and of a part of it between dots, as DNS and certificates have it.
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// Another host: its name, and a host and port where it listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    pub name: String,
    /// As in "10.0.0.2:7450", "[fd00::2]:7450" or "host-b.example:7450".
    pub address: String,
}

impl Member {
    pub fn port(&self) -> u16 {
        self.address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("an address has a port")
    }

    /// Unless it is a name, which could resolve to anything.
    pub fn ip(&self) -> Option<IpAddr> {
        let (host, _) = self.address.rsplit_once(':').expect("an address has a port");
        host.trim_start_matches('[').trim_end_matches(']').parse().ok()
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.address)
    }
}

/// The text as a host's name, in small letters, if it is one: as DNS and certificates have it, and no address.
pub fn host_name(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= LABEL_BYTES_MAX
            && label.bytes().all(fits)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // "10.0.0.2" is no name, and "10.0.0" a slip.
    let last = text.rsplit('.').next().unwrap_or("");
    let is_name =
        text.len() <= NAME_BYTES_MAX && text.split('.').all(label) && !last.bytes().all(|b| b.is_ascii_digit());
    is_name.then_some(text)
}

/// The name of this host. The word "auto" is empty until the configuration is loaded.
pub struct HostName;

const HOST_NAME: &str = "a host's name, like \"host-a\": letters, digits, - and _, with dots between parts";

impl Described for HostName {
    fn hint(&self) -> &'static str {
        "NAME"
    }
    fn bounds(&self) -> String {
        "a host's name, or \"auto\"".into()
    }
}

impl Unit for HostName {
    type Value = String;
    fn read(&self, raw: &Raw) -> Result<String, Mistake> {
        match raw.text("a host's name in quotes")? {
            "auto" => Ok(String::new()),
            text => host_name(text).ok_or_else(|| Mistake::NotA { given: text.into(), expected: HOST_NAME }),
        }
    }
    fn show(&self, value: &String) -> String {
        if value.is_empty() { "auto".into() } else { value.clone() }
    }
}

/// Names of hosts, none twice.
pub struct HostNames {
    pub most: usize,
}

impl Described for HostNames {
    fn hint(&self) -> &'static str {
        "LIST"
    }
    fn bounds(&self) -> String {
        format!("a list of at most {} names of hosts", self.most)
    }
    fn quoted(&self) -> bool {
        false
    }
}

impl Unit for HostNames {
    type Value = Vec<String>;
    fn read(&self, raw: &Raw) -> Result<Vec<String>, Mistake> {
        let items = raw.items("a list of names of hosts, like [\"host-b\", \"host-c\"]")?;
        at_most(items.len(), self.most, "hosts")?;
        let mut names = Vec::with_capacity(items.len());
        for item in &items {
            let text = item.text("a host's name in quotes")?;
            let name = host_name(text).ok_or_else(|| Mistake::NotA { given: text.into(), expected: HOST_NAME })?;
            if names.contains(&name) {
                return Err(Mistake::Twice { given: text.into() });
            }
            names.push(name);
        }
        Ok(names)
    }
    fn show(&self, value: &Vec<String>) -> String {
        listed(value.iter())
    }
}

/// Hosts with their addresses; no name and no address twice.
pub struct Members {
    pub most: usize,
}

impl Described for Members {
    fn hint(&self) -> &'static str {
        "LIST"
    }
    fn bounds(&self) -> String {
        format!("a list of at most {} hosts, each as NAME=HOST:PORT", self.most)
    }
    fn quoted(&self) -> bool {
        false
    }
}

impl Unit for Members {
    type Value = Vec<Member>;
    fn read(&self, raw: &Raw) -> Result<Vec<Member>, Mistake> {
        let items = raw.items("a list of hosts, like [\"host-b=10.0.0.2:7450\", \"host-c=10.0.0.3:7450\"]")?;
        at_most(items.len(), self.most, "hosts")?;
        let mut members: Vec<Member> = Vec::with_capacity(items.len());
        for item in &items {
            let text = item.text("a host in quotes, like \"host-b=10.0.0.2:7450\"")?;
            let member = member(text)?;
            if members.iter().any(|other| other.name == member.name) {
                return Err(Mistake::Twice { given: member.name });
            }
            if members.iter().any(|other| other.address == member.address) {
                return Err(Mistake::Twice { given: member.address });
            }
            members.push(member);
        }
        Ok(members)
    }
    fn show(&self, value: &Vec<Member>) -> String {
        listed(value.iter().map(Member::to_string))
    }
}

fn member(text: &str) -> Result<Member, Mistake> {
    let not_a = |expected| Mistake::NotA { given: text.into(), expected };
    let (name, address) = text.split_once('=').ok_or_else(|| not_a("a host, like \"host-b=10.0.0.2:7450\""))?;
    let name = host_name(name.trim())
        .ok_or_else(|| not_a("a host: before = must be its name, of letters, digits, - and _, and no address"))?;
    let address = host_port(address.trim()).map_err(|missing| match missing {
        Missing::Port => not_a("a host: after = must be an address or a name with a port of 1 to 65535"),
        Missing::Host => {
            not_a("a host: after = must be an IPv4 address, an IPv6 address in [ ], or a name, then : and a port")
        }
    })?;
    Ok(Member { name, address })
}

/// What a text lacks to be a host and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// A port of 1 to 65535, in digits, after the last colon.
    Port,
    /// An IPv4 address, an IPv6 address in [ ], or a name, before it.
    Host,
}

/// The text as a host and a port, in one way of writing, if it is one: "10.0.0.2:7450", "[fd00::2]:7450", "host-b:7450".
pub fn host_port(text: &str) -> Result<String, Missing> {
    let (host, port) = text.rsplit_once(':').ok_or(Missing::Port)?;
    let is_number = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = port.parse::<u16>().ok().filter(|port| is_number && *port > 0).ok_or(Missing::Port)?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(ip) => ip.parse::<std::net::Ipv6Addr>().ok().map(|ip| format!("[{ip}]")),
        None => host.parse::<std::net::Ipv4Addr>().ok().map(|ip| ip.to_string()).or_else(|| host_name(host)),
    };
    Ok(format!("{}:{port}", host.ok_or(Missing::Host)?))
}

pub(super) fn at_most(given: usize, most: usize, what: &str) -> Result<(), Mistake> {
    match given > most {
        true => Err(Mistake::TooLarge { given: given.to_string(), most: format!("{most} {what}") }),
        false => Ok(()),
    }
}

pub(super) fn listed(items: impl Iterator<Item = impl fmt::Debug>) -> String {
    let words: Vec<String> = items.map(|item| format!("{item:?}")).collect();
    format!("[{}]", words.join(", "))
}

/// The absolute path of a file.
pub struct FilePath;

impl Described for FilePath {
    fn hint(&self) -> &'static str {
        "PATH"
    }
    fn bounds(&self) -> String {
        "an absolute path".into()
    }
}

impl Unit for FilePath {
    type Value = PathBuf;
    fn read(&self, raw: &Raw) -> Result<PathBuf, Mistake> {
        let text = raw.text("a path in quotes")?;
        if !text.starts_with('/') || text.ends_with('/') || text.contains('\0') {
            return Err(Mistake::NotA { given: text.into(), expected: "an absolute path of a file" });
        }
        Ok(text.into())
    }
    fn show(&self, value: &PathBuf) -> String {
        value.display().to_string()
    }
}

#[test]
fn a_host_has_a_name_as_certificates_have_it() {
    for (text, name) in [("host-b", "host-b"), ("GPU_1.Example", "gpu_1.example"), ("1a", "1a"), ("a.1.b", "a.1.b")] {
        assert_eq!(host_name(text).as_deref(), Some(name), "{text}");
    }
    let long = format!("{}.x", ["a"; 130].join("."));
    for text in
        ["", ".", "a.", ".a", "a..b", "-a", "a-", "a b", "10.0.0.2", "10.0.0", "7", "*.a", "ä", &"a".repeat(64), &long]
    {
        assert_eq!(host_name(text), None, "{text}");
    }
}
