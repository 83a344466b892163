//! What knowing of other hosts' blocks takes: memory, bytes on the wire, wrong guesses, and the time to choose whom to ask.
//! The protocol's own digests and messages, without links; blocks come and go at a steady rate.

use std::{hint::black_box, time::Instant};

use lapis_config::Key;
use lapis_transport::peers::{
    digest::Digest,
    directory::{Directory, PeerId},
    message::{CHANGES_MAX, PeerMessage},
    name::ShortName,
};

use super::{
    Name, Plan,
    report::{Figure, Goal, Report},
};
use crate::samples::Pairs;

/// Hosts, this one among them.
const HOSTS: [u64; 3] = [8, 64, 256];
/// Blocks of a request.
const KEYS: [usize; 2] = [64, 512];
/// Blocks that come to a host, and go from it, each second.
const RATES: [u64; 3] = [100, 1_000, 10_000];
const SAMPLINGS: [u8; 2] = [0, 4];
const BLOCKS: u64 = 1_000_000;
/// Between two deltas.
const DELTAS_A_SECOND: u64 = 10;
/// Digests that differ; hosts have one of them each, in memory of its own.
const KINDS: u64 = 4;
/// More than a cache of this machine keeps.
const FLUSH_BYTES: usize = 64 << 20;
/// A round trip of the network: choosing is to take no longer.
const CHOICE_US_MAX: f64 = 100.0;

pub fn run(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    if !plan.wants(Name::Directory) {
        return Ok(());
    }
    let blocks = if plan.quick { BLOCKS / 10 } else { BLOCKS };
    for sampling in SAMPLINGS {
        let mut digests: Vec<Digest> = (0..KINDS).map(|kind| digest(kind, blocks, sampling)).collect();
        for hosts in HOSTS {
            plan.stop.check()?;
            let directory = directory(&digests, hosts - 1);
            let subject = Subject { hosts, blocks, sampling };
            kept(&subject, &digests[0], &directory, report)?;
            for keys in KEYS {
                for case in [Case::Nobody, Case::One, Case::All] {
                    choose(plan, &subject, directory_with(&digests, hosts - 1, keys, case), keys, case, report)?;
                }
            }
        }
        for rate in RATES {
            plan.stop.check()?;
            wire(&mut digests[0], blocks, sampling, rate, report)?;
        }
    }
    Ok(())
}

struct Subject {
    hosts: u64,
    blocks: u64,
    sampling: u8,
}

impl Subject {
    fn figure(&self, unit: &'static str) -> Figure {
        let mut figure = Figure::new("directory", unit);
        figure.hosts = Some(self.hosts);
        (figure.blocks, figure.sample) = (Some(self.blocks), sample(self.sampling));
        figure
    }
}

/// Who has the blocks that are asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Nobody,
    One,
    All,
}

/// One in so many, if not all.
fn sample(sampling: u8) -> Option<u64> {
    (sampling > 0).then_some(1 << sampling)
}

fn name(kind: u64, n: u64) -> ShortName {
    ShortName::new(1, &Key([n, kind, 0, 0]))
}

/// Blocks that are asked for, and that no digest has of itself.
fn asked(keys: usize) -> Vec<ShortName> {
    (0..keys as u64).map(|n| name(u64::MAX, n)).collect()
}

fn digest(kind: u64, blocks: u64, sampling: u8) -> Digest {
    let mut digest = Digest::new(blocks, sampling, 1);
    // Room for those that are asked for.
    (0..blocks - KEYS[1] as u64).for_each(|n| digest.changed(name(kind, n), true));
    while digest.take_delta(usize::MAX).is_some() {}
    digest
}

fn directory(digests: &[Digest], peers: u64) -> Directory {
    let mut directory = Directory::default();
    for peer in 0..peers as u32 {
        directory.join(PeerId(peer), u64::MAX);
        let mirror = directory.mirror_mut(PeerId(peer)).expect("it joined");
        let (whole, parts) = digests[peer as usize % digests.len()].whole();
        mirror.begin(whole).expect("our own digest");
        parts.for_each(|part| mirror.part(&part).expect("our own digest"));
    }
    directory
}

/// The same, after one or all have got what is asked for.
fn directory_with(digests: &[Digest], peers: u64, keys: usize, case: Case) -> Directory {
    use lapis_transport::peers::digest::{Change, Delta};
    let mut directory = directory(digests, peers);
    let having = match case {
        Case::Nobody => 0,
        Case::One => 1,
        Case::All => peers,
    };
    for peer in 0..having as u32 {
        let mirror = directory.mirror_mut(PeerId(peer)).expect("it joined");
        let (epoch, sequence) = mirror.known().expect("it is whole");
        let sampling = digests[0].whole().0.sampling;
        let sampled = asked(keys).into_iter().filter(|name| name.is_sampled(sampling));
        let changes = sampled.map(|name| Change { name, added: true }).collect();
        mirror.delta(&Delta { epoch, sequence, changes }).expect("it goes on");
    }
    directory
}

