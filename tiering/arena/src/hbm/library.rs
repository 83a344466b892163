//! `libcuda.so`, looked for when GPUs are wanted.
//!
//! cudarc looks for it by a list of names and ends the process (a panic) where none is found or a function is missing. So the
//! library is opened here first, and kept: the loader then gives cudarc the one that is loaded. What cudarc has got is
//! compared, and every function that this crate calls is looked up once before any is called.

use std::{
    ffi::{OsString, c_void},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::driver::sys::{self, CUresult};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// Why no GPU can be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NoCuda {
    #[error(
        "the CUDA driver's library is not to be had ({reason}): install NVIDIA's driver (libcuda.so.1), or name the file with \
         the option for the CUDA library"
    )]
    Library { reason: String },
    #[error("{path}, named as the CUDA library, cannot be loaded ({reason})")]
    Named { path: String, reason: String },
    /// A library of that name that is found before: a toolkit's stub, as a rule.
    #[error("{asked} was named as the CUDA library, but {got} is found before it: take that from the library path")]
    Shadowed { asked: String, got: String },
    #[error("the CUDA library of this process is {loaded}; {asked} cannot be loaded beside it")]
    Loaded { loaded: String, asked: String },
    #[error("the CUDA library has no function {function}: install a newer driver")]
    Function { function: &'static str },
    #[error("the CUDA library is a stub for linking, without a driver: install NVIDIA's driver")]
    Stub,
    #[error("the CUDA driver does not start: {code:?}")]
    Start { code: CUresult },
}

/// Called wherever there is a GPU.
const NEEDED: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetUuid",
    "cuDeviceGetAttribute",
    "cuDeviceGetPCIBusId",
    "cuDeviceTotalMem_v2",
    "cuDeviceCanAccessPeer",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuCtxEnablePeerAccess",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamQuery",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventQuery",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyPeerAsync",
];
const VMM: &[&str] = &[
    "cuMemGetAllocationGranularity",
    "cuMemCreate",
    "cuMemRelease",
    "cuMemAddressReserve",
    "cuMemAddressFree",
    "cuMemMap",
    "cuMemUnmap",
    "cuMemSetAccess",
    "cuMemExportToShareableHandle",
    "cuMemImportFromShareableHandle",
    "cuMemGetAllocationPropertiesFromHandle",
];
const IPC: &[&str] = &["cuIpcGetMemHandle", "cuIpcOpenMemHandle_v2", "cuIpcCloseMemHandle"];
const BATCH: &[&str] = &["cuMemcpyBatchAsync"];
const LINKS: &[&str] = &["cuDeviceGetP2PAttribute"];
const CAPTURES: &[&str] = &["cuThreadExchangeStreamCaptureMode"];
const WORDS: &[&str] = &["cuStreamWriteValue32_v2", "cuStreamWaitValue32_v2"];

/// The driver, started.
#[derive(Debug)]
pub struct Cuda {
    path: Option<PathBuf>,
    version: i32,
    pub(super) has_vmm: bool,
    pub(super) has_ipc: bool,
    pub(super) has_batch: bool,
    /// Streams write words and wait for them.
    pub(super) has_words: bool,
    /// It says what the ways between devices are like.
    pub(super) has_links: bool,
    /// Threads say that they heed no capture of graphs.
    pub(super) has_captures: bool,
}

/// Whether a driver that can be used is there: `library` is the file, else the loader's rules find it. Never panics.
pub fn is_present(library: Option<&Path>) -> bool {
    Cuda::load(library).is_ok()
}

impl Cuda {
    /// The driver, loaded and started at the first call; it stays for the life of the process. `library` is the file to take,
    /// else the loader's rules find it. What fails may be tried again.
    pub fn load(library: Option<&Path>) -> Result<Arc<Self>, NoCuda> {
        static STARTED: Mutex<Option<Arc<Cuda>>> = Mutex::new(None);
        let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = match &*started {
            Some(cuda) => cuda.clone(),
            None => started.insert(Arc::new(Self::start(library)?)).clone(),
        };
        match library {
            Some(asked) if loaded.path.as_deref() != Some(asked) => {
                let asked = asked.display().to_string();
                Err(NoCuda::Loaded { loaded: loaded.name(), asked })
            }
            _ => Ok(loaded),
        }
    }

