//! Setting up a ring, as good as this kernel has it, or finding out why there is none.

use std::io;

use io_uring::{Builder, IoUring, Probe, Submitter, cqueue, squeue};

use crate::SsdError;

/// Most operations of one device at once; also bounds the rings that the kernel allocates.
pub const DEPTH_MAX: usize = 4096;

/// A ring that no device uses yet: shows whether this host has io_uring for us.
pub struct Ring<S = squeue::Entry, C = cqueue::Entry>
where
    S: squeue::EntryMarker,
    C: cqueue::EntryMarker,
{
    pub(super) ring: IoUring<S, C>,
    /// False until its thread takes it: see `Issuer::take`.
    pub(super) enabled: bool,
    depth: usize,
    setup: Setup,
}

impl Ring {
    /// Sets up a ring for `depth` operations at once, or says why there is none: forbidden (EPERM by seccomp or
    /// `io_uring_disabled`), unknown (ENOSYS), no memory to lock (ENOMEM), or too old.
    pub fn set_up(depth: usize) -> Result<Self, SsdError> {
        Self::set_up_as(depth, &SETUPS, false)
    }
}

impl<S: squeue::EntryMarker, C: cqueue::EntryMarker> Ring<S, C> {
    /// The same with entries of other sizes, in the first of these ways that the kernel knows. `polled`: completions are
    /// looked for at the device when they are asked for, and do not interrupt.
    pub(crate) fn set_up_as(depth: usize, setups: &[Setup], polled: bool) -> Result<Self, SsdError> {
        assert!(depth > 0, "a device that takes nothing");
        let depth = depth.min(DEPTH_MAX);
        let failed = |op| move |source| SsdError::Uring { op, source };
        let (ring, setup) = build::<S, C>(depth, setups, polled).map_err(failed("io_uring_setup"))?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(failed("waits with a timeout (Linux 5.11)")(io::ErrorKind::Unsupported.into()));
        }
        // A filter may let the set-up pass and none of what follows.
        ring.submitter().register_probe(&mut Probe::new()).map_err(failed("io_uring_register"))?;
        let enabled = setup != Setup::Deferred;
        match ring.submit() {
            Ok(_) => {}
            // What a ring answers that is not enabled yet.
            Err(error) if !enabled && error.raw_os_error() == Some(libc::EBADFD) => {}
            Err(source) => return Err(failed("io_uring_enter")(source)),
        }
        Ok(Self { ring, enabled, depth, setup })
    }

    /// Operations at once.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    pub(crate) fn submitter(&self) -> Submitter<'_> {
        self.ring.submitter()
    }

    pub(crate) fn setup(&self) -> Setup {
        self.setup
    }
}

/// One way to set up a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    /// Completions are run when we ask, not by interrupting us. Disabled at first: a ring of a single issuer belongs to
    /// whoever enables it, and that is to be the thread that uses it. Linux 6.1.
    Deferred,
    /// Linux 5.19.
    Cooperative,
    Plain,
}

/// The best first; a kernel that does not know one answers EINVAL.
pub(crate) const SETUPS: [Setup; 3] = [Setup::Deferred, Setup::Cooperative, Setup::Plain];

impl Setup {
    fn set<S: squeue::EntryMarker, C: cqueue::EntryMarker>(self, builder: &mut Builder<S, C>) {
        match self {
            Self::Deferred => {
                builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
                builder.setup_r_disabled().setup_submit_all();
            }
            Self::Cooperative => {
                builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
            }
            Self::Plain => {}
        }
    }
}

/// The ring, and how it was set up. The completion queue is twice as long as the submission queue, which has room for all
/// operations and the bell: it never overflows.
fn build<S: squeue::EntryMarker, C: cqueue::EntryMarker>(
    depth: usize,
    setups: &[Setup],
    polled: bool,
) -> io::Result<(IoUring<S, C>, Setup)> {
    let mut refused = io::ErrorKind::Unsupported.into();
    for setup in setups {
        let mut builder = IoUring::<S, C>::builder();
        setup.set(&mut builder);
        if polled {
            builder.setup_iopoll();
        }
        match builder.setup_clamp().build(depth as u32 + 1) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
            built => return built.map(|ring| (ring, *setup)),
        }
    }
    Err(refused)
}
