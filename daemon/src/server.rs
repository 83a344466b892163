//! The conversation on a group's socket: who may come in, what it gets, which pools it opens; and former clients after
//! a restart. The rings take over once a client is welcome.

mod gpus;

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use lapis_arena::{Access, Mapping, memfd};
use lapis_config::{BLOCK_BYTES_MAX, ClientId, PIECES_MAX, PoolShape, Time, sizes};
use lapis_state::{CLIENT_EXPELLED, CLIENT_MAY_PUT, CLIENT_WRITES_BY_DMA, ClientRecord};
use lapis_transport::{
    control::{self, ControlDaemon},
    hello::{Resume, ToClient, ToDaemon},
    wire::{ConnId, Peer, Wire},
};

use crate::{
    client::{Client, Parts},
    engine::{Engine, Role},
    error::DaemonError,
    group::{Extent, Former, Group},
    movers::Movers,
    status,
};

/// Descriptors of extents in one message; the kernel takes 253.
const EXTENTS_PER_MESSAGE: usize = 64;
const LABEL_BYTES_MAX: usize = 48;
/// Longest hand-over.
const DRAIN_MAX: Duration = Duration::from_secs(3600);

pub(crate) fn message<W: Wire, M: Movers>(engine: &mut Engine<W, M>, now: Time, conn: ConnId, message: ToDaemon) {
    let role = engine.roles.get(&conn).cloned();
    match (message, role) {
        (ToDaemon::Hello { resume, name, may_put, writes_by_dma, gpus }, Some(Role::Greeting { group, peer })) => {
            if let Some(reason) = denied(&engine.groups[group], peer) {
                return engine.refuse(now, conn, &reason);
            }
            let may_put = may_put && engine.groups[group].options.may_put;
            // Whoever is told of GPUs may have them write into slots.
            let asked = Asked { name, may_put, writes_by_dma: writes_by_dma || gpus, gpus, peer };
            if let Err(reason) = hello(engine, now, conn, group, resume, asked) {
                engine.refuse(now, conn, &reason);
            }
        }
        (ToDaemon::OpenPool { token, shape }, Some(Role::Client { group, .. })) => {
            let growth = engine.shares.on_demand(group).unwrap_or(0);
            let answer = match open_pool(&mut engine.groups[group], &shape, growth) {
                Ok((pool, slot_bytes)) => ToClient::Pool { token, pool, slot_bytes },
                Err(reason) => ToClient::Refused { token, reason },
            };
            send_or_hang_up(engine, now, conn, &answer, &[]);
        }
        (ToDaemon::Bye, Some(Role::Client { group, id })) => {
            engine.disconnect(now, group, id);
            // Buried by the next turn, or when the former daemon's slots are taken over: not before the core knows them.
            if let Some(client) = engine.client_of(conn) {
                client.gone_at = Some(now);
            }
        }
        (ToDaemon::Status, Some(Role::Greeting { group, peer })) => {
            if let Some(reason) = denied(&engine.groups[group], peer) {
                return engine.refuse(now, conn, &reason);
            }
            for message in ToClient::status(&status::json(engine, now, group)) {
                send_or_hang_up(engine, now, conn, &message, &[]);
            }
            // What was sent arrives all the same.
            engine.end(conn);
        }
        (ToDaemon::Drain { within_us }, Some(Role::Greeting { group, peer })) => {
            let own = rustix::process::geteuid().as_raw();
            if peer.uid != 0 && peer.uid != own {
                let reason = format!("uid {} may not drain this host: root may, and uid {own}", peer.uid);
                return engine.refuse(now, conn, &reason);
            }
            engine.begin_drain(now, group, conn, Duration::from_micros(within_us).min(DRAIN_MAX));
        }
        (_, _) => engine.refuse(now, conn, "this message does not belong here: Hello or Status first, and only once"),
    }
}

fn denied(group: &Group, peer: Peer) -> Option<String> {
    let own = rustix::process::geteuid().as_raw();
    let allowed = group.options.uids.is_empty() || group.options.uids.contains(&peer.uid) || peer.uid == own;
    (!allowed).then(|| {
        format!(
            "uid {} may not use group {:?}; its allowed uids are {:?} (option group.uids)",
            peer.uid, group.options.name, group.options.uids
        )
    })
}

