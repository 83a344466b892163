//! GPU memory: extents of it, and copies between it and the host's. What moves bytes is a [`Copier`]: CUDA's, or its faulty
//! twin in memory for the simulator.
//!
//! The feature `cuda` has what calls the driver, by cudarc, which looks for `libcuda.so` at run time: nothing is linked, and
//! a host without it serves all the same.
//!
//! Invariant: a job's memory belongs to the copier from `submit` until its outcome was polled, also where it failed.
//! Invariant: a device that is lost fails what touches it, as [`CopyError::Lost`], and nothing else.

mod face;
mod fake;

#[cfg(feature = "cuda")]
mod copier;
#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod error;
#[cfg(feature = "cuda")]
mod extent;
#[cfg(feature = "cuda")]
mod host;
#[cfg(feature = "cuda")]
mod lane;
#[cfg(feature = "cuda")]
mod library;
#[cfg(feature = "cuda")]
mod stream;

pub use face::{Copied, Copier, CopyError, CopyJob, Spot};
pub use fake::{FakeCopier, FakeFaults};

#[cfg(feature = "cuda")]
pub use self::{
    copier::CudaCopier,
    device::{Device, DeviceInfo},
    error::HbmError,
    extent::{HbmExtent, Shared},
    host::{CHUNK_BYTES_MAX, HostExtent},
    library::{Cuda, NoCuda, is_present},
    stream::{Mark, Stream},
};
