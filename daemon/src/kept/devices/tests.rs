use std::os::fd::{AsFd, OwnedFd};

use lapis_arena::{
    Access, DeviceHazards,
    memfd::{self, Huge},
};
use lapis_config::PoolId;

use super::*;

const GPU_BYTES: u64 = 8 << 20;
const LINES: u32 = 64;
const TABLE_ID: u64 = 5;

struct Memory {
    table: OwnedFd,
    states: OwnedFd,
}

impl Memory {
    fn new() -> Self {
        let make = |bytes| memfd::create("of a test", bytes, Huge::Never).expect("a memfd").0;
        Self { table: make(Devices::table_bytes_for(LINES)), states: make(Devices::bytes_for(GPU_BYTES)) }
    }

    fn words(&self) -> MappedWords {
        let bytes = device::bytes_for(LINES);
        let mapping = Mapping::shared(self.table.as_fd(), bytes, Access::ReadWrite).expect("a mapping");
        MappedWords::new(&mapping, 0, bytes as usize / 8)
    }

    fn states(&self) -> Private<u64> {
        Private::map(self.states.as_fd(), Devices::words_for(GPU_BYTES) as usize).expect("a mapping")
    }

    fn create(&self) -> Devices {
        let writer = DeviceWriter::create(self.words(), LINES, TABLE_ID).expect("new memory");
        Devices::create(writer, self.states(), GPU_BYTES, TABLE_ID)
    }

    fn adopt(&self, gpu_bytes: u64, table_id: u64) -> Result<Devices, DevicesUnlike> {
        let writer = DeviceWriter::adopt(self.words(), LINES, TABLE_ID).expect("as it was made");
        Devices::adopt(writer, self.states(), gpu_bytes, table_id)
    }
}

/// With its first memory.
fn gpu(uuid: u8) -> GpuHere {
    GpuHere { uuid: [uuid; 16], memory: 100 + u64::from(uuid) }
}

/// With other memory than before.
fn renewed(uuid: u8) -> GpuHere {
    GpuHere { memory: 200 + u64::from(uuid), ..gpu(uuid) }
}

fn slab(base: u32, units: u32) -> Slab {
    Slab { base: SlotId(base), units, pool: PoolId(0), stride: 16 }
}

#[test]
fn a_gpu_keeps_its_number_and_its_slabs_whatever_its_place_in_the_configuration() {
    let memory = Memory::new();
    let mut devices = memory.create();
    assert_eq!(devices.number(&[gpu(1), gpu(2)]), [GpuId(0), GpuId(1)]);
    for (number, base) in [(0, 0), (1, 512)] {
        devices.set_slab(GpuId(number), &slab(base, 256));
    }
    devices.set_slot_state(GpuId(0), &slab(0, 256), 15, SlotState::Granted(ClientId(7)));
    devices.set_slot_state(GpuId(1), &slab(512, 256), 0, SlotState::Used(LineId(3)));
    drop(devices);

    let mut devices = memory.adopt(GPU_BYTES, TABLE_ID).expect("the same");
    let here = [gpu(2), gpu(3), gpu(1)];
    assert_eq!(devices.stale(&here), []);
    assert_eq!(devices.number(&here), [GpuId(1), GpuId(2), GpuId(0)]);
    assert_eq!(devices.adopt_slabs(GpuId(1), 1), [slab(512, 256)]);
    assert_eq!(devices.adopt_slabs(GpuId(2), 1), []);
    assert_eq!(devices.adopt_slabs(GpuId(0), 1), [slab(0, 256)]);
    assert_eq!(devices.slot_state(GpuId(0), &slab(0, 256), 15), SlotState::Granted(ClientId(7)));
    assert_eq!(devices.slot_state(GpuId(1), &slab(512, 256), 0), SlotState::Used(LineId(3)));
    assert_eq!(devices.slot_state(GpuId(1), &slab(512, 256), 1), SlotState::Free);
}

#[test]
fn slabs_of_a_gpu_that_is_away_or_has_new_memory_are_stale_and_then_forgotten() {
    let memory = Memory::new();
    let mut devices = memory.create();
    devices.number(&[gpu(1), gpu(2), gpu(3)]);
    for number in 0..3 {
        devices.set_slab(GpuId(number), &slab(0, 256));
    }
    drop(devices);
    // The second is away, the third has other memory.
    let here = [gpu(1), renewed(3)];
    // Killed before it said so to the device table: known to the next one too.
    for _ in 0..2 {
        let devices = memory.adopt(GPU_BYTES, TABLE_ID).expect("the same");
        assert_eq!(devices.stale(&here), [GpuId(1), GpuId(2)]);
        assert_eq!(devices.known_memory(), [1, 2, 3].map(|uuid| ([uuid; 16], 100 + u64::from(uuid))));
    }
    let mut devices = memory.adopt(GPU_BYTES, TABLE_ID).expect("the same");
    assert_eq!(devices.number(&here), [GpuId(0), GpuId(2)]);
    assert_eq!(devices.stale(&here), []);
    assert_eq!(devices.known_memory(), [([1; 16], 101), ([3; 16], 203)], "the second's was given back");
    assert_eq!(devices.adopt_slabs(GpuId(2), 1), []);
    assert_eq!(devices.adopt_slabs(GpuId(0), 1), [slab(0, 256)]);
    // Used again, and nothing of its former life is read as a state of a slot.
    devices.set_slot_state(GpuId(2), &slab(0, 256), 3, SlotState::IoIn);
    devices.set_slab(GpuId(2), &slab(0, 256));
    assert_eq!(devices.slot_state(GpuId(2), &slab(0, 256), 3), SlotState::Free);
    devices.forget_slab(GpuId(2), &slab(0, 256));
    drop(devices);
    let mut devices = memory.adopt(GPU_BYTES, TABLE_ID).expect("the same");
    devices.number(&[renewed(3), gpu(1)]);
    assert_eq!(devices.adopt_slabs(GpuId(2), 1), []);
    assert_eq!(devices.adopt_slabs(GpuId(0), 0), [], "of a pool that is not there");
}

