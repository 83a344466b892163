//! Devices and what they are.

use std::ffi::{CString, c_char, c_int, c_uint};

use cudarc::driver::sys::{CUdevice, CUdevice_P2PAttribute, CUdevice_attribute, CUresult, CUuuid};

use super::{put, put_text};
use crate::world::{Outcome, World, enter, lock};

/// 12.8, the version that the functions are of.
const VERSION: c_int = 12080;

fn index(held: &World, device: CUdevice) -> Outcome<usize> {
    let index = usize::try_from(device).ok().filter(|index| *index < held.devices.len());
    index.ok_or(CUresult::CUDA_ERROR_INVALID_DEVICE)
}

fn uuid(device: CUdevice) -> CUuuid {
    let mut bytes = [0; 16];
    for (byte, letter) in bytes.iter_mut().zip(b"lapis-standin\0\0") {
        *byte = *letter as c_char;
    }
    bytes[15] = device as c_char;
    CUuuid { bytes }
}

api! {
    fn cuInit(flags: c_uint) {
        let mut held = lock();
        if flags != 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        if held.devices.is_empty() {
            return Err(CUresult::CUDA_ERROR_NO_DEVICE);
        }
        held.initialised = true;
        Ok(())
    }

    fn cuDriverGetVersion(version: *mut c_int) {
        put(version, VERSION)
    }

    fn cuDeviceGetCount(count: *mut c_int) {
        put(count, enter()?.devices.len() as c_int)
    }

    fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int) {
        index(&*enter()?, ordinal)?;
        put(device, ordinal)
    }

    fn cuDeviceGetName(name: *mut c_char, bytes: c_int, device: CUdevice) {
        index(&*enter()?, device)?;
        let bytes = usize::try_from(bytes).map_err(|_| CUresult::CUDA_ERROR_INVALID_VALUE)?;
        put_text(name, bytes, c"Lapis stand-in")
    }

    fn cuDeviceGetUuid(out: *mut CUuuid, device: CUdevice) {
        index(&*enter()?, device)?;
        put(out, uuid(device))
    }

    fn cuDeviceGetUuid_v2(out: *mut CUuuid, device: CUdevice) {
        index(&*enter()?, device)?;
        put(out, uuid(device))
    }

    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice) {
        let held = enter()?;
        put(bytes, held.devices[index(&held, device)?].bytes as usize)
    }

    fn cuDeviceGetPCIBusId(text: *mut c_char, bytes: c_int, device: CUdevice) {
        index(&*enter()?, device)?;
        let bytes = usize::try_from(bytes).map_err(|_| CUresult::CUDA_ERROR_INVALID_VALUE)?;
        let id = CString::new(format!("0000:{:02X}:00.0", 0x40 + device)).expect("no zero within");
        put_text(text, bytes, &id)
    }

    fn cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice) {
        use CUdevice_attribute as A;
        let held = enter()?;
        index(&held, device)?;
        let has = match attribute {
            A::CU_DEVICE_ATTRIBUTE_VIRTUAL_ADDRESS_MANAGEMENT_SUPPORTED => c_int::from(held.options.has_vmm),
            A::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED => {
                c_int::from(held.options.has_vmm && held.options.has_descriptors)
            }
            A::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID => 0x40 + device,
            A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR => 9,
            A::CU_DEVICE_ATTRIBUTE_WARP_SIZE => 32,
            A::CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT => 2,
            A::CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING
            | A::CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY
            | A::CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED
            | A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT => 1,
            _ => 0,
        };
        put(value, has)
    }

    fn cuDeviceCanAccessPeer(can: *mut c_int, device: CUdevice, peer: CUdevice) {
        let held = enter()?;
        let (device, peer) = (index(&held, device)?, index(&held, peer)?);
        put(can, c_int::from(held.options.has_peers && device != peer))
    }

    fn cuDeviceGetP2PAttribute(value: *mut c_int, attribute: CUdevice_P2PAttribute, from: CUdevice, to: CUdevice) {
        let held = enter()?;
        let (from, to) = (index(&held, from)?, index(&held, to)?);
        if from == to {
            return Err(CUresult::CUDA_ERROR_INVALID_DEVICE);
        }
        let answer = match attribute {
            CUdevice_P2PAttribute::CU_DEVICE_P2P_ATTRIBUTE_ACCESS_SUPPORTED => c_int::from(held.options.has_peers),
            CUdevice_P2PAttribute::CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK => held.options.link_rank,
            CUdevice_P2PAttribute::CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED => {
                c_int::from(held.options.has_peers && held.options.has_nvlink)
            }
            _ => 0,
        };
        put(value, answer)
    }
}
