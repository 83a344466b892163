use std::os::fd::{AsFd, OwnedFd};

use lapis_arena::memfd::{self, Huge};
use lapis_config::SlotId;

use super::*;

const GEOMETRY: Geometry = Geometry { lines: 1024, dram_bytes: 64 << 20, floor_bytes: 0, ceiling_bytes: 64 << 20 };

fn memory() -> OwnedFd {
    memfd::create("state", State::bytes_for(GEOMETRY.ceiling_bytes), Huge::Never).expect("a memfd").0
}

fn map(fd: &OwnedFd) -> Private<u8> {
    Private::map(fd.as_fd(), State::bytes_for(GEOMETRY.ceiling_bytes) as usize).expect("a mapping")
}

fn shape(label: &str) -> PoolShape {
    let namespace = Fingerprint([7; 32]);
    PoolShape { namespace, label: label.into(), kind: PoolKind::Object, block_bytes: 5 << 20, pieces: 4 }
}

fn slab(base: u32, units: u32) -> Slab {
    Slab { base: SlotId(base), units, pool: PoolId(0), stride: 16 }
}

#[test]
fn a_restart_finds_pools_clients_extents_and_slabs() {
    let fd = memory();
    let mut state = State::create(map(&fd), GEOMETRY, 99);
    assert_eq!(state.add_pool(&shape("k")), Some(PoolId(0)));
    state.add_extent(64 << 20);
    let id = state.next_client();
    assert!(state.add_client(ClientRecord { id: id.0, pid: 5, secret: 3, ..ClientRecord::default() }));
    for s in [slab(0, 512), slab(512, 1024), slab(2048, 512)] {
        state.set_slab(&s);
    }
    state.forget_slab(&slab(512, 1024));
    state.set_slab(&slab(1024, 256));
    drop(state);
    let mut state = State::adopt(map(&fd), GEOMETRY).expect("the same geometry");
    assert_eq!((state.table_id(), state.boots()), (99, 2));
    assert_eq!(state.pools().collect::<Vec<_>>(), vec![(PoolId(0), shape("k"))]);
    assert_eq!(state.extents_bytes(), [64 << 20]);
    assert_eq!(state.clients().map(|c| (c.id, c.pid, c.secret)).collect::<Vec<_>>(), vec![(id.0, 5, 3)]);
    state.set_expelled(id);
    drop(state);
    let mut state = State::adopt(map(&fd), GEOMETRY).expect("the same geometry");
    assert_eq!(state.clients().map(|c| c.flags & CLIENT_EXPELLED).collect::<Vec<_>>(), [CLIENT_EXPELLED]);
    assert_ne!(state.next_client(), id);
    assert_eq!(state.adopt_slabs(16384), vec![slab(0, 512), slab(1024, 256), slab(2048, 512)]);
    state.remove_client(id);
    assert_eq!(state.clients().count(), 0);
}

#[test]
fn another_geometry_version_or_file_is_refused_with_both_values() {
    let fd = memory();
    drop(State::create(map(&fd), GEOMETRY, 1));
    let other = Geometry { lines: 2048, ..GEOMETRY };
    let refused = State::adopt(map(&fd), other).err().expect("another geometry");
    assert_eq!(refused, Unlike::Geometry { found: GEOMETRY, expected: other });
    assert!(refused.to_string().contains("1024") && refused.to_string().contains("2048"));
    map(&fd)[8] = 77;
    let refused = State::adopt(map(&fd), GEOMETRY).err().expect("another version");
    assert_eq!(refused, Unlike::Version { found: 77, expected: STATE_VERSION });
    assert_eq!(State::adopt(map(&memory()), GEOMETRY).err(), Some(Unlike::Foreign));
}

