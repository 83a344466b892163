//! Groups share DRAM: floors can always be reached, ceilings and the total are never passed.

use lapis_tiering::Shares;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn limits() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop::collection::vec(
        (0u64..40, 0u64..80).prop_map(|(floor, more)| (floor * 2 * MIB, (floor + more) * 2 * MIB)),
        1..6,
    )
}

proptest! {
    #[test]
    fn floors_can_be_reached_and_ceilings_are_not_passed(
        limits in limits(),
        spare in 0u64..60,
        extent in 1u64..40,
        turns in prop::collection::vec(0usize..6, 0..120),
    ) {
        let floors: u64 = limits.iter().map(|&(floor, _)| floor).sum();
        let total = floors + spare * 2 * MIB;
        let mut shares = Shares::new(total, extent * 2 * MIB, &limits);
        let mut taken = vec![0u64; limits.len()];
        let check = |taken: &[u64]| {
            assert!(taken.iter().sum::<u64>() <= total);
            assert!(taken.iter().zip(&limits).all(|(&taken, &(_, ceiling))| taken <= ceiling));
        };
        for turn in turns {
            let group = turn % limits.len();
            if let Some(bytes) = shares.on_demand(group) {
                prop_assert!(bytes <= extent * 2 * MIB);
                shares.taken(group, bytes);
                taken[group] += bytes;
            }
            check(&taken);
        }
        for group in (0..limits.len()).rev() {
            while let Some(bytes) = shares.at_start(group) {
                shares.taken(group, bytes);
                taken[group] += bytes;
            }
            check(&taken);
            prop_assert!(taken[group] >= limits[group].0);
        }
        for (group, taken) in taken.iter_mut().enumerate() {
            while let Some(bytes) = shares.on_demand(group) {
                shares.taken(group, bytes);
                *taken += bytes;
            }
        }
        check(&taken);
        let all_full = taken.iter().zip(&limits).all(|(&taken, &(_, ceiling))| taken == ceiling);
        prop_assert!(all_full || taken.iter().sum::<u64>() == total, "memory is left and somebody wants it");
    }
}

#[test]
fn a_group_alone_gets_all_its_memory_at_start() {
    let mut shares = Shares::new(100 * MIB, 64 * MIB, &[(0, 100 * MIB)]);
    let mut extents = Vec::new();
    while let Some(bytes) = shares.at_start(0) {
        shares.taken(0, bytes);
        extents.push(bytes / MIB);
    }
    assert_eq!(extents, [64, 36]);
    assert_eq!(shares.on_demand(0), None);
}

#[test]
fn what_was_found_at_a_warm_start_counts() {
    let mut shares = Shares::new(100 * MIB, 64 * MIB, &[(40 * MIB, 80 * MIB), (20 * MIB, 100 * MIB)]);
    shares.taken(1, 50 * MIB);
    assert_eq!(shares.at_start(1), None);
    assert_eq!(shares.at_start(0), Some(40 * MIB));
    shares.taken(0, 40 * MIB);
    assert_eq!((shares.on_demand(0), shares.on_demand(1)), (Some(10 * MIB), Some(10 * MIB)));
}
