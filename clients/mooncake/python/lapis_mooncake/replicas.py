"""What a store says of where an object is, and of tasks, in Mooncake's classes."""

from __future__ import annotations

import enum


class ReplicaStatus(enum.Enum):
    UNDEFINED = 0
    INITIALIZED = 1
    PROCESSING = 2
    COMPLETE = 3
    REMOVED = 4
    FAILED = 5

    def __int__(self) -> int:
        return int(self.value)


class TaskType(enum.Enum):
    REPLICA_COPY = 0
    REPLICA_MOVE = 1

    def __int__(self) -> int:
        return int(self.value)


class TaskStatus(enum.Enum):
    PENDING = 0
    PROCESSING = 1
    FAILED = 2
    SUCCESS = 3

    def __int__(self) -> int:
        return int(self.value)


class Descriptor:
    """Of memory. `buffer_address` is 0: the bytes are read by the store's calls, not by address."""

    def __init__(self) -> None:
        self.size = 0
        self.buffer_address = 0
        self.transport_endpoint = ""


class MemoryDescriptor:
    buffer_descriptor: Descriptor

    def __init__(self, size: int, endpoint: str) -> None:
        self.buffer_descriptor = Descriptor()
        self.buffer_descriptor.size = size
        self.buffer_descriptor.transport_endpoint = endpoint


class DiskDescriptor:
    """Never answered: Lapis's SSD is the daemon's own, a local disk."""

    def __init__(self) -> None:
        self.file_path = ""
        self.object_size = 0


class ReplicaDescriptor:
    """The one place of an object: this host's memory, or its SSD (then it is a local disk replica)."""

    def __init__(self, size: int | None, endpoint: str) -> None:
        self._memory = None if size is None else MemoryDescriptor(size, endpoint)

    @property
    def status(self) -> ReplicaStatus:
        return ReplicaStatus.COMPLETE

    def is_memory_replica(self) -> bool:
        return self._memory is not None

    def is_disk_replica(self) -> bool:
        return False

    def is_local_disk_replica(self) -> bool:
        return self._memory is None

    def get_memory_descriptor(self) -> MemoryDescriptor:
        if self._memory is None:
            raise RuntimeError("not a memory replica: ask is_memory_replica() first")
        return self._memory

    def get_disk_descriptor(self) -> DiskDescriptor:
        raise RuntimeError("not a disk replica: ask is_disk_replica() first")


class QueryTaskResponse:
    """For annotations: there are no tasks here, so none is ever answered."""

    def __init__(self) -> None:
        self.id = (0, 0)
        self.type = TaskType.REPLICA_COPY
        self.status = TaskStatus.PENDING
        self.created_at_ms_epoch = 0
        self.last_updated_at_ms_epoch = 0
        self.assigned_client = (0, 0)
        self.message = ""