#[test]
fn memory_of_a_lost_gpu_is_not_known_to_the_next_daemon() {
    let memory = Memory::new();
    let mut devices = memory.create();
    devices.number(&[gpu(1), gpu(2)]);
    devices.set_slab(GpuId(0), &slab(0, 256));
    devices.forget_memory(GpuId(0));
    drop(devices);
    // Killed before it forgot the rest.
    let mut devices = memory.adopt(GPU_BYTES, TABLE_ID).expect("the same");
    assert_eq!((devices.known_memory(), devices.stale(&[gpu(1), gpu(2)])), (vec![([2; 16], 102)], vec![GpuId(0)]));
    assert_eq!(devices.number(&[renewed(1), gpu(2)]), [GpuId(0), GpuId(1)]);
    assert_eq!(devices.adopt_slabs(GpuId(0), 1), []);
    assert_eq!(devices.known_memory(), [([1; 16], 201), ([2; 16], 102)]);
}

#[test]
fn numbers_run_out_only_when_all_of_them_are_here() {
    let mut devices = Memory::new().create();
    let all: Vec<GpuHere> = (0..GPUS_MAX as u8).map(gpu).collect();
    let numbers = devices.number(&all);
    assert_eq!(numbers.last(), Some(&GpuId(GPUS_MAX as u8 - 1)));
    // One is exchanged: the new one has the number of the one that went.
    let mut others = all.clone();
    others[9] = gpu(200);
    assert_eq!(devices.number(&others), numbers);
}

#[test]
fn memory_of_another_table_or_of_other_gpus_is_not_used() {
    let memory = Memory::new();
    DeviceWriter::create(memory.words(), LINES, TABLE_ID).expect("new memory");
    assert!(memory.adopt(GPU_BYTES, TABLE_ID).is_err(), "nothing is there beside the table yet");
    drop(memory.create());
    let error = memory.adopt(GPU_BYTES, TABLE_ID + 1).expect_err("another table");
    assert!(error.to_string().contains("the block table is 5, expected 6"), "{error}");
    let error = memory.adopt(GPU_BYTES / 2, TABLE_ID).expect_err("other GPUs");
    assert!(error.to_string().contains("the memory of a GPU is 8388608, expected 4194304"), "{error}");
    assert!(memory.adopt(GPU_BYTES, TABLE_ID).is_ok());
}

#[test]
fn readers_find_a_place_by_the_generation_and_a_page_keeps_its_slot() {
    let memory = Memory::new();
    let mut devices = memory.create();
    let place = DevicePlace { gpu: GpuId(1), slot: SlotId(48), units: 16 };
    devices.set_place(LineId(3), 9, place);
    assert_eq!((devices.place(LineId(3), 9), devices.place(LineId(3), 8)), (Some(place), None));
    let page = Mapping::anonymous(device::HAZARD_BYTES as u64).expect("memory");
    devices.add_hazards(ClientId(4), &page);
    DeviceHazards::mapped(&page, 0).set(2, GpuId(1), SlotId(48));
    devices.clear_place(LineId(3));
    assert_eq!(devices.place(LineId(3), 9), None);
    let mut named = vec![true; 7];
    let mut ask = |devices: &mut Devices, gpu: u8| {
        devices.named(GpuId(gpu), &[SlotId(64), SlotId(48), SlotId(0)], &mut named);
        named.clone()
    };
    assert_eq!(ask(&mut devices, 1), [false, true, false]);
    assert_eq!(ask(&mut devices, 0), [false; 3], "the slot of another GPU");
    let of = |devices: &Devices, client| {
        let mut named = Vec::new();
        devices.hazards_of(ClientId(client), &mut |gpu, slot| named.push((gpu, slot)));
        named
    };
    assert_eq!((of(&devices, 4), of(&devices, 5)), (vec![(GpuId(1), SlotId(48))], vec![]));
    devices.remove_hazards(ClientId(4));
    assert_eq!(ask(&mut devices, 1), [false; 3]);
    assert_eq!(of(&devices, 4), []);
}
