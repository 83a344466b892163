//! What is asked of a copier and what it answers.

use lapis_config::Time;

/// Where bytes begin: an extent that the copier was told of, by its index there, and an offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spot {
    Host { extent: u32, offset: u64 },
    Device { device: u16, extent: u32, offset: u64 },
}

impl Spot {
    /// The device, if it is one's memory.
    pub fn device(&self) -> Option<u16> {
        match self {
            Self::Host { .. } => None,
            Self::Device { device, .. } => Some(*device),
        }
    }
}

/// One copy. At least one of its ends is memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyJob {
    /// The caller's number for it.
    pub op: u64,
    pub from: Spot,
    pub to: Spot,
    pub bytes: u64,
}

impl CopyJob {
    /// Whether it touches memory of a device.
    pub fn touches(&self, device: u16) -> bool {
        self.from.device() == Some(device) || self.to.device() == Some(device)
    }
}

/// A job that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    pub op: u64,
    /// After an error the destination holds anything.
    pub outcome: Result<(), CopyError>,
}

/// Why a copy was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// The driver would not take it now.
    #[error("the driver refused a copy on device {device}: {reason}")]
    Refused { device: u16, reason: String },
    /// Registration goes on behind; until then a copy of this memory would not be one by DMA.
    #[error("host extent {extent} is not registered that far")]
    NotRegistered { extent: u32 },
    /// Copy by way of host memory instead.
    #[error("device {device} does not reach the memory of device {other}")]
    Unreachable { device: u16, other: u16 },
    /// All that is on the device is gone, and the device with it until it is opened anew.
    #[error("device {device} is lost")]
    Lost { device: u16 },
}

impl CopyError {
    /// True if the same call may succeed later without anyone's help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::NotRegistered { .. })
    }
}

/// Moves bytes between host and devices, and between devices. Decides nothing, never waits.
///
/// Jobs that touch the same bytes must not be in flight at once, unless both only read: nothing orders them.
pub trait Copier {
    /// Takes jobs from the front; returns how many. The rest finds no room: try again after a `poll` that brought something.
    ///
    /// # Panics
    /// If a spot lies in no extent, or both are the host's: they are ours, never a client's unchecked word.
    fn submit(&mut self, now: Time, jobs: &[CopyJob]) -> usize;

    /// Appends jobs that have ended, each once, in any order.
    fn poll(&mut self, now: Time, done: &mut Vec<Copied>);

    /// Jobs that were taken and not yet polled.
    fn in_flight(&self) -> usize;
}