struct Asked {
    name: String,
    may_put: bool,
    writes_by_dma: bool,
    gpus: bool,
    peer: Peer,
}

fn hello<W: Wire, M: Movers>(
    engine: &mut Engine<W, M>,
    now: Time,
    conn: ConnId,
    index: usize,
    resume: Option<Resume>,
    asked: Asked,
) -> Result<(), String> {
    // Not ours any more (a cold start, or it was buried): it is welcome as a new client.
    if let Some(resume) = resume
        && let Some(id) = resumable(&engine.groups[index], &resume, asked.peer)
    {
        return resumed(engine, now, conn, index, id, &resume, asked.gpus);
    }
    if engine.groups[index].clients.len() >= engine.options.clients_max {
        return Err(format!("{} clients are connected, the limit (server.clients_max)", engine.options.clients_max));
    }
    let group = &mut engine.groups[index];
    let id = group.core.kept_mut().state.next_client();
    let secret = (engine.entropy)();
    let keeper = engine.keeper.as_mut();
    let (control_fd, mapping, lifeline, lifeline_client) =
        group.make_client(id, keeper).map_err(|error| format!("no memory for one more client: {error}"))?;
    let device_page =
        group.make_device_page(id, keeper).map_err(|error| format!("no memory for one more client: {error}"))?;
    let flag = |is: bool, flag: u32| if is { flag } else { 0 };
    let record = ClientRecord {
        id: id.0,
        pid: asked.peer.pid,
        start_time: asked.peer.start_time,
        uid: asked.peer.uid,
        flags: flag(asked.may_put, CLIENT_MAY_PUT) | flag(asked.writes_by_dma, CLIENT_WRITES_BY_DMA),
        secret,
        name: short_name(&asked.name),
    };
    if !group.core.kept_mut().state.add_client(record) {
        return Err("every client record is taken".into());
    }
    let mut control = ControlDaemon::new(mapping);
    control.reset();
    group.core.client_added(id, asked.may_put);
    group.core.kept_mut().add_hazards(id, control.hazards(), device_page.as_ref());
    let mut client = Client::new(Parts {
        id,
        name: asked.name,
        peer: asked.peer,
        may_put: asked.may_put,
        writes_by_dma: asked.writes_by_dma,
        secret,
        control,
        control_fd,
        device_page,
        lifeline,
        conn,
        connected: true,
    });
    client.uses_gpus = asked.gpus;
    group.clients.insert(id, client);
    engine.roles.insert(conn, Role::Client { group: index, id });
    engine.counts.clients_connected += 1;
    let client = &engine.groups[index].clients[&id];
    engine
        .wire
        .watch_lifeline(conn, client.lifeline.as_fd())
        .map_err(|error| format!("watch the lifeline: {error}"))?;
    welcome(engine, conn, index, id, Some(lifeline_client), false)
}

fn short_name(name: &str) -> [u8; 32] {
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    out
}

/// The client that a `Resume` names, if it is really that one: same table, its secret, the same process.
fn resumable(group: &Group, resume: &Resume, peer: Peer) -> Option<ClientId> {
    let client = group.clients.get(&resume.client)?;
    let same = resume.table_id == group.table_id
        && client.secret == resume.secret
        && client.peer.pid == peer.pid
        && client.peer.start_time == peer.start_time
        && !client.exited
        && !client.expelled;
    same.then_some(resume.client)
}

