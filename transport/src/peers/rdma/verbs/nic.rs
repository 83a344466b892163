//! A port of a NIC by verbs: the safe face of the library. Each object keeps alive what it was made from, so that they are
//! given back in the order that the library demands; pointers never leave this file.

use std::{
    ffi::{CStr, c_int, c_uint, c_void},
    io, mem,
    ops::Range,
    os::fd::BorrowedFd,
    ptr::{self, NonNull},
    sync::Arc,
};

use lapis_arena::Mapping;
use rustix::fs::OFlags;

use super::{library::Library, types as v};
use crate::peers::rdma::{
    provider::{Completion, Nic, Pair, Read, Region, Use},
    rank::{Candidate, Layer},
    said::{End, GidKind},
    sysfs,
};

/// The only partition key that is used: the default one, at index 0.
const PARTITION: u16 = 0;
/// 4.096 us * 2^14 = 67 ms until a packet that nobody acknowledged is sent again, seven times. Deadlines are kept elsewhere.
const ACK_TIMEOUT: u8 = 14;
const RETRIES: u8 = 7;
/// Of a receiver that is not ready; no READ meets one.
const RECEIVER_PAUSE: u8 = 12;
/// Routers on the way, at most.
const HOPS_MAX: u8 = 64;
/// READs of one pair that a NIC answers or has under way at once: more gains nothing on any that is known.
const READS_AT_ONCE_MAX: c_int = 64;
/// Completions taken at once.
const POLL: usize = 16;

/// An open device.
struct Open {
    library: Arc<Library>,
    context: NonNull<v::Context>,
}

// SAFETY: the library locks its objects itself; every verb may be called from any thread. So for all of this file.
unsafe impl Send for Open {}
// SAFETY: as above.
unsafe impl Sync for Open {}

impl Drop for Open {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, closed once; all that was made from it is gone, as each holds this.
        unsafe { (self.library.close_device)(self.context.as_ptr()) };
    }
}

/// Where a device tells of completions.
struct Channel {
    channel: NonNull<v::CompChannel>,
    open: Arc<Open>,
}

// SAFETY: see `Open`.
unsafe impl Send for Channel {}
// SAFETY: see `Open`.
unsafe impl Sync for Channel {}

impl Channel {
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the library keeps the descriptor open until the channel is destroyed, after this borrow.
        unsafe { BorrowedFd::borrow_raw(self.channel.as_ref().fd) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: made by `VerbsNic::open`, destroyed once, after every queue that tells by it.
        unsafe { (self.open.library.destroy_comp_channel)(self.channel.as_ptr()) };
    }
}

/// One port of one device, with the address that was chosen.
pub struct VerbsNic {
    channel: Arc<Channel>,
    open: Arc<Open>,
    name: String,
    node: Option<u32>,
    port: Port,
    region_bytes_max: u64,
}

#[derive(Clone, Copy)]
struct Port {
    number: u8,
    index: u8,
    gid: [u8; 16],
    kind: GidKind,
    lid: u16,
    mtu: u8,
    /// READs that it answers, and that it has under way.
    answers: u8,
    asks: u8,
}

impl VerbsNic {
    pub fn open(library: &Arc<Library>, candidate: &Candidate) -> io::Result<Self> {
        let open = Arc::new(open(library, &candidate.device)?);
        // SAFETY: all zeros are a value of the struct: plain numbers.
        let mut device = unsafe { mem::zeroed::<v::DeviceAttr>() };
        // SAFETY: an open device, and a struct of the library's layout to be filled.
        checked(unsafe { (library.query_device)(open.context.as_ptr(), &mut device) })?;
        let port = port_now(&open, candidate.port)?;
        let index = u8::try_from(candidate.index)
            .map_err(|_| io::Error::new(io::ErrorKind::Unsupported, "its address has an index above 255"))?;
        // SAFETY: an open device.
        let channel = made(unsafe { (library.create_comp_channel)(open.context.as_ptr()) })?;
        let channel = Arc::new(Channel { channel, open: open.clone() });
        rustix::fs::fcntl_setfl(channel.fd(), OFlags::NONBLOCK)?;
        let at_once = |reads: c_int| reads.clamp(1, READS_AT_ONCE_MAX) as u8;
        let port = Port {
            number: candidate.port,
            index,
            gid: candidate.gid,
            kind: candidate.kind(),
            lid: port.lid,
            mtu: port.mtu(),
            answers: at_once(device.max_qp_rd_atom),
            asks: at_once(device.max_qp_init_rd_atom),
        };
        debug_assert_eq!(port.kind == GidKind::InfiniBand, candidate.layer == Layer::InfiniBand);
        let (name, node) = (candidate.device.clone(), sysfs::node_of(&candidate.device));
        Ok(Self { channel, open, name, node, port, region_bytes_max: device.max_mr_size })
    }
}

