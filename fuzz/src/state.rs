//! The kept state of a group, damaged anywhere, and a daemon that goes on with it.

use std::os::fd::{AsFd, OwnedFd};

use lapis_arena::{
    Private,
    memfd::{self, Huge},
};
use lapis_config::{ClientId, Fingerprint, PoolId, PoolKind, PoolShape, SlotId, sizes::slot_bytes};
use lapis_state::{ClientRecord, Geometry, State};
use lapis_tiering::kept::Slab;

const GEOMETRY: Geometry = Geometry { lines: 1024, dram_bytes: 64 << 20, floor_bytes: 0, ceiling_bytes: 64 << 20 };
const UNITS: u64 = (64 << 20) / 4096;

/// Changes to an honest state: where (u32), how many bytes (u8), the bytes.
pub fn state(changes: &[u8]) {
    let fd = memfd::create("state", State::bytes_for(GEOMETRY.ceiling_bytes), Huge::Never).expect("memory").0;
    honest(&fd);
    let mut bytes = map(&fd);
    let mut rest = changes;
    while let Some((&[a, b, c, d, count], after)) = rest.split_first_chunk() {
        let (change, after) = after.split_at(after.len().min(count.into()));
        let at = u32::from_le_bytes([a, b, c, d]) as usize % bytes.len();
        let room = change.len().min(bytes.len() - at);
        bytes[at..at + room].copy_from_slice(&change[..room]);
        rest = after;
    }
    drop(bytes);
    if let Ok(state) = State::adopt(map(&fd), GEOMETRY) {
        go_on(state);
    }
}

fn go_on(mut state: State) {
    for (_, shape) in state.pools() {
        assert!(shape.label.len() <= 48 && shape.block_bytes.is_multiple_of(shape.pieces.into()));
        assert!(slot_bytes(&shape, shape.block_bytes) >= shape.block_bytes);
    }
    let extents = state.extents_bytes().to_vec();
    assert!(extents.iter().all(|bytes| *bytes > 0) && extents.iter().sum::<u64>() <= GEOMETRY.ceiling_bytes);
    for (extent, bytes) in extents.iter().enumerate() {
        assert!(state.populated_bytes(extent) <= *bytes);
        state.set_populated(extent, *bytes);
    }
    let known: Vec<u32> = state.clients().map(|client| client.id).collect();
    let id = state.next_client();
    assert!(id.0 != 0 && !known.contains(&id.0), "a number that no client had");
    if state.add_client(ClientRecord { id: id.0, ..ClientRecord::default() }) {
        state.remove_client(id);
    }
    known.into_iter().for_each(|id| state.remove_client(ClientId(id)));
    let slabs = state.adopt_slabs(UNITS);
    let mut end = 0;
    for slab in &slabs {
        assert!(u64::from(slab.base.0) >= end && slab.stride > 0 && slab.stride <= slab.units);
        end = u64::from(slab.base.0) + u64::from(slab.units);
    }
    assert!(end <= UNITS);
    for slab in slabs {
        state.forget_slab(&slab);
        state.set_slab(&slab);
    }
    state.add_pool(&shape("v", PoolKind::Object));
}

fn honest(fd: &OwnedFd) {
    let mut state = State::create(map(fd), GEOMETRY, 99);
    state.add_pool(&shape("k", PoolKind::Chain));
    state.add_extent(16 << 20);
    state.add_extent(32 << 20);
    state.set_populated(0, 8 << 20);
    let id = state.next_client();
    state.add_client(ClientRecord { id: id.0, pid: 5, secret: 3, ..ClientRecord::default() });
    for base in [0, 512, 2048] {
        state.set_slab(&Slab { base: SlotId(base), units: 512, pool: PoolId(0), stride: 16 });
    }
}

fn map(fd: &OwnedFd) -> Private<u8> {
    Private::map(fd.as_fd(), State::bytes_for(GEOMETRY.ceiling_bytes) as usize).expect("a mapping")
}

fn shape(label: &str, kind: PoolKind) -> PoolShape {
    PoolShape { namespace: Fingerprint([7; 32]), label: label.into(), kind, block_bytes: 1 << 20, pieces: 4 }
}

/// Each field of the header and of the first records, changed alone.
pub fn changes() -> Vec<Vec<u8>> {
    let slabs_at = State::bytes_for(GEOMETRY.ceiling_bytes) as u32 / 4096 * 4096 - 4 * 4096;
    let places = [0, 8, 12, 16, 24, 32, 64, 68, 72, 80, 2128, 4096, 4176, 4177, 4178, 4184, 4096 + 131_072, slabs_at];
    let mut seeds = vec![Vec::new()];
    seeds.extend(places.iter().map(|at| [&u32::to_le_bytes(*at)[..], &[2, 1, 0]].concat()));
    seeds
}