    /// What the driver says that it is, as 1000 * major + 10 * minor.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// Whether copies go in batches, one call for many.
    pub fn has_batches(&self) -> bool {
        self.has_batch
    }

    fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "the one that the loader found".to_owned(), |path| path.display().to_string())
    }

    fn start(library: Option<&Path>) -> Result<Self, NoCuda> {
        let opened = match library {
            Some(path) => open(path.as_os_str().to_owned())
                .map_err(|reason| NoCuda::Named { path: path.display().to_string(), reason })?,
            None => first_of_the_list()?,
        };
        let own = address(&opened, "cuInit").ok_or(NoCuda::Function { function: "cuInit" })?;
        // Its threads and state outlive whatever of ours knows it.
        std::mem::forget(opened);
        // SAFETY: opens libraries by the names of the driver; one is there, or nothing is opened.
        if !unsafe { sys::is_culib_present() } {
            return Err(shadowed(library, "nothing that cudarc looks for"));
        }
        let has = |name: &&str| in_use(name).is_some();
        if in_use("cuInit") != Some(own) {
            return Err(shadowed(library, "another libcuda.so"));
        }
        if let Some(function) = NEEDED.iter().find(|name| !has(name)) {
            return Err(NoCuda::Function { function });
        }
        // SAFETY: the function is there, as just seen; 0 are the flags that it has.
        match unsafe { sys::cuInit(0) } {
            // No device is a list without one, not a missing driver.
            CUresult::CUDA_SUCCESS | CUresult::CUDA_ERROR_NO_DEVICE => {}
            CUresult::CUDA_ERROR_STUB_LIBRARY => return Err(NoCuda::Stub),
            code => return Err(NoCuda::Start { code }),
        }
        let mut version = 0;
        // SAFETY: the function is there; `version` is written where it succeeds.
        match unsafe { sys::cuDriverGetVersion(&raw mut version) } {
            CUresult::CUDA_SUCCESS => {}
            code => return Err(NoCuda::Start { code }),
        }
        let path = library.map(Path::to_owned);
        let all = |names: &[&str]| names.iter().all(has);
        let (has_vmm, has_ipc, has_batch) = (all(VMM), all(IPC), all(BATCH));
        let (has_words, has_links, has_captures) = (all(WORDS), all(LINKS), all(CAPTURES));
        Ok(Self { path, version, has_vmm, has_ipc, has_batch, has_words, has_links, has_captures })
    }
}

fn shadowed(library: Option<&Path>, got: &str) -> NoCuda {
    let asked = library.map_or_else(|| "the driver's library".to_owned(), |path| path.display().to_string());
    NoCuda::Shadowed { asked, got: got.to_owned() }
}

fn open(name: OsString) -> Result<Library, String> {
    // SAFETY: it is what the operator named, or the driver by its name; its initialisers are the driver's own.
    unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| cause(&error))
}

/// The first that there is, in the order in which cudarc looks.
fn first_of_the_list() -> Result<Library, NoCuda> {
    let names = ["cuda", "nvcuda"].into_iter().flat_map(cudarc::get_lib_name_candidates);
    let mut why = None;
    for name in names {
        match open(name.into()) {
            Ok(library) => return Ok(library),
            Err(reason) => why.get_or_insert(reason),
        };
    }
    Err(NoCuda::Library { reason: why.unwrap_or_default() })
}

fn address(library: &Library, name: &str) -> Option<*mut c_void> {
    // SAFETY: the symbol is only compared, never called by this type.
    let symbol = unsafe { library.get::<*mut c_void>(name.as_bytes()) }.ok()?;
    Some(symbol.as_raw_ptr())
}

/// A function of the library that cudarc uses.
fn in_use(name: &str) -> Option<*mut c_void> {
    // SAFETY: it is there, as `start` has seen.
    let library = unsafe { sys::culib() };
    // SAFETY: as above, and the library is never unloaded.
    unsafe { library.get::<*mut c_void>(name.as_bytes()).ok()?.try_as_raw_ptr() }
}

/// What the loader says of it; `libloading` has it as a cause.
fn cause(error: &libloading::Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
    causes.last().map_or_else(|| error.to_string(), ToString::to_string)
}
