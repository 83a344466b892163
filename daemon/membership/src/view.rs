//! Who is listed: the keys under the prefix as of one revision, and those who were listed until etcd was lost. Pure.
//!
//! Invariant: a host is listed or held, never both; a change that is not newer than the view is none.

use std::collections::{BTreeMap, BTreeSet};

use lapis_config::{Member, PEERS_MAX, Time, host_name, host_port};
use serde::{Deserialize, Serialize};

/// Keys that are looked at; beyond it are foreign ones, or hosts that are too many anyway.
pub const KEYS_MAX: usize = 4 * PEERS_MAX;

/// What a host says of itself, under its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where others reach it.
    pub address: String,
    /// Tells two lives, or two hosts of one name, apart.
    pub boot: u64,
    #[serde(default)]
    pub version: String,
}

impl Entry {
    /// From foreign bytes.
    pub fn read(value: &[u8]) -> Result<Self, String> {
        let entry: Self = serde_json::from_slice(value).map_err(|error| {
            format!("its value is not that of a host ({error}): expected {{\"address\", \"boot\"}}")
        })?;
        match host_port(&entry.address) {
            Ok(address) => Ok(Self { address, ..entry }),
            Err(_) => Err(format!("its address {:?} is not a host with a port", shortened(&entry.address))),
        }
    }

    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("plain data has a JSON form")
    }
}

/// Foreign text for a log: not longer than a line.
pub fn shortened(text: &str) -> String {
    const CHARACTERS_MAX: usize = 120;
    match text.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.into(),
    }
}

/// A key of etcd, as it is listed and watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    pub value: Vec<u8>,
    pub mod_revision: u64,
    /// 0: it stays until it is deleted.
    pub lease: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put(Listed),
    Deleted { key: String, mod_revision: u64 },
}

#[derive(Debug)]
pub struct View {
    prefix: String,
    own: String,
    revision: u64,
    /// Of the last list.
    listed_revision: u64,
    own_entry: Option<Listed>,
    /// With the revision at which each was put.
    hosts: BTreeMap<String, (Member, u64)>,
    /// Other hosts that are not listed any more, and may only not have come back yet.
    held: BTreeMap<String, Member>,
    held_until: Time,
    /// Keys of which it was said that they are no hosts.
    said: BTreeSet<String>,
    foreign: Vec<(String, String)>,
}

impl View {
    /// Of the hosts under a prefix, but for `own`.
    pub fn new(prefix: &str, own: &str) -> Self {
        Self {
            prefix: prefix.into(),
            own: own.into(),
            revision: 0,
            listed_revision: 0,
            own_entry: None,
            hosts: BTreeMap::new(),
            held: BTreeMap::new(),
            held_until: Time(0),
            said: BTreeSet::new(),
            foreign: Vec::new(),
        }
    }

    /// Whoever disappears until then is held: what was etcd's fault is not theirs.
    pub fn hold_until(&mut self, until: Time) {
        self.held_until = until;
    }

    /// All there is, as of that revision; also one that is older than the last, of an etcd that began anew.
    pub fn listed(&mut self, now: Time, revision: u64, listed: Vec<Listed>) {
        (self.revision, self.listed_revision) = (revision, revision);
        self.own_entry = None;
        let before = std::mem::take(&mut self.hosts);
        listed.into_iter().for_each(|listed| self.put(listed));
        if now < self.held_until {
            self.held.extend(before.into_iter().map(|(name, (member, _))| (name, member)));
            self.held.retain(|name, _| !self.hosts.contains_key(name));
        }
    }

    /// What a watch has seen.
    pub fn changed(&mut self, now: Time, changes: Vec<Change>) {
        let mut newest = self.revision;
        for change in changes {
            match change {
                Change::Put(listed) if listed.mod_revision > self.revision => {
                    newest = newest.max(listed.mod_revision);
                    self.put(listed);
                }
                Change::Deleted { key, mod_revision } if mod_revision > self.revision => {
                    newest = newest.max(mod_revision);
                    self.delete(now, &key);
                }
                // The list had it already.
                _ => {}
            }
        }
        self.revision = newest;
    }

