//! The kept memory of a group for GPUs: two memfds, `GROUP.devices` (the device table) and `GROUP.hbm` (slabs and slot
//! states), and a page for each client, `GROUP.device.N`. Made only where the group has memory on GPUs.
//!
//! Invariant: what was kept is used whole or not at all; then every client of the former daemon has its page.

use std::os::fd::{AsFd, OwnedFd};

use lapis_arena::{
    Access, DeviceWriter, MappedWords, Mapping, Private, TableWriter, device,
    memfd::{self, Huge},
};
use lapis_config::ClientId;
use lapis_state::State;
use lapis_transport::hold::Keeper;

use super::Found;
use crate::{error::DaemonError, kept::Devices};

const TABLE: &str = "devices";
const STATES: &str = "hbm";

/// The name of a client's page, without the group's.
pub(super) fn page_name(client: u32) -> String {
    format!("device.{client}")
}

/// The page on which a client names slots on GPUs, a memfd of its own.
#[derive(Debug)]
pub struct DevicePage {
    pub fd: OwnedFd,
    pub mapping: Mapping,
}

impl DevicePage {
    pub(super) fn make(group: &str, client: ClientId, keeper: &mut dyn Keeper) -> Result<Self, DaemonError> {
        let name = format!("{group}.{}", page_name(client.0));
        let (fd, _) = memfd::create(&name, device::HAZARD_BYTES as u64, Huge::Never)?;
        let page = Self::over(fd)?;
        // Without it the next daemon would not know what the client reads: what is on GPUs would be lost to it.
        keeper.keep(&name, page.fd.as_fd()).map_err(DaemonError::keeper("keep"))?;
        Ok(page)
    }

    pub(super) fn over(fd: OwnedFd) -> Result<Self, DaemonError> {
        let mapping = Mapping::shared(fd.as_fd(), device::HAZARD_BYTES as u64, Access::ReadWrite)?;
        Ok(Self { fd, mapping })
    }
}

/// Kept memory for GPUs, with the descriptor of the device table.
pub(super) struct Mapped {
    pub devices: Devices,
    pub table_fd: OwnedFd,
}

/// New memory, beside a block table; `None` where GPUs have no bytes for the group.
pub(super) fn make(
    group: &str,
    gpu_bytes: u64,
    table: &TableWriter<MappedWords>,
    keeper: &mut dyn Keeper,
) -> Result<Option<Mapped>, DaemonError> {
    if gpu_bytes == 0 {
        return Ok(None);
    }
    let mut make = |part: &str, bytes: u64| -> Result<OwnedFd, DaemonError> {
        let name = format!("{group}.{part}");
        let (fd, _) = memfd::create(&name, bytes, Huge::Never)?;
        keeper.keep(&name, fd.as_fd()).map_err(DaemonError::keeper("keep"))?;
        Ok(fd)
    };
    let (lines, table_id) = (table.table().lines(), table.table().table_id());
    let table_fd = make(TABLE, Devices::table_bytes_for(lines))?;
    let states_fd = make(STATES, Devices::bytes_for(gpu_bytes))?;
    let writer = DeviceWriter::create(words(&table_fd, lines)?, lines, table_id)?;
    let states = Private::map(states_fd.as_fd(), Devices::words_for(gpu_bytes) as usize)?;
    Ok(Some(Mapped { devices: Devices::create(writer, states, gpu_bytes, table_id), table_fd }))
}

/// What was kept, taken out of `found`; an error says why it is not used.
pub(super) fn adopt(
    gpu_bytes: u64,
    table: &TableWriter<MappedWords>,
    state: &State,
    found: &mut Found,
) -> Result<Mapped, String> {
    // One that is expelled or without a page may still read what it once found.
    let is_page = |fd: &OwnedFd| memfd::check(fd.as_fd(), device::HAZARD_BYTES as u64).is_ok();
    let has_page = |id: u32| found.get(&page_name(id)).is_some_and(is_page);
    if let Some(client) = state.clients().find(|client| !has_page(client.id)) {
        return Err(format!("the page of client {} is not among what was kept", client.id));
    }
    let part = |part: &str| found.get(part).ok_or(format!("{part} is not among what was kept"));
    let (table_fd, states_fd) = (part(TABLE)?, part(STATES)?);
    let text = |error: lapis_arena::ArenaError| error.to_string();
    let (lines, table_id) = (table.table().lines(), table.table().table_id());
    memfd::check(table_fd.as_fd(), Devices::table_bytes_for(lines)).map_err(text)?;
    let writer = DeviceWriter::adopt(words(table_fd, lines).map_err(text)?, lines, table_id).map_err(text)?;
    let states = Private::map(states_fd.as_fd(), Devices::words_for(gpu_bytes) as usize).map_err(text)?;
    let devices = Devices::adopt(writer, states, gpu_bytes, table_id).map_err(|unlike| unlike.to_string())?;
    found.remove(STATES);
    let table_fd = found.remove(TABLE).expect("looked up above");
    Ok(Mapped { devices, table_fd })
}

fn words(fd: &OwnedFd, lines: u32) -> Result<MappedWords, lapis_arena::ArenaError> {
    let bytes = device::bytes_for(lines);
    Ok(MappedWords::new(&Mapping::shared(fd.as_fd(), bytes, Access::ReadWrite)?, 0, bytes as usize / 8))
}

#[cfg(test)]
mod tests;
