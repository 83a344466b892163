//! `libibverbs.so.1`, looked for when RDMA is wanted.

use std::{
    ffi::{CStr, c_char, c_int},
    sync::{Arc, OnceLock},
};

use super::types::{CompChannel, Context, Cq, Device, DeviceAttr, Mr, Pd, PortAttr, Qp, QpAttr, QpInitAttr};

const NAME: &str = "libibverbs.so.1";

/// Why there are no verbs.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NoVerbs {
    #[error("{NAME} is not to be had ({reason})")]
    Library { reason: String },
    #[error("{NAME} has no function {function}")]
    Function { function: &'static str },
}

macro_rules! functions {
    ($( $field:ident = $name:literal: fn($($argument:ty),*) $(-> $result:ty)?; )*) => {
        /// Its functions that are called by name.
        pub struct Library {
            $( pub(super) $field: unsafe extern "C" fn($($argument),*) $(-> $result)?, )*
            _library: libloading::Library,
        }

        impl Library {
            fn load() -> Result<Self, NoVerbs> {
                // SAFETY: the library's initialisers register nothing but what it needs itself; it is the system's own,
                // found by the loader's rules.
                let library = unsafe { libloading::Library::new(NAME) }
                    .map_err(|error| NoVerbs::Library { reason: cause(&error) })?;
                $(
                    // SAFETY: the type is that of the function in `infiniband/verbs.h`, which is stable under this name
                    // of the library; the pointer is called only while `_library` keeps it loaded.
                    let $field = *unsafe { library.get($name.as_bytes()) }
                        .map_err(|_| NoVerbs::Function { function: $name })?;
                )*
                Ok(Self { $( $field, )* _library: library })
            }
        }
    };
}

functions! {
    get_device_list = "ibv_get_device_list": fn(*mut c_int) -> *mut *mut Device;
    free_device_list = "ibv_free_device_list": fn(*mut *mut Device);
    get_device_name = "ibv_get_device_name": fn(*mut Device) -> *const c_char;
    open_device = "ibv_open_device": fn(*mut Device) -> *mut Context;
    close_device = "ibv_close_device": fn(*mut Context) -> c_int;
    query_device = "ibv_query_device": fn(*mut Context, *mut DeviceAttr) -> c_int;
    query_port = "ibv_query_port": fn(*mut Context, u8, *mut PortAttr) -> c_int;
    alloc_pd = "ibv_alloc_pd": fn(*mut Context) -> *mut Pd;
    dealloc_pd = "ibv_dealloc_pd": fn(*mut Pd) -> c_int;
    reg_mr = "ibv_reg_mr": fn(*mut Pd, *mut std::ffi::c_void, usize, c_int) -> *mut Mr;
    dereg_mr = "ibv_dereg_mr": fn(*mut Mr) -> c_int;
    create_comp_channel = "ibv_create_comp_channel": fn(*mut Context) -> *mut CompChannel;
    destroy_comp_channel = "ibv_destroy_comp_channel": fn(*mut CompChannel) -> c_int;
    create_cq = "ibv_create_cq": fn(*mut Context, c_int, *mut std::ffi::c_void, *mut CompChannel, c_int) -> *mut Cq;
    destroy_cq = "ibv_destroy_cq": fn(*mut Cq) -> c_int;
    get_cq_event = "ibv_get_cq_event": fn(*mut CompChannel, *mut *mut Cq, *mut *mut std::ffi::c_void) -> c_int;
    ack_cq_events = "ibv_ack_cq_events": fn(*mut Cq, std::ffi::c_uint);
    create_qp = "ibv_create_qp": fn(*mut Pd, *mut QpInitAttr) -> *mut Qp;
    modify_qp = "ibv_modify_qp": fn(*mut Qp, *mut QpAttr, c_int) -> c_int;
    destroy_qp = "ibv_destroy_qp": fn(*mut Qp) -> c_int;
    wc_status_str = "ibv_wc_status_str": fn(std::ffi::c_uint) -> *const c_char;
}

impl Library {
    /// The library, loaded at the first call and never unloaded: its drivers keep state of their own.
    pub fn get() -> Result<Arc<Self>, NoVerbs> {
        static LIBRARY: OnceLock<Result<Arc<Library>, NoVerbs>> = OnceLock::new();
        LIBRARY.get_or_init(|| Self::load().map(Arc::new)).clone()
    }

    /// What a completion's status means.
    pub(super) fn status(&self, status: u32) -> String {
        // SAFETY: any number may be asked about; the answer is a constant of the library, or null.
        let text = unsafe { (self.wc_status_str)(status) };
        if text.is_null() {
            return format!("status {status}");
        }
        // SAFETY: not null, and a constant text of the library.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

/// What the loader says of it; `libloading` has it as a cause.
fn cause(error: &libloading::Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
    causes.last().map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_said_with_its_name_and_why() {
        // SAFETY: there is no such library, so nothing of it can run.
        let error = unsafe { libloading::Library::new("libibverbs-of-nobody.so.1") }.expect_err("none");
        let said = NoVerbs::Library { reason: cause(&error) }.to_string();
        assert!(said.starts_with("libibverbs.so.1 is not to be had") && said.contains("of-nobody"), "{said}");
    }

    /// Where the library is, all that is called by name must be in it.
    #[test]
    fn every_function_is_in_the_library_of_this_host() {
        match Library::get() {
            Ok(library) => assert_eq!(library.status(0), "success"),
            Err(NoVerbs::Library { reason }) => assert!(reason.contains("libibverbs"), "{reason}"),
            Err(error @ NoVerbs::Function { .. }) => panic!("{error}"),
        }
    }
}