    fn put(&mut self, listed: Listed) {
        let Some(name) = self.name(&listed.key) else {
            return self.say(&listed.key, "what follows the prefix is not the name of a host".into());
        };
        if name == self.own {
            self.own_entry = Some(listed);
            return;
        }
        match Entry::read(&listed.value) {
            Ok(_) if self.hosts.len() >= PEERS_MAX && !self.hosts.contains_key(&name) => {
                self.say(&listed.key, format!("{PEERS_MAX} hosts are listed before it, the most"));
            }
            Ok(entry) => {
                self.said.remove(&listed.key);
                self.held.remove(&name);
                self.hosts.insert(name.clone(), (Member { name, address: entry.address }, listed.mod_revision));
            }
            Err(why) => {
                self.hosts.remove(&name);
                self.say(&listed.key, why);
            }
        }
    }

    fn delete(&mut self, now: Time, key: &str) {
        let Some(name) = self.name(key) else { return };
        if name == self.own {
            self.own_entry = None;
        } else if let Some((member, revision)) = self.hosts.remove(&name)
            && now < self.held_until
            // Who has come back and goes again means it.
            && revision <= self.listed_revision
        {
            self.held.insert(name, member);
        }
    }

    /// Written as names are: "/lapis/hosts/Host-B" would be a second key of "host-b".
    fn name(&self, key: &str) -> Option<String> {
        let text = key.strip_prefix(&self.prefix)?;
        host_name(text).filter(|name| name == text)
    }

    fn say(&mut self, key: &str, why: String) {
        if self.said.len() < KEYS_MAX && self.said.insert(key.into()) {
            self.foreign.push((shortened(key), why));
        }
    }