impl VerbsNic {
    /// False once its device was taken away: one of its name that comes back is another.
    pub fn is_there(&self) -> bool {
        port_now(&self.open, self.port.number).err().and_then(|error| error.raw_os_error()) != Some(libc::EIO)
    }
}

/// A port that is up, as it is now: its MTU and its LID change when it was down, or was configured anew.
fn port_now(open: &Open, number: u8) -> io::Result<v::PortAttr> {
    // SAFETY: all zeros are a value of the struct: plain numbers.
    let mut port = unsafe { mem::zeroed::<v::PortAttr>() };
    // SAFETY: an open device, and a struct of the library's layout to be filled.
    checked(unsafe { (open.library.query_port)(open.context.as_ptr(), number, &mut port) })?;
    if port.state != v::PORT_ACTIVE {
        return Err(io::Error::new(io::ErrorKind::NetworkDown, "its port is not active"));
    }
    Ok(port)
}

/// Opens a device by its name.
fn open(library: &Arc<Library>, name: &str) -> io::Result<Open> {
    let mut count: c_int = 0;
    // SAFETY: the list is the library's, ends with null, and is given back below.
    let list = made(unsafe { (library.get_device_list)(&mut count) })?;
    let context = (0..usize::try_from(count).unwrap_or(0)).find_map(|index| {
        // SAFETY: `count` entries are in the list; each is a device while the list is held.
        let device = unsafe { *list.as_ptr().add(index) };
        // SAFETY: the name is a text of the device.
        let found = unsafe { CStr::from_ptr((library.get_device_name)(device)) };
        // SAFETY: a device of the list; once open it outlives the list.
        (found.to_bytes() == name.as_bytes()).then(|| made(unsafe { (library.open_device)(device) }))
    });
    // SAFETY: it came from the library and is not used any more.
    unsafe { (library.free_device_list)(list.as_ptr()) };
    let no_driver = || {
        let reason = "libibverbs has no driver for it (the package ibverbs-providers, or one of the NIC's maker)";
        io::Error::new(io::ErrorKind::NotFound, reason)
    };
    Ok(Open { library: library.clone(), context: context.ok_or_else(no_driver)?? })
}

impl Nic for VerbsNic {
    type Domain = Domain;
    type Region = MemoryRegion;
    type Pair = QueuePair;

    fn name(&self) -> &str {
        &self.name
    }

    fn node(&self) -> Option<u32> {
        self.node
    }

    fn kind(&self) -> GidKind {
        self.port.kind
    }

    fn region_bytes_max(&self) -> u64 {
        self.region_bytes_max
    }

    fn domain(&self) -> io::Result<Domain> {
        // SAFETY: an open device.
        let pd = made(unsafe { (self.open.library.alloc_pd)(self.open.context.as_ptr()) })?;
        Ok(Domain { pd, open: self.open.clone() })
    }

    fn register(
        &self,
        domain: &Arc<Domain>,
        mapping: &Mapping,
        range: Range<usize>,
        what_for: Use,
    ) -> io::Result<MemoryRegion> {
        assert!(mapping.is_writable() && range.end <= mapping.len(), "{range:?} of {mapping:?}");
        // Never REMOTE_WRITE: whoever wants bytes reads them.
        let access = match what_for {
            Use::Blocks => v::ACCESS_LOCAL_WRITE | v::ACCESS_REMOTE_READ,
            Use::Table => v::ACCESS_REMOTE_READ,
            Use::Scratch => v::ACCESS_LOCAL_WRITE,
        };
        let start: *mut c_void = mapping.as_ptr(range.start).cast();
        // SAFETY: the range is mapped, as just checked, and stays so while the region holds the mapping. What the NIC
        // writes there is memory that is read by copies alone.
        let mr = made(unsafe { (self.open.library.reg_mr)(domain.pd.as_ptr(), start, range.len(), access) })?;
        // SAFETY: the library made it just now.
        let (local, remote) = unsafe { (mr.as_ref().lkey, mr.as_ref().rkey) };
        Ok(MemoryRegion { mr, local, remote, domain: domain.clone(), _mapping: mapping.clone() })
    }

