//! What is said to the other side.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncWriteExt, WriteHalf},
    sync::mpsc,
};

use super::super::{ROOM_BYTES, socket::Stream};

/// Messages are written together up to this, bytes.
const BATCH_BYTES: usize = 64 << 10;

/// How much waits to be sent.
#[derive(Default)]
pub(in super::super) struct Flow {
    waiting: AtomicUsize,
    /// `has_room` was false: whoever asked hears when it is true again.
    is_awaited: AtomicBool,
}

impl Flow {
    pub(in super::super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    pub(super) fn comes(&self, bytes: usize) {
        self.waiting.fetch_add(bytes, Ordering::SeqCst);
    }

    /// So many bytes went out; true if somebody is to hear that there is room again.
    fn went(&self, bytes: usize) -> bool {
        let left = self.waiting.fetch_sub(bytes, Ordering::SeqCst) - bytes;
        left < ROOM_BYTES && self.is_awaited.swap(false, Ordering::SeqCst)
    }

    pub(in super::super) fn has_room(&self) -> bool {
        if self.waiting() < ROOM_BYTES {
            return true;
        }
        self.is_awaited.store(true, Ordering::SeqCst);
        // It may have gone out in between, when nobody was seen to wait.
        self.waiting() < ROOM_BYTES && self.is_awaited.swap(false, Ordering::SeqCst)
    }
}

/// Invariant: whatever was written of the batch is counted before the next await, so that a write may be dropped at any,
/// and another one goes on from there.
pub(in super::super) struct Writer {
    stream: WriteHalf<Stream>,
    batch: Vec<u8>,
    written: usize,
}

impl Writer {
    pub(super) fn new(stream: WriteHalf<Stream>) -> Self {
        Self { stream, batch: Vec::new(), written: 0 }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.written == self.batch.len()
    }

    /// Takes what waits, after the batch before is written; false if nothing will come any more.
    pub(super) async fn take(&mut self, outbox: &mut mpsc::UnboundedReceiver<Vec<u8>>) -> bool {
        let Some(first) = outbox.recv().await else { return false };
        (self.batch, self.written) = (first, 0);
        while self.batch.len() < BATCH_BYTES {
            let Ok(next) = outbox.try_recv() else { break };
            self.batch.extend_from_slice(&next);
        }
        true
    }

    /// Writes some of the batch; true if somebody is to hear that there is room again.
    pub(super) async fn write(&mut self, flow: &Flow) -> io::Result<bool> {
        let bytes = self.stream.write(&self.batch[self.written..]).await?;
        if bytes == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.written += bytes;
        let is_room = flow.went(bytes);
        if self.is_idle() {
            self.stream.flush().await?;
        }
        Ok(is_room)
    }

    /// All that waits, where nothing more comes.
    pub(super) async fn drain(&mut self, outbox: &mut mpsc::UnboundedReceiver<Vec<u8>>, flow: &Flow) -> io::Result<()> {
        while !self.is_idle() || self.take(outbox).await {
            self.write(flow).await?;
        }
        Ok(())
    }

    /// What was begun, then `last`; what waits behind is not sent.
    pub(super) async fn finish(&mut self, last: &[u8]) -> io::Result<()> {
        self.stream.write_all(&self.batch[self.written..]).await?;
        self.stream.write_all(last).await?;
        self.stream.flush().await
    }

    pub(super) async fn shut(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }
}
