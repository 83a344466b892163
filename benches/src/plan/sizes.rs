//! Which sizes are tried.

use lapis_config::size;

use super::Sizes;

/// DRAM is tried at these parts of all distinct blocks' bytes, and SSD at those; each rounded up to a power of two.
const DRAM_PARTS: [u64; 4] = [64, 32, 16, 8];
const SSD_PARTS: [u64; 3] = [4, 2, 1];
/// A tier has room for so many blocks at least.
const BLOCKS_MIN: u64 = 16;

/// A list such as "64GiB,1TiB"; "0" is nothing.
pub fn list(text: &str) -> Result<Sizes, String> {
    let bytes = |word: &str| match word.trim() {
        "0" => Ok(0),
        word => size(word).map_err(|mistake| format!("{word:?}: {mistake}")),
    };
    text.split(',').map(bytes).collect()
}

pub fn drams(distinct_bytes: u64, block_bytes: u64) -> Sizes {
    spread(&DRAM_PARTS, distinct_bytes, block_bytes).into()
}

/// No SSD first.
pub fn ssds(distinct_bytes: u64, block_bytes: u64) -> Sizes {
    let mut sizes = vec![0];
    sizes.extend(spread(&SSD_PARTS, distinct_bytes, block_bytes));
    sizes.into()
}

fn spread(parts: &[u64], distinct_bytes: u64, block_bytes: u64) -> Vec<u64> {
    let least = BLOCKS_MIN.saturating_mul(block_bytes);
    let round = |part: &u64| (distinct_bytes / part).max(least).checked_next_power_of_two().unwrap_or(1 << 63);
    let mut sizes: Vec<u64> = parts.iter().map(round).collect();
    sizes.dedup();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_trace_and_hold_a_few_blocks() {
        let tib = 1 << 40;
        assert_eq!(drams(30 * tib, 160 << 20)[..], [tib / 2, tib, 2 * tib, 4 * tib]);
        assert_eq!(ssds(30 * tib, 160 << 20)[..], [0, 8 * tib, 16 * tib, 32 * tib]);
        assert_eq!(drams(1 << 20, 1 << 20)[..], [16 << 20], "one block in all");
    }

    #[test]
    fn a_list_of_sizes_has_units_but_for_nothing() {
        assert_eq!(list("0, 64GiB,1TB").expect("a list")[..], [0, 64 << 30, 1_000_000_000_000]);
        for wrong in ["", "64", "1GiB,", "x"] {
            assert!(list(wrong).is_err(), "{wrong:?}");
        }
    }
}
