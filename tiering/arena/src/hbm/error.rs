//! What can go wrong with GPU memory.

use cudarc::driver::sys::CUresult;

#[derive(Clone, Debug, thiserror::Error)]
pub enum HbmError {
    /// Whatever was on it is gone. Drop all that belongs to it; opening it anew may bring it back empty.
    #[error("device {device} is lost: {op} answered {code:?}")]
    Lost { device: u16, op: &'static str, code: CUresult },
    /// Ask for less, or free some.
    #[error("device {device} has no {bytes} bytes left")]
    Full { device: u16, bytes: u64 },
    #[error("{op} on device {device}: {code:?}")]
    Driver { device: u16, op: &'static str, code: CUresult },
    /// The driver is older than what was asked for.
    #[error("the driver has no {function}")]
    Function { function: &'static str },
    /// The memory is another device's, or has another size.
    #[error("shared memory does not fit {bytes} bytes of device {device}")]
    Foreign { device: u16, bytes: u64 },
    /// A thread or a descriptor could not be had.
    #[error("{op} for device {device}: {reason}")]
    System { device: u16, op: &'static str, reason: String },
}

impl HbmError {
    /// True if the same call may succeed later without anyone's help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::System { .. })
    }

    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

/// Whether a context that answered this answers nothing else any more, as CUDA's manual says of the error.
pub(super) fn is_fatal(code: CUresult) -> bool {
    use CUresult as C;
    matches!(
        code,
        C::CUDA_ERROR_DEINITIALIZED
            | C::CUDA_ERROR_DEVICE_UNAVAILABLE
            | C::CUDA_ERROR_NO_DEVICE
            | C::CUDA_ERROR_ECC_UNCORRECTABLE
            | C::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | C::CUDA_ERROR_CONTAINED
            | C::CUDA_ERROR_ILLEGAL_ADDRESS
            | C::CUDA_ERROR_LAUNCH_TIMEOUT
            | C::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | C::CUDA_ERROR_ASSERT
            | C::CUDA_ERROR_HARDWARE_STACK_ERROR
            | C::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | C::CUDA_ERROR_MISALIGNED_ADDRESS
            | C::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | C::CUDA_ERROR_INVALID_PC
            | C::CUDA_ERROR_LAUNCH_FAILED
            | C::CUDA_ERROR_TENSOR_MEMORY_LEAK
            | C::CUDA_ERROR_MPS_CLIENT_TERMINATED
            | C::CUDA_ERROR_EXTERNAL_DEVICE
            | C::CUDA_ERROR_UNKNOWN
    )
}