#[test]
fn damaged_numbers_are_refused_and_not_computed_with() {
    let changed = |at: usize, bytes: &[u8]| {
        let fd = memory();
        let mut state = State::create(map(&fd), GEOMETRY, 1);
        state.add_pool(&shape("v"));
        state.add_extent(32 << 20);
        let id = state.next_client().0;
        state.add_client(ClientRecord { id, ..ClientRecord::default() });
        drop(state);
        map(&fd)[at..at + bytes.len()].copy_from_slice(bytes);
        State::adopt(map(&fd), GEOMETRY).err()
    };
    let at = std::mem::offset_of!(Header, client_next);
    for next in [0u32, 1, u32::MAX] {
        assert!(changed(at, &next.to_le_bytes()).is_some(), "client_next = {next}");
    }
    let at = std::mem::offset_of!(Header, extents_bytes);
    for bytes in [0u64, 4095, 128 << 20, u64::MAX - 4095] {
        assert!(changed(at, &bytes.to_le_bytes()).is_some(), "an extent of {bytes} bytes");
    }
    let at = POOLS_AT + std::mem::offset_of!(PoolRecord, pieces);
    for pieces in [0u16, 3, 257] {
        assert!(changed(at, &pieces.to_le_bytes()).is_some(), "{pieces} pieces");
    }
    let at = POOLS_AT + std::mem::offset_of!(PoolRecord, block_bytes);
    for bytes in [0u64, 1 << 40] {
        assert!(changed(at, &bytes.to_le_bytes()).is_some(), "blocks of {bytes} bytes");
    }
    let at = std::mem::offset_of!(Header, boots);
    assert_eq!(changed(at, &u64::MAX.to_le_bytes()), None, "starts are counted as far as there are numbers");
}

#[test]
fn impossible_slab_records_count_as_empty_memory() {
    let fd = memory();
    let mut state = State::create(map(&fd), GEOMETRY, 1);
    state.add_pool(&shape("v"));
    state.set_slab(&slab(0, 512));
    state.set_slab(&slab(256, 512));
    state.set_slab(&Slab { pool: PoolId(9), ..slab(4096, 512) });
    state.set_slab(&slab(16000, 512));
    assert_eq!(state.adopt_slabs(16384), vec![slab(0, 512)]);
    state.set_slab(&slab(8192, 512));
    drop(state);
    assert_eq!(State::adopt(map(&fd), GEOMETRY).expect("same").adopt_slabs(16384), vec![slab(0, 512), slab(8192, 512)]);
}

#[test]
fn what_was_learned_is_found_by_the_next_daemon_and_by_no_other_length_or_bytes() {
    let learned: Vec<u8> = (0..8_064u32).map(|at| (at * 7) as u8).collect();
    let fd = memory();
    let mut state = State::create(map(&fd), GEOMETRY, 1);
    assert_eq!(state.learned(), None, "nothing was learned yet");
    state.keep_learned(&[1, 2, 3]);
    state.keep_learned(&learned);
    state.keep_learned(&vec![0; LEARNED_BYTES]);
    drop(state);
    let found = || State::adopt(map(&fd), GEOMETRY).expect("the same geometry").learned();
    assert!(found().as_ref() == Some(&learned), "the last that there was room for");

    let sound = map(&fd)[LEARNED_AT..][..LEARNED_BYTES].to_vec();
    let heads = [0u64, 1, learned.len() as u64, u64::from(u32::MAX), 1 << 63, u64::MAX];
    for head in heads {
        map(&fd)[LEARNED_AT..][..8].copy_from_slice(&head.to_le_bytes());
        assert!(found().is_none(), "a head of {head:#x}");
    }
    // Of the head each bit; then one of each hundredth byte, and of the last.
    let bits = (0..64).chain((8..8 + learned.len()).step_by(100).map(|byte| 8 * byte + byte % 8));
    for bit in bits.chain([8 * (8 + learned.len()) - 1]) {
        let mut damaged = sound.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        map(&fd)[LEARNED_AT..][..LEARNED_BYTES].copy_from_slice(&damaged);
        assert!(found().is_none(), "bit {bit}");
    }
    map(&fd)[LEARNED_AT..][..LEARNED_BYTES].copy_from_slice(&sound);
    assert!(found() == Some(learned), "as before");
}
