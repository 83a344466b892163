//! Operations made into commands of a controller, and their ends into completions; what becomes of both when it fails.
//!
//! Invariant: each slot of `flights` is either in `free`, or in `queue` with something left to order, or has commands under way.
//! Invariant: memory of a command, its own or a piece of `bounce`, is kept until its end is told or the queue is closed.

use std::{
    collections::VecDeque,
    io,
    mem::MaybeUninit,
    time::{Duration, Instant},
};

use lapis_arena::{ArenaError, Mapping};
use lapis_config::Controller;

use super::{
    env::{DmaMemory, Env},
    parts::{Limits, Regions},
    queue::{COMMANDS, Identity, Order, Queue, Refused},
    status::Status,
};
use crate::device::{Completion, Io, IoKind, Memory};

/// Memory that stands in for what is not registered: the log's own pages, and the edges of extents. In pieces.
const BOUNCE_BYTES: usize = 128 << 10;
const BOUNCES: usize = 32;
/// Of one command to deallocate, whose field for sectors has 32 bits.
const DEALLOCATE_BYTES_MAX: u64 = 1 << 40;
/// A command that has no answer for so long never gets one, as the kernel's driver has it (`nvme_core.io_timeout`).
const PATIENCE: Duration = Duration::from_secs(30);
/// A controller that went is looked for so often, when something is wanted of it.
const CONNECT_EVERY: Duration = Duration::from_secs(2);

/// See the module's head.
pub(super) struct Work {
    env: &'static Env,
    pub controller: Controller,
    /// Of the device as it was opened.
    bytes: u64,
    identity: Identity,
    pub patience: Duration,
    link: Link,
    flights: Vec<Option<Flight>>,
    free: Vec<u32>,
    queue: VecDeque<u32>,
    commands: Vec<Option<Command>>,
    commands_free: Vec<u32>,
    regions: Regions,
    bounce: DmaMemory,
    bounces_free: Vec<u32>,
    limits: Limits,
    told: Vec<(u32, Status)>,
    pub ended: Vec<Completion>,
}

enum Link {
    Up(Box<Queue>),
    /// Gone; when it was looked for last.
    Down(Instant),
}

/// An operation.
struct Flight {
    io: Io,
    /// Bytes that were ordered.
    ordered: u64,
    under_way: u32,
    error: Option<io::Error>,
}

/// One command of an operation.
#[derive(Clone, Copy)]
struct Command {
    flight: u32,
    /// Where in the operation.
    at: u64,
    bytes: u64,
    bounce: Option<u32>,
    since: Instant,
}

impl Work {
    /// `None`: there is no memory for devices.
    pub(super) fn new(env: &'static Env, controller: Controller, queue: Queue, depth: usize) -> Option<Self> {
        let Some(bounce) = env.allocate(BOUNCE_BYTES * BOUNCES) else {
            queue.close();
            return None;
        };
        let shape = queue.shape;
        Some(Self {
            env,
            controller,
            bytes: shape.bytes(),
            identity: queue.identity,
            patience: PATIENCE,
            link: Link::Up(Box::new(queue)),
            flights: (0..depth).map(|_| None).collect(),
            free: (0..depth as u32).rev().collect(),
            queue: VecDeque::with_capacity(depth),
            commands: vec![None; COMMANDS],
            commands_free: (0..COMMANDS as u32).rev().collect(),
            regions: Regions::default(),
            bounce,
            bounces_free: (0..BOUNCES as u32).rev().collect(),
            limits: Limits { transfer_max: shape.transfer_max, bounce_bytes: BOUNCE_BYTES },
            told: Vec::new(),
            ended: Vec::new(),
        })
    }

