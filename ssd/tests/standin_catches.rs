//! The stand-in for SPDK sees what it is there to see: everything that must not be done is done here once, by hand.

#![allow(unsafe_code, reason = "SPDK's functions are called wrongly on purpose, which the stand-in bears")]

#[allow(dead_code, reason = "other tests call more of it")]
mod standin;

use std::{
    ffi::{CString, c_char, c_int, c_void},
    ptr::{null, null_mut},
};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use standin::{DriveShape, Reach, Standin};

type Handle = *mut c_void;
type Ended = unsafe extern "C" fn(Handle, *const c_void);
type Transfer = unsafe extern "C" fn(Handle, Handle, *mut u8, u64, u32, Ended, Handle, u32) -> c_int;

/// SPDK's functions, as the stand-in has them.
struct Spdk {
    env_init: unsafe extern "C" fn(*const c_void) -> c_int,
    env_opts_init: unsafe extern "C" fn(*mut c_void),
    mem_register: unsafe extern "C" fn(*mut u8, usize) -> c_int,
    mem_unregister: unsafe extern "C" fn(*mut u8, usize) -> c_int,
    zmalloc: unsafe extern "C" fn(usize, usize, *mut u64, c_int, u32) -> *mut u8,
    free: unsafe extern "C" fn(*mut u8),
    parse: unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int,
    connect: unsafe extern "C" fn(*const c_void, *const c_void, usize) -> Handle,
    detach: unsafe extern "C" fn(Handle) -> c_int,
    get_ns: unsafe extern "C" fn(Handle, u32) -> Handle,
    alloc_qpair: unsafe extern "C" fn(Handle, *const c_void, usize) -> Handle,
    free_qpair: unsafe extern "C" fn(Handle) -> c_int,
    process: unsafe extern "C" fn(Handle, u32) -> i32,
    write: Transfer,
}

fn spdk(standin: &Standin) -> Spdk {
    let load = |name: &str| {
        // SAFETY: its initialisers do nothing.
        unsafe { Library::open(Some(standin.folder().join(name)), RTLD_NOW | RTLD_GLOBAL) }.expect("just made")
    };
    let (env, nvme) = (load("libspdk_env_dpdk.so"), load("libspdk_nvme.so"));
    macro_rules! function {
        ($name:literal) => {
            // SAFETY: the type is that of the function in the stand-in's source; `Standin` keeps it loaded.
            *unsafe { env.get($name).or_else(|_| nvme.get($name)) }.expect("it is in the source")
        };
    }
    Spdk {
        env_init: function!(b"spdk_env_init"),
        env_opts_init: function!(b"spdk_env_opts_init"),
        mem_register: function!(b"spdk_mem_register"),
        mem_unregister: function!(b"spdk_mem_unregister"),
        zmalloc: function!(b"spdk_zmalloc"),
        free: function!(b"spdk_free"),
        parse: function!(b"spdk_nvme_transport_id_parse"),
        connect: function!(b"spdk_nvme_connect"),
        detach: function!(b"spdk_nvme_detach"),
        get_ns: function!(b"spdk_nvme_ctrlr_get_ns"),
        alloc_qpair: function!(b"spdk_nvme_ctrlr_alloc_io_qpair"),
        free_qpair: function!(b"spdk_nvme_ctrlr_free_io_qpair"),
        process: function!(b"spdk_nvme_qpair_process_completions"),
        write: function!(b"spdk_nvme_ns_cmd_write"),
    }
}

unsafe extern "C" fn ignored(_: Handle, _: *const c_void) {}

/// Options as the stand-in fills them, with huge pages that go.
fn options(spdk: &Spdk) -> [u64; 16] {
    let mut options = [0u64; 16];
    options[14] = 128;
    // SAFETY: 128 bytes, as is said in them.
    unsafe { (spdk.env_opts_init)(options.as_mut_ptr().cast()) };
    options[5] |= 1 << 16;
    options
}

fn connect(spdk: &Spdk, address: &str) -> Handle {
    let mut id = [0u64; 512];
    let text = CString::new(format!("trtype:PCIe traddr:{address}")).expect("no zero byte");
    // SAFETY: larger than SPDK's, and a text that ends.
    assert_eq!(unsafe { (spdk.parse)(id.as_mut_ptr().cast(), text.as_ptr()) }, 0);
    // SAFETY: filled just now.
    unsafe { (spdk.connect)(id.as_ptr().cast(), null(), 0) }
}

