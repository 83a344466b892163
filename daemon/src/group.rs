//! The memory of one trust group: made new, or taken over from a former daemon when format and geometry fit.

mod devices;
mod extents;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use lapis_arena::{
    Access, Adoption, Extents, MappedWords, Mapping, Private, TableWriter,
    memfd::{self, Huge},
    sum, table,
};
use lapis_config::{ClientId, LineId, PolicyName, PoolId, PoolShape, UNIT_BYTES, topology::Spread};
use lapis_state::{ClientRecord, Geometry, State};
use lapis_tiering::{Chosen, Core, CoreOptions};
use lapis_transport::{
    control::{self, Counters},
    hold::Keeper,
};

pub use self::{devices::DevicePage, extents::Extent};
use crate::{
    client::Client,
    error::DaemonError,
    kept::SharedKept,
    peers::{FETCHER, FETCHER_AHEAD},
    pins::{PinWatch, Waiting},
    status,
};

/// One `[[group]]` of the configuration, resolved.
#[derive(Clone, Debug)]
pub struct GroupOptions {
    pub name: String,
    /// Empty: every uid that may open the socket.
    pub uids: Vec<u32>,
    pub may_put: bool,
    pub geometry: Geometry,
    pub huge: Huge,
    /// Lock the arena in memory.
    pub lock: bool,
    /// Which NUMA node each extent is taken from.
    pub spread: Spread,
    /// Bytes that one client may pin, in DRAM and on GPUs, and for how long it may be over.
    pub pin_bytes_max: u64,
    pub pin_age_max: Duration,
    pub core: CoreOptions,
    /// Bytes of the SSD log that it always may have, and that it does not grow beyond; a ceiling of 0 is none.
    pub ssd_floor_bytes: u64,
    pub ssd_ceiling_bytes: u64,
    /// Memory that the group has on each GPU; 0: it uses none.
    pub hbm_bytes: u64,
    pub policy: PolicyName,
    /// Memory of the policy for blocks that are gone.
    pub ghost_bytes: u64,
}

impl GroupOptions {
    fn chosen(&self) -> Chosen {
        Chosen::new(self.policy, self.ghost_bytes)
    }
}

/// How a group began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing was kept.
    Fresh,
    /// Something was kept, and why it is not used.
    Cold(String),
    Warm,
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fresh => write!(f, "fresh"),
            Self::Cold(why) => write!(f, "cold: {why}"),
            Self::Warm => write!(f, "warm"),
        }
    }
}

pub struct Group {
    pub options: GroupOptions,
    pub pins: PinWatch,
    pub core: Core<SharedKept, Chosen>,
    /// Present while the lines of a former daemon are still being taken over; nothing but hits is served until then.
    pub adoption: Option<Adoption>,
    /// Lines of the former daemon that the core was not told of yet.
    pub adopted_lines: Vec<LineId>,
    pub start: Start,
    pub table_fd: OwnedFd,
    /// Of the device table, where the group uses GPUs.
    pub devices_fd: Option<OwnedFd>,
    /// The lock that keeps a second daemon off this table; held by the open file.
    _owner: OwnedFd,
    pub extents: Vec<Extent>,
    pub space: Extents,
    pub clients: BTreeMap<ClientId, Client>,
    /// Shape and sum seed of every pool.
    pub shapes: BTreeMap<PoolId, (PoolShape, u64)>,
    /// What clients that ended had reported.
    pub counters_former: Counters,
    pub instance: u64,
    pub table_id: u64,
}

/// Descriptors of one group as found in the keeper, without the group's prefix.
pub type Found = BTreeMap<String, OwnedFd>;

/// A client of the former daemon, with what was kept of it.
pub struct Former {
    pub record: ClientRecord,
    pub control_fd: OwnedFd,
    pub lifeline: OwnedFd,
    /// Its page of device hazards.
    pub device_page: Option<DevicePage>,
}