fn resumed<W: Wire, M: Movers>(
    engine: &mut Engine<W, M>,
    now: Time,
    conn: ConnId,
    index: usize,
    id: ClientId,
    resume: &Resume,
    gpus: bool,
) -> Result<(), String> {
    // Its former socket, if this daemon still has it, ended with this call.
    engine.disconnect(now, index, id);
    let client = engine.groups[index].clients.get_mut(&id).expect("resumable looked it up");
    let former = std::mem::replace(&mut client.conn, conn);
    engine.roles.remove(&former);
    engine.wire.hang_up(former);
    engine.wire.forget(former);
    client.control.reset();
    (client.connected, client.uses_gpus) = (true, gpus);
    engine.roles.insert(conn, Role::Client { group: index, id });
    engine
        .wire
        .watch_lifeline(conn, client.lifeline.as_fd())
        .map_err(|error| format!("watch the lifeline: {error}"))?;
    engine.counts.clients_resumed += 1;
    let group = &mut engine.groups[index];
    group.core.client_resumed(id, &resume.writing);
    if group.devices_fd.is_some() {
        group.core.client_resumed_on_gpus(id, &resume.writing_on_gpus);
    }
    welcome(engine, conn, index, id, None, true)
}

/// Sends `Welcome` and all extents. A resumed client still has its lifeline and gets a descriptor of nothing new there.
fn welcome<W: Wire, M: Movers>(
    engine: &mut Engine<W, M>,
    conn: ConnId,
    index: usize,
    id: ClientId,
    lifeline: Option<OwnedFd>,
    resumed: bool,
) -> Result<(), String> {
    let text = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let doorbells = engine.wire.open_doorbells(conn).map_err(text("make doorbells"))?;
    let group = &engine.groups[index];
    let client = &group.clients[&id];
    let message = ToClient::Welcome {
        client: id,
        secret: client.secret,
        geometry: group.geometry(),
        may_put: client.may_put,
        resumed,
        magazine_bytes_max: engine.options.magazine_bytes_max,
        defaults: engine.options.call_defaults,
    };
    let table = memfd::read_only(group.table_fd.as_fd()).map_err(|error| error.to_string())?;
    let mut fds =
        vec![table.as_fd(), client.control_fd.as_fd(), doorbells.to_daemon.as_fd(), doorbells.to_client.as_fd()];
    fds.extend(lifeline.as_ref().map(AsFd::as_fd));
    engine.wire.send(conn, &message, &fds).map_err(text("send the welcome"))?;
    let count = group.extents.len();
    for first in (0..count).step_by(EXTENTS_PER_MESSAGE) {
        let last = (first + EXTENTS_PER_MESSAGE).min(count);
        send_extents(&engine.groups[index], &mut engine.wire, conn, client.may_put, first..last)?;
    }
    if client.uses_gpus { gpus::send(engine, conn, index, id) } else { Ok(()) }
}

fn send_extents<W: Wire>(
    group: &Group,
    wire: &mut W,
    conn: ConnId,
    may_put: bool,
    range: std::ops::Range<usize>,
) -> Result<(), String> {
    let extents = &group.extents[range.clone()];
    let read_only: Vec<OwnedFd> = if may_put {
        Vec::new()
    } else {
        let reopened: Result<_, _> = extents.iter().map(|extent| memfd::read_only(extent.fd.as_fd())).collect();
        reopened.map_err(|error: lapis_arena::ArenaError| error.to_string())?
    };
    let fds: Vec<BorrowedFd<'_>> = if may_put {
        extents.iter().map(|extent| extent.fd.as_fd()).collect()
    } else {
        read_only.iter().map(AsFd::as_fd).collect()
    };
    let extents_bytes = extents.iter().map(Extent::bytes).collect();
    let message = ToClient::Extents { first: range.start as u32, extents_bytes };
    wire.send(conn, &message, &fds).map_err(|error| format!("send extents: {error}"))
}

/// Tells every connected client of a new extent.
pub(crate) fn announce_extent<W: Wire>(group: &mut Group, wire: &mut W, extent: usize) {
    for client in group.clients.values().filter(|client| client.connected) {
        if let Err(error) = send_extents(group, wire, client.conn, client.may_put, extent..extent + 1) {
            // It will see the extent when it reconnects; until then blocks there are misses to it.
            tracing::warn!(client = client.id.0, error, "a client did not take a new extent");
        }
    }
}

