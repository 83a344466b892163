//! What RDMA reads need of NICs, as a trait: implemented over the verbs library, and by a faulty twin in tests.
//!
//! Memory that a NIC writes is named by address and key: it refuses what lies outside of the region of a key, and the region
//! keeps its mapping. So a wrong address is an error, never a wrong byte elsewhere.

use std::{io, ops::Range, os::fd::BorrowedFd, sync::Arc};

use lapis_arena::Mapping;

use super::said::{End, GidKind};

/// What memory is made known for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Blocks: read by peers, and read into.
    Blocks,
    /// A block table: read by peers alone.
    Table,
    /// What is read in passing: read into alone.
    Scratch,
}

/// A port of a NIC, open. Everything that is made from it keeps it open.
pub trait Nic: Send + Sync + 'static {
    /// What may work together: memory and pairs of one trust group.
    type Domain: Send + Sync + 'static;
    type Region: Region;
    type Pair: Pair;

    /// As people call it: "mlx5_0".
    fn name(&self) -> &str;
    /// The NUMA node that it is at, where there are several.
    fn node(&self) -> Option<u32>;
    /// Of its address.
    fn kind(&self) -> GidKind;
    /// Most bytes of one region.
    fn region_bytes_max(&self) -> u64;
    fn domain(&self) -> io::Result<Self::Domain>;
    /// Makes memory known to the NIC: as it is used readable by the other sides of the domain's pairs, or writable by its own
    /// READs. Blocks, for about 0.1 s a GiB.
    fn register(
        &self,
        domain: &Arc<Self::Domain>,
        mapping: &Mapping,
        range: Range<usize>,
        what_for: Use,
    ) -> io::Result<Self::Region>;
    /// Half of a connection, not connected. `reads_max`: how many READs it holds at once, and then the other side can read
    /// nothing by it; 0: the other side reads, this one does not.
    fn pair(&self, domain: &Arc<Self::Domain>, reads_max: u32) -> io::Result<Self::Pair>;
    /// Readable when an armed pair has something; `None`: whoever drives is woken otherwise.
    fn events(&self) -> Option<BorrowedFd<'_>>;
    /// Takes what `events` has, so that it is no longer readable.
    fn take_events(&self);
}

/// Memory that a NIC knows. Forgotten when dropped.
pub trait Region: Send + Sync + 'static {
    /// For READs of this host into it.
    fn local_key(&self) -> u32;
    /// For READs of another host out of it.
    fn remote_key(&self) -> u32;
}

/// One READ: from where at the other side to where here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Given back by its `Completion`; numbers of a pair only grow.
    pub id: u64,
    /// Whether its success is told by itself. The last of each list must be.
    pub signalled: bool,
    pub here: u64,
    pub local_key: u32,
    pub there: u64,
    pub remote_key: u32,
    pub bytes: u32,
}

/// A READ ended, and with it, if it succeeded, all that were posted before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    pub id: u64,
    /// Why it failed, in words.
    pub outcome: Result<(), String>,
}

/// Half of a reliable connection. When it is dropped, nothing of it reads or writes any more.
pub trait Pair: Send + 'static {
    /// What the other half must know to connect.
    fn end(&self) -> End;
    /// To the other half. May block for a second: addresses are resolved.
    fn connect(&mut self, there: &End) -> io::Result<()>;
    /// Posts READs in order: how many, and why not more. All of them and a reason: nobody knows how many.
    fn read(&mut self, reads: &[Read]) -> (usize, Option<io::Error>);
    /// Appends what ended.
    fn poll(&mut self, done: &mut Vec<Completion>) -> io::Result<()>;
    /// Has the next completion make the NIC's `events` readable. What came before is seen by another `poll` only.
    fn arm(&mut self) -> io::Result<()>;
    /// Ends all READs that are under way: each completes, as failed, soon.
    fn fail(&mut self) -> io::Result<()>;
}
