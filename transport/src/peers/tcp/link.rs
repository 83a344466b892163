//! One connection: messages in, messages out, and its end.

mod reader;
mod writer;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

pub(super) use self::{
    reader::{Came, Reader, Unread},
    writer::{Flow, Writer},
};
use super::{events::Told, shared::Shared, socket::Stream};
use crate::peers::{
    links::LinkId,
    message::{MESSAGE_BYTES_MAX, PeerMessage},
};

/// Why whoever holds a link ends it at once. That the handle is gone means: as any link, after what waits.
pub(super) enum Stop {
    /// More waits on it than any reader leaves.
    Overrun,
}

/// The holder's end of a link. Dropped, the link is hung up.
pub(super) struct LinkHandle {
    pub(super) flow: Arc<Flow>,
    outbox: mpsc::UnboundedSender<Vec<u8>>,
    stop: Option<oneshot::Sender<Stop>>,
}

impl LinkHandle {
    pub(super) fn send(&self, bytes: Vec<u8>) {
        self.flow.comes(bytes.len());
        // A link that has ended takes nothing: its `Closed` is on its way.
        let _ = self.outbox.send(bytes);
    }

    pub(super) fn stop(&mut self, stop: Stop) {
        if let Some(sender) = self.stop.take() {
            let _ = sender.send(stop);
        }
    }
}

/// The task's end of a link.
pub(super) struct LinkEnd {
    flow: Arc<Flow>,
    outbox: mpsc::UnboundedReceiver<Vec<u8>>,
    pub(super) stopped: oneshot::Receiver<Stop>,
}

pub(super) fn open() -> (LinkHandle, LinkEnd) {
    let flow = Arc::new(Flow::default());
    let (sender, outbox) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel();
    (LinkHandle { flow: flow.clone(), outbox: sender, stop: Some(stop) }, LinkEnd { flow, outbox, stopped })
}

/// Tells of a link's end, whatever ends its task.
pub(super) struct Ending {
    shared: Arc<Shared>,
    link: LinkId,
    is_told: bool,
}

impl Ending {
    pub(super) fn new(shared: &Arc<Shared>, link: LinkId) -> Self {
        Self { shared: shared.clone(), link, is_told: false }
    }

    pub(super) fn closed(&mut self, reason: String) {
        if !std::mem::replace(&mut self.is_told, true) {
            self.shared.events.tell(Told::Closed { link: self.link, reason });
        }
    }

    /// It was hung up, and whoever did it knows.
    pub(super) fn hung_up(&mut self) {
        self.is_told = true;
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.closed("it was cut by this host".into());
    }
}

pub(super) fn split(stream: Stream) -> (Reader, Writer) {
    let (read, write) = tokio::io::split(stream);
    (Reader::new(read), Writer::new(write))
}

enum Why {
    Unread(Unread),
    Unwritten(String),
    Overrun,
    HungUp,
}

/// Carries messages both ways until either side ends it.
pub(super) async fn run(shared: &Shared, ending: &mut Ending, mut reader: Reader, mut writer: Writer, end: LinkEnd) {
    let LinkEnd { flow, mut outbox, stopped } = end;
    let why = tokio::select! {
        unread = read(shared, ending.link, &mut reader) => Why::Unread(unread),
        reason = write(shared, ending.link, &mut writer, &mut outbox, &flow) => Why::Unwritten(reason),
        stop = stopped => stop.map_or(Why::HungUp, |Stop::Overrun| Why::Overrun),
    };
    match why {
        Why::HungUp => {
            ending.hung_up();
            let _ = timeout(shared.limits.flush, async {
                if writer.drain(&mut outbox, &flow).await.is_ok() {
                    part(&mut reader, &mut writer).await;
                }
            })
            .await;
        }
        Why::Unread(unread) => {
            let answer = unread.answer();
            ending.closed(unread.reason());
            if let Some(reason) = answer {
                refuse(&mut reader, &mut writer, reason, shared.limits.flush).await;
            }
        }
        Why::Unwritten(reason) => ending.closed(reason),
        Why::Overrun => {
            ending.closed(format!("{} bytes wait for the other side, which reads too slowly", flow.waiting()));
        }
    }
}

async fn read(shared: &Shared, link: LinkId, reader: &mut Reader) -> Unread {
    loop {
        match reader.message(MESSAGE_BYTES_MAX).await {
            Ok(Came { message, room }) => shared.events.tell(Told::Message { link, message, room }),
            Err(unread) => return unread,
        }
    }
}

async fn write(
    shared: &Shared,
    link: LinkId,
    writer: &mut Writer,
    outbox: &mut mpsc::UnboundedReceiver<Vec<u8>>,
    flow: &Flow,
) -> String {
    let stalled = shared.limits.stalled;
    loop {
        if writer.is_idle() && !writer.take(outbox).await {
            // Nobody holds the link, which its end says too.
            std::future::pending::<()>().await;
        }
        match timeout(stalled, writer.write(flow)).await {
            Ok(Ok(true)) => shared.events.tell(Told::Room { link }),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => return reader::broken(&error),
            Err(_) => return format!("the other side took nothing for {stalled:?}"),
        }
    }
}

/// Says why, after what was begun, and lets the other side hear it.
pub(super) async fn refuse(reader: &mut Reader, writer: &mut Writer, reason: String, within: Duration) {
    let mut bytes = Vec::new();
    PeerMessage::Refused { reason }.encode(&mut bytes);
    let _ = timeout(within, async {
        if writer.finish(&bytes).await.is_ok() {
            part(reader, writer).await;
        }
    })
    .await;
}

/// Reads on until the other side has closed too: a socket that is closed with bytes unread takes back what is on its way.
async fn part(reader: &mut Reader, writer: &mut Writer) {
    if writer.shut().await.is_ok() {
        reader.discard().await;
    }
}
