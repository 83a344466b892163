//! Where blocks lie, in the daemon's own tables. No call of a client says so: a hit is a hit.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context, bail};
use lapis_arena::{Access, DeviceTable, MappedWords, Mapping, device, memfd};
use lapis_client::{Pool, Session};
use lapis_config::{GpuId, Key, UNIT_BYTES};
use lapis_transport::{
    hello::{ToClient, ToDaemon},
    socket,
};

const MESSAGE_WITHIN: Duration = Duration::from_secs(5);

/// The fastest place of a block, as seen from one GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the GPU with this index.
    Gpu(u16),
    Dram,
    /// Not in the memory of anything.
    Ssd,
}

/// Reads the device table. It stays good over a warm restart of the daemon.
pub struct Onlooker {
    table: DeviceTable,
    /// What the daemon calls each GPU, and its index.
    gpus: Vec<(GpuId, u16)>,
}

impl Onlooker {
    /// Asks as a client would, and leaves again.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let mut socket = socket::connect(path).context("look at the daemon's GPUs")?;
        let name = "demo onlooker".into();
        socket.send(&ToDaemon::Hello { resume: None, name, may_put: true, writes_by_dma: false, gpus: true })?;
        let (mut geometry, mut table, mut gpus) = (None, None, Vec::new());
        let mut left = 1;
        while left > 0 {
            let (message, fds) = socket.recv_timeout(MESSAGE_WITHIN)?.context("the daemon does not answer")?;
            match message {
                ToClient::Welcome { geometry: said, .. } => geometry = Some(said),
                ToClient::Extents { .. } => {}
                ToClient::Devices { gpus } => (left, table) = (gpus, fds.into_iter().next()),
                ToClient::Gpu { gpu, index, last, .. } => {
                    left -= u32::from(last);
                    gpus.push((gpu, index));
                }
                ToClient::Refused { reason, .. } => bail!("the daemon refuses: {reason}"),
                other => bail!("the daemon says {other:?}"),
            }
        }
        socket.send(&ToDaemon::Bye)?;
        let geometry = geometry.context("the daemon says nothing of its table")?;
        let table: OwnedFd = table.context("the daemon has no device table")?;
        let bytes = device::bytes_for(geometry.lines).next_multiple_of(UNIT_BYTES);
        memfd::check(table.as_fd(), bytes)?;
        let mapping = Mapping::shared(table.as_fd(), bytes, Access::ReadOnly)?;
        let words = MappedWords::new(&mapping, 0, mapping.len() / 8);
        Ok(Self { table: DeviceTable::open(words, geometry.lines, geometry.table_id)?, gpus })
    }

    /// Where the block is now, `None` if it is nowhere. A block that is on a GPU and in DRAM counts as on the GPU.
    pub fn place(&self, session: &Session, pool: &Pool, key: &Key) -> Option<Place> {
        let found = session.find(pool, key)?;
        let on = self.table.find(found.line, found.generation());
        let index = on.and_then(|on| self.gpus.iter().find(|(id, _)| *id == on.at.gpu)).map(|(_, index)| *index);
        Some(match index {
            Some(index) => Place::Gpu(index),
            None if found.state.is_readable() => Place::Dram,
            None => Place::Ssd,
        })
    }
}
