//! Copies in batches: one call, no order among them.

use cudarc::driver::sys::{CUdeviceptr, CUmemcpyAttributes, CUmemcpySrcAccessOrder, CUresult, CUstream};

use super::{
    copy::{check_piece, either},
    put,
    stream::find_own,
    take_all,
};
use crate::{
    history::Bytes,
    misuse::Kind,
    options::Fault,
    stream::{self, Piece, Side, Work},
    world::{World, enter_context},
};

/// The memory that pieces touch: two of which one writes must not overlap, as nothing orders them.
fn has_race(held: &World, context: u64, pieces: &[Piece]) -> Option<String> {
    let device = held.contexts[&context].device;
    let bytes = |place: stream::Place, len: u64| -> Option<Bytes> {
        let spot = match place.side {
            Side::Device => held.memory.device_spot(place.at, len, device, false),
            Side::Host => held.memory.host_spot(place.at, len, context, true),
        };
        spot.ok().map(|spot| spot.bytes)
    };
    let mut all: Vec<(Bytes, bool)> = pieces
        .iter()
        .flat_map(|piece| [(bytes(piece.to, piece.bytes), true), (bytes(piece.from, piece.bytes), false)])
        .filter_map(|(bytes, writes)| Some((bytes?, writes)))
        .collect();
    all.sort_by_key(|(bytes, _)| (bytes.key, bytes.start));
    // The furthest end so far of what is read and of what is written.
    let (mut key, mut read, mut written) = ((0, 0), 0, 0);
    for (bytes, writes) in all {
        if bytes.key != key {
            (key, read, written) = (bytes.key, 0, 0);
        }
        if bytes.start < written || (writes && bytes.start < read) {
            return Some(format!("two of a batch touch {bytes:?}"));
        }
        if writes { written = written.max(bytes.end) } else { read = read.max(bytes.end) }
    }
    None
}

api! {
    fn cuMemcpyBatchAsync(
        tos: *mut CUdeviceptr,
        froms: *mut CUdeviceptr,
        sizes: *mut usize,
        count: usize,
        attributes: *mut CUmemcpyAttributes,
        starts: *mut usize,
        attribute_count: usize,
        failed: *mut usize,
        stream: CUstream,
    ) {
        let (mut held, context) = enter_context(CALL)?;
        put(failed, usize::MAX)?;
        // Not in the legacy stream.
        if stream.addr() <= 1 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let id = find_own(&mut held, stream, context, CALL)?;
        let (tos, froms, sizes) = (take_all(tos, count)?, take_all(froms, count)?, take_all(sizes, count)?);
        let orders = take_all(attributes, attribute_count)?;
        let starts = take_all(starts, attribute_count)?;
        let ordered = starts[0] == 0 && starts.is_sorted_by(|a, b| a < b) && starts.iter().all(|start| *start < count);
        let sane = orders.iter().all(|order| order.srcAccessOrder == CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM);
        if !ordered || !sane {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let mut pieces = Vec::with_capacity(count);
        for index in 0..count {
            let (to, from) = (either(&held, tos[index]), either(&held, froms[index]));
            let piece = Piece { to, from, bytes: sizes[index] as u64, pageable: false };
            let checked = if sizes[index] == 0 { Err(CUresult::CUDA_ERROR_INVALID_VALUE) } else { Ok(()) };
            if let Err(error) = checked.and_then(|()| check_piece(&held, context, &piece, CALL)) {
                put(failed, index)?;
                return Err(error);
            }
            pieces.push(piece);
        }
        if let Some(what) = has_race(&held, context, &pieces) {
            held.misuse(Kind::Unsynchronised, CALL, what);
        }
        let device = held.contexts[&context].device;
        if held.devices[device].faults.strike(Fault::Copy) {
            // What came before the one that failed runs.
            let taken = held.devices[device].faults.below(count);
            put(failed, taken)?;
            pieces.truncate(taken);
            if taken > 0 {
                stream::push(&mut held, id, Work::Copy(pieces), CALL);
            }
            return Err(CUresult::CUDA_ERROR_OPERATING_SYSTEM);
        }
        stream::push(&mut held, id, Work::Copy(pieces), CALL);
        Ok(())
    }
}
