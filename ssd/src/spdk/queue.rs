//! A controller, one of its namespaces, and a queue pair for it: commands go in, what has ended comes out.
//!
//! Invariant: a command's ticket and memory stay until its end is told or `close` has returned, which ends all of them.
//! Invariant: SPDK is called for a controller by one thread at a time: all goes through `&mut self`.

use std::{
    cell::RefCell,
    ffi::{CString, c_void},
    io,
    ptr::NonNull,
};

use lapis_config::Controller;

use super::{
    NoSpdk,
    env::{Claim, Env},
    library::{Completion, Ctrlr, DEALLOCATE, DsmRange, Ns, Qpair, SECTORS, TransportId},
    status::Status,
};
use crate::format::PAGE_BYTES;

/// Commands of one controller at once: SPDK's queue pairs have 255 by default, and keep 512 requests.
pub(super) const COMMANDS: usize = 255;
const ENXIO: i32 = -libc::ENXIO;

pub(super) struct Queue {
    env: &'static Env,
    id: Box<TransportId>,
    ctrlr: NonNull<Ctrlr>,
    ns: NonNull<Ns>,
    /// Made by the thread that uses it.
    qpair: Option<NonNull<Qpair>>,
    controller: Controller,
    pub shape: Shape,
    pub identity: Identity,
    posted: Box<Posted>,
    tickets: Box<[Ticket]>,
    _claim: Claim,
}

// SAFETY: SPDK binds controllers and queue pairs to no thread; it wants one at a time, which `&mut self` gives. What `posted`
// holds is touched by calls of this same object alone.
unsafe impl Send for Queue {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub sector_bytes: u64,
    pub sectors: u64,
    /// A multiple of a page.
    pub transfer_max: usize,
}

/// Which device it is: serial number, model, and the namespace's own identifiers. Bytes of what identify answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    controller: [u8; 60],
    namespace: [u8; 24],
}

impl Shape {
    /// Whole pages of the namespace.
    pub(super) fn bytes(self) -> u64 {
        self.sector_bytes.saturating_mul(self.sectors) / PAGE_BYTES as u64 * PAGE_BYTES as u64
    }
}

/// What callbacks leave.
#[derive(Default)]
struct Posted(RefCell<Vec<(u32, Status)>>);

/// What a command's callback is given.
struct Ticket {
    posted: *const Posted,
    command: u32,
}

/// Of one command: where on the device, in bytes, and between which memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    Read { memory: *mut u8, offset: u64, bytes: usize },
    Write { memory: *mut u8, offset: u64, bytes: usize },
    Flush,
    Deallocate { offset: u64, bytes: u64 },
}

/// Why a command was not taken.
#[derive(Debug)]
pub(super) enum Refused {
    /// When something has ended.
    Full,
    /// The controller has failed.
    Failed,
    Error(io::Error),
}

impl Queue {
    pub(super) fn connect(env: &'static Env, controller: &Controller) -> Result<Self, NoSpdk> {
        let Controller { address, namespace } = controller;
        let claim = env.claim(address)?;
        let no = || NoSpdk::Connect { address: address.clone() };
        let text = CString::new(format!("trtype:PCIe traddr:{address}")).expect("an address has no zero byte");
        let mut id = Box::new(TransportId([0; 4096]));
        // SAFETY: the struct is larger than SPDK's, and zeroed as it asks; the text ends with a zero.
        if unsafe { (env.library.transport_id_parse)(&mut *id, text.as_ptr()) } != 0 {
            return Err(no());
        }
        // SAFETY: filled by SPDK just now; no options are the default ones.
        let ctrlr = NonNull::new(unsafe { (env.library.connect)(&*id, std::ptr::null(), 0) }).ok_or_else(no)?;
        let detach = || {
            // SAFETY: connected above; nothing of it is used afterwards.
            if unsafe { (env.library.detach)(ctrlr.as_ptr()) } != 0 {
                tracing::warn!(address, "a controller is not detached");
            }
        };
        let ns = namespace_of(env, ctrlr, *namespace);
        let looked = ns.ok_or_else(|| NoSpdk::Namespace { address: address.clone(), namespace: *namespace });
        let looked = looked.and_then(|ns| Ok((ns, shape(env, ns, address)?)));
        let (ns, shape) = looked.inspect_err(|_| detach())?;
        let identity = identity_of(env, ctrlr, ns);
        let posted = Box::<Posted>::default();
        let ticket = |command| Ticket { posted: &raw const *posted, command };
        let tickets = (0..COMMANDS as u32).map(ticket).collect();
        let controller = controller.clone();
        Ok(Self { env, id, ctrlr, ns, qpair: None, controller, shape, identity, posted, tickets, _claim: claim })
    }

