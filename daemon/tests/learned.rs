//! What a group's policy learned is there for the next daemon over the same kept memory.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use lapis::group::{Found, Group, GroupOptions, Start};
use lapis_arena::memfd::Huge;
use lapis_config::PolicyName;
use lapis_state::Geometry;
use lapis_tiering::{CoreOptions, kept::Kept};
use lapis_transport::hold::Keeper;

const MIB: u64 = 1 << 20;

/// Keeps descriptors as a holder does: over the end of whoever made them.
#[derive(Default)]
struct Held(Vec<(String, OwnedFd)>);

impl Held {
    fn found(&self) -> Found {
        let own = |(name, fd): &(String, OwnedFd)| {
            let part = name.strip_prefix("a.").expect("one group").to_owned();
            (part, fd.try_clone().expect("a descriptor"))
        };
        self.0.iter().map(own).collect()
    }
}

impl Keeper for Held {
    fn keep(&mut self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.0.push((name.to_owned(), fd.try_clone_to_owned()?));
        Ok(())
    }

    fn forget(&mut self, name: &str) -> io::Result<()> {
        self.0.retain(|(kept, _)| kept != name);
        Ok(())
    }
}

fn open(held: &mut Held, entropy: &mut u64) -> Group {
    let options = GroupOptions {
        name: "a".into(),
        uids: Vec::new(),
        may_put: true,
        geometry: Geometry { lines: 1024, dram_bytes: 64 * MIB, floor_bytes: 0, ceiling_bytes: 64 * MIB },
        huge: Huge::Never,
        lock: false,
        spread: Default::default(),
        pin_bytes_max: MIB,
        pin_age_max: Duration::from_secs(1),
        core: CoreOptions::default(),
        ssd_floor_bytes: 0,
        ssd_ceiling_bytes: 0,
        hbm_bytes: 0,
        policy: PolicyName::Hazq,
        ghost_bytes: 1 << 16,
    };
    let mut entropy = || {
        *entropy += 1;
        *entropy
    };
    let found = held.found();
    Group::open(options, found, held, &mut entropy).expect("a group").0
}

#[test]
fn what_was_learned_before_a_kill_is_there_after_the_next_start() {
    let (mut held, mut entropy) = (Held::default(), 0);
    let mut group = open(&mut held, &mut entropy);
    assert_eq!((&group.start, group.core.kept().learned()), (&Start::Fresh, None));
    assert!(group.core.kept().keeps_learned(), "or the policy gives it nothing");
    let learned: Vec<u8> = (0..8_064u32).map(|at| (at * 7) as u8).collect();
    group.core.kept_mut().keep_learned(&learned);
    // As a kill: nothing is said to the memory on the way out.
    drop(group);
    let group = open(&mut held, &mut entropy);
    assert_eq!(group.start, Start::Warm);
    assert!(group.core.kept().learned() == Some(learned));
}
