//! Setting up a ring, as good as this kernel has it, or finding out why there is none.

use std::io;

use io_uring::{Builder, IoUring, Probe};

use crate::SsdError;

/// Most operations of one device at once; also bounds the rings that the kernel allocates.
pub const DEPTH_MAX: usize = 4096;
/// A ring that no device uses yet: shows whether this host has io_uring for us.
pub struct Ring {
    pub(super) ring: IoUring,
    /// False until its thread takes it: see `Uring::take`.
    pub(super) enabled: bool,
    pub(super) depth: usize,
}

impl Ring {
    /// Sets up a ring for `depth` operations at once, or says why there is none: forbidden (EPERM by seccomp or
    /// `io_uring_disabled`), unknown (ENOSYS), no memory to lock (ENOMEM), or too old.
    pub fn set_up(depth: usize) -> Result<Self, SsdError> {
        Self::set_up_as(depth, &SETUPS)
    }

    pub(super) fn set_up_as(depth: usize, setups: &[Setup]) -> Result<Self, SsdError> {
        assert!(depth > 0, "a device that takes nothing");
        let depth = depth.min(DEPTH_MAX);
        let failed = |op| move |source| SsdError::Uring { op, source };
        let (ring, enabled) = build(depth, setups).map_err(failed("io_uring_setup"))?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(failed("waits with a timeout (Linux 5.11)")(io::ErrorKind::Unsupported.into()));
        }
        // A filter may let the set-up pass and none of what follows.
        ring.submitter().register_probe(&mut Probe::new()).map_err(failed("io_uring_register"))?;
        match ring.submit() {
            Ok(_) => {}
            // What a ring answers that is not enabled yet.
            Err(error) if !enabled && error.raw_os_error() == Some(libc::EBADFD) => {}
            Err(source) => return Err(failed("io_uring_enter")(source)),
        }
        Ok(Self { ring, enabled, depth })
    }
}

/// One way to set up a ring.
pub(super) struct Setup {
    set: fn(&mut Builder),
    /// Whether the ring serves whoever made it at once.
    enabled: bool,
}

/// The best first; a kernel that does not know one answers EINVAL.
pub(super) const SETUPS: [Setup; 3] = [
    // Completions are run when we ask, not by interrupting us. Disabled at first: a ring of a single issuer belongs to
    // whoever enables it, and that is to be the thread that uses it. Linux 6.1.
    Setup {
        set: |builder| {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
            builder.setup_r_disabled().setup_submit_all();
        },
        enabled: false,
    },
    // Linux 5.19.
    Setup {
        set: |builder| {
            builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        },
        enabled: true,
    },
    Setup { set: |_| {}, enabled: true },
];

/// The ring, and whether it is enabled. The completion queue is twice as long as the submission queue, which has room
/// for all operations and the bell: it never overflows.
fn build(depth: usize, setups: &[Setup]) -> io::Result<(IoUring, bool)> {
    let mut refused = io::ErrorKind::Unsupported.into();
    for Setup { set, enabled } in setups {
        let mut builder = IoUring::builder();
        set(&mut builder);
        match builder.setup_clamp().build(depth as u32 + 1) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
            built => return built.map(|ring| (ring, *enabled)),
        }
    }
    Err(refused)
}
