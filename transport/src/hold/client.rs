//! The daemon's end of the holder's socket.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use super::{
    Keeper, NAME_BYTES_MAX,
    message::{Answer, Ask},
};
use crate::{
    datagram,
    error::TransportError,
    socket::{connected, receive_by, send_patiently},
};

/// The holder does nothing else; a longer silence means that it was stopped.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Keeps descriptors in `lapis hold`.
#[derive(Debug)]
pub struct HoldClient {
    socket: OwnedFd,
    token: u32,
    buffer: Vec<u8>,
    payload: Vec<u8>,
}

impl HoldClient {
    /// Connects to the holder that serves `path`. [`Self::take_all`] comes next: only the owner keeps and forgets.
    pub fn connect(path: &Path) -> Result<Self, TransportError> {
        Ok(Self { socket: connected(path)?, token: 0, buffer: datagram::buffer(), payload: Vec::new() })
    }

    /// Becomes the owner and returns all that is kept, by name. Waits up to `wait` for the end of the process that had
    /// them before; if that is still alive then, the error names its pid.
    pub fn take_all(&mut self, wait: Duration) -> Result<Vec<(String, OwnedFd)>, TransportError> {
        let deadline = Instant::now() + wait;
        let mut taken = Vec::new();
        loop {
            let (total, batch) = self.take(taken.len(), deadline)?;
            let done = batch.is_empty();
            taken.extend(batch);
            if taken.len() >= total {
                return Ok(taken);
            }
            if done {
                return Err(broken(format!("{} of {total} descriptors came", taken.len())));
            }
        }
    }

    fn take(&mut self, first: usize, deadline: Instant) -> Result<(usize, Vec<(String, OwnedFd)>), TransportError> {
        self.ask(&Ask::Take { first: first as u32 }, &[])?;
        let (mut holder, mut until) = (None, Instant::now() + ANSWER_MAX);
        loop {
            match self.answer(until) {
                Ok((Answer::Held { pid }, _)) => (holder, until) = (Some(pid), deadline),
                Ok((Answer::Batch { total, names }, fds)) if names.len() == fds.len() => {
                    return Ok((total as usize, names.into_iter().zip(fds).collect()));
                }
                Ok((Answer::Refused { reason }, _)) => return Err(TransportError::Refused { reason }),
                Ok((answer, fds)) => return Err(broken(format!("{answer:?} with {} descriptors", fds.len()))),
                Err(TransportError::TimedOut { after }) => {
                    return Err(holder.map_or(TransportError::TimedOut { after }, |pid| TransportError::Held { pid }));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn ask(&mut self, ask: &Ask, fds: &[BorrowedFd<'_>]) -> Result<(), TransportError> {
        self.token = self.token.wrapping_add(1);
        ask.encode(self.token, &mut self.payload);
        send_patiently(&self.socket, &self.payload, fds)
    }

    /// The answer to the last question; answers that came too late for earlier ones are dropped.
    fn answer(&mut self, deadline: Instant) -> Result<(Answer, Vec<OwnedFd>), TransportError> {
        let started = Instant::now();
        loop {
            let mut fds = Vec::new();
            let Some(bytes) = receive_by(&self.socket, deadline, &mut self.buffer, &mut fds)? else {
                return Err(TransportError::TimedOut { after: started.elapsed() });
            };
            let (token, answer) = Answer::decode(&self.buffer[..bytes]).map_err(|e| broken(e.to_string()))?;
            if token == self.token {
                return Ok((answer, fds));
            }
        }
    }

    fn done(&mut self, ask: &Ask, fds: &[BorrowedFd<'_>]) -> Result<(), TransportError> {
        self.ask(ask, fds)?;
        match self.answer(Instant::now() + ANSWER_MAX)?.0 {
            Answer::Done => Ok(()),
            Answer::Refused { reason } => Err(TransportError::Refused { reason }),
            answer => Err(broken(format!("{answer:?}"))),
        }
    }
}

impl Keeper for HoldClient {
    fn keep(&mut self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        assert!(name.len() <= NAME_BYTES_MAX, "a name of {} bytes", name.len());
        Ok(self.done(&Ask::Keep { name: name.to_owned() }, &[fd])?)
    }

    fn forget(&mut self, name: &str) -> io::Result<()> {
        Ok(self.done(&Ask::Forget { name: name.to_owned() }, &[])?)
    }
}

fn broken(what: String) -> TransportError {
    TransportError::Refused { reason: format!("an answer that is none: {what}") }
}
