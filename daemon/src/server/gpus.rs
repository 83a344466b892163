//! What a client is told of GPUs: the device table, its page of device hazards, and how each GPU's memory is reached.
//!
//! Invariant: only who may put is told. Memory of a GPU is mapped for reading and writing or not at all.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use lapis_arena::{hbm::Shared, memfd};
use lapis_config::{ClientId, GpuId};
use lapis_transport::{
    hello::{GpuExtents, MESSAGE_FDS_MAX, ToClient},
    wire::{ConnId, Wire},
};

use crate::{
    engine::Engine,
    gpus::{GpuShown, SharedExtent},
    movers::Movers,
};

/// Sends `Devices`, and a `Gpu` or more for each that the group has memory on.
pub(super) fn send<W: Wire, M: Movers>(
    engine: &mut Engine<W, M>,
    conn: ConnId,
    index: usize,
    id: ClientId,
) -> Result<(), String> {
    let gpus: Vec<(GpuId, Arc<GpuShown>)> = engine.gpus_of(index);
    let group = &engine.groups[index];
    let client = &group.clients[&id];
    let text = |error: std::io::Error| format!("send what GPUs there are: {error}");
    let (Some(table), Some(page)) = (&group.devices_fd, &client.device_page) else {
        return engine.wire.send(conn, &ToClient::Devices { gpus: 0 }, &[]).map_err(text);
    };
    if !client.may_put {
        return engine.wire.send(conn, &ToClient::Devices { gpus: 0 }, &[]).map_err(text);
    }
    let table = memfd::read_only(table.as_fd()).map_err(|error| error.to_string())?;
    let devices = ToClient::Devices { gpus: gpus.len() as u32 };
    engine.wire.send(conn, &devices, &[table.as_fd(), page.fd.as_fd()]).map_err(text)?;
    for (gpu, shown) in gpus {
        let (index, uuid) = (shown.info.index, shown.info.uuid);
        let mut parts = shown.extents.chunks(MESSAGE_FDS_MAX).peekable();
        while let Some(part) = parts.next() {
            let (extents, fds) = told(part);
            let last = parts.peek().is_none();
            engine.wire.send(conn, &ToClient::Gpu { gpu, index, last, uuid, extents }, &fds).map_err(text)?;
        }
    }
    Ok(())
}

/// All extents of a GPU are shared in one way.
fn told(extents: &[SharedExtent]) -> (GpuExtents, Vec<BorrowedFd<'_>>) {
    let handles = extents.iter().filter_map(|extent| match &extent.shared {
        Shared::Ipc(handle) => Some((extent.bytes, *handle)),
        Shared::Descriptor(_) => None,
    });
    let handles: Vec<(u64, [u8; 64])> = handles.collect();
    if !handles.is_empty() {
        return (GpuExtents::Handles(handles), Vec::new());
    }
    let fds = extents.iter().filter_map(|extent| match &extent.shared {
        Shared::Descriptor(fd) => Some(fd.as_fd()),
        Shared::Ipc(_) => None,
    });
    (GpuExtents::Descriptors(extents.iter().map(|extent| extent.bytes).collect()), fds.collect())
}
