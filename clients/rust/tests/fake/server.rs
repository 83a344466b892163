//! The fake behind a real socket: a thread that sleeps like a daemon's, and is woken by doorbells alone.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::mpsc,
    thread::JoinHandle,
    time::Duration,
};

use lapis_arena::memfd;
use lapis_client::{Client, ConnectOptions};
use lapis_transport::{
    hello::{ToClient, ToDaemon},
    listen::Listener,
    unix::{UnixWire, Waker},
    wire::{ConnId, Event, Wire},
};

use super::{Fake, Welcome};

type Order = Box<dyn FnOnce(&mut Fake) + Send>;

/// A running fake daemon.
pub struct Server {
    path: PathBuf,
    orders: mpsc::Sender<Order>,
    waker: Waker,
    thread: Option<JoinHandle<Fake>>,
}

impl Server {
    pub fn start(path: &Path, fake: Fake) -> Self {
        let listener = Listener::bind(path, 0o600).expect("a socket");
        let (orders, taken) = mpsc::channel();
        let (started, waker) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut wire = UnixWire::new().expect("a wire");
            wire.listen(listener, 16).expect("a listener");
            started.send(wire.waker()).expect("the test waits");
            Serving::new(wire, fake).run(&taken)
        });
        let waker = waker.recv().expect("a running server");
        Self { path: path.to_owned(), orders, waker, thread: Some(thread) }
    }

    /// Does something with the fake on its own thread and returns what came of it.
    pub fn with<T: Send + 'static>(&self, order: impl FnOnce(&mut Fake) -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::channel();
        let order: Order = Box::new(move |fake| answer.send(order(fake)).expect("the test waits"));
        self.orders.send(order).expect("the server runs");
        self.waker.wake();
        answered.recv().expect("the server answers")
    }

    /// As SIGKILL: sockets and doorbells close, memory stays.
    pub fn kill(mut self) -> Fake {
        self.end()
    }

    fn end(&mut self) -> Fake {
        let (orders, _) = mpsc::channel();
        drop(std::mem::replace(&mut self.orders, orders));
        self.waker.wake();
        self.thread.take().expect("it runs").join().expect("a fake without complaints")
    }

    pub fn connect(&self) -> Client {
        let options = ConnectOptions { name: "test".into(), ..ConnectOptions::default() };
        Client::connect(&self.path, options).expect("a connection")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.thread.is_some() && !std::thread::panicking() {
            self.end();
        }
    }
}

struct Serving {
    wire: UnixWire,
    fake: Fake,
    /// Index of the client of each connection.
    clients: BTreeMap<ConnId, usize>,
    lifelines: Vec<OwnedFd>,
}

impl Serving {
    fn new(wire: UnixWire, fake: Fake) -> Self {
        Self { wire, fake, clients: BTreeMap::new(), lifelines: Vec::new() }
    }

    fn run(mut self, orders: &mpsc::Receiver<Order>) -> Fake {
        let mut events = Vec::new();
        loop {
            loop {
                match orders.try_recv() {
                    Ok(order) => order(&mut self.fake),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return self.fake,
                }
            }
            for at in self.fake.turn() {
                let conn = self.clients.iter().find(|(_, client)| **client == at).map(|(conn, _)| *conn);
                self.wire.ring(conn.expect("answers go to connected clients"));
            }
            self.fake.writer.set_sleeping(true);
            let waiting =
                !self.fake.is_silent && self.fake.clients.iter().any(|c| c.connected && c.control.has_requests());
            // No timeout: whoever forgets to ring waits until its deadline.
            let timeout = if waiting { Some(Duration::ZERO) } else { None };
            self.wire.wait(timeout, &mut events).expect("a wire that works");
            self.fake.writer.set_sleeping(false);
            for event in events.drain(..) {
                self.handle(event);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Message { conn, message } => self.message(conn, message),
            Event::HungUp { conn } => {
                if let Some(at) = self.clients.remove(&conn) {
                    self.fake.clients[at].connected = false;
                }
                self.wire.hang_up(conn);
            }
            _ => {}
        }
    }

    fn message(&mut self, conn: ConnId, message: ToDaemon) {
        match message {
            ToDaemon::Hello { resume, .. } => {
                let table_id = self.fake.geometry.table_id;
                let known = resume.and_then(|resume| {
                    let fits = |c: &super::Known| c.id == resume.client && c.secret == resume.secret;
                    let at = self.fake.clients.iter().position(fits)?;
                    (resume.table_id == table_id).then_some((at, resume.writing))
                });
                let (at, resumed) = match known {
                    Some((at, writing)) => {
                        let client = &mut self.fake.clients[at];
                        client.control.reset();
                        client.granted.retain(|slot| writing.contains(slot));
                        (at, true)
                    }
                    None => {
                        self.fake.add_client();
                        (self.fake.clients.len() - 1, false)
                    }
                };
                self.fake.clients[at].connected = true;
                self.clients.insert(conn, at);
                self.welcome(conn, at, resumed);
            }
            ToDaemon::OpenPool { token, shape } => {
                let answer = if shape.label == "refused" {
                    ToClient::Refused { token, reason: "a label that is refused".into() }
                } else {
                    let (pool, slot_bytes) = self.fake.open_pool(&shape);
                    ToClient::Pool { token, pool, slot_bytes }
                };
                self.wire.send(conn, &answer, &[]).expect("a client that listens");
            }
            ToDaemon::Bye => {
                let at = self.clients[&conn];
                self.fake.byes.push(self.fake.clients[at].id);
            }
            ToDaemon::Status | ToDaemon::Drain { .. } => {
                for message in ToClient::status("{}") {
                    self.wire.send(conn, &message, &[]).expect("a client that listens");
                }
            }
        }
    }

    fn welcome(&mut self, conn: ConnId, at: usize, resumed: bool) {
        let doorbells = self.wire.open_doorbells(conn).expect("doorbells");
        let (read, write) = rustix::pipe::pipe().expect("a pipe");
        self.lifelines.push(read);
        let Welcome { client, secret, geometry, may_put, magazine_bytes_max, defaults, .. } =
            self.fake.welcome(at, resumed);
        let message = ToClient::Welcome { client, secret, geometry, may_put, resumed, magazine_bytes_max, defaults };
        let table = memfd::read_only(self.fake.table_fd.as_fd()).expect("a descriptor");
        let mut fds = vec![
            table.as_fd(),
            self.fake.clients[at].control_fd.as_fd(),
            doorbells.to_daemon.as_fd(),
            doorbells.to_client.as_fd(),
        ];
        fds.extend((!resumed).then_some(write.as_fd()));
        self.wire.send(conn, &message, &fds).expect("a client that listens");
        let extents_bytes = self.fake.geometry.extents_bytes.clone();
        let extents = ToClient::Extents { first: 0, extents_bytes };
        self.wire.send(conn, &extents, &[self.fake.extent_fd.as_fd()]).expect("a client that listens");
    }
}
