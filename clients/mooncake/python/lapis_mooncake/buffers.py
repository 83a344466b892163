"""Host memory that is handed out: handles of objects, leases of a pool, and the allocator for an engine's own pool."""

from __future__ import annotations

import ctypes
import functools
import mmap
import threading
import time
import weakref
from collections import deque
from typing import Any, Final

from . import memory

_GRAIN: Final = 4096


class BufferHandle(ctypes.Array):  # type: ignore[type-arg]
    """An object's bytes in memory of their own, as a buffer: `memoryview(handle)`, `numpy.frombuffer(handle, ...)`."""

    _type_ = ctypes.c_ubyte
    _length_ = 0

    def ptr(self) -> int:
        """Their address, good while this handle lives."""
        return ctypes.addressof(self)

    def size(self) -> int:
        return len(self)


@functools.lru_cache(256)
def _sized(size: int) -> type[BufferHandle]:
    """The class for that many bytes: ctypes needs one each."""
    return type("BufferHandle", (BufferHandle,), {"_type_": ctypes.c_ubyte, "_length_": size})


def handle(data: memoryview) -> BufferHandle:
    """A handle over memory that nobody else has."""
    return _sized(len(data)).from_buffer(data)


class MooncakeHostMemAllocator:
    """Host memory by address, shared by all stores of the process; no registration is needed for it."""

    def alloc(self, size: int, /) -> int:
        """The address of `size` bytes of zeros, or 0 if there is no memory."""
        try:
            held = memory.allocate(size)
        except (OSError, ValueError, OverflowError):
            return 0
        address = memory.base(held)
        _allocated[address] = held
        return address

    def free(self, address: int, /) -> int:
        """0, or -1 if `alloc` did not give that address."""
        held = _allocated.pop(address, None)
        if held is None:
            return -1
        memory.free(held)
        return 0


# Of all allocators: Mooncake's is one of the process, too, and its users let go of the object.
_allocated: Final[dict[int, mmap.mmap]] = {}


class _Exported(ctypes.Array):  # type: ignore[type-arg]
    """A lease's bytes. Lives as long as a memoryview or an array over them does, which is how a lease knows of those."""

    _type_ = ctypes.c_ubyte
    _length_ = 0


@functools.lru_cache(256)
def _exported(size: int) -> type[_Exported]:
    return type("BufferLeaseView", (_Exported,), {"_type_": ctypes.c_ubyte, "_length_": size})


class BufferLease:
    """Memory of a pool, until it is released."""

    def __init__(self, pool: BufferPool, held: mmap.mmap, size: int) -> None:
        self._pool: BufferPool | None = pool
        self._held = held
        self._size = size
        self._exports: list[weakref.ref[_Exported]] = []

    @property
    def ptr(self) -> int:
        self._expect_open()
        return memory.base(self._held)

    @property
    def size(self) -> int:
        return self._size

    @property
    def buffer(self) -> memoryview:
        """Its bytes, writable. Drop it before the release."""
        self._expect_open()
        exported = _exported(self._size).from_buffer(self._held)
        self._exports = [export for export in self._exports if export() is not None] + [weakref.ref(exported)]
        return memoryview(exported).cast("B")

    def release(self) -> None:
        """Gives the memory back. Raises RuntimeError while memoryviews or arrays over it are alive. Twice is once."""
        if self._pool is None:
            return
        if any(export() is not None for export in self._exports):
            raise RuntimeError("cannot release buffer while exported views exist")
        pool, self._pool = self._pool, None
        pool._take_back(self._held)

    def __enter__(self) -> BufferLease:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.release()

    def __del__(self) -> None:
        # What is still exported keeps its pages: they are let go of, not used again.
        if self._pool is not None:
            is_exported = any(export() is not None for export in self._exports)
            self._pool._take_back(self._held, reuse=not is_exported)

    def _expect_open(self) -> None:
        if self._pool is None:
            raise RuntimeError("buffer lease is closed")


class BufferLeaseView:
    """For annotations: `BufferLease.buffer` is a memoryview."""

    def __init__(self) -> None:
        raise TypeError("BufferLeaseView: No constructor defined!")

    @property
    def buffer(self) -> memoryview:
        raise RuntimeError("BufferLeaseView: take BufferLease.buffer")


