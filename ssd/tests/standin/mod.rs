//! The stand-in for SPDK: compiled from its C here, loaded by the code under test as SPDK would be, and told by tests what to
//! do wrong. One a process: whoever holds it has it alone.

#[path = "build.rs"]
pub mod build;

use std::{
    ffi::{CStr, CString, c_char, c_int},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use lapis_ssd::spdk::Spdk;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/standin");

type Drive = unsafe extern "C" fn(*const c_char, *const c_char, u64, u32, u32, u32, u32) -> c_int;
type Plan = unsafe extern "C" fn(*const c_char, *const c_char);
type Plug = unsafe extern "C" fn(*const c_char, c_int);
type Count = unsafe extern "C" fn(*const c_char, *const c_char) -> u64;

pub struct Standin {
    folder: PathBuf,
    _env: Library,
    _nvme: Library,
    drive: Drive,
    plan: Plan,
    plug: Plug,
    fail: Plug,
    swap: Plan,
    reach: unsafe extern "C" fn(c_int),
    count: Count,
    misuse: unsafe extern "C" fn() -> c_int,
    last: unsafe extern "C" fn() -> *const c_char,
    forgive: unsafe extern "C" fn(),
    registered: unsafe extern "C" fn() -> u64,
}

/// A drive of the stand-in.
#[derive(Clone, Copy, Debug)]
pub struct DriveShape {
    pub bytes: u64,
    pub sector: u32,
    /// Bytes with each sector, which lie apart from it.
    pub metadata: u32,
    pub transfer_max: u32,
    /// 0: sectors; 1: keys and values; 2: zones.
    pub command_set: u32,
}

/// How a device reaches memory that is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// By the memory's own addresses.
    Iommu,
    /// By physical ones, as there is no IOMMU.
    Physical,
    /// Not at all: registration has failed, and says nothing of it.
    Nowhere,
}

impl DriveShape {
    pub const fn new(bytes: u64, sector: u32) -> Self {
        Self { bytes, sector, metadata: 0, transfer_max: 128 << 10, command_set: 0 }
    }
}

fn text(text: &str) -> CString {
    CString::new(text).expect("no zero byte")
}

impl Standin {
    /// `None`: this host has no C compiler.
    pub fn get() -> Option<&'static Self> {
        static STANDIN: OnceLock<Option<Standin>> = OnceLock::new();
        STANDIN.get_or_init(Self::load).as_ref()
    }

    fn load() -> Option<Self> {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder").keep();
        build::build(Path::new(SOURCES), &folder)?;
        let load = |name: &str| {
            // SAFETY: its initialisers do nothing.
            unsafe { Library::open(Some(folder.join(name)), RTLD_NOW | RTLD_GLOBAL) }.expect("just made")
        };
        let env = load("libspdk_env_dpdk.so");
        let nvme = load("libspdk_nvme.so");
        macro_rules! function {
            ($library:ident, $name:literal) => {
                // SAFETY: the type is that of the function in the stand-in's source; it is never unloaded.
                *unsafe { $library.get($name) }.expect("it is in the source")
            };
        }
        Some(Self {
            drive: function!(nvme, b"standin_drive"),
            plan: function!(nvme, b"standin_plan"),
            plug: function!(nvme, b"standin_plug"),
            fail: function!(nvme, b"standin_fail"),
            swap: function!(nvme, b"standin_swap"),
            reach: function!(env, b"standin_reach"),
            count: function!(nvme, b"standin_count"),
            misuse: function!(env, b"standin_misuse"),
            last: function!(env, b"standin_last_misuse"),
            forgive: function!(env, b"standin_forgive"),
            registered: function!(env, b"standin_registered_bytes"),
            folder,
            _env: env,
            _nvme: nvme,
        })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// An address that no other test has.
    pub fn address() -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        format!("0000:{:02x}:00.0", NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes or changes a drive: over a file, or in memory.
    pub fn drive(&self, address: &str, file: Option<&Path>, shape: DriveShape) {
        let (address, file) = (text(address), file.map(|path| text(&path.display().to_string())));
        let file = file.as_ref().map_or(std::ptr::null(), |file| file.as_ptr());
        let DriveShape { bytes, sector, metadata, transfer_max, command_set } = shape;
        // SAFETY: texts end with a zero and outlive the call.
        let rc = unsafe { (self.drive)(address.as_ptr(), file, bytes, sector, metadata, transfer_max, command_set) };
        assert_eq!(rc, 0, "a drive of the stand-in");
    }

    pub fn plan(&self, address: &str, plan: &str) {
        // SAFETY: as for `drive`.
        unsafe { (self.plan)(text(address).as_ptr(), text(plan).as_ptr()) }
    }

    pub fn plug(&self, address: &str, plugged: bool) {
        // SAFETY: as for `drive`.
        unsafe { (self.plug)(text(address).as_ptr(), plugged.into()) }
    }

    pub fn fail(&self, address: &str, removed: bool) {
        // SAFETY: as for `drive`.
        unsafe { (self.fail)(text(address).as_ptr(), removed.into()) }
    }

    /// Another drive in the place of one that was pulled.
    pub fn swap(&self, address: &str, serial: &str) {
        // SAFETY: as for `drive`.
        unsafe { (self.swap)(text(address).as_ptr(), text(serial).as_ptr()) }
    }

    /// Of what is registered from now on, by all: for whoever is alone.
    pub fn reach(&self, how: Reach) {
        // SAFETY: it sets a number.
        unsafe { (self.reach)(how as c_int) }
    }

    /// "reads", "writes", "flushes", "discards", "resets", "connects", "qpairs", "attached".
    pub fn count(&self, address: &str, of: &str) -> u64 {
        // SAFETY: as for `drive`.
        unsafe { (self.count)(text(address).as_ptr(), text(of).as_ptr()) }
    }

    /// Bytes that controllers reach, of memory that was registered.
    pub fn registered(&self) -> u64 {
        // SAFETY: it takes nothing.
        unsafe { (self.registered)() }
    }

    /// What was called wrongly since the last time.
    pub fn misuse(&self) -> Option<String> {
        // SAFETY: it takes nothing, and its text is a buffer of its own.
        let (count, last) = unsafe { ((self.misuse)(), CStr::from_ptr((self.last)())) };
        // SAFETY: it takes nothing.
        unsafe { (self.forgive)() };
        (count > 0).then(|| format!("{count}, the last one: {}", last.to_string_lossy()))
    }

    pub fn open(&self, address: &str, depth: usize) -> Spdk {
        let path = PathBuf::from(format!("pci:{address}"));
        Spdk::open(&path, Some(&self.folder), depth).unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// For tests that look at what all do together.
    pub fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