    pub(super) fn depth(&self) -> usize {
        self.flights.len()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    pub(super) fn registered_bytes(&self) -> usize {
        self.regions.bytes()
    }

    /// Takes an operation, or gives it back; one that is wrong, or moves nothing, has ended.
    pub(super) fn submit(&mut self, io: Io, checked: io::Result<()>) -> Result<(), Io> {
        if self.in_flight() + self.ended.len() == self.depth() {
            return Err(io);
        }
        if checked.is_err() || (io.bytes == 0 && io.kind != IoKind::Flush) {
            self.ended.push(Completion { id: io.id, result: checked });
            return Ok(());
        }
        let slot = self.free.pop().expect("fewer than `depth` are under way");
        self.flights[slot as usize] = Some(Flight { io, ordered: 0, under_way: 0, error: None });
        self.queue.push_back(slot);
        Ok(())
    }

    pub(super) fn register(&mut self, mapping: &Mapping) -> Result<(), ArenaError> {
        if mapping.is_empty() || self.regions.has(mapping.as_ptr(0) as usize, mapping.len()) {
            return Ok(());
        }
        if let Some((address, bytes)) = self.env.register(mapping)? {
            self.regions.add(address, bytes);
        }
        Ok(())
    }

    /// Orders what can be, takes what has ended. `asks`: for the controller's own news too. Of a controller that fails, all
    /// that it had ends.
    pub(super) fn turn(&mut self, now: Instant, asks: bool) {
        if let Err(error) = self.advance(now, asks) {
            self.reset(now, &error);
        }
        if matches!(self.link, Link::Down(_)) {
            self.refuse_all();
        }
    }

    fn advance(&mut self, now: Instant, asks: bool) -> io::Result<()> {
        self.connect_again(now);
        let Link::Up(queue) = &mut self.link else { return Ok(()) };
        queue.take()?;
        self.order(now)?;
        let Link::Up(queue) = &mut self.link else { return Ok(()) };
        let processed = queue.process();
        let asked = if asks { queue.process_admin() } else { Ok(()) };
        self.reap();
        processed.and(asked)?;
        if asks && self.hangs(now) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // What has ended made room.
        self.order(now)
    }

    /// Whether a command has been with the controller for too long.
    fn hangs(&self, now: Instant) -> bool {
        self.commands.iter().flatten().any(|command| now.saturating_duration_since(command.since) >= self.patience)
    }

    /// Orders commands of waiting operations, in turn, while there is room. An error: the controller has failed.
    fn order(&mut self, now: Instant) -> io::Result<()> {
        while let Some(&slot) = self.queue.front() {
            let Some(&number) = self.commands_free.last() else { return Ok(()) };
            let Some((command, order)) = self.next_command(now, slot) else { return Ok(()) };
            let Link::Up(queue) = &mut self.link else { return Ok(()) };
            // SAFETY: the order's memory lies in the flight's, whose mapping `flights` keeps, or in a piece of `bounce` that no
            // other command has; both stay until the command's end is told (`reap`) or the queue is closed.
            match unsafe { queue.submit(number, order) } {
                Ok(()) => self.ordered(slot, number, command),
                Err(Refused::Full) => return Ok(()),
                Err(Refused::Failed) => {
                    return Err(io::Error::new(io::ErrorKind::NotConnected, "the controller takes no commands"));
                }
                Err(Refused::Error(error)) => {
                    let flight = self.flights[slot as usize].as_mut().expect("a slot under way");
                    flight.error.get_or_insert(error);
                    self.settle(slot);
                }
            }
        }
        Ok(())
    }

    /// What comes next of an operation; `None` while memory to copy by is short.
    fn next_command(&mut self, now: Instant, slot: u32) -> Option<(Command, Order)> {
        let Flight { io, ordered: at, .. } = self.flights[slot as usize].as_ref().expect("a slot under way");
        let (at, left, offset) = (*at, io.bytes - at, io.offset + at);
        let Some(memory) = &io.memory else {
            let bytes = left.min(DEALLOCATE_BYTES_MAX);
            let order = if io.kind == IoKind::Flush { Order::Flush } else { Order::Deallocate { offset, bytes } };
            return Some((Command { flight: slot, at, bytes, bounce: None, since: now }, order));
        };
        let mut place = memory.address(at as usize, left as usize);
        let next = self.regions.next(place as usize, left as usize, self.limits);
        let bounce = if next.bounced { Some(*self.bounces_free.last()?) } else { None };
        if let Some(piece) = bounce {
            let start = piece as usize * BOUNCE_BYTES;
            if io.kind == IoKind::Write {
                copy_out(memory, at as usize, self.bounce.bytes_mut(start, next.bytes));
            }
            place = self.bounce.address(start);
        }
        let command = Command { flight: slot, at, bytes: next.bytes as u64, bounce, since: now };
        let order = match io.kind {
            IoKind::Read => Order::Read { memory: place, offset, bytes: next.bytes },
            _ => Order::Write { memory: place, offset, bytes: next.bytes },
        };
        Some((command, order))
    }

    fn ordered(&mut self, slot: u32, number: u32, command: Command) {
        self.commands_free.pop();
        if command.bounce.is_some() {
            self.bounces_free.pop();
        }
        self.commands[number as usize] = Some(command);
        let flight = self.flights[slot as usize].as_mut().expect("a slot under way");
        flight.under_way += 1;
        flight.ordered += command.bytes;
        if flight.ordered == flight.io.bytes {
            self.queue.pop_front();
        }
    }

    /// Takes the ends of commands.
    fn reap(&mut self) {
        let mut told = std::mem::take(&mut self.told);
        if let Link::Up(queue) = &mut self.link {
            queue.drain(&mut told);
        }
        told.drain(..).for_each(|(number, status)| self.command_ended(number, status));
        self.told = told;
    }

    fn command_ended(&mut self, number: u32, status: Status) {
        let command = self.commands[number as usize].take().expect("a command ends once");
        self.commands_free.push(number);
        let Command { flight: slot, at, bytes, bounce, .. } = command;
        let flight = self.flights[slot as usize].as_mut().expect("its operation waits for it");
        flight.under_way -= 1;
        if let Some(piece) = bounce {
            if let (IoKind::Read, true, Some(memory)) = (flight.io.kind, status.is_success(), &flight.io.memory) {
                let from = self.bounce.bytes_mut(piece as usize * BOUNCE_BYTES, bytes as usize);
                memory.mapping.copy_in(memory.range.start + at as usize, from);
            }
            self.bounces_free.push(piece);
        }
        match status.error() {
            // A hint: a controller that has no such command is none the worse.
            Some(error) if flight.io.kind == IoKind::Discard => tracing::debug!(%error, "a discard was refused"),
            Some(error) => drop(flight.error.get_or_insert(error)),
            None => {}
        }
        self.settle(slot);
    }

    /// Ends an operation that has nothing under way, if it has failed or all of it was ordered. What failed orders no more.
    fn settle(&mut self, slot: u32) {
        let flight = self.flights[slot as usize].as_mut().expect("a slot under way");
        if flight.error.is_some() {
            self.queue.retain(|waiting| *waiting != slot);
        }
        if flight.under_way > 0 || (flight.error.is_none() && flight.ordered < flight.io.bytes) {
            return;
        }
        let Flight { io, error, .. } = self.flights[slot as usize].take().expect("just looked at");
        self.free.push(slot);
        self.ended.push(Completion { id: io.id, result: error.map_or(Ok(()), Err) });
    }

    /// The controller has failed. All that it had ends as errors; it goes on if it comes back, else it is given up.
    fn reset(&mut self, now: Instant, why: &io::Error) {
        let Link::Up(mut queue) = std::mem::replace(&mut self.link, Link::Down(now)) else { return };
        let controller = &self.controller;
        match queue.reset() {
            Ok(()) => {
                tracing::warn!(%controller, why = %why, "a controller failed and was reset");
                self.link = Link::Up(queue);
            }
            Err(error) => {
                tracing::error!(%controller, why = %why, %error, "a controller failed and is given up");
                self.told.extend(queue.close());
            }
        }
        self.reap();
    }

    /// Of a controller that is gone.
    fn refuse_all(&mut self) {
        while let Some(slot) = self.queue.pop_front() {
            let flight = self.flights[slot as usize].as_mut().expect("a slot under way");
            let gone = || io::Error::new(io::ErrorKind::NotConnected, "the controller is gone");
            flight.error.get_or_insert_with(gone);
            self.settle(slot);
        }
    }

    /// If something is wanted of a controller that had gone. It must be the same one: whatever another has on it is not ours.
    fn connect_again(&mut self, now: Instant) {
        let Link::Down(since) = self.link else { return };
        if self.queue.is_empty() || now.duration_since(since) < CONNECT_EVERY {
            return;
        }
        self.link = Link::Down(now);
        let controller = &self.controller;
        match Queue::connect(self.env, controller) {
            Ok(queue) if queue.shape.bytes() == self.bytes && queue.identity == self.identity => {
                tracing::info!(%controller, "a controller is back");
                self.limits.transfer_max = queue.shape.transfer_max;
                self.link = Link::Up(Box::new(queue));
            }
            Ok(queue) => {
                queue.close();
                tracing::error!(%controller, "another one is in a controller's place");
            }
            Err(error) => tracing::debug!(%error, "a controller is still gone"),
        }
    }

    /// Gives the controller up; nothing is told of what it had.
    pub(super) fn close(self) {
        if let Link::Up(queue) = self.link {
            queue.close();
        }
        self.regions.iter().for_each(|(address, _)| self.env.unregister(address));
    }
}

fn copy_out(memory: &Memory, at: usize, to: &mut [u8]) {
    // SAFETY: bytes that are initialised may be written as ones that are not: `copy_out` initialises all of them.
    let to = unsafe { &mut *(std::ptr::from_mut(to) as *mut [MaybeUninit<u8>]) };
    memory.mapping.copy_out(memory.range.start + at, to);
}
