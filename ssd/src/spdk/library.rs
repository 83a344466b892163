//! SPDK's functions, by hand-written declarations: facts of its public headers `spdk/env.h`, `spdk/nvme.h` and
//! `spdk/nvme_spec.h`, the same from 24.09 on. Handles stay opaque; layouts are known of the environment's options (new fields
//! come at their end, after `opts_size`), of a completion and of a range to deallocate, both the specification's.

use std::ffi::{c_char, c_int, c_void};

use libloading::os::unix::{Library as Loaded, RTLD_GLOBAL, RTLD_NOW};

use super::{NoSpdk, find::Libraries};

#[repr(C)]
pub(super) struct Ctrlr([u8; 0]);
#[repr(C)]
pub(super) struct Ns([u8; 0]);
#[repr(C)]
pub(super) struct Qpair([u8; 0]);

/// `struct spdk_env_opts`.
#[repr(C)]
pub(super) struct EnvOptions {
    pub name: *const c_char,
    pub core_mask: *const c_char,
    lcore_map: *const c_char,
    pub shm_id: c_int,
    mem_channel: c_int,
    main_core: c_int,
    mem_size: c_int,
    no_pci: bool,
    hugepage_single_segments: bool,
    pub unlink_hugepage: bool,
    no_huge: bool,
    reserved: u32,
    num_pci_addr: usize,
    hugedir: *const c_char,
    pci_blocked: *mut c_void,
    pci_allowed: *mut c_void,
    iova_mode: *const c_char,
    base_virtaddr: u64,
    env_context: *mut c_void,
    vf_token: *const c_char,
    pub opts_size: usize,
    later: u64,
}
const _: () =
    assert!(size_of::<EnvOptions>() == 128 && std::mem::offset_of!(EnvOptions, opts_size) == 112, "SPDK's layout");

/// `struct spdk_nvme_transport_id` is smaller in every release that is known (564 bytes): only SPDK looks into it.
#[repr(C, align(8))]
pub(super) struct TransportId(pub [u8; 4096]);

/// `struct spdk_nvme_cpl`.
#[repr(C)]
pub(super) struct Completion {
    cdw0: u32,
    cdw1: u32,
    sqhd: u16,
    sqid: u16,
    cid: u16,
    pub status: u16,
}
const _: () = assert!(size_of::<Completion>() == 16, "the specification's layout");

/// `struct spdk_nvme_dsm_range`.
#[repr(C)]
pub(super) struct DsmRange {
    pub attributes: u32,
    /// Sectors.
    pub length: u32,
    pub lba: u64,
}
const _: () = assert!(size_of::<DsmRange>() == 16, "the specification's layout");

/// The start of `struct spdk_nvme_ctrlr_data` and of `struct spdk_nvme_ns_data`: what identify answers, byte by byte as the
/// specification has it. Both are longer.
#[repr(C)]
pub(super) struct Identify(pub [u8; 128]);

/// SPDK_NVME_DSM_ATTR_DEALLOCATE.
pub(super) const DEALLOCATE: u32 = 4;
/// SPDK_MALLOC_DMA.
pub(super) const FOR_DEVICES: u32 = 1;
/// SPDK_VTOPHYS_ERROR.
pub(super) const NO_ADDRESS: u64 = u64::MAX;
/// SPDK_NVME_CSI_NVM.
pub(super) const SECTORS: c_int = 0;
/// SPDK_ENV_NUMA_ID_ANY.
pub(super) const ANY_NODE: c_int = -1;

pub(super) type Ended = unsafe extern "C" fn(*mut c_void, *const Completion);

macro_rules! functions {
    ($( $field:ident = $name:literal: fn($($argument:ty),*) $(-> $result:ty)?; )*) => {
        /// Loaded for good: SPDK keeps state of its own, threads too.
        pub(super) struct Library {
            $( pub(super) $field: unsafe extern "C" fn($($argument),*) $(-> $result)?, )*
            _env: Loaded,
            _nvme: Loaded,
        }

        impl Library {
            pub(super) fn load(libraries: &Libraries) -> Result<Self, NoSpdk> {
                let load = |path: &std::path::Path| {
                    let flags = RTLD_NOW | RTLD_GLOBAL;
                    // SAFETY: their initialisers register SPDK's own transports and log components with themselves. Global,
                    // as the NVMe driver and plug-ins of DPDK find the environment's functions by name.
                    unsafe { Loaded::open(Some(path), flags) }
                        .map_err(|error| NoSpdk::Load { library: path.to_owned(), reason: cause(&error) })
                };
                let env = load(&libraries.env)?;
                let nvme = load(&libraries.nvme)?;
                $(
                    // SAFETY: the type is that of the function in SPDK's header, whose version was checked by its file's
                    // name; the pointer is called only while the library is loaded, which is for good.
                    let $field = *unsafe { env.get($name.as_bytes()).or_else(|_| nvme.get($name.as_bytes())) }
                        .map_err(|_| NoSpdk::Function { function: $name })?;
                )*
                Ok(Self { $( $field, )* _env: env, _nvme: nvme })
            }
        }
    };
}