/// Everything mapped, before the core is built over it.
struct Mapped {
    table: TableWriter<MappedWords>,
    table_fd: OwnedFd,
    owner: OwnedFd,
    state: State,
    entries: Private<lapis_config::Entry>,
    slots: Private<u64>,
    extents: Vec<Extent>,
    /// `None`: what was kept for GPUs is not used.
    devices: Option<devices::Mapped>,
}

impl Group {
    /// Opens the group over what was kept, or over new memory if nothing fitting was. Clients of a former daemon are
    /// returned with their descriptors; the caller watches them.
    pub fn open(
        options: GroupOptions,
        mut found: Found,
        keeper: &mut dyn Keeper,
        entropy: &mut dyn FnMut() -> u64,
    ) -> Result<(Self, Vec<Former>), DaemonError> {
        let instance = entropy();
        if found.is_empty() {
            let group = Self::cold(options, Start::Fresh, keeper, instance, entropy)?;
            return Ok((group, Vec::new()));
        }
        let names: Vec<String> = found.keys().cloned().collect();
        match Self::warm(&options, &mut found)? {
            Ok(mapped) => {
                // Of a client or an extent that the former daemon was about to make, or to forget; of GPUs, if what was
                // kept for these is not used.
                let (id, keeps_devices) = (|record: ClientRecord| record.id, mapped.devices.is_some());
                let known: BTreeSet<String> =
                    mapped.state.clients().map(id).flat_map(|id| client_parts(id, keeps_devices)).collect();
                let unknown: Vec<String> = found.keys().filter(|name| !known.contains(*name)).cloned().collect();
                for name in unknown {
                    found.remove(&name);
                    keeper.forget(&format!("{}.{name}", options.name)).map_err(DaemonError::keeper("drop"))?;
                }
                Self::adopt(options, mapped, found, keeper, instance)
            }
            Err(why) => {
                for name in names {
                    keeper.forget(&format!("{}.{name}", options.name)).map_err(DaemonError::keeper("drop"))?;
                }
                let group = Self::cold(options, Start::Cold(why), keeper, instance, entropy)?;
                Ok((group, Vec::new()))
            }
        }
    }

    fn cold(
        options: GroupOptions,
        start: Start,
        keeper: &mut dyn Keeper,
        instance: u64,
        entropy: &mut dyn FnMut() -> u64,
    ) -> Result<Self, DaemonError> {
        let geometry = options.geometry;
        let (name, lines) = (options.name.clone(), geometry.lines as u32);
        let mut make = |part: &str, bytes: u64| -> Result<OwnedFd, DaemonError> {
            let name = format!("{name}.{part}");
            let (fd, _) = memfd::create(&name, bytes, Huge::Never)?;
            keeper.keep(&name, fd.as_fd()).map_err(DaemonError::keeper("keep"))?;
            Ok(fd)
        };
        let units = geometry.ceiling_bytes / UNIT_BYTES;
        let table_fd = make("table", table::bytes_for(lines))?;
        let entries_fd = make("entries", u64::from(lines) * 32)?;
        let slots_fd = make("slots", units * 8)?;
        let state_fd = make("state", State::bytes_for(geometry.ceiling_bytes))?;
        let owner = memfd::lock_owner(table_fd.as_fd())?;
        let words = table_words(&table_fd, lines)?;
        let table_id = entropy();
        let writer = TableWriter::create(words, lines, table_id, [entropy(), entropy(), entropy()])?;
        writer.set_instance(instance);
        let state_bytes = Private::map(state_fd.as_fd(), State::bytes_for(geometry.ceiling_bytes) as usize)?;
        let state = State::create(state_bytes, geometry, table_id);
        let entries = Private::map(entries_fd.as_fd(), lines as usize)?;
        let slots = Private::map(slots_fd.as_fd(), units as usize)?;
        let devices = devices::make(&options.name, options.hbm_bytes, &writer, keeper)?;
        let (devices, devices_fd) = devices.map(|made| (made.devices, made.table_fd)).unzip();
        let kept = SharedKept::new(writer, state, entries, slots).with_devices(devices);
        let mut core = Core::new(kept, options.chosen(), options.core.clone());
        core.fetcher_added(FETCHER, true);
        core.fetcher_added(FETCHER_AHEAD, false);
        Ok(Self {
            pins: PinWatch::new(options.pin_bytes_max, options.pin_age_max),
            options,
            core,
            adoption: None,
            adopted_lines: Vec::new(),
            start,
            table_fd,
            devices_fd,
            _owner: owner,
            extents: Vec::new(),
            space: Extents::new(),
            clients: BTreeMap::new(),
            shapes: BTreeMap::new(),
            counters_former: Counters::default(),
            instance,
            table_id,
        })
    }

