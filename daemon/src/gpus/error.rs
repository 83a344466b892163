//! Why a daemon that is to use GPUs does not start.

use std::time::Duration;

use lapis_arena::hbm::{DeviceInfo, HbmError, NoCuda};
use lapis_config::{Bytes, GpuName};

#[derive(Debug, thiserror::Error)]
pub enum GpusError {
    #[error(
        "hbm.bytes asks for GPU memory (hbm.cuda_library names the driver's library, hbm.bytes = \"0B\" does without)"
    )]
    NoCuda(#[from] NoCuda),
    #[error("list the GPUs")]
    Devices { source: HbmError },
    #[error(
        "the CUDA driver shows no GPU to this process: look at nvidia-smi, at CUDA_VISIBLE_DEVICES and at the devices of the \
         container, or set hbm.bytes = \"0B\""
    )]
    None,
    #[error(
        "hbm.gpus names {name}, which is not there: correct it, or look why not with nvidia-smi; there are {found}"
    )]
    Unknown { name: GpuName, found: String },
    #[error("hbm.gpus names one GPU twice, as {first} and as {second}: take one out")]
    Twice { first: GpuName, second: GpuName },
    #[error("{count} GPUs, the most is {most}: name those to use in hbm.gpus")]
    TooMany { count: usize, most: usize },
    #[error("{op} on {gpu}")]
    Gpu { gpu: String, op: &'static str, source: HbmError },
    #[error(
        "{gpu} has {} free of {}, hbm.bytes is {}: lower it, or end what has the memory (nvidia-smi lists it)",
        Bytes(*.free), Bytes(*.total), Bytes(*.asked)
    )]
    Full { gpu: String, free: u64, total: u64, asked: u64 },
    #[error("{op} a descriptor of GPU memory in the keeper (systemd's descriptor store or `lapis hold`)")]
    Keeper { op: &'static str, source: std::io::Error },
    #[error("the CUDA driver has not answered for {} s: look at nvidia-smi and at the kernel's log (Xid)", .waited.as_secs())]
    Silent { waited: Duration },
    #[error("what asks the CUDA driver panicked, as said above")]
    Panicked,
    #[error("start a thread for GPUs")]
    Thread { source: std::io::Error },
}

impl GpusError {
    pub(super) fn of(info: &DeviceInfo, op: &'static str, source: HbmError) -> Self {
        Self::Gpu { gpu: super::described(info), op, source }
    }
}
