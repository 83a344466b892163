//! Reuse classes: what is known of a request when it comes, and says most about whether its blocks are used again.
//!
//! A first request that begins with a block that others share is of another kind than one of which nothing is known: a
//! scan of prompts of its own, say. Were they one class, the scan would make first requests look as worthless as itself.
//!
//! A request's turn is its number in its session, as far as blocks tell: one more than that of the deepest block that is
//! known of it. Human turns and the loops of agents differ in the gap since the session's previous request, so short gaps
//! are classes of their own, two a doubling: of early turns and of late ones.

/// Lists of a shelf, and rows of the table of hazards.
pub(super) const CLASSES: usize = 24;

/// The session said that it ended.
pub(super) const ENDED: u8 = 0;
/// The last block of a request, not full: its next request has another one in its place.
pub(super) const PARTIAL: u8 = 1;
/// More than two different blocks followed it.
pub(super) const SHARED: u8 = 2;
/// The session said that it comes back soon.
pub(super) const WILL_RETURN: u8 = 3;
/// Priorities up to 127, and above.
pub(super) const PRIORITY: u8 = 4;
pub(super) const PRIORITY_HIGH: u8 = 5;
/// Nothing of its request was known, not even a first block that others share.
pub(super) const STRANGER: u8 = 23;
/// By turn: 1, 2, 3, 4, 5-6, 7-9, 10 and later.
const TURNS: u8 = 6;
/// A first request that begins with blocks that are known.
pub(super) const FIRST: u8 = TURNS;
/// From the second turn on, by gap: below 4 s, 8 s and so on to 64 s, up to turn 4 and from 5 on.
const GAPS: u8 = 13;
const GAP_LEAST: u32 = 40;
const GAP_END: u32 = 640;

/// Different blocks that follow a block: with more it is shared.
pub(super) const CHILDREN_OWN: u8 = 2;

const _: () = assert!(GAPS as usize + 2 * (GAP_END / GAP_LEAST).ilog2() as usize + 2 <= STRANGER as usize);

/// The class of a request of that turn, so long after its session's previous one, tenths of a second.
pub(super) fn of_request(turn: u8, gap: u32) -> u8 {
    if turn >= 2 && gap < GAP_END {
        let doubling = (2 * gap / GAP_LEAST).max(1).ilog2() as u8;
        return GAPS + 2 * doubling + u8::from(turn >= 5);
    }
    TURNS + group(turn)
}

/// The class of a block, once the session said nothing of it any more.
pub(super) fn of_turn(turn: u8) -> u8 {
    TURNS + group(turn)
}

/// Whether the class says something of the request, and not of the block or of what engines said.
pub(super) fn is_of_request(class: u8) -> bool {
    class >= TURNS
}

/// Turns that are alike.
fn group(turn: u8) -> u8 {
    match turn {
        0..=4 => turn.max(1) - 1,
        5..=6 => 4,
        7..=9 => 5,
        _ => 6,
    }
}

/// What an entry keeps over a restart: the class, and the turn as far as three bits hold it.
pub(super) fn kept(class: u8, turn: u8) -> u8 {
    class | group(turn) << 5
}

/// Class and turn of what an entry kept; damage makes it some other class.
pub(super) fn of_kept(byte: u8) -> (u8, u8) {
    let turn = [1, 2, 3, 4, 5, 7, 10, 1][(byte >> 5) as usize];
    let class = byte & 31;
    if (class as usize) < CLASSES { (class, turn) } else { (of_turn(turn), turn) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_has_a_class() {
        for turn in 0..=u8::MAX {
            for gap in (0..700).chain([u32::MAX]) {
                let class = of_request(turn, gap);
                assert!((class as usize) < CLASSES && is_of_request(class), "turn {turn}, gap {gap}");
                assert_eq!(of_kept(kept(class, turn)).0, class);
            }
        }
    }

    #[test]
    fn any_byte_of_an_entry_is_a_class() {
        assert!((0..=u8::MAX).all(|byte| (of_kept(byte).0 as usize) < CLASSES));
    }
}