    /// Maps what was kept; the inner error is why it cannot be used, the outer one why this daemon must not start.
    fn warm(options: &GroupOptions, found: &mut Found) -> Result<Result<Mapped, String>, DaemonError> {
        let geometry = options.geometry;
        let lines = geometry.lines as u32;
        let Some(table_fd) = found.remove("table") else {
            return Ok(Err("the table is not among what was kept".into()));
        };
        let owner = memfd::lock_owner(table_fd.as_fd())?;
        let mapped = (|| {
            let mut take = |part: &str| found.remove(part).ok_or(format!("{part} is not among what was kept"));
            let (state_fd, entries_fd, slots_fd) = (take("state")?, take("entries")?, take("slots")?);
            let text = |error: lapis_arena::ArenaError| error.to_string();
            let state_bytes = State::bytes_for(geometry.ceiling_bytes);
            let state = Private::map(state_fd.as_fd(), state_bytes as usize).map_err(text)?;
            let state = State::adopt(state, geometry).map_err(|unlike| unlike.to_string())?;
            let table = TableWriter::adopt(table_words(&table_fd, lines).map_err(text)?).map_err(text)?;
            if table.table().table_id() != state.table_id() || table.table().lines() != lines {
                return Err("table and state are of different tables".to_owned());
            }
            // A client whose page is lost may be reading slots that nobody would know of.
            let lost = state.clients().find(|client| {
                let kept = |part: &str| found.contains_key(&format!("{part}.{}", client.id));
                !(kept("client") && kept("life"))
            });
            if let Some(client) = lost {
                return Err(format!("the memory of client {} is not among what was kept", client.id));
            }
            let mut take = |part: &str| found.remove(part).ok_or(format!("{part} is not among what was kept"));
            let mut extents = Vec::new();
            for (index, &bytes) in state.extents_bytes().iter().enumerate() {
                let fd = take(&format!("arena.{index}"))?;
                let mapping = Mapping::shared(fd.as_fd(), bytes, Access::ReadWrite).map_err(text)?;
                if options.huge == Huge::Try {
                    mapping.advise_huge();
                }
                extents.push(Extent { fd, mapping, populated_bytes: state.populated_bytes(index), node: None });
            }
            let entries = Private::map(entries_fd.as_fd(), lines as usize).map_err(text)?;
            let units = (geometry.ceiling_bytes / UNIT_BYTES) as usize;
            let slots = Private::map(slots_fd.as_fd(), units).map_err(text)?;
            let devices = (options.hbm_bytes > 0).then(|| devices::adopt(options.hbm_bytes, &table, &state, found));
            Ok((table, state, entries, slots, extents, devices))
        })();
        Ok(mapped.map(|(table, state, entries, slots, extents, devices)| {
            let devices = devices.and_then(|devices| {
                let warn = |why: &String| tracing::warn!(group = options.name, why, "nothing on GPUs is taken over");
                devices.inspect_err(warn).ok()
            });
            Mapped { table, table_fd, owner, state, entries, slots, extents, devices }
        }))
    }

