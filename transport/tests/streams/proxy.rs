//! Between a reader and an owner: passes what the reader says, and does something to what the owner answers.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
};

use super::world::{PATIENCE, loopback};

/// To the bytes of each connection's answers, counted from its first one.
#[derive(Clone, Copy, Debug)]
pub enum Harm {
    Nothing,
    /// Those after so many wait until `release`.
    Stall(usize),
    /// The connection ends after so many.
    Cut(usize),
    /// A bit of this one.
    Flip(usize),
    /// So many are put in at that place, or taken out.
    PutIn(usize, usize),
    TakeOut(usize, usize),
}

pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<(Mutex<State>, Condvar)>,
}

struct State {
    harm: Harm,
    is_released: bool,
    /// Connections that were made, and of them those whose answers ended.
    made: usize,
    ended: usize,
    /// Bytes of answers that went on, of all connections.
    passed: usize,
    /// What readers said.
    asked: Vec<u8>,
}

impl Proxy {
    pub fn start(owner: SocketAddr, harm: Harm) -> Self {
        let listener = TcpListener::bind(loopback(0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = State { harm, is_released: false, made: 0, ended: 0, passed: 0, asked: vec![] };
        let state = Arc::new((Mutex::new(state), Condvar::new()));
        let theirs = Arc::clone(&state);
        thread::spawn(move || {
            for reader in listener.incoming() {
                let Ok(reader) = reader else { return };
                let Ok(up) = TcpStream::connect(owner) else { continue };
                theirs.0.lock().expect("no panic").made += 1;
                let (mut from, mut to) = (reader.try_clone().expect("a clone"), up.try_clone().expect("a clone"));
                let state = Arc::clone(&theirs);
                thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(bytes @ 1..) = from.read(&mut buffer) {
                        state.0.lock().expect("no panic").asked.extend_from_slice(&buffer[..bytes]);
                        if to.write_all(&buffer[..bytes]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Write);
                });
                let state = Arc::clone(&theirs);
                thread::spawn(move || {
                    answers(&state, up, reader);
                    state.0.lock().expect("no panic").ended += 1;
                    state.1.notify_all();
                });
            }
        });
        Self { address, state }
    }

    pub fn set(&self, harm: Harm) {
        self.state.0.lock().expect("no panic").harm = harm;
    }

    /// Lets go of what was stalled.
    pub fn release(&self) {
        self.state.0.lock().expect("no panic").is_released = true;
        self.state.1.notify_all();
    }

    pub fn made(&self) -> usize {
        self.state.0.lock().expect("no panic").made
    }

    /// All that readers have said so far.
    pub fn asked(&self) -> Vec<u8> {
        self.state.0.lock().expect("no panic").asked.clone()
    }

    /// Until so many bytes of answers went on.
    pub fn wait_passed(&self, bytes: usize) {
        self.wait("bytes to pass", |state| state.passed >= bytes);
    }

    /// Until all connections but so many have ended.
    pub fn wait_open(&self, open: usize) {
        self.wait("connections to end", |state| state.made - state.ended <= open);
    }

    fn wait(&self, what: &str, ready: impl Fn(&State) -> bool) {
        let state = self.state.0.lock().expect("no panic");
        let waited = self.state.1.wait_timeout_while(state, PATIENCE, |state| !ready(state)).expect("no panic");
        assert!(!waited.1.timed_out(), "waited {PATIENCE:?} for {what}");
    }
}

fn answers(state: &(Mutex<State>, Condvar), mut up: TcpStream, mut reader: TcpStream) {
    let harm = state.0.lock().expect("no panic").harm;
    let (mut at, mut buffer) = (0, vec![0; 64 << 10]);
    loop {
        // Up to the place of the harm, then on from there.
        let place = match harm {
            Harm::Nothing => usize::MAX,
            Harm::Stall(at) | Harm::Cut(at) | Harm::Flip(at) | Harm::PutIn(at, _) | Harm::TakeOut(at, _) => at,
        };
        if at == place {
            match harm {
                Harm::Stall(_) => {
                    let waits = state.0.lock().expect("no panic");
                    drop(state.1.wait_while(waits, |state| !state.is_released).expect("no panic"));
                }
                Harm::Cut(_) => break,
                Harm::PutIn(_, count) => {
                    if reader.write_all(&vec![0x11; count]).is_err() {
                        break;
                    }
                }
                Harm::TakeOut(_, count) => {
                    if up.read_exact(&mut vec![0; count]).is_err() {
                        break;
                    }
                }
                Harm::Flip(_) | Harm::Nothing => {}
            }
        }
        let most = if at < place { buffer.len().min(place - at) } else { buffer.len() };
        let Ok(bytes @ 1..) = up.read(&mut buffer[..most]) else { break };
        if let (true, Harm::Flip(_)) = (at == place, harm) {
            buffer[0] ^= 0x40;
        }
        if reader.write_all(&buffer[..bytes]).is_err() {
            break;
        }
        at += bytes;
        state.0.lock().expect("no panic").passed += bytes;
        state.1.notify_all();
    }
    let _ = (up.shutdown(Shutdown::Both), reader.shutdown(Shutdown::Both));
}
