//! One client of a group as the engine sees it: its control memfd, its connection, and how much of it is still alive.

use std::{collections::VecDeque, os::fd::OwnedFd};

use lapis_config::{ClientId, Time};
use lapis_transport::{
    control::{ControlDaemon, Counters},
    frame::Completion,
    wire::{ConnId, Peer},
};

use crate::group::DevicePage;

/// Answers that wait for room in the completion ring; a client that lets more pile up is disconnected.
const BACKLOG_MAX: usize = 1024;

pub struct Client {
    pub id: ClientId,
    pub name: String,
    pub peer: Peer,
    pub may_put: bool,
    pub writes_by_dma: bool,
    /// It was told of GPUs, since it connected last.
    pub uses_gpus: bool,
    pub secret: u64,
    pub control: ControlDaemon,
    pub control_fd: OwnedFd,
    /// Its page of slots on GPUs, where its group uses them.
    pub device_page: Option<DevicePage>,
    /// Read end of the pipe whose write end the client's processes inherit.
    pub lifeline: OwnedFd,
    /// Under which its process and lifeline are watched; its socket too, while `connected`.
    pub conn: ConnId,
    pub connected: bool,
    pub exited: bool,
    pub lifeline_ended: bool,
    /// Everything of it ended; its granted slots are free from then on (a grace for writes by DMA).
    pub gone_at: Option<Time>,
    pub expelled: bool,
    pub counters_last: Counters,
    backlog: VecDeque<Completion>,
}

/// What a new or adopted client starts from.
pub struct Parts {
    pub id: ClientId,
    pub name: String,
    pub peer: Peer,
    pub may_put: bool,
    pub writes_by_dma: bool,
    pub secret: u64,
    pub control: ControlDaemon,
    pub control_fd: OwnedFd,
    pub device_page: Option<DevicePage>,
    pub lifeline: OwnedFd,
    pub conn: ConnId,
    pub connected: bool,
}

impl Client {
    pub fn new(parts: Parts) -> Self {
        let Parts { id, name, peer, may_put, writes_by_dma, secret, control, control_fd, .. } = parts;
        let Parts { device_page, lifeline, conn, connected, .. } = parts;
        Self {
            id,
            name,
            peer,
            may_put,
            writes_by_dma,
            uses_gpus: false,
            secret,
            control,
            control_fd,
            device_page,
            lifeline,
            conn,
            connected,
            exited: false,
            lifeline_ended: false,
            gone_at: None,
            expelled: false,
            counters_last: Counters::default(),
            backlog: VecDeque::new(),
        }
    }

    /// Queues an answer. False if the client has let too many pile up.
    pub fn answer(&mut self, completion: Completion) -> bool {
        if self.backlog.is_empty() && self.control.push_completion(&completion) {
            return true;
        }
        self.backlog.push_back(completion);
        self.backlog.len() <= BACKLOG_MAX
    }

    /// Moves waiting answers into the ring as far as there is room; true if any moved.
    pub fn flush(&mut self) -> bool {
        let mut moved = false;
        while let Some(completion) = self.backlog.front() {
            if !self.control.push_completion(completion) {
                break;
            }
            self.backlog.pop_front();
            moved = true;
        }
        moved
    }

    /// Answers wait for room.
    pub fn is_owed(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// What was on its way when the connection ended is not delivered to the next one.
    pub fn forget_answers(&mut self) {
        self.backlog.clear();
    }
}
