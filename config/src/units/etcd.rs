//! Where etcd is, under which keys hosts are listed there, and what this one says of itself. Pure.

use std::fmt;

use super::{
    Described, Raw, Unit,
    hosts::{Missing, at_most, host_port, listed},
};
use crate::mistake::Mistake;

/// Longest prefix of keys, bytes.
const PREFIX_BYTES_MAX: usize = 200;

/// One server of an etcd cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub is_https: bool,
    /// As in "10.0.0.5:2379", "[fd00::5]:2379" or "etcd-1.example:2379".
    pub address: String,
}

impl Endpoint {
    /// The host alone, without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        let (host, _) = self.address.rsplit_once(':').expect("an address has a port");
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.address)
    }
}

/// Servers of one etcd cluster, none twice, all of them with TLS or none.
pub struct Endpoints {
    pub most: usize,
}

impl Described for Endpoints {
    fn hint(&self) -> &'static str {
        "LIST"
    }
    fn bounds(&self) -> String {
        format!("a list of at most {} of http://HOST:PORT or https://HOST:PORT", self.most)
    }
    fn quoted(&self) -> bool {
        false
    }
}

impl Unit for Endpoints {
    type Value = Vec<Endpoint>;
    fn read(&self, raw: &Raw) -> Result<Vec<Endpoint>, Mistake> {
        let items = raw.items("a list of endpoints, like [\"http://10.0.0.5:2379\"]")?;
        at_most(items.len(), self.most, "endpoints")?;
        let mut endpoints: Vec<Endpoint> = Vec::with_capacity(items.len());
        for item in &items {
            let text = item.text("an endpoint in quotes, like \"http://10.0.0.5:2379\"")?;
            let endpoint = endpoint(text)?;
            if endpoints.iter().any(|other| other.address == endpoint.address) {
                return Err(Mistake::Twice { given: endpoint.to_string() });
            }
            if endpoints.iter().any(|other| other.is_https != endpoint.is_https) {
                return Err(not_an_endpoint(
                    text,
                    "like the others of one cluster: http:// for all, or https:// for all",
                ));
            }
            endpoints.push(endpoint);
        }
        Ok(endpoints)
    }
    fn show(&self, value: &Vec<Endpoint>) -> String {
        listed(value.iter().map(Endpoint::to_string))
    }
}

fn not_an_endpoint(given: &str, expected: &'static str) -> Mistake {
    Mistake::NotA { given: given.into(), expected }
}

fn endpoint(text: &str) -> Result<Endpoint, Mistake> {
    if let Some((_, place)) = text.rsplit_once('@') {
        // What is before it is not shown: it may be a password.
        let expected = "an endpoint of etcd: a user and its password belong into the file peers.etcd_login";
        return Err(not_an_endpoint(&format!("...@{place}"), expected));
    }
    let not_an = |expected| not_an_endpoint(text, expected);
    let no_scheme = || not_an("an endpoint of etcd: begin it with http:// or https://");
    let (scheme, rest) = text.split_once("://").ok_or_else(no_scheme)?;
    let is_https = match scheme.to_ascii_lowercase().as_str() {
        "http" => false,
        "https" => true,
        _ => return Err(no_scheme()),
    };
    let place = rest.strip_suffix('/').unwrap_or(rest);
    if place.contains(['/', '?', '#']) {
        return Err(not_an("an endpoint of etcd: nothing may follow its port; where keys lie is peers.etcd_prefix"));
    }
    let address = host_port(place).map_err(|missing| match missing {
        Missing::Port => not_an("an endpoint of etcd: give its port of 1 to 65535 too, as in http://10.0.0.5:2379"),
        Missing::Host => {
            not_an("an endpoint of etcd: before its port must be an IPv4 address, an IPv6 address in [ ], or a name")
        }
    })?;
    Ok(Endpoint { is_https, address })
}

/// What the keys of a cache's hosts begin with; the name of a host follows.
pub struct KeyPrefix;

impl Described for KeyPrefix {
    fn hint(&self) -> &'static str {
        "PREFIX"
    }
    fn bounds(&self) -> String {
        format!("at most {PREFIX_BYTES_MAX} printable characters, the last one a /")
    }
}

impl Unit for KeyPrefix {
    type Value = String;
    fn read(&self, raw: &Raw) -> Result<String, Mistake> {
        let text = raw.text("a prefix of keys in quotes")?;
        let fits = text.ends_with('/') && text.len() <= PREFIX_BYTES_MAX && text.bytes().all(|b| b.is_ascii_graphic());
        match fits {
            true => Ok(text.into()),
            false => Err(Mistake::NotA {
                given: text.into(),
                expected: "a prefix of keys: at most 200 printable characters, the last one a /, as in \"/lapis/hosts/\"",
            }),
        }
    }
    fn show(&self, value: &String) -> String {
        value.clone()
    }
}

/// A host and port; the word "auto" is empty until the configuration is loaded.
pub struct Advertised;

impl Described for Advertised {
    fn hint(&self) -> &'static str {
        "HOST:PORT"
    }
    fn bounds(&self) -> String {
        "an address or a name with a port, or \"auto\"".into()
    }
}

impl Unit for Advertised {
    type Value = String;
    fn read(&self, raw: &Raw) -> Result<String, Mistake> {
        match raw.text("an address or a name with a port, in quotes")? {
            "auto" => Ok(String::new()),
            text => host_port(text).map_err(|_| Mistake::NotA {
                given: text.into(),
                expected: "where others reach this host, like \"10.0.0.1:7450\": an IPv4 address, an IPv6 address in [ ], or a \
                           name, then : and a port of 1 to 65535",
            }),
        }
    }
    fn show(&self, value: &String) -> String {
        if value.is_empty() { "auto".into() } else { value.clone() }
    }
}
