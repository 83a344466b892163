//! What this host has for RDMA, and what is missing: for `lapis doctor`. Devices are opened and closed again.

use std::io;

use super::{
    rank::{self, Candidate, Unused},
    said::LANES_MAX,
    sysfs,
    verbs::{Library, NoVerbs, VerbsNic},
};

#[derive(Debug)]
pub struct Survey {
    /// Names of all devices, or why they cannot be listed.
    pub devices: io::Result<Vec<String>>,
    pub library: Result<(), NoVerbs>,
    pub addresses: Vec<Surveyed>,
}

/// An address of a port.
#[derive(Debug)]
pub struct Surveyed {
    pub candidate: Candidate,
    /// Whether it was chosen; then whether its device could be opened.
    pub verdict: Result<io::Result<()>, Unused>,
}

/// `named`: as in `RdmaOptions::devices`.
pub fn survey(named: &[String]) -> Survey {
    let candidates = sysfs::candidates().unwrap_or_default();
    let library = Library::get();
    let verdicts = rank::choose(&candidates, named, LANES_MAX);
    let open = |candidate: &Candidate| match &library {
        Ok(library) => VerbsNic::open(library, candidate).map(drop),
        Err(error) => Err(io::Error::other(error.to_string())),
    };
    let surveyed = candidates.into_iter().zip(verdicts).map(|(candidate, verdict)| {
        let verdict = verdict.map(|()| open(&candidate));
        Surveyed { candidate, verdict }
    });
    let addresses = surveyed.collect();
    Survey { devices: sysfs::devices(), library: library.map(drop), addresses }
}
