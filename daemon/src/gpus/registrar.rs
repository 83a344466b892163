//! One thread registers memory of the host with the driver, an extent after the other: the driver pins all pages before it
//! answers. What is registered is so for all GPUs.

use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};
use lapis_arena::{
    Mapping,
    hbm::{Device, HbmError, HostExtent},
};

use super::{shown::GpuShown, turner::ToGpu};

/// An extent of a group, populated.
pub(super) struct Memory {
    pub group: usize,
    pub extent: usize,
    pub mapping: Mapping,
}

pub(super) struct Registrar {
    pub inbox: Receiver<Memory>,
    pub devices: Vec<Arc<Device>>,
    pub threads: Vec<Sender<ToGpu>>,
    pub shown: Vec<Arc<GpuShown>>,
    pub chunk_bytes: u64,
}

impl Registrar {
    /// Until the engine has gone.
    pub fn run(self) {
        while let Ok(Memory { group, extent, mapping }) = self.inbox.recv() {
            let bytes = mapping.len() as u64;
            match self.register(&mapping) {
                Ok(Some(memory)) => {
                    for (thread, shown) in self.threads.iter().zip(&self.shown).filter(|(_, shown)| !shown.is_lost()) {
                        // A thread that has ended copies nothing.
                        let _ = thread.send(ToGpu::Host { group, extent, memory: memory.clone() });
                        // Only now: what is asked of the thread from here on finds it.
                        shown.registered(memory.registered_bytes());
                    }
                    tracing::debug!(group, extent, bytes, "memory is registered with the CUDA driver");
                }
                // All GPUs are lost, which was said.
                Ok(None) => {}
                Err(error) => tracing::error!(
                    group,
                    extent,
                    bytes,
                    %error,
                    "memory is not registered with the CUDA driver: its blocks do not come to GPUs; look at the kernel's log"
                ),
            }
        }
    }

    /// Through the first GPU that is not lost.
    fn register(&self, mapping: &Mapping) -> Result<Option<Arc<HostExtent>>, HbmError> {
        for device in &self.devices {
            if device.is_lost() {
                continue;
            }
            let memory = match HostExtent::register(device, mapping.clone(), self.chunk_bytes) {
                Err(error) if error.is_lost() => continue,
                memory => memory?,
            };
            memory.wait();
            match memory.failure() {
                None => return Ok(Some(memory)),
                Some(error) if error.is_lost() => {}
                Some(error) => return Err(error.clone()),
            }
        }
        Ok(None)
    }
}