#[test]
fn everything_that_must_not_be_done_is_seen() {
    let Some(standin) = Standin::get() else { return };
    let spdk = spdk(standin);
    let caught = |words: &str| {
        let found = standin.misuse().unwrap_or_else(|| panic!("nobody saw: {words}"));
        assert!(found.contains(words), "{found:?} does not say {words:?}");
    };
    let address = Standin::address();
    standin.drive(&address, None, DriveShape::new(16 << 20, 512));
    // SAFETY: what is wrong here the stand-in refuses before it touches anything; its handles are never really freed.
    unsafe {
        assert!(connect(&spdk, &address).is_null());
        caught("spdk_nvme_connect before spdk_env_init");
        let mut stays = options(&spdk);
        stays[5] = 0;
        assert_eq!((spdk.env_init)(stays.as_ptr().cast()), 0);
        caught("huge pages of a killed process would stay");
        (spdk.env_init)(options(&spdk).as_ptr().cast());
        caught("spdk_env_init twice");

        let memory = (spdk.zmalloc)(4 << 20, 2 << 20, null_mut(), -1, 1);
        assert!(!memory.is_null());
        let own = Box::leak(vec![0u8; 4 << 20].into_boxed_slice()).as_mut_ptr();
        (spdk.mem_register)(own.wrapping_add(1), 4096);
        caught("not made of 2 MiB");
        (spdk.mem_register)(memory, 2 << 20);
        caught("of what is registered");
        (spdk.mem_unregister)(own, 2 << 20);
        caught("of what is not registered");
        (spdk.free)(own);
        caught("what spdk_zmalloc did not give");

        let drive = connect(&spdk, &address);
        assert!(!drive.is_null());
        assert!(connect(&spdk, &address).is_null());
        caught("is connected twice");
        let ns = (spdk.get_ns)(drive, 1);
        let pair = (spdk.alloc_qpair)(drive, null(), 0);
        let write =
            |pair: Handle, at: *mut u8, sectors: u32| (spdk.write)(ns, pair, at, 0, sectors, ignored, null_mut(), 0);
        assert_eq!(write(pair, own, 8), -libc::EFAULT);
        caught("are not registered");
        for reach in [Reach::Nowhere, Reach::Physical] {
            standin.reach(reach);
            let unreached = (own as usize).next_multiple_of(2 << 20) as *mut u8;
            assert_eq!((spdk.mem_register)(unreached, 2 << 20), 0, "it says nothing of it");
            assert_eq!(write(pair, unreached, 8), -libc::EFAULT);
            caught("are not registered, or not for good");
            assert_eq!((spdk.mem_unregister)(unreached, 2 << 20), 0);
        }
        standin.reach(Reach::Iommu);
        assert_eq!(write(pair, memory.wrapping_add(2), 8), -libc::EFAULT);
        caught("no multiple of 4");
        assert_eq!(write(pair, memory, 512), -libc::EINVAL);
        caught("bytes at once");
        assert_eq!(write(pair, memory, 0), -libc::EINVAL);
        caught("no sectors");
        assert_eq!(write(pair, memory, 8), 0);
        let sent = pair as usize;
        std::thread::spawn(move || {
            let process = spdk.process;
            process(sent as Handle, 0)
        })
        .join()
        .expect("it returns");
        caught("another thread's queue pair");
        (spdk.free)(memory);
        (spdk.process)(pair, 0);
        caught("memory was given up while a device had it");
        (spdk.detach)(drive);
        caught("with 1 queue pairs");
        (spdk.process)(pair, 0);
        (spdk.free_qpair)(pair);
        caught("spdk_nvme_ctrlr_free_io_qpair of a controller that was detached");
        (spdk.free_qpair)(pair);
        caught("spdk_nvme_ctrlr_free_io_qpair twice");
        let drive = connect(&spdk, &address);
        assert_eq!(write(pair, own, 8), -libc::ENXIO);
        caught("on a queue pair that was freed");
        (spdk.detach)(drive);
        (spdk.detach)(drive);
        caught("spdk_nvme_detach twice");
        assert_eq!(write(pair, own, 8), -libc::ENXIO);
        caught("a command of a controller that was detached");
    }
}