    fn pair(&self, domain: &Arc<Domain>, reads_max: u32) -> io::Result<QueuePair> {
        let is_v2 = matches!(self.port.kind, GidKind::RoceV2Ip4 | GidKind::RoceV2Ip6);
        let index = sysfs::index_of(&self.name, self.port.number, self.port.gid, is_v2);
        let index = index.and_then(|index| u8::try_from(index).ok());
        let gone = || io::Error::new(io::ErrorKind::AddrNotAvailable, "its address is gone from its port");
        let now = port_now(&self.open, self.port.number)?;
        let port = Port { index: index.ok_or_else(gone)?, lid: now.lid, mtu: now.mtu(), ..self.port };
        QueuePair::new(domain, &self.channel, port, reads_max)
    }

    fn events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.channel.fd())
    }

    fn take_events(&self) {
        let library = &self.open.library;
        let (mut cq, mut of): (*mut v::Cq, *mut c_void) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: an open channel that does not block. What comes is a queue that still is: another thread that destroys it
        // waits in the library until each event that was taken has been acknowledged; those not taken go with it.
        while unsafe { (library.get_cq_event)(self.channel.channel.as_ptr(), &mut cq, &mut of) } == 0 {
            // SAFETY: one event of this queue was taken.
            unsafe { (library.ack_cq_events)(cq, 1) };
        }
    }
}

/// A protection domain.
pub struct Domain {
    pd: NonNull<v::Pd>,
    open: Arc<Open>,
}

// SAFETY: see `Open`.
unsafe impl Send for Domain {}
// SAFETY: see `Open`.
unsafe impl Sync for Domain {}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: made once, given back once, after its regions and pairs: each holds this.
        unsafe { (self.open.library.dealloc_pd)(self.pd.as_ptr()) };
    }
}

pub struct MemoryRegion {
    mr: NonNull<v::Mr>,
    local: u32,
    remote: u32,
    domain: Arc<Domain>,
    /// The NIC holds its pages; their addresses must stay as well.
    _mapping: Mapping,
}

// SAFETY: see `Open`.
unsafe impl Send for MemoryRegion {}
// SAFETY: see `Open`.
unsafe impl Sync for MemoryRegion {}

impl Region for MemoryRegion {
    fn local_key(&self) -> u32 {
        self.local
    }

    fn remote_key(&self) -> u32 {
        self.remote
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        // SAFETY: registered once, forgotten once, before its domain and its mapping, which it holds.
        unsafe { (self.domain.open.library.dereg_mr)(self.mr.as_ptr()) };
    }
}

/// A queue of completions; it tells of them by its channel.
struct Queue {
    cq: NonNull<v::Cq>,
    channel: Arc<Channel>,
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once, after its pair. Waits for events to be acknowledged, which is done as they are
        // taken.
        unsafe { (self.channel.open.library.destroy_cq)(self.cq.as_ptr()) };
    }
}

/// A reliable queue pair with a queue of its own for what completes. Fields are dropped in this order.
pub struct QueuePair {
    qp: NonNull<v::Qp>,
    queue: Queue,
    domain: Arc<Domain>,
    end: End,
    port: Port,
}

// SAFETY: see `Open`; a pair is used by one thread at a time.
unsafe impl Send for QueuePair {}