class BufferPool:
    """Host memory for a store's raw calls, leased and used again.

    max_bytes: bound of what is leased at once; 0 is twice the store's local buffer. A lease that does not fit waits, for
    `timeout` seconds if there is one, or raises RuntimeError. The size classes, regions and alignment of Mooncake's pool
    have no effect: there is nothing to register.
    """

    def __init__(
        self,
        store: Any,
        max_bytes: int = 0,
        min_size_class: int = 65536,
        max_size_class: int | None = None,
        alignment: int = 8388608,
        block_on_exhaustion: bool = True,
        default_timeout: float | None = None,
        max_regions: int | None = None,
        prewarm_size: int | None = None,
        prewarm_count: int = 0,
    ) -> None:
        local = getattr(store, "_local_buffer_size", None)
        if local is None:
            raise RuntimeError("MooncakeDistributedStore is not initialized")
        if min_size_class <= 0 or alignment <= 0:
            raise RuntimeError("min_size_class and alignment must be positive")
        if alignment < 8 or alignment & (alignment - 1):
            raise RuntimeError("alignment must be a power of two and at least sizeof(void*)")
        if local == 0:
            raise RuntimeError("BufferPool requires a store configured with a local buffer")
        self._max_bytes = max(max_bytes, local) if max_bytes else 2 * local
        self._blocks = block_on_exhaustion
        self._default_timeout = default_timeout
        self._condition = threading.Condition()
        self._free: dict[int, deque[mmap.mmap]] = {}
        self._leased_bytes = 0
        self._free_bytes = 0
        self._is_closed = False

    def acquire(self, size: int, block: bool | None = None, timeout: float | None = None) -> BufferLease:
        """A lease of at least one byte."""
        waits = self._blocks if block is None else block
        timeout = self._default_timeout if timeout is None else timeout
        if timeout is not None and timeout < 0:
            raise RuntimeError("timeout must be non-negative")
        length = -(-max(size, 1) // _GRAIN) * _GRAIN
        if max(size, 1) > self._max_bytes:
            raise RuntimeError("requested buffer size exceeds pool capacity")
        until = None if timeout is None else time.monotonic() + timeout
        with self._condition:
            while True:
                if self._is_closed:
                    raise RuntimeError("buffer pool is closed")
                # One lease always fits, also where rounding takes it over the bound.
                if self._leased_bytes == 0 or self._leased_bytes + length <= self._max_bytes:
                    break
                if not waits:
                    raise RuntimeError("buffer pool is exhausted")
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise RuntimeError("timed out waiting for buffer")
                self._condition.wait(left)
            if free := self._free.get(length):
                held = free.pop()
                self._free_bytes -= length
            else:
                held = memory.allocate(length)
            self._leased_bytes += length
        return BufferLease(self, held, size)

    def buffer(self, size: int, block: bool | None = None, timeout: float | None = None) -> BufferLease:
        return self.acquire(size, block, timeout)

    def prewarm(self, size: int, count: int) -> None:
        """Nothing to do, as in Mooncake's."""

    def close(self) -> None:
        """Ends the pool. Raises RuntimeError while leases are alive. Twice is once."""
        with self._condition:
            if self._is_closed:
                return
            if self._leased_bytes:
                raise RuntimeError("cannot close buffer pool with active leases")
            self._is_closed = True
            for free in self._free.values():
                for held in free:
                    memory.free(held)
            self._free.clear()
            self._condition.notify_all()

    def _take_back(self, held: mmap.mmap, reuse: bool = True) -> None:
        length = len(held)
        with self._condition:
            self._leased_bytes -= length
            if reuse and self._free_bytes + length <= self._max_bytes:
                self._free.setdefault(length, deque()).append(held)
                self._free_bytes += length
            else:
                memory.free(held)
            self._condition.notify_all()


RegisteredBufferPool = BufferPool
RegisteredBufferLease = BufferLease
RegisteredBufferLeaseView = BufferLeaseView
