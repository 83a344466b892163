//! Segments that are given up: when, and what stays of them, also when a device hangs and is taken out meanwhile.

use lapis_config::{
    ClientId, Fingerprint, Hint, HitPolicy, Key, OpId, PolicyName, PoolId, PoolKind, SegmentId, Time, UNIT_BYTES, Wait,
};
use lapis_tiering::{
    Chosen, Core, CoreOptions, LogOptions, PlainKept, PoolDef,
    face::{Action, Caller, CommitItem, Outcome, Parent, Put, Reply, Reserved},
    kept::{Kept, Tier},
};

const CLIENT: ClientId = ClientId(1);
const POOL: PoolId = PoolId(0);
const DEVICE: u8 = 0;
const BLOCK_UNITS: u32 = 4;
const BLOCK_BYTES: u32 = BLOCK_UNITS * UNIT_BYTES as u32;
const MEMORY_BLOCKS: u32 = 16;
const SEGMENT_PAGES: u32 = 64;
/// The segments that the group has; more it may be promised.
const SEGMENTS: u32 = 4;
const SECOND_US: u64 = 1_000_000;

/// A group whose devices are done with everything at once, but for one that hangs.
struct Group {
    core: Core<PlainKept, Chosen>,
    now: Time,
    given: u32,
    /// Another group is to give one up where none is free.
    is_promised: bool,
    promises: u32,
    /// Segments that were given up.
    freed: Vec<SegmentId>,
    stored: Vec<Key>,
    /// What it is given from now on does not end.
    hangs: Option<u8>,
    hung: Vec<Action>,
}

impl Group {
    fn new(policy: PolicyName, is_promised: bool) -> Self {
        Self::of_size(policy, is_promised, MEMORY_BLOCKS, SEGMENT_PAGES)
    }

    fn of_size(policy: PolicyName, is_promised: bool, memory_blocks: u32, segment_pages: u32) -> Self {
        let options = CoreOptions { reserved_part: 1, slab_units_min: 1, ..CoreOptions::default() };
        let mut core = Core::new(PlainKept::new(1 << 12), Chosen::new(policy, 1 << 12), options);
        let bytes = u64::from(memory_blocks * BLOCK_BYTES);
        core.extent_added(bytes);
        core.populated(0, bytes);
        let block_bytes = u64::from(BLOCK_BYTES);
        let (namespace, kind) = (Fingerprint::default(), PoolKind::Chain);
        core.pool_added(POOL, PoolDef { namespace, kind, block_bytes, slot_units: BLOCK_UNITS, pieces: 1 });
        core.client_added(CLIENT, true);
        core.ssd_coming();
        core.ssd_opened(LogOptions {
            group: 0,
            segment_pages,
            sequence_first: 1,
            sequence_end: u64::MAX,
            list_after_us: 1_000,
            durable: false,
        });
        core.device_added(DEVICE);
        let now = Time(SECOND_US);
        core.ssd_ready(now);
        Self {
            core,
            now,
            given: 0,
            is_promised,
            promises: 0,
            freed: Vec::new(),
            stored: Vec::new(),
            hangs: None,
            hung: Vec::new(),
        }
    }

    /// Does what the core wants done; what it answered.
    fn work(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        loop {
            let mut done: Vec<OpId> = Vec::new();
            while let Some(action) = self.core.poll_action() {
                if self.hangs.is_some_and(|device| moves_block(&action).is_some_and(|(_, of)| of == device)) {
                    self.hung.push(action);
                    continue;
                }
                match action {
                    Action::Reply { reply, .. } => replies.push(reply),
                    Action::NeedSegment { device } if self.given < SEGMENTS => {
                        self.core.segment_given(SegmentId::new(device, self.given));
                        self.given += 1;
                    }
                    Action::NeedSegment { device } if self.is_promised => {
                        self.promises += 1;
                        self.core.segment_promised(device);
                    }
                    Action::FreeSegment { segment, leaves } => {
                        assert!(!leaves, "nobody else wants one");
                        self.freed.push(segment);
                    }
                    Action::WriteSsd { op, .. }
                    | Action::ReadSsd { op, .. }
                    | Action::OpenSegment { op, .. }
                    | Action::ListSsd { op, .. }
                    | Action::FlushSsd { op, .. }
                    | Action::Verify { op, .. } => done.push(op),
                    _ => {}
                }
            }
            if done.is_empty() {
                return replies;
            }
            done.into_iter().for_each(|op| self.core.completed(self.now, op, Outcome::Ok));
        }
    }