impl QueuePair {
    fn new(domain: &Arc<Domain>, channel: &Arc<Channel>, port: Port, reads_max: u32) -> io::Result<Self> {
        let library = &domain.open.library;
        let (context, told) = (domain.open.context.as_ptr(), channel.channel.as_ptr());
        // SAFETY: an open device and its channel. One more than are posted: none is ever lost.
        let cq = made(unsafe { (library.create_cq)(context, reads_max as c_int + 1, ptr::null_mut(), told, 0) })?;
        let queue = Queue { cq, channel: channel.clone() };
        let cap = v::QpCap {
            max_send_wr: reads_max.max(1),
            max_recv_wr: 1,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: 0,
        };
        let mut wanted = v::QpInitAttr {
            qp_context: ptr::null_mut(),
            send_cq: cq.as_ptr(),
            recv_cq: cq.as_ptr(),
            srq: ptr::null_mut(),
            cap,
            qp_type: v::QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: a domain and a queue of one device, and a struct of the library's layout.
        let qp = made(unsafe { (library.create_qp)(domain.pd.as_ptr(), &mut wanted) })?;
        // SAFETY: the library made it just now.
        let number = unsafe { qp.as_ref().qp_num };
        let end = End {
            pair: number & 0xff_ffff,
            packet: 0,
            gid: port.gid,
            kind: port.kind,
            lid: port.lid,
            mtu: port.mtu,
            reads_max: port.answers,
        };
        let mut pair = Self { qp, queue, domain: domain.clone(), end, port };
        // A stray packet of a former pair of the same number must not fit this one's.
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        pair.end.packet = u32::from_ne_bytes(random) & 0xff_ffff;
        let mut attr = attributes(v::QPS_INIT);
        (attr.pkey_index, attr.port_num) = (PARTITION, port.number);
        attr.qp_access_flags = if reads_max == 0 { v::ACCESS_REMOTE_READ as c_uint } else { 0 };
        pair.modify(attr, v::QP_STATE | v::QP_PKEY_INDEX | v::QP_PORT | v::QP_ACCESS_FLAGS)?;
        Ok(pair)
    }

    fn library(&self) -> &Library {
        &self.domain.open.library
    }

    fn modify(&mut self, mut attr: v::QpAttr, mask: c_int) -> io::Result<()> {
        // SAFETY: a pair of this library, and a struct of its layout.
        checked(unsafe { (self.library().modify_qp)(self.qp.as_ptr(), &mut attr, mask) })
    }
}

impl Pair for QueuePair {
    fn end(&self) -> End {
        self.end
    }

    fn connect(&mut self, there: &End) -> io::Result<()> {
        let mut attr = attributes(v::QPS_RTR);
        attr.path_mtu = self.port.mtu.min(there.mtu).into();
        attr.dest_qp_num = there.pair;
        attr.rq_psn = there.packet;
        attr.max_dest_rd_atomic = self.port.answers;
        attr.min_rnr_timer = RECEIVER_PAUSE;
        let grh = v::GlobalRoute {
            dgid: v::Gid(there.gid),
            flow_label: 0,
            sgid_index: self.port.index,
            hop_limit: HOPS_MAX,
            traffic_class: 0,
        };
        let by_gid = self.port.kind != GidKind::InfiniBand || there.lid == 0;
        attr.ah_attr.grh = grh;
        (attr.ah_attr.is_global, attr.ah_attr.dlid) = (by_gid.into(), there.lid);
        attr.ah_attr.port_num = self.port.number;
        let mask = v::QP_STATE | v::QP_AV | v::QP_PATH_MTU | v::QP_DEST_QPN | v::QP_RQ_PSN;
        self.modify(attr, mask | v::QP_MAX_DEST_RD_ATOMIC | v::QP_MIN_RNR_TIMER)?;

        let mut attr = attributes(v::QPS_RTS);
        (attr.timeout, attr.retry_cnt, attr.rnr_retry) = (ACK_TIMEOUT, RETRIES, RETRIES);
        attr.sq_psn = self.end.packet;
        attr.max_rd_atomic = self.port.asks.min(there.reads_max);
        let mask = v::QP_STATE | v::QP_TIMEOUT | v::QP_RETRY_CNT | v::QP_RNR_RETRY;
        self.modify(attr, mask | v::QP_SQ_PSN | v::QP_MAX_QP_RD_ATOMIC)
    }