    /// Takes over. From `set_instance` on no view of the former daemon's time is given any more.
    fn adopt(
        options: GroupOptions,
        mapped: Mapped,
        mut found: Found,
        keeper: &mut dyn Keeper,
        instance: u64,
    ) -> Result<(Self, Vec<Former>), DaemonError> {
        let Mapped { table, table_fd, owner, state, entries, slots, extents, devices } = mapped;
        table.set_instance(instance);
        let devices = match devices {
            Some(kept) => Some(kept),
            None => devices::make(&options.name, options.hbm_bytes, &table, keeper)?,
        };
        let (devices, devices_fd) = devices.map(|mapped| (mapped.devices, mapped.table_fd)).unzip();
        let adoption = Adoption::new(&table);
        let table_id = table.table().table_id();
        let mut formers = Vec::new();
        for record in state.clients() {
            let [client, life, page] = client_names(record.id).map(|name| found.remove(&name));
            let (Some(control_fd), Some(lifeline)) = (client, life) else { continue };
            let device_page = match page {
                Some(fd) => Some(DevicePage::over(fd)?),
                None if devices.is_some() => Some(DevicePage::make(&options.name, ClientId(record.id), keeper)?),
                None => None,
            };
            formers.push(Former { record, control_fd, lifeline, device_page });
        }
        let kept = SharedKept::new(table, state, entries, slots).with_devices(devices);
        let mut core = Core::adopt(kept, options.chosen(), options.core.clone());
        core.fetcher_added(FETCHER, true);
        core.fetcher_added(FETCHER_AHEAD, false);
        let mut group = Self {
            pins: PinWatch::new(options.pin_bytes_max, options.pin_age_max),
            options,
            core,
            adoption: Some(adoption),
            adopted_lines: Vec::new(),
            start: Start::Warm,
            table_fd,
            devices_fd,
            _owner: owner,
            extents: Vec::new(),
            space: Extents::new(),
            clients: BTreeMap::new(),
            shapes: BTreeMap::new(),
            counters_former: Counters::default(),
            instance,
            table_id,
        };
        let shapes: Vec<_> = group.core.kept().state.pools().collect();
        for (id, shape) in shapes {
            group.add_pool(id, shape);
        }
        for extent in extents {
            group.add_mapped(extent);
        }
        let units = group.space.bytes() / UNIT_BYTES;
        for slab in group.core.kept_mut().state.adopt_slabs(units) {
            // Memory that is not known to be populated will be cleared.
            if group.is_populated(slab.base, slab.units) {
                group.core.adopt_slab(slab);
            } else {
                group.core.kept_mut().state.forget_slab(&slab);
            }
        }
        Ok((group, formers))
    }

    /// Tells the core of a pool that `state` has.
    pub fn add_pool(&mut self, id: PoolId, shape: PoolShape) {
        self.core.pool_added(id, pool_def(&shape));
        let seed = sum::pool_seed(&shape);
        self.shapes.insert(id, (shape, seed));
    }

    /// The number of a pool that a log has; a new one if the group has none of that shape. `None`: there are too many.
    pub fn pool_of(&mut self, shape: &PoolShape) -> Option<PoolId> {
        let known = self.shapes.iter().find(|(_, (known, _))| known == shape).map(|(&id, _)| id);
        known.or_else(|| {
            let id = self.core.kept_mut().state.add_pool(shape)?;
            self.add_pool(id, shape.clone());
            Some(id)
        })
    }

    /// Where slots wait for readers now.
    pub fn waiting(&self) -> Waiting {
        Waiting { dram: self.core.slots_named() > 0, gpus: self.core.gpus_named().collect() }
    }

    /// Bytes of the slots that a client names where slots wait for readers. It may name anything, also what is no slot.
    pub fn pinned_bytes(&self, client: ClientId, waiting: &Waiting) -> u64 {
        let (core, mut units) = (&self.core, 0);
        if waiting.dram {
            core.kept().hazards_of(client, &mut |slot| units += u64::from(core.slot_units(slot).unwrap_or(0)));
        }
        if !waiting.gpus.is_empty() {
            core.kept().device_hazards_of(client, &mut |gpu, slot| {
                let waits = waiting.gpus.contains(&gpu);
                units += u64::from(core.gpu_slot_units(gpu, slot).filter(|_| waits).unwrap_or(0));
            });
        }
        units * UNIT_BYTES
    }