    /// Makes the queue pair, if there is none yet: from now on this thread is the one that uses it.
    pub(super) fn take(&mut self) -> io::Result<()> {
        if self.qpair.is_none() {
            // SAFETY: connected; no options are the default ones.
            let qpair = unsafe { (self.env.library.alloc_qpair)(self.ctrlr.as_ptr(), std::ptr::null(), 0) };
            let made = NonNull::new(qpair).ok_or_else(|| io::Error::other("the controller gives no queue pair"))?;
            self.qpair = Some(made);
        }
        Ok(())
    }

    /// Gives a command to the controller; `command` is below `COMMANDS` and not under way.
    ///
    /// # Safety
    /// Memory of the order is valid for its bytes, and for a read to be written, until the command's end was told or `close`
    /// has returned.
    pub(super) unsafe fn submit(&mut self, command: u32, order: Order) -> Result<(), Refused> {
        let qpair = self.qpair.ok_or(Refused::Failed)?.as_ptr();
        let (library, ns, sector) = (&self.env.library, self.ns.as_ptr(), self.shape.sector_bytes);
        let ticket = (&raw const self.tickets[command as usize]).cast_mut().cast::<c_void>();
        let lba = |offset: u64| offset / sector;
        // SAFETY: controller, namespace and queue pair are alive; the ticket lives in a box that `close` outlives; the
        // caller keeps the memory.
        let rc = unsafe {
            match order {
                Order::Read { memory, offset, bytes } => {
                    let sectors = (bytes as u64 / sector) as u32;
                    (library.read)(ns, qpair, memory.cast(), lba(offset), sectors, ended, ticket, 0)
                }
                Order::Write { memory, offset, bytes } => {
                    let sectors = (bytes as u64 / sector) as u32;
                    (library.write)(ns, qpair, memory.cast(), lba(offset), sectors, ended, ticket, 0)
                }
                Order::Flush => (library.flush)(ns, qpair, ended, ticket),
                Order::Deallocate { offset, bytes } => {
                    let range = DsmRange { attributes: 0, length: (bytes / sector) as u32, lba: lba(offset) };
                    (library.dataset_management)(ns, qpair, DEALLOCATE, &range, 1, ended, ticket)
                }
            }
        };
        match -rc {
            0 => Ok(()),
            libc::ENOMEM => Err(Refused::Full),
            libc::ENXIO => Err(Refused::Failed),
            errno => Err(Refused::Error(io::Error::from_raw_os_error(errno))),
        }
    }

    /// Lets the controller say what has ended. An error: it has failed, or was removed.
    pub(super) fn process(&mut self) -> io::Result<()> {
        let Some(qpair) = self.qpair else { return Ok(()) };
        // SAFETY: the queue pair is alive, and used by this thread.
        match unsafe { (self.env.library.process)(qpair.as_ptr(), 0) } {
            0.. => Ok(()),
            rc => Err(failure(rc)),
        }
    }

    /// Lets the controller say what is not of a command: that it failed or was pulled. The latter SPDK finds out only when it
    /// is told to look; then it marks whichever of its controllers were, under locks of its own.
    pub(super) fn process_admin(&mut self) -> io::Result<()> {
        let (library, ctrlr) = (&self.env.library, self.ctrlr.as_ptr());
        // SAFETY: connected; the id is as SPDK filled it.
        let (rc, failed) = unsafe {
            (library.scan_attached)(&*self.id);
            ((library.process_admin)(ctrlr), (library.is_failed)(ctrlr))
        };
        if rc < 0 || failed { Err(failure(rc.min(ENXIO))) } else { Ok(()) }
    }

    /// Appends the commands that have ended, with how.
    pub(super) fn drain(&mut self, out: &mut Vec<(u32, Status)>) {
        out.append(&mut self.posted.0.borrow_mut());
    }