    fn read(&mut self, reads: &[Read]) -> (usize, Option<io::Error>) {
        if reads.is_empty() {
            return (0, None);
        }
        // SAFETY: a pair of an open device, whose driver has filled its table before anything could be made.
        let post = unsafe { self.qp.as_ref().context.as_ref() }.and_then(|context| context.ops.post_send);
        let post = post.expect("every driver can send");
        let sge = |read: &Read| v::Sge { addr: read.here, length: read.bytes, lkey: read.local_key };
        let mut parts: Vec<v::Sge> = reads.iter().map(sge).collect();
        let mut list: Vec<v::SendWr> = Vec::with_capacity(reads.len());
        for (read, part) in reads.iter().zip(&mut parts) {
            let mut wr = v::SendWr::read(read.id, part, read.there, read.remote_key);
            wr.send_flags = if read.signalled { v::SEND_SIGNALED } else { 0 };
            list.push(wr);
        }
        let start = list.as_mut_ptr();
        for index in 1..list.len() {
            // SAFETY: both are within the list, which is not moved or grown any more.
            unsafe { (*start.add(index - 1)).next = start.add(index) };
        }
        let mut bad = ptr::null_mut();
        // SAFETY: a list of READs that ends with null, each with one part, all of which outlive the call; the NIC checks
        // addresses against the regions of the keys, and what it writes is registered memory, read by copies alone.
        let code = unsafe { post(self.qp.as_ptr(), start, &mut bad) };
        if code == 0 {
            return (reads.len(), None);
        }
        // The driver says which one it did not take; one that does not say may have taken them all.
        let refused = list.iter().position(|wr| ptr::eq(wr, bad));
        (refused.unwrap_or(reads.len()), Some(io::Error::from_raw_os_error(code.abs())))
    }

    fn poll(&mut self, done: &mut Vec<Completion>) -> io::Result<()> {
        let cq = self.queue.cq;
        // SAFETY: as in `read`.
        let poll = unsafe { cq.as_ref().context.as_ref() }.and_then(|context| context.ops.poll_cq);
        let poll = poll.expect("every driver can poll");
        loop {
            // SAFETY: all zeros are a value of the struct: plain numbers.
            let mut wcs: [v::Wc; POLL] = unsafe { mem::zeroed() };
            // SAFETY: a queue of an open device, and room for so many.
            let count = unsafe { poll(cq.as_ptr(), POLL as c_int, wcs.as_mut_ptr()) };
            let Ok(count) = usize::try_from(count) else { return Err(io::Error::from_raw_os_error(-count)) };
            for wc in &wcs[..count.min(POLL)] {
                let failed = (wc.status != v::WC_SUCCESS).then(|| self.library().status(wc.status));
                done.push(Completion { id: wc.wr_id, outcome: failed.map_or(Ok(()), Err) });
            }
            if count < POLL {
                return Ok(());
            }
        }
    }

    fn arm(&mut self) -> io::Result<()> {
        let cq = self.queue.cq;
        // SAFETY: as in `read`.
        let arm = unsafe { cq.as_ref().context.as_ref() }.and_then(|context| context.ops.req_notify_cq);
        // SAFETY: a queue of an open device.
        checked(unsafe { arm.expect("every driver can tell")(cq.as_ptr(), 0) })
    }

    fn fail(&mut self) -> io::Result<()> {
        self.modify(attributes(v::QPS_ERR), v::QP_STATE)
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once, before its queue. Afterwards the NIC touches no memory for it.
        let code = unsafe { (self.library().destroy_qp)(self.qp.as_ptr()) };
        if code != 0 {
            // Only a device that is gone, with all that it had under way, refuses this.
            tracing::error!(error = %io::Error::from_raw_os_error(code.abs()), "a queue pair could not be destroyed");
        }
    }
}

fn attributes(state: c_uint) -> v::QpAttr {
    // SAFETY: all zeros are a value of the struct: plain numbers.
    v::QpAttr { qp_state: state, ..unsafe { mem::zeroed() } }
}

/// What the library made, or why it did not.
fn made<T>(pointer: *mut T) -> io::Result<NonNull<T>> {
    NonNull::new(pointer).ok_or_else(io::Error::last_os_error)
}

/// Verbs that make nothing return the error's number, some its negative, some -1 and set errno.
fn checked(code: c_int) -> io::Result<()> {
    match code {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        code => Err(io::Error::from_raw_os_error(code.abs())),
    }
}