    fn pass(&mut self, us: u64) -> Vec<Reply> {
        self.now.0 += us;
        self.core.tick(self.now);
        let replies = self.work();
        self.core.audit().expect("a sound core");
        replies
    }

    /// What hung ends after all.
    fn release(&mut self) {
        for action in std::mem::take(&mut self.hung) {
            let (op, _) = moves_block(&action).expect("looked at before");
            self.core.completed(self.now, op, Outcome::Ok);
            self.core.audit().expect("a sound core");
        }
        self.pass(SECOND_US);
        assert_eq!((self.core.unfinished(), self.core.counts().slots_busy), (String::new(), 0));
    }

    /// One more block. What leaves DRAM for it is on SSD first, if there is room for it there.
    fn put(&mut self, parent: Parent) -> Key {
        let key = Key([1 + self.stored.len() as u64, 0, 0, 0]);
        let to = Caller { client: CLIENT, token: 1 };
        let deadline = Time(self.now.0 + 10_000);
        self.core.reserve(self.now, to, POOL, BLOCK_BYTES, &[key], parent, deadline);
        let slot = loop {
            match self.work()[..] {
                [Reply::Reserved { ref results }] => match results[..] {
                    [Reserved::Slot(slot)] => break slot,
                    ref other => panic!("{other:?}"),
                },
                [] => {}
                ref other => panic!("{other:?}"),
            }
            self.now = self.core.poll_timeout().expect("what waits has a deadline").max(self.now);
            self.core.tick(self.now);
        };
        let item = CommitItem { slot, key, parent, bytes: BLOCK_BYTES, sum: 1 };
        let mut puts = Vec::new();
        self.core.commit(self.now, CLIENT, POOL, &[item], &mut puts);
        assert_eq!(puts, [Put::Stored]);
        self.stored.push(key);
        self.work();
        key
    }

    /// Somebody reads the block.
    fn touch(&mut self, key: &Key) {
        let kept = self.core.kept();
        let line = kept.find(POOL, key).expect("it is there");
        let bind = (kept.live(line).expect("found").generation << 4) as u32;
        self.core.touched(self.now, line, bind, 1, 1);
    }

    /// Puts until it is promised a segment.
    fn fill(&mut self) {
        while self.promises == 0 {
            self.put(Parent::None);
            assert!(self.stored.len() < 1_000, "it asks for more before");
        }
        assert_eq!(self.given, SEGMENTS);
    }

    fn tier(&self, key: &Key) -> Option<Tier> {
        let kept = self.core.kept();
        kept.find(POOL, key).map(|line| kept.live(line).expect("found").place.tier)
    }

    fn there(&self) -> usize {
        self.stored.iter().filter(|key| self.tier(key).is_some()).count()
    }
}

/// The operation and its device, if it moves a block.
fn moves_block(action: &Action) -> Option<(OpId, u8)> {
    match action {
        Action::WriteSsd { op, at, .. } | Action::ReadSsd { op, at, .. } => Some((*op, at.segment().device())),
        _ => None,
    }
}

#[test]
fn while_a_segment_is_promised_no_block_is_given_up() {
    let mut group = Group::new(PolicyName::Lru, true);
    group.fill();
    let blocks = group.stored.len();
    assert_eq!((group.there(), group.freed.len()), (blocks, 0), "what was stored is in DRAM or on SSD");
    group.pass(SECOND_US - 100_000);
    assert_eq!((group.there(), group.freed.len()), (blocks, 0), "it waits");
    group.core.segment_given(SegmentId::new(DEVICE, SEGMENTS));
    group.pass(2 * SECOND_US);
    assert_eq!((group.there(), group.freed.len()), (blocks, 0), "the one that came will do");
    assert_eq!((group.core.segments() as u32, group.promises), (SEGMENTS + 1, 1));
}

#[test]
fn a_promise_that_is_not_kept_within_a_second_costs_the_oldest_of_its_own() {
    let mut group = Group::new(PolicyName::Lru, true);
    group.fill();
    let wake = group.core.poll_timeout().expect("a promise has an end");
    assert!(wake.0 <= group.now.0 + SECOND_US, "it asks to be called when the promise is over");
    group.pass(SECOND_US);
    assert_eq!(group.freed, [SegmentId::new(DEVICE, 0)], "the oldest");
    assert!(group.there() < group.stored.len());
    assert_eq!(group.core.segments() as u32, SEGMENTS, "it is written anew");
}

