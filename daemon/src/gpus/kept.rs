//! GPU memory that outlived a daemon: how its descriptors are named, and whether they are what this daemon wants. Pure.
//!
//! A name tells whose memory it is, which of its extents, how large, and by a number that no other memory has, which memory:
//! `HBM.GPU-UUID.INDEX.BYTES.MEMORY`. No group is called so.

use std::fmt;

use lapis_config::{Bytes, GpuName};

const PREFIX: &str = "HBM";

/// One extent that was kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kept {
    pub uuid: [u8; 16],
    pub index: u32,
    pub bytes: u64,
    /// Of all extents of a GPU that were made together; not 0.
    pub memory: u64,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uuid, index, bytes, memory } = self;
        write!(f, "{PREFIX}.{}.{index}.{bytes}.{memory:016x}", GpuName::Uuid(*uuid))
    }
}

/// The name under which an extent is kept.
pub fn name_of(uuid: [u8; 16], index: usize, bytes: u64, memory: u64) -> String {
    Kept { uuid, index: index as u32, bytes, memory }.to_string()
}

/// Whether a name is one of GPU memory, of this daemon or of an older or newer one.
pub(super) fn is_ours(name: &str) -> bool {
    name.split_once('.').is_some_and(|(head, _)| head == PREFIX)
}

pub(super) fn parse(name: &str) -> Option<Kept> {
    let words: Vec<&str> = name.split('.').collect();
    let [PREFIX, uuid, index, bytes, memory] = words[..] else { return None };
    let uuid = u128::from_str_radix(&uuid.strip_prefix("GPU-")?.replace('-', ""), 16).ok()?.to_be_bytes();
    let memory = u64::from_str_radix(memory, 16).ok()?;
    let kept = Kept { uuid, index: index.parse().ok()?, bytes: bytes.parse().ok()?, memory };
    // One way of writing only.
    (kept.to_string() == name).then_some(kept)
}

/// The number of what was kept of one GPU, at least one extent, if all of it is the memory that is known. An error: it was made
/// by a daemon that ended before it took it in use, or the group began anew.
pub(super) fn is_known(kept: &[Kept], known: Option<u64>) -> Result<u64, String> {
    let memory = known.filter(|memory| kept.iter().all(|kept| kept.memory == *memory));
    memory.ok_or_else(|| "nothing is known of what was kept".to_owned())
}

/// Whether what was kept of one GPU is what is wanted: extents of these sizes in this order. An error says why not.
pub(super) fn fits(kept: &[Kept], wanted: &[u64]) -> Result<(), String> {
    let mut kept = kept.to_vec();
    kept.sort();
    let (had, asked): (u64, u64) = (kept.iter().map(|kept| kept.bytes).sum(), wanted.iter().sum());
    for (at, kept) in kept.iter().enumerate() {
        match (kept.index as usize).cmp(&at) {
            std::cmp::Ordering::Less => return Err(format!("extent {} was kept twice", kept.index)),
            std::cmp::Ordering::Greater => return Err(format!("extent {at} is not among what was kept")),
            std::cmp::Ordering::Equal => {}
        }
    }
    if kept.iter().map(|kept| kept.bytes).eq(wanted.iter().copied()) {
        return Ok(());
    }
    if kept.len() < wanted.len() && kept.iter().zip(wanted).all(|(kept, wanted)| kept.bytes == *wanted) {
        return Err(format!("extent {} is not among what was kept", kept.len()));
    }
    Err(format!(
        "{} in {} extents were kept, hbm.bytes is {} in {}",
        Bytes(had),
        kept.len(),
        Bytes(asked),
        wanted.len()
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kept(extents: &[(u32, u64)]) -> Vec<Kept> {
        extents.iter().map(|&(index, bytes)| Kept { uuid: [7; 16], index, bytes, memory: 5 }).collect()
    }

    proptest! {
        #[test]
        fn a_name_is_read_as_it_was_written(uuid: [u8; 16], index: u32, bytes: u64, memory: u64) {
            let kept = Kept { uuid, index, bytes, memory };
            prop_assert!(is_ours(&kept.to_string()) && kept.to_string().len() <= lapis_transport::hold::NAME_BYTES_MAX);
            prop_assert_eq!(parse(&kept.to_string()), Some(kept));
        }

        #[test]
        fn any_name_is_read_or_not(name in "(HBM)?[.]?(GPU-)?[-0-9a-f.]{0,80}") {
            if let Some(kept) = parse(&name) {
                prop_assert_eq!(kept.to_string(), name);
            }
        }
    }

    #[test]
    fn names_of_groups_are_not_of_gpus() {
        for name in ["default.arena.0", "hbm.arena.0", "HBM", "HBMs.GPU-0", "hbm.GPU-0.0.1"] {
            assert!(!is_ours(name), "{name}");
        }
        assert!(is_ours("HBM.of another version") && parse("HBM.of another version").is_none());
    }

    #[test]
    fn only_memory_of_which_something_is_known_is_taken_over() {
        let extents = kept(&[(0, 4 << 20), (1, 2 << 20)]);
        assert_eq!(is_known(&extents, Some(5)), Ok(5));
        for former in [None, Some(6)] {
            assert_eq!(is_known(&extents, former), Err("nothing is known of what was kept".into()));
        }
        let other = Kept { memory: 6, ..extents[1].clone() };
        assert!(is_known(&[extents[0].clone(), other], Some(5)).is_err(), "of two times");
    }

    #[test]
    fn only_the_same_sizes_in_the_same_order_are_taken_over() {
        let wanted = [4 << 20, 4 << 20, 2 << 20];
        let said = |extents: &[(u32, u64)]| fits(&kept(extents), &wanted).expect_err("something else");
        let (four, two) = (4 << 20, 2 << 20);
        assert_eq!(fits(&kept(&[(2, two), (0, four), (1, four)]), &wanted), Ok(()));
        assert_eq!(said(&[(0, four), (2, two)]), "extent 1 is not among what was kept");
        assert_eq!(said(&[(0, four), (1, four)]), "extent 2 is not among what was kept");
        assert_eq!(said(&[(0, four), (1, four), (1, four), (2, two)]), "extent 1 was kept twice");
        assert_eq!(said(&[(0, four), (1, two), (2, four)]), "10MiB in 3 extents were kept, hbm.bytes is 10MiB in 3");
        assert_eq!(said(&[(0, two)]), "2MiB in 1 extents were kept, hbm.bytes is 10MiB in 3");
        assert_eq!(
            said(&[(0, four), (1, four), (2, two), (3, two)]),
            "12MiB in 4 extents were kept, hbm.bytes is 10MiB in 3"
        );
    }
}
