//! Pools as the client knows them: their shape for good, their number as each session learned it.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use lapis_arena::sum;
use lapis_config::{OBJECT_PART_BYTES, POOLS_MAX, PoolKind, PoolShape, UNIT_BYTES, sizes};

use crate::ClientError;

/// A handle of an opened pool; clones are cheap. It stays good over daemon restarts, cold ones too.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shape: PoolShape,
    seed: u64,
    slot_bytes: u32,
    /// Its place in the lists of its client's sessions, and which client's list that is.
    index: usize,
    list: u64,
}

impl Pool {
    pub fn shape(&self) -> &PoolShape {
        &self.0.shape
    }

    /// Payload bytes of a block; of an object pool the most that an object may have.
    pub fn block_bytes(&self) -> u64 {
        self.0.shape.block_bytes
    }

    /// Equal pieces of a block.
    pub fn pieces(&self) -> u16 {
        self.0.shape.pieces
    }

    pub fn kind(&self) -> PoolKind {
        self.0.shape.kind
    }

    /// Of all sums of the pool; the same for the same shape on any host.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// Bytes of a chain block's slot.
    pub fn slot_bytes(&self) -> u32 {
        self.0.slot_bytes
    }

    /// Most payload bytes of one slot of an object pool: with its tail, a part fills a slot of 64 MiB.
    pub(crate) fn part_bytes_max(&self) -> u64 {
        self.block_bytes().min(OBJECT_PART_BYTES - UNIT_BYTES)
    }

    pub(crate) fn index(&self) -> usize {
        self.0.index
    }

    pub(crate) fn expect_kind(&self, kind: PoolKind) -> Result<(), ClientError> {
        let expected = match kind {
            PoolKind::Chain => "chain",
            PoolKind::Object => "object",
        };
        if self.kind() == kind {
            Ok(())
        } else {
            Err(ClientError::Kind { label: self.shape().label.clone(), expected })
        }
    }
}

/// The pools that a client has opened, in the order in which it did. One list serves all sessions of a client.
#[derive(Debug)]
pub struct Pools {
    list: Mutex<Vec<Pool>>,
    id: u64,
}

impl Default for Pools {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { list: Mutex::default(), id: NEXT.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Pools {
    /// The pool of a shape; the same one for the same shape.
    pub fn add(&self, shape: &PoolShape) -> Result<Pool, ClientError> {
        let label = &shape.label;
        if label.len() > lapis_transport::hello::LABEL_BYTES_MAX || !label.is_ascii() {
            let max = lapis_transport::hello::LABEL_BYTES_MAX;
            return Err(ClientError::Label { bytes: label.len(), max });
        }
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = list.iter().find(|pool| pool.shape() == shape) {
            return Ok(known.clone());
        }
        if list.len() == POOLS_MAX {
            return Err(ClientError::Refused { reason: format!("{POOLS_MAX} pools are open, the limit") });
        }
        // What no daemon accepts is refused by the daemon, in its words; here it only has to fit.
        let slot_bytes = u32::try_from(sizes::slot_bytes(shape, shape.block_bytes.min(1 << 30))).unwrap_or(u32::MAX);
        let pool = Pool(Arc::new(Inner {
            shape: shape.clone(),
            seed: sum::pool_seed(shape),
            slot_bytes,
            index: list.len(),
            list: self.id,
        }));
        list.push(pool.clone());
        Ok(pool)
    }

    /// Whether the pool is of this list: its index in another one means another pool.
    pub fn own(&self, pool: &Pool) -> bool {
        pool.0.list == self.id
    }

    /// All of them.
    pub fn all(&self) -> Vec<Pool> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