    /// Resets the controller and ends whatever it had: `drain` tells. An error: it does not come back; then `close` it.
    pub(super) fn reset(&mut self) -> io::Result<()> {
        // SAFETY: connected; nobody else uses it.
        let rc = unsafe { (self.env.library.reset)(self.ctrlr.as_ptr()) };
        self.free_qpair();
        if rc != 0 {
            return Err(failure(rc));
        }
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "its namespace has changed");
        let ns = namespace_of(self.env, self.ctrlr, self.controller.namespace).ok_or_else(gone)?;
        let is_same = identity_of(self.env, self.ctrlr, ns) == self.identity;
        if !is_same || shape(self.env, ns, &self.controller.address).ok() != Some(self.shape) {
            return Err(gone());
        }
        self.ns = ns;
        self.take()
    }

    /// All its commands end in this call, as aborted.
    fn free_qpair(&mut self) {
        if let Some(qpair) = self.qpair.take() {
            // SAFETY: alive until now, used by nobody else, and not from within a callback.
            unsafe { (self.env.library.free_qpair)(qpair.as_ptr()) };
        }
    }

    /// Gives the controller up. When this returns it reads and writes no memory any more; ends of commands are told here.
    pub(super) fn close(mut self) -> Vec<(u32, Status)> {
        self.free_qpair();
        // SAFETY: connected until now, without queue pairs; not used afterwards.
        if unsafe { (self.env.library.detach)(self.ctrlr.as_ptr()) } != 0 {
            tracing::warn!(controller = %self.controller, "a controller is not detached");
        }
        self.posted.0.take()
    }
}

fn namespace_of(env: &Env, ctrlr: NonNull<Ctrlr>, number: u32) -> Option<NonNull<Ns>> {
    // SAFETY: connected; an unknown number gives null.
    let ns = NonNull::new(unsafe { (env.library.get_ns)(ctrlr.as_ptr(), number) })?;
    // SAFETY: a namespace of a connected controller.
    unsafe { (env.library.is_active)(ns.as_ptr()) }.then_some(ns)
}

fn identity_of(env: &Env, ctrlr: NonNull<Ctrlr>, ns: NonNull<Ns>) -> Identity {
    // SAFETY: a connected controller and a namespace of it, which have their answers to identify as long as they live; copied
    // before SPDK is called again.
    let (controller, namespace) = unsafe {
        let (controller, namespace) = ((env.library.identify)(ctrlr.as_ptr()), (env.library.identify_ns)(ns.as_ptr()));
        ((*controller).0, (*namespace).0)
    };
    let mut identity = Identity { controller: [0; 60], namespace: [0; 24] };
    identity.controller.copy_from_slice(&controller[4..64]);
    identity.namespace.copy_from_slice(&namespace[104..128]);
    identity
}

fn shape(env: &Env, ns: NonNull<Ns>, address: &str) -> Result<Shape, NoSpdk> {
    let (library, ns) = (&env.library, ns.as_ptr());
    // SAFETY: an active namespace of a connected controller.
    let (sector, metadata, sectors, transfer, set) = unsafe {
        let (sector, metadata) = ((library.sector_bytes)(ns), (library.metadata_bytes)(ns));
        let (sectors, transfer) = ((library.sectors)(ns), (library.transfer_bytes_max)(ns));
        (sector, metadata, sectors, transfer, (library.command_set)(ns))
    };
    if set != SECTORS {
        return Err(NoSpdk::CommandSet { address: address.to_owned(), set });
    }
    let page = PAGE_BYTES as u32;
    if sector == 0 || !page.is_multiple_of(sector) {
        return Err(NoSpdk::Sector { address: address.to_owned(), page, found: sector });
    }
    // Also of metadata that lies apart: the controller would read and write it at address 0, as no command says where it is.
    if metadata != 0 {
        return Err(NoSpdk::Metadata { address: address.to_owned(), bytes: metadata });
    }
    let transfer_max = (transfer as usize / PAGE_BYTES * PAGE_BYTES).max(PAGE_BYTES);
    Ok(Shape { sector_bytes: sector.into(), sectors, transfer_max })
}

fn failure(rc: i32) -> io::Error {
    match rc {
        ENXIO => io::Error::new(io::ErrorKind::NotConnected, "the controller has failed or was removed"),
        rc => io::Error::from_raw_os_error(rc.saturating_neg().max(1)),
    }
}

/// SPDK calls this within `process`, `reset` and `free_qpair`.
unsafe extern "C" fn ended(ticket: *mut c_void, completion: *const Completion) {
    // SAFETY: the ticket that was given with the command, in a box of the queue whose call this is within; SPDK's completion
    // is valid during the call.
    let (ticket, status) = unsafe { (&*ticket.cast::<Ticket>(), (*completion).status) };
    // SAFETY: the same box's; no reference into it is held while SPDK is called.
    let posted = unsafe { &*ticket.posted };
    posted.0.borrow_mut().push((ticket.command, Status::of_completion(status)));
}