/// Bytes that a host keeps of all others and of itself, and how often a digest is wrong of a block that is not there.
fn kept(subject: &Subject, own: &Digest, directory: &Directory, report: &mut Report) -> anyhow::Result<()> {
    let mut figure = subject.figure("bytes");
    (figure.case, figure.value) = (Some("kept"), (directory.bytes() + own.filter().bytes()) as f64);
    report.add(&figure)?;
    // By single looks, at names that the sample would tell of.
    let looks = 1_000_000;
    let strangers: Vec<ShortName> =
        (0..).map(|n| name(u64::MAX - 1, n)).filter(|name| name.is_sampled(subject.sampling)).take(looks).collect();
    let peer = PeerId(0);
    let wrong = directory.claims(peer, &strangers).into_iter().filter(|claimed| *claimed).count();
    let mut figure = subject.figure("in 1,000,000");
    (figure.case, figure.value) = (Some("wrong"), wrong as f64);
    report.add(&figure)
}

fn choose(
    plan: &Plan,
    subject: &Subject,
    directory: Directory,
    keys: usize,
    case: Case,
    report: &mut Report,
) -> anyhow::Result<()> {
    let (mut pairs, names) = (Pairs::default(), asked(keys));
    let (memory, other) = (vec![1_u64; directory.bytes() as usize / 8], vec![1_u64; FLUSH_BYTES / 8]);
    let mut rng = fastrand::Rng::with_seed(1);
    for round in 0..if plan.quick { 20 } else { 100 } {
        plan.stop.check()?;
        // Nothing of the round before is in a cache: the engine does other things in between.
        black_box(other.iter().step_by(8).sum::<u64>());
        // Of other places each time, and found as often.
        let offset = if case == Case::Nobody { round * 1_000 } else { 0 };
        let strangers: Vec<ShortName> =
            if offset > 0 { (offset..offset + keys as u64).map(|n| name(7_777, n)).collect() } else { names.clone() };
        let started = Instant::now();
        let choice = black_box(directory.choose(&strangers, rng.u64(..), |_| false));
        let ours = started.elapsed();
        anyhow::ensure!(case == Case::Nobody || choice.is_some(), "whoever has it is found");
        let places: Vec<usize> = (0..2 * (subject.hosts - 1)).map(|_| rng.usize(..memory.len())).collect();
        let started = Instant::now();
        black_box(places.iter().map(|place| memory[*place]).sum::<u64>());
        pairs.push(ours.as_secs_f64() * 1e6, started.elapsed().as_secs_f64() * 1e6);
    }
    let median = pairs.ours.median();
    let mut figure = Figure::latency("directory", pairs);
    figure.keys = Some(keys as u64);
    figure.hosts = Some(subject.hosts);
    (figure.blocks, figure.sample) = (Some(subject.blocks), sample(subject.sampling));
    figure.case = Some(match case {
        Case::Nobody => "of nobody",
        Case::One => "of one",
        Case::All => "of all",
    });
    figure.limit_is = Some("2 loads a peer");
    figure.goal = Some(Goal::new(format!("<= {CHOICE_US_MAX} us"), median <= CHOICE_US_MAX));
    report.add(&figure)
}

/// Bytes that a host sends to one peer in a second, and whole; its peers send it as much each.
fn wire(digest: &mut Digest, blocks: u64, sampling: u8, rate: u64, report: &mut Report) -> anyhow::Result<()> {
    let (mut bytes, mut message) = (0, Vec::new());
    let mut count = |said: PeerMessage| {
        message.clear();
        said.encode(&mut message);
        message.len() as u64
    };
    // One second: as many come as go, spread over its deltas.
    let mut turn = 0;
    for _ in 0..DELTAS_A_SECOND {
        for _ in 0..rate / DELTAS_A_SECOND {
            digest.changed(name(0, turn), false);
            digest.changed(name(rate, turn), true);
            turn += 1;
        }
        while let Some(delta) = digest.take_delta(CHANGES_MAX) {
            bytes += count(PeerMessage::Delta(delta));
        }
    }
    // As it was, for the next rate.
    for n in 0..turn {
        digest.changed(name(rate, n), false);
        digest.changed(name(0, n), true);
    }
    while digest.take_delta(usize::MAX).is_some() {}
    let (whole, parts) = digest.whole();
    let whole = count(PeerMessage::Whole(whole)) + parts.map(|part| count(PeerMessage::Part(part))).sum::<u64>();
    for hosts in HOSTS {
        let mut figure = Subject { hosts, blocks, sampling }.figure("bytes/s");
        (figure.case, figure.rate) = (Some("each way"), Some(rate));
        figure.value = (bytes * (hosts - 1)) as f64;
        report.add(&figure)?;
        if rate == RATES[0] {
            let mut figure = Subject { hosts, blocks, sampling }.figure("bytes");
            (figure.case, figure.value) = (Some("at a start, each way"), (whole * (hosts - 1)) as f64);
            report.add(&figure)?;
        }
    }
    Ok(())
}