fn send_or_hang_up<W: Wire, M: Movers>(
    engine: &mut Engine<W, M>,
    now: Time,
    conn: ConnId,
    message: &ToClient,
    fds: &[BorrowedFd<'_>],
) {
    if let Err(error) = engine.wire.send(conn, message, fds) {
        engine.refuse(now, conn, &format!("the socket does not take an answer: {error}"));
    }
}

/// The pool of this shape, made if it is new; and the bytes of its slots (chain) or of its largest ones (object).
/// `growth`: bytes of the extent that the group gets next.
fn open_pool(group: &mut Group, shape: &PoolShape, growth: u64) -> Result<(lapis_config::PoolId, u32), String> {
    if shape.label.len() > LABEL_BYTES_MAX || !shape.label.is_ascii() {
        return Err(format!("the pool's label has {} bytes; up to {LABEL_BYTES_MAX}, ASCII", shape.label.len()));
    }
    if shape.block_bytes == 0 || shape.block_bytes > BLOCK_BYTES_MAX {
        return Err(format!("blocks of {} bytes; 1 to {BLOCK_BYTES_MAX} are possible", shape.block_bytes));
    }
    if shape.pieces == 0 || shape.pieces > PIECES_MAX || !shape.block_bytes.is_multiple_of(u64::from(shape.pieces)) {
        return Err(format!(
            "{} pieces of a block of {} bytes; 1 to {PIECES_MAX} equal pieces are possible",
            shape.pieces, shape.block_bytes
        ));
    }
    let slot_bytes = sizes::slot_bytes(shape, shape.block_bytes);
    let extent_max = group.extents.iter().map(Extent::bytes).fold(growth, u64::max);
    if slot_bytes > extent_max.min(lapis_config::REGISTER_BYTES) {
        return Err(format!(
            "a block of {} bytes needs a slot of {slot_bytes} bytes; the largest extent of this group has {extent_max}",
            shape.block_bytes
        ));
    }
    let known = group.shapes.iter().find(|(_, (other, _))| other == shape).map(|(id, _)| *id);
    if let Some(id) = known {
        return Ok((id, slot_bytes as u32));
    }
    let id = group
        .core
        .kept_mut()
        .state
        .add_pool(shape)
        .ok_or_else(|| format!("the group has {} pools, the limit", lapis_config::POOLS_MAX))?;
    group.add_pool(id, shape.clone());
    Ok((id, slot_bytes as u32))
}

/// Takes over a client of the former daemon: its pins count unless it was expelled, its granted slots stay its own until
/// it resumes or is proven gone.
pub(crate) fn adopt_client<W: Wire>(
    index: usize,
    group: &mut Group,
    wire: &mut W,
    former: Former,
    roles: &mut BTreeMap<ConnId, Role>,
) -> Result<(), DaemonError> {
    let Former { record, control_fd, lifeline, device_page } = former;
    let id = ClientId(record.id);
    let mapping = Mapping::shared(control_fd.as_fd(), control::BYTES, Access::ReadWrite)?;
    let conn = wire
        .watch_former(record.pid, record.start_time, lifeline.as_fd())
        .map_err(|source| DaemonError::Os { what: "watch a former client", source })?;
    let control = ControlDaemon::new(mapping);
    let [may_put, writes_by_dma, expelled] =
        [CLIENT_MAY_PUT, CLIENT_WRITES_BY_DMA, CLIENT_EXPELLED].map(|flag| record.flags & flag != 0);
    group.core.adopt_client(id, may_put);
    if !expelled {
        group.core.kept_mut().add_hazards(id, control.hazards(), device_page.as_ref());
    }
    let name_bytes = record.name.iter().take_while(|&&b| b != 0).count();
    let peer = Peer { pid: record.pid, uid: record.uid, gid: 0, start_time: record.start_time };
    let mut client = Client::new(Parts {
        id,
        name: String::from_utf8_lossy(&record.name[..name_bytes]).into_owned(),
        peer,
        may_put,
        writes_by_dma,
        secret: record.secret,
        control,
        control_fd,
        device_page,
        lifeline,
        conn,
        connected: false,
    });
    client.expelled = expelled;
    group.clients.insert(id, client);
    roles.insert(conn, Role::Client { group: index, id });
    Ok(())
}
