//! Which other hosts a daemon has: those of its configuration, and those that are found in etcd.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use anyhow::Context;
use lapis_config::{Member, Options, PEERS_MAX};
use lapis_membership::{KnownBy, machine::MembershipOptions};

use crate::{
    membership::{
        EtcdOptions,
        driver::{Driver, News},
    },
    serve,
};

pub(super) struct Others {
    /// In `peers.members`.
    listed: Vec<Member>,
    found: Vec<Member>,
    /// How these are found; `None`: etcd is not asked.
    etcd: Option<(EtcdOptions, MembershipOptions)>,
    /// What etcd was last said to be like.
    found_by: KnownBy,
    driver: Option<Driver>,
    listening: SocketAddr,
    boot: u64,
}

impl Others {
    /// Of a host that listens there, in this life of it. Files that cannot be used are an error.
    pub fn new(options: &Options, listening: SocketAddr, boot: u64) -> anyhow::Result<Self> {
        let etcd = etcd(options, listening, boot);
        if let Some((etcd, _)) = &etcd {
            etcd.check_files().map_err(anyhow::Error::msg).context("find other hosts in etcd (peers.etcd)")?;
        }
        let found_by = KnownBy { text: "etcd is not asked yet".into(), stale_since: None };
        Ok(Self { listed: listed(options), found: Vec::new(), etcd, found_by, driver: None, listening, boot })
    }

    /// From now on this host is to be found too. `wake` is called when there are news.
    pub fn ask(&mut self, wake: Arc<dyn Fn() + Send + Sync>) -> anyhow::Result<()> {
        if let Some((etcd, membership)) = self.etcd.clone() {
            let driver = Driver::start(etcd, membership, serve::now, wake);
            self.driver = Some(driver.context("start the thread that asks etcd")?);
        }
        Ok(())
    }

    /// Takes in what etcd has said; false: nothing.
    pub fn take_news(&mut self) -> bool {
        let Some(driver) = &self.driver else { return false };
        let mut is_new = false;
        while let Some(news) = driver.news() {
            is_new = true;
            match news {
                News::Members(found) => self.found = found,
                News::KnownBy(found_by) => self.found_by = found_by,
            }
        }
        is_new
    }

    pub fn reload(&mut self, options: &Options) {
        self.listed = listed(options);
        if etcd(options, self.listening, self.boot) != self.etcd {
            tracing::error!("peers.etcd, what belongs to it and peers.host count from the next start on");
        }
    }

    pub fn members(&self) -> Vec<Member> {
        let mut all = united(&self.listed, &self.found);
        if all.len() > PEERS_MAX {
            tracing::error!(hosts = all.len(), most = PEERS_MAX, "too many other hosts: the last by name are left out");
            all.truncate(PEERS_MAX);
        }
        all
    }

    /// Not only listed.
    pub fn are_found(&self) -> bool {
        self.etcd.is_some()
    }

    pub fn known_by(&self) -> KnownBy {
        if self.etcd.is_none() {
            return KnownBy::list();
        }
        let more = united(&self.listed, &self.found).len() - self.found.len();
        let more = if more > 0 { format!("; {more} more in peers.members") } else { String::new() };
        KnownBy { text: format!("{}{more}", self.found_by.text), ..self.found_by }
    }
}

/// By name. A host that is in both is where it says it is.
fn united(listed: &[Member], found: &[Member]) -> Vec<Member> {
    let all: BTreeMap<&str, &Member> =
        listed.iter().chain(found).map(|member| (member.name.as_str(), member)).collect();
    all.into_values().cloned().collect()
}

fn listed(options: &Options) -> Vec<Member> {
    options.other_members().cloned().collect()
}

fn etcd(options: &Options, listening: SocketAddr, boot: u64) -> Option<(EtcdOptions, MembershipOptions)> {
    let etcd = EtcdOptions::of(options)?;
    let address = match options.peers_advertise.as_str() {
        // Of a port that was not known before.
        "" => listening.to_string(),
        address => address.into(),
    };
    let membership = MembershipOptions {
        host: options.peers_host.clone(),
        address,
        boot,
        version: env!("CARGO_PKG_VERSION").into(),
        prefix: options.peers_etcd_prefix.clone(),
        ttl: options.peers_etcd_ttl,
        endpoints: etcd.endpoints.len(),
    };
    Some((etcd, membership))
}

#[test]
fn a_host_that_is_listed_and_found_is_where_it_was_found() {
    let members = |texts: &[(&str, &str)]| -> Vec<Member> {
        let member = |&(name, address): &(&str, &str)| Member { name: name.into(), address: address.into() };
        texts.iter().map(member).collect()
    };
    let (listed, found) = (members(&[("c", "c:1"), ("a", "a:1")]), members(&[("b", "b:1"), ("c", "c:2")]));
    assert_eq!(united(&listed, &found), members(&[("a", "a:1"), ("b", "b:1"), ("c", "c:2")]));
}