    /// Keys that are passed over, and why; each is said once.
    pub fn take_foreign(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.foreign)
    }

    /// What is under this host's own key, whoever put it there.
    pub fn own_entry(&self) -> Option<&Listed> {
        self.own_entry.as_ref()
    }

    /// By when someone is held no longer.
    pub fn timeout(&self) -> Option<Time> {
        (!self.held.is_empty()).then_some(self.held_until)
    }

    pub fn expire(&mut self, now: Time) {
        if now >= self.held_until {
            self.held.clear();
        }
    }

    /// The other hosts, by name.
    pub fn members(&self) -> Vec<Member> {
        let hosts = self.hosts.iter().map(|(name, (member, _))| (name, member));
        let all: BTreeMap<&String, &Member> = hosts.chain(&self.held).collect();
        all.into_values().take(PEERS_MAX).cloned().collect()
    }

    pub fn held(&self) -> usize {
        self.held.len()
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(name: &str, address: &str, mod_revision: u64) -> Listed {
        let entry = Entry { address: address.into(), boot: 1, version: String::new() };
        Listed { key: format!("/p/{name}"), value: entry.json().into_bytes(), mod_revision, lease: 1 }
    }

    fn names(view: &View) -> Vec<String> {
        view.members().iter().map(Member::to_string).collect()
    }

    #[test]
    fn changes_count_from_the_revision_of_the_list_on() {
        let (mut view, t) = (View::new("/p/", "own"), Time(0));
        view.listed(t, 10, vec![listed("b", "b:1", 9), listed("own", "o:1", 3)]);
        assert_eq!(names(&view), ["b=b:1"]);
        assert_eq!(view.own_entry().map(|own| own.mod_revision), Some(3));
        let deleted = |key: &str, mod_revision| Change::Deleted { key: key.into(), mod_revision };
        view.changed(t, vec![deleted("/p/b", 8), Change::Put(listed("c", "c:1", 10))]);
        assert_eq!(names(&view), ["b=b:1"], "both are older than the list, which had neither");
        // Two changes of one revision, as of one transaction, both count.
        view.changed(t, vec![deleted("/p/b", 11), Change::Put(listed("c", "c:1", 11)), deleted("/p/own", 12)]);
        assert_eq!((names(&view), view.revision(), view.own_entry()), (vec!["c=c:1".into()], 12, None));
        // An etcd that began anew counts from 1.
        view.listed(t, 2, vec![listed("d", "d:1", 2)]);
        view.changed(t, vec![Change::Put(listed("e", "e:1", 3))]);
        assert_eq!(names(&view), ["d=d:1", "e=e:1"]);
    }

    #[test]
    fn who_disappears_while_others_are_held_stays_for_so_long() {
        let mut view = View::new("/p/", "own");
        view.listed(Time(0), 10, vec![listed("b", "b:1", 9), listed("c", "c:1", 9), listed("d", "d:1", 9)]);
        view.hold_until(Time(100));
        view.listed(Time(1), 1, vec![listed("d", "d:1", 1)]);
        view.changed(Time(2), vec![Change::Deleted { key: "/p/d".into(), mod_revision: 2 }]);
        assert_eq!((names(&view).len(), view.held(), view.timeout()), (3, 3, Some(Time(100))));
        view.changed(Time(3), vec![Change::Put(listed("c", "c:2", 3))]);
        assert_eq!((names(&view), view.held()), (vec!["b=b:1".into(), "c=c:2".into(), "d=d:1".into()], 2));
        // Who has come back and goes again is not held.
        view.changed(Time(4), vec![Change::Put(listed("b", "b:1", 4))]);
        view.changed(Time(5), vec![Change::Deleted { key: "/p/b".into(), mod_revision: 5 }]);
        assert_eq!((names(&view), view.held()), (vec!["c=c:2".into(), "d=d:1".into()], 1));
        view.expire(Time(99));
        assert_eq!(view.held(), 1);
        view.expire(Time(100));
        assert_eq!((names(&view), view.timeout()), (vec!["c=c:2".into()], None));
        view.changed(Time(101), vec![Change::Deleted { key: "/p/c".into(), mod_revision: 6 }]);
        assert_eq!(view.members(), []);
    }

    #[test]
    fn a_foreign_key_is_said_once_and_passed_over() {
        let (mut view, t) = (View::new("/p/", "own"), Time(0));
        let foreign = |key: &str, value: &str, mod_revision| Listed {
            key: key.into(),
            value: value.as_bytes().to_vec(),
            mod_revision,
            lease: 0,
        };
        let bad = vec![
            foreign("/p/a/b", "{}", 1),
            foreign("/p/", "{}", 1),
            foreign("/p/Host-B", r#"{"address":"b:1","boot":1}"#, 1),
            foreign("/p/text", "hello", 1),
            foreign("/p/list", "[]", 1),
            foreign("/p/portless", r#"{"address":"b","boot":1}"#, 1),
            foreign("/p/bootless", r#"{"address":"b:1"}"#, 1),
            foreign("/p/negative", r#"{"address":"b:1","boot":-1}"#, 1),
            foreign("/p/long", &format!(r#"{{"address":"{}","boot":1}}"#, "x".repeat(10_000)), 1),
            foreign("/p/more", r#"{"address":"M:01","boot":1,"version":"9","rack":[7]}"#, 1),
        ];
        view.listed(t, 1, bad.clone());
        assert_eq!(names(&view), ["more=m:1"]);
        let said = view.take_foreign();
        assert_eq!(said.len(), 9, "{said:?}");
        assert!(said.iter().all(|(key, why)| key.len() < 200 && why.len() < 300), "{said:?}");
        view.listed(t, 2, bad);
        assert_eq!(view.take_foreign(), []);
        // A host whose value is broken is none, until it is whole again; then it may break once more.
        view.changed(t, vec![Change::Put(foreign("/p/more", "?", 3))]);
        assert_eq!((view.members().len(), view.take_foreign().len()), (0, 1));
        view.changed(t, vec![Change::Put(listed("more", "m:2", 4)), Change::Put(foreign("/p/more", "?", 5))]);
        assert_eq!((view.members().len(), view.take_foreign().len()), (0, 1));
    }

    #[test]
    fn a_list_without_an_end_is_cut() {
        let mut view = View::new("/p/", "own");
        let many = (0..PEERS_MAX + 2).map(|i| listed(&format!("h{i}"), &format!("h{i}:1"), 1)).collect();
        view.listed(Time(0), 1, many);
        assert_eq!(view.members().len(), PEERS_MAX);
        assert_eq!(view.take_foreign().len(), 2);
    }
}
