//! Which memory of the host blocks that come from a GPU take, where it has NUMA nodes.

use crate::scene::MIB;
use lapis_config::SlotId;
use lapis_tiering::face::{Outcome, Spot};

use super::host::{BLOCK, GPU_BLOCKS, Host};

/// Where the extents of no known node end.
const FIRST: u64 = 16 * MIB / lapis_config::UNIT_BYTES;

/// Whether each block that was put on a GPU of that node came to the extent of node 1, which has room for so many.
fn near(gpu: Option<u32>, near_blocks: u64) -> Vec<bool> {
    let mut host = Host::at(gpu);
    // There is a slab with free slots far off.
    host.scene.put_chain(host.pool, 9, 1);
    host.scene.core.extent_added_at(near_blocks * u64::from(BLOCK), Some(1));
    host.scene.core.populated(1, near_blocks * u64::from(BLOCK));
    host.put(0, GPU_BLOCKS, 5);
    let mut came = Vec::new();
    for _ in 0..GPU_BLOCKS {
        host.poll();
        for (op, _, to) in std::mem::take(&mut host.copies) {
            came.push(matches!(to, Spot::Dram(SlotId(at)) if u64::from(at) >= FIRST));
            host.scene.core.completed(host.scene.now, op, Outcome::Ok);
        }
    }
    came
}

#[test]
fn what_comes_back_from_a_gpu_goes_to_memory_of_its_node_as_long_as_some_is_free() {
    assert_eq!(near(Some(1), 16), [true; 4]);
    assert_eq!(near(Some(1), 2), [true, true, false, false], "then to any");
    assert_eq!(near(Some(0), 16), [false; 4], "there is none of its node");
    assert_eq!(near(None, 16), [false; 4], "as ever");
}

#[test]
fn a_slot_near_a_gpu_that_came_free_is_taken_again() {
    let mut host = Host::at(Some(1));
    host.scene.core.extent_added_at(2 * u64::from(BLOCK), Some(1));
    host.scene.core.populated(1, 2 * u64::from(BLOCK));
    for chain in 0..3 {
        host.put(chain, 2, 5);
        host.poll();
        assert!(
            host.copies.iter().all(|copy| matches!(copy.2, Spot::Dram(SlotId(at)) if u64::from(at) >= FIRST)),
            "chain {chain}: {:?}",
            host.copies
        );
        host.work(Outcome::Ok);
        host.scene.now.0 += super::host::SECOND_US;
        host.scene.core.tick(host.scene.now);
        (0..2).rev().for_each(|depth| host.remove(chain, depth));
        host.poll();
    }
}
