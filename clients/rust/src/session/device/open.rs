//! A GPU that is opened before its first call, which then waits for nothing that the driver does at a start.

use std::sync::Arc;

use super::OpenGpu;
use crate::{
    ClientError,
    session::{Session, Step},
};

/// How far a GPU that was opened is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuOpened {
    /// Of the daemon's memory in DRAM, what the driver has registered: from there blocks are copied to the GPU, and back.
    pub registered_bytes: u64,
    /// All of it, as far as the client was told of it.
    pub bytes: u64,
}

impl GpuOpened {
    /// Whether nothing is left to be registered.
    pub fn is_whole(&self) -> bool {
        self.registered_bytes == self.bytes
    }
}

/// The opening of a GPU, under way.
pub struct GpuOpenJob {
    session: Arc<Session>,
    gpu: Arc<OpenGpu>,
    so_far: GpuOpened,
    error: Option<ClientError>,
}

impl GpuOpenJob {
    /// Opens the GPU, as the driver counts them in this process, and maps what the daemon has there.
    pub fn new(session: Arc<Session>, device: u16) -> Result<Self, ClientError> {
        if session.here().is_err() {
            return Err(ClientError::Closed);
        }
        let gpu = session.gpus.open(device)?;
        // One that was lost since it was opened says so.
        gpu.device.memory().map_err(ClientError::gpu("opening a GPU"))?;
        Ok(Self { session, gpu, so_far: GpuOpened::default(), error: None })
    }

    /// Begins the registration of what is new, and looks how far all is.
    pub fn step(&mut self) -> Step {
        match self.look() {
            Ok(so_far) => self.so_far = so_far,
            Err(error) => self.error = Some(error),
        }
        if self.error.is_some() || self.so_far.is_whole() { Step::Done } else { Step::Full }
    }

    fn look(&self) -> Result<GpuOpened, ClientError> {
        let extents = &self.session.maps().extents;
        let mut opened = GpuOpened::default();
        for mapping in (0..extents.len()).filter_map(|index| extents.get(index)) {
            let host = self.session.gpus.host(&self.gpu.device, mapping)?;
            if let Some(error) = host.failure() {
                return Err(ClientError::gpu("registering memory of the host")(error.clone()));
            }
            opened.registered_bytes += host.registered_bytes();
            opened.bytes += mapping.len() as u64;
        }
        Ok(opened)
    }

    /// How far it came; the rest goes on behind.
    pub fn finish(self) -> Result<GpuOpened, ClientError> {
        self.error.map_or(Ok(self.so_far), Err)
    }
}
