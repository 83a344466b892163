"""`mooncake.store` over a Lapis daemon: what Mooncake's own module has under these names. See `docs/mooncake.md`."""

from lapis_mooncake.buffers import (
    BufferHandle,
    BufferLease,
    BufferLeaseView,
    BufferPool,
    MooncakeHostMemAllocator,
    RegisteredBufferLease,
    RegisteredBufferLeaseView,
    RegisteredBufferPool,
)
from lapis_mooncake.config import (
    ObjectDataType,
    ParallelAxis,
    ReadTarget,
    ReplicateConfig,
    SoftPinAction,
    TensorParallelism,
)
from lapis_mooncake.replicas import (
    Descriptor,
    DiskDescriptor,
    MemoryDescriptor,
    QueryTaskResponse,
    ReplicaDescriptor,
    ReplicaStatus,
    TaskStatus,
    TaskType,
)
from lapis_mooncake.store import MooncakeDistributedStore
from lapis_mooncake.tensor_format import _deserialize_tensor, _serialize_tensor, _tensor_metadata_size

# As pybind11's export_values does, in the order in which Mooncake's module calls it: a later name hides an earlier one.
for _words in (ObjectDataType, ReplicaStatus, TaskType, TaskStatus):
    globals().update(_words.__members__)
del _words

__all__ = [
    "BufferHandle",
    "BufferLease",
    "BufferLeaseView",
    "BufferPool",
    "Descriptor",
    "DiskDescriptor",
    "MemoryDescriptor",
    "MooncakeDistributedStore",
    "MooncakeHostMemAllocator",
    "ObjectDataType",
    "ParallelAxis",
    "QueryTaskResponse",
    "ReadTarget",
    "RegisteredBufferLease",
    "RegisteredBufferLeaseView",
    "RegisteredBufferPool",
    "ReplicaDescriptor",
    "ReplicaStatus",
    "ReplicateConfig",
    "SoftPinAction",
    "TaskStatus",
    "TaskType",
    "TensorParallelism",
    "_deserialize_tensor",
    "_serialize_tensor",
    "_tensor_metadata_size",
]