/// Roots that are on SSD alone, in the oldest segment, when the last one was given, and nothing asks for more yet. Their
/// number is more than the budget has room for when that segment goes.
fn group_with_roots(policy: PolicyName, count: usize) -> (Group, Vec<Key>) {
    let mut group = Group::of_size(policy, true, 4 * MEMORY_BLOCKS, 4 * SEGMENT_PAGES);
    let roots: Vec<Key> = (0..count).map(|_| group.put(Parent::None)).collect();
    while group.given < SEGMENTS {
        group.put(Parent::None);
    }
    assert!(roots.iter().all(|root| group.tier(root) == Some(Tier::Elsewhere)), "{policy:?}: they are on SSD alone");
    (group, roots)
}

#[test]
fn what_leads_to_a_block_that_is_held_or_pinned_stays_beyond_every_bound() {
    for policy in [PolicyName::Lru, PolicyName::Hazq] {
        for is_pinned in [true, false] {
            let (mut group, roots) = group_with_roots(policy, 20);
            let children: Vec<Key> = roots.iter().map(|&root| group.put(Parent::Key(root))).collect();
            let (asks, until) = ([(POOL, HitPolicy::Any)], Time(group.now.0 + 3_600 * SECOND_US));
            if is_pinned {
                group.core.hint(group.now, POOL, &children, Hint::Pinned { ttl_ms: 3_600_000 });
            } else {
                let to = Caller { client: CLIENT, token: 2 };
                group.core.get(group.now, to, &asks, &children, Wait::Present, until);
                assert_eq!(group.work(), [Reply::Got { hit: 20 }]);
            }
            group.fill();
            group.pass(SECOND_US);
            assert_eq!(group.freed, [SegmentId::new(DEVICE, 0)], "{policy:?}: that of the roots");
            let bytes = (roots.len() * BLOCK_BYTES as usize) as u64;
            assert!(bytes > group.core.counts().admitted_bytes * 8 / 100, "{policy:?}: more than the budget has");
            for (root, child) in roots.iter().zip(&children) {
                let both = [root, child].map(|key| group.tier(key).is_some());
                assert_eq!(both, [true; 2], "{policy:?}, pinned: {is_pinned}: {root:?}");
            }
        }
    }
}

#[test]
fn what_leads_to_a_block_in_memory_is_written_anew_before_what_was_used_later() {
    let (mut group, roots) = group_with_roots(PolicyName::Lru, 24);
    let (above, later) = roots.split_at(12);
    let children: Vec<Key> = above.iter().map(|&root| group.put(Parent::Key(root))).collect();
    group.pass(SECOND_US);
    // These have children too, but on SSD: their sessions ended.
    for &root in later {
        let child = group.put(Parent::Key(root));
        group.core.hint(group.now, POOL, &[root, child], Hint::Ended);
    }
    while group.promises == 0 {
        group.put(Parent::None);
        children.iter().for_each(|child| group.touch(child));
    }
    assert!(children.iter().all(|child| group.tier(child) == Some(Tier::Dram)));
    assert!(roots.iter().all(|root| group.tier(root) == Some(Tier::Elsewhere)));
    group.pass(SECOND_US);
    assert_eq!(group.freed, [SegmentId::new(DEVICE, 0)], "that of the roots");
    let stay = |keys: &[Key]| keys.iter().filter(|key| group.tier(key).is_some()).count();
    assert_eq!((stay(above), stay(&children)), (12, 12));
    assert!((1..12).contains(&stay(later)), "the budget has room for some of these: {}", stay(later));
}