functions! {
    env_opts_init = "spdk_env_opts_init": fn(*mut EnvOptions);
    env_init = "spdk_env_init": fn(*const EnvOptions) -> c_int;
    mem_register = "spdk_mem_register": fn(*mut c_void, usize) -> c_int;
    mem_unregister = "spdk_mem_unregister": fn(*mut c_void, usize) -> c_int;
    vtophys = "spdk_vtophys": fn(*const c_void, *mut u64) -> u64;
    zmalloc = "spdk_zmalloc": fn(usize, usize, *mut u64, c_int, u32) -> *mut c_void;
    free = "spdk_free": fn(*mut c_void);
    transport_id_parse = "spdk_nvme_transport_id_parse": fn(*mut TransportId, *const c_char) -> c_int;
    connect = "spdk_nvme_connect": fn(*const TransportId, *const c_void, usize) -> *mut Ctrlr;
    detach = "spdk_nvme_detach": fn(*mut Ctrlr) -> c_int;
    scan_attached = "spdk_nvme_scan_attached": fn(*const TransportId) -> c_int;
    reset = "spdk_nvme_ctrlr_reset": fn(*mut Ctrlr) -> c_int;
    is_failed = "spdk_nvme_ctrlr_is_failed": fn(*mut Ctrlr) -> bool;
    process_admin = "spdk_nvme_ctrlr_process_admin_completions": fn(*mut Ctrlr) -> i32;
    identify = "spdk_nvme_ctrlr_get_data": fn(*mut Ctrlr) -> *const Identify;
    get_ns = "spdk_nvme_ctrlr_get_ns": fn(*mut Ctrlr, u32) -> *mut Ns;
    is_active = "spdk_nvme_ns_is_active": fn(*mut Ns) -> bool;
    sector_bytes = "spdk_nvme_ns_get_sector_size": fn(*mut Ns) -> u32;
    metadata_bytes = "spdk_nvme_ns_get_md_size": fn(*mut Ns) -> u32;
    command_set = "spdk_nvme_ns_get_csi": fn(*const Ns) -> c_int;
    identify_ns = "spdk_nvme_ns_get_data": fn(*mut Ns) -> *const Identify;
    sectors = "spdk_nvme_ns_get_num_sectors": fn(*mut Ns) -> u64;
    transfer_bytes_max = "spdk_nvme_ns_get_max_io_xfer_size": fn(*mut Ns) -> u32;
    alloc_qpair = "spdk_nvme_ctrlr_alloc_io_qpair": fn(*mut Ctrlr, *const c_void, usize) -> *mut Qpair;
    free_qpair = "spdk_nvme_ctrlr_free_io_qpair": fn(*mut Qpair) -> c_int;
    process = "spdk_nvme_qpair_process_completions": fn(*mut Qpair, u32) -> i32;
    read = "spdk_nvme_ns_cmd_read": fn(*mut Ns, *mut Qpair, *mut c_void, u64, u32, Ended, *mut c_void, u32) -> c_int;
    write = "spdk_nvme_ns_cmd_write": fn(*mut Ns, *mut Qpair, *mut c_void, u64, u32, Ended, *mut c_void, u32) -> c_int;
    flush = "spdk_nvme_ns_cmd_flush": fn(*mut Ns, *mut Qpair, Ended, *mut c_void) -> c_int;
    dataset_management = "spdk_nvme_ns_cmd_dataset_management":
        fn(*mut Ns, *mut Qpair, u32, *const DsmRange, u16, Ended, *mut c_void) -> c_int;
}

/// What the loader says of it; `libloading` has it as a cause.
fn cause(error: &libloading::Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
    causes.last().map_or_else(|| error.to_string(), ToString::to_string)
}