    pub fn geometry(&self) -> lapis_transport::hello::Geometry {
        lapis_transport::hello::Geometry {
            table_id: self.table_id,
            instance: self.instance,
            lines: self.options.geometry.lines as u32,
            extents_bytes: self.extents.iter().map(Extent::bytes).collect(),
        }
    }

    /// Makes and keeps the memory of a new client: its control memfd and the lifeline (read end, write end).
    pub fn make_client(
        &self,
        id: ClientId,
        keeper: &mut dyn Keeper,
    ) -> Result<(OwnedFd, Mapping, OwnedFd, OwnedFd), DaemonError> {
        let name = format!("{}.client.{}", self.options.name, id.0);
        let (control_fd, _) = memfd::create(&name, control::BYTES, Huge::Never)?;
        let mapping = Mapping::shared(control_fd.as_fd(), control::BYTES, Access::ReadWrite)?;
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|source| DaemonError::Os { what: "make a lifeline pipe", source: source.into() })?;
        let life = format!("{}.life.{}", self.options.name, id.0);
        for (name, fd) in [(&name, control_fd.as_fd()), (&life, read.as_fd())] {
            if let Err(error) = keeper.keep(name, fd) {
                // Served all the same: only what it is granted at the moment of a kill would stay aside.
                tracing::error!(%error, name, "the keeper did not take a client's descriptor");
            }
        }
        Ok((control_fd, mapping, read, write))
    }

    /// Makes and keeps the page on which a new client names slots on GPUs; `None` where the group uses none.
    pub fn make_device_page(&self, id: ClientId, keeper: &mut dyn Keeper) -> Result<Option<DevicePage>, DaemonError> {
        let is_wanted = self.devices_fd.is_some();
        is_wanted.then(|| DevicePage::make(&self.options.name, id, keeper)).transpose()
    }

    /// Forgets a client whose everything has ended.
    pub fn remove_client(&mut self, id: ClientId, keeper: &mut dyn Keeper) {
        if let Some(client) = self.clients.remove(&id) {
            status::keep_counters(&mut self.counters_former, client.control.counters());
        }
        let kept = self.core.kept_mut();
        kept.remove_hazards(id);
        kept.state.remove_client(id);
        for name in client_parts(id.0, self.devices_fd.is_some()) {
            if let Err(error) = keeper.forget(&format!("{}.{name}", self.options.name)) {
                tracing::warn!(%error, client = id.0, "the keeper did not drop a client's descriptor");
            }
        }
    }
}

/// What is kept of a client, without the group's name: its memory, its lifeline, its page of slots on GPUs.
fn client_names(id: u32) -> [String; 3] {
    [format!("client.{id}"), format!("life.{id}"), devices::page_name(id)]
}

fn client_parts(id: u32, with_devices: bool) -> impl Iterator<Item = String> {
    client_names(id).into_iter().take(if with_devices { 3 } else { 2 })
}

fn table_words(fd: &OwnedFd, lines: u32) -> Result<MappedWords, lapis_arena::ArenaError> {
    let bytes = table::bytes_for(lines);
    Ok(MappedWords::new(&Mapping::shared(fd.as_fd(), bytes, Access::ReadWrite)?, 0, bytes as usize / 8))
}

/// The core's view of a pool.
fn pool_def(shape: &lapis_config::PoolShape) -> lapis_tiering::PoolDef {
    lapis_tiering::PoolDef {
        namespace: shape.namespace,
        kind: shape.kind,
        block_bytes: shape.block_bytes,
        slot_units: (lapis_config::sizes::slot_bytes(shape, shape.block_bytes) / UNIT_BYTES) as u32,
        pieces: shape.pieces,
    }
}