#[test]
fn what_leads_to_a_pinned_block_uses_up_the_budget_of_the_rest() {
    let (mut group, roots) = group_with_roots(PolicyName::Lru, 24);
    let (needed, rest) = roots.split_at(18);
    let pinned: Vec<Key> = needed.iter().map(|&root| group.put(Parent::Key(root))).collect();
    group.core.hint(group.now, POOL, &pinned, Hint::Pinned { ttl_ms: 3_600_000 });
    group.pass(SECOND_US);
    let children: Vec<Key> = rest.iter().map(|&root| group.put(Parent::Key(root))).collect();
    while group.promises == 0 {
        group.put(Parent::None);
        children.iter().for_each(|child| group.touch(child));
    }
    group.pass(SECOND_US);
    let stay = |keys: &[Key]| keys.iter().filter(|key| group.tier(key).is_some()).count();
    assert_eq!((stay(needed), stay(&pinned)), (18, 18));
    assert_eq!((stay(rest), stay(&children)), (0, 0), "devices would write more than they may");
}

#[test]
fn what_leads_to_a_pinned_block_stays_also_where_the_log_was_full_before() {
    for policy in [PolicyName::Lru, PolicyName::Hazq] {
        let (mut group, roots) = group_with_roots(policy, 20);
        let children: Vec<Key> = roots.iter().map(|&root| group.put(Parent::Key(root))).collect();
        group.core.hint(group.now, POOL, &children, Hint::Pinned { ttl_ms: 3_600_000 });
        group.fill();
        // While the promised one does not come all of the log is written, and all that is left in DRAM is there alone.
        for _ in 0..64 {
            group.put(Parent::None);
        }
        assert_eq!(group.freed, [], "{policy:?}: it still waits");
        group.pass(SECOND_US);
        assert_eq!(group.freed, [SegmentId::new(DEVICE, 0)], "{policy:?}: that of the roots");
        let stay = |keys: &[Key]| keys.iter().filter(|key| group.tier(key).is_some()).count();
        assert_eq!((stay(&roots), stay(&children)), (20, 20), "{policy:?}: others were there to make room");
    }
}

#[test]
fn a_segment_goes_though_what_it_leaves_was_on_its_way_to_a_device_that_is_out() {
    const OTHER: u8 = 1;
    let (mut group, roots) = group_with_roots(PolicyName::Lru, 20);
    let children: Vec<Key> = roots.iter().map(|&root| group.put(Parent::Key(root))).collect();
    group.core.hint(group.now, POOL, &children, Hint::Pinned { ttl_ms: 3_600_000 });
    group.fill();
    // The one that has room for what is to stay.
    group.core.device_added(OTHER);
    group.hangs = Some(OTHER);
    group.core.segment_given(SegmentId::new(OTHER, 0));
    group.pass(SECOND_US);
    let hung: Vec<_> = group.hung.iter().map(|action| moves_block(action).expect("a write").1).collect();
    assert!(!hung.is_empty() && group.freed.is_empty(), "{hung:?}, {:?}", group.freed);
    // What removes a block is written down in a segment of its device: there is none until the oldest goes.
    let gone =
        *group.stored.iter().find(|key| group.tier(key) == Some(Tier::Elsewhere) && !roots.contains(key)).unwrap();
    group.core.remove(group.now, Caller { client: CLIENT, token: 3 }, POOL, &[gone]);
    assert_eq!(group.pass(SECOND_US), [], "it waits");
    group.core.device_lost(group.now, OTHER);
    assert_eq!(group.pass(SECOND_US), [Reply::Removed { blocks: 1 }]);
    assert_eq!(group.freed, [SegmentId::new(DEVICE, 0)], "that of the roots");
    assert!(roots.iter().chain(&children).all(|key| group.tier(key).is_some()), "they stay all the same");
    group.release();
}

#[test]
fn what_is_read_from_a_segment_that_goes_is_gone_with_its_device() {
    let (mut group, roots) = group_with_roots(PolicyName::Lru, 20);
    group.fill();
    group.hangs = Some(DEVICE);
    let (to, until) = (Caller { client: CLIENT, token: 3 }, Time(group.now.0 + 3_600 * SECOND_US));
    group.core.get(group.now, to, &[(POOL, HitPolicy::Prefix)], &roots[..1], Wait::Present, until);
    assert_eq!(group.pass(2 * SECOND_US), []);
    assert!(group.hung.iter().any(|action| matches!(action, Action::ReadSsd { .. })), "its read takes long");
    assert_eq!(group.core.segments() as u32, SEGMENTS - 1, "its segment goes meanwhile");
    group.core.device_lost(group.now, DEVICE);
    assert_eq!(group.pass(SECOND_US), [Reply::Got { hit: 0 }]);
    assert_eq!(group.tier(&roots[0]), None);
    group.release();
}
