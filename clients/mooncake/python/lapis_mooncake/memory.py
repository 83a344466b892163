"""Raw addresses: registered buffers, and copies to and from all other memory.

Connectors give addresses. Within a registered buffer they are read and written as they are: that it was host memory, or
which GPU's, was looked up when it was registered, and that it still is that is the caller's promise, as in Mooncake. Of any
other address the driver is asked, if there is one, and to and from what it does not know the kernel copies, which answers an
error where there is no host memory. Memory of GPUs is copied by the driver (`gpu`).
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from operator import add, index
from typing import Final, NamedTuple

from . import gpu
from .codes import INVALID_PARAMS, OK, TRANSFER_FAIL, once
from .gpu import HOST

_NOT_HOST: Final = (
    "%d bytes at %#x are no %s memory of the host, nor of a GPU that this process has open; such calls answer %d"
)


_ADDRESS_MAX: Final = 1 << 64


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


class _PyBuffer(ctypes.Structure):
    """Py_buffer of the stable ABI."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_vm = (ctypes.c_int, ctypes.POINTER(_Iovec), ctypes.c_ulong, ctypes.POINTER(_Iovec), ctypes.c_ulong, ctypes.c_ulong)
for _call in (_libc.process_vm_readv, _libc.process_vm_writev):
    _call.argtypes, _call.restype = _vm, ctypes.c_ssize_t
_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes, _release_buffer.restype = (ctypes.POINTER(_PyBuffer),), None


class Range(NamedTuple):
    """Bytes at an address. direct: they lie in a registered buffer of the host, so they are copied without the kernel.

    device: the GPU whose memory they are, else HOST.
    """

    address: int
    size: int
    direct: bool
    device: int = HOST


class _Region(NamedTuple):
    start: int
    end: int
    is_writable: bool
    device: int


class Regions:
    """Buffers that do not overlap, by address. Safe to use from all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: list[_Region] = []

    def add(self, start: int, size: int, is_writable: bool, device: int = HOST) -> bool:
        """False if it overlaps one that is there."""
        region = _Region(start, start + size, is_writable, device)
        with self._lock:
            at = bisect.bisect_left(self._regions, region)
            if any(region.start < other.end and other.start < region.end for other in self._regions[max(at - 1, 0) : at + 1]):
                return False
            self._regions = [*self._regions[:at], region, *self._regions[at:]]
        return True

    def remove(self, start: int) -> bool:
        with self._lock:
            kept = [region for region in self._regions if region.start != start]
            found = len(kept) < len(self._regions)
            self._regions = kept
        return found

    def clear(self) -> None:
        with self._lock:
            self._regions = []

    def hold(self, address: int, size: int, for_writing: bool) -> bool:
        """Whether all those bytes are in one buffer of the host."""
        return self.device(address, size, for_writing) == HOST

    def device(self, address: int, size: int, for_writing: bool) -> int | None:
        """Whose memory the one buffer is that has all those bytes: a GPU's, or HOST's; None if there is none."""
        regions = self._regions  # Replaced as a whole, never changed.
        at = bisect.bisect_right(regions, (address, _ADDRESS_MAX)) - 1
        if at < 0 or address + size > regions[at].end or not (regions[at].is_writable or not for_writing):
            return None
        return regions[at].device


class Memory:
    """The registered buffers of one store."""

    def __init__(self) -> None:
        self._registered = Regions()

    def register(self, address: int, size: int) -> int:
        """OK, or the code of why not: it is neither host memory nor a GPU's, or registered already."""
        address, size = index(address), index(size)
        if size <= 0 or address <= 0:
            return INVALID_PARAMS
        device = gpu.device_of(address, size)
        if device != HOST:
            return OK if self._registered.add(address, size, True, device) else INVALID_PARAMS
        access = _access(address, size)
        probes = (address, address + size - 1)
        if access is None or not all(_kernel(_libc.process_vm_readv, probe, bytearray(1)) for probe in probes):
            once("not host", _NOT_HOST, size, address, "readable", INVALID_PARAMS)
            return INVALID_PARAMS
        return OK if self._registered.add(address, size, "w" in access) else INVALID_PARAMS

    def unregister(self, address: int) -> int:
        return OK if self._registered.remove(address) else INVALID_PARAMS

    def forget(self) -> None:
        self._registered.clear()

    def holds(self, ptrs: Sequence[int], sizes: Sequence[int], for_writing: bool) -> bool:
        """Whether all those bytes are in registered buffers. Quick where all are in one."""
        if not ptrs or min(sizes) < 0:
            return not ptrs
        first, end = min(ptrs), max(map(add, ptrs, sizes))
        if self._registered.hold(first, end - first, for_writing) or OWN.hold(first, end - first, for_writing):
            return True
        return all(self.range(ptr, size, for_writing).direct for ptr, size in zip(ptrs, sizes))

    def range(self, address: int, size: int, for_writing: bool) -> Range:
        address, size = index(address), index(size)  # From numpy's integers, too.
        if address < 0 or size < 0:
            raise TypeError(f"{size} bytes at address {address}: neither can be negative")
        device = self._registered.device(address, size, for_writing)
        if device is None and OWN.hold(address, size, for_writing):
            device = HOST
        if device is None:
            return Range(address, size, False, gpu.device_of(address, size))
        return Range(address, size, device == HOST, device)


def source(place: Range) -> memoryview | None:
    """The bytes of a range, in place if it is direct; None if they are no memory."""
    if place.size == 0:
        return memoryview(b"")
    if place.direct:
        return memoryview((ctypes.c_ubyte * place.size).from_address(place.address)).cast("B")
    try:
        copy = bytearray(place.size)
    except MemoryError:
        return None
    if place.device != HOST:
        here = ctypes.addressof(ctypes.c_char.from_buffer(copy))
        return memoryview(copy) if gpu.read(place.device, [(place.address, here, place.size)]) else None
    if not _kernel(_libc.process_vm_readv, place.address, copy):
        once("not host", _NOT_HOST, place.size, place.address, "readable", TRANSFER_FAIL)
        return None
    return memoryview(copy)


class Direct(NamedTuple):
    """Bytes in a registered buffer, as lapis_kv takes them."""

    address: int
    size: int


def place(region: Range) -> Direct | memoryview | None:
    """What lapis_kv takes for the bytes of a range: its address if it is direct, else a copy; None if there is none."""
    return Direct(region.address, region.size) if region.direct else source(region)


def places(ranges: Sequence[Range]) -> list[Direct | memoryview] | None:
    """`place` of each; None if one has none. What lies on GPUs is copied at once for each GPU."""
    copies: dict[int, memoryview] = {}
    for device in {one.device for one in ranges if one.device != HOST and one.size}:
        on_it = [n for n, one in enumerate(ranges) if one.device == device]
        try:
            copy = bytearray(sum(ranges[n].size for n in on_it))
        except MemoryError:
            return None
        at, pieces, view = 0, [], memoryview(copy)
        base = ctypes.addressof(ctypes.c_char.from_buffer(copy))
        for n in on_it:
            pieces.append((ranges[n].address, base + at, ranges[n].size))
            copies[n] = view[at : at + ranges[n].size]
            at += ranges[n].size
        if not gpu.read(device, pieces):
            return None
    found = [copies[n] if n in copies else place(one) for n, one in enumerate(ranges)]
    there = [one for one in found if one is not None]
    return there if len(there) == len(found) else None


def read_to_gpus(
    read: Callable[..., list[int | None]],
    keys: Sequence[str],
    places: Sequence[Sequence[Range]],
    offsets: Sequence[Sequence[int]] | None = None,
) -> list[int | None]:
    """What `read(device, keys, places, offsets)` says of those keys whose places are all of one GPU; None for the others."""
    on_gpus: dict[int, list[int]] = {}
    for n, of_key in enumerate(places):
        devices = {place.device for place in of_key if place.size}
        if len(devices) == 1 and HOST not in devices:
            on_gpus.setdefault(devices.pop(), []).append(n)
    found: list[int | None] = [None] * len(keys)
    for device, at in on_gpus.items():
        to = [[(place.address, place.size) for place in places[n]] for n in at]
        of = None if offsets is None else [list(offsets[n]) for n in at]
        for n, told in zip(at, read(device, [keys[n] for n in at], to, of)):
            found[n] = told
    return found


def scatter(data: memoryview, places: list[Range]) -> bool:
    """Copies data to the ranges, one after the other, as far as it goes. False if one is no memory.

    The caller has seen that the ranges are long enough.
    """
    # Of a read-only buffer, too, which ctypes has no address of.
    held = _PyBuffer()
    _get_buffer(data, held, 0)
    try:
        at, left = held.buf or 0, held.len
        on_gpus: dict[int, list[tuple[int, int, int]]] = {}
        for address, size, direct, device in places:
            size = min(size, left)
            if device != HOST:
                on_gpus.setdefault(device, []).append((address, at, size))
            elif direct:
                ctypes.memmove(address, at, size)
            elif not _kernel_at(_libc.process_vm_writev, at, address, size):
                once("not host", _NOT_HOST, size, address, "writable", TRANSFER_FAIL)
                return False
            at, left = at + size, left - size
        return all(gpu.write(device, pieces) for device, pieces in on_gpus.items())
    finally:
        _release_buffer(held)


def allocate(size: int) -> mmap.mmap:
    """Host memory that no registration is needed for, until `free`."""
    memory = mmap.mmap(-1, size)
    OWN.add(base(memory), size, is_writable=True)
    return memory


def free(memory: mmap.mmap) -> None:
    """Addresses within are none of ours from now on. The pages go when nothing refers to them any more."""
    OWN.remove(base(memory))
    try:
        memory.close()
    except BufferError:
        pass  # An array or a memoryview over it is alive: it goes with that.


def inside(local: bytearray, offset: int, size: int) -> Range:
    """A range of memory of this package, which the caller keeps."""
    return Range(ctypes.addressof(ctypes.c_char.from_buffer(local, offset)) if size else 0, size, direct=True)


def base(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


# What this package handed out itself, to whichever store it is given.
OWN: Final = Regions()


def _kernel(call: object, address: int, local: bytearray) -> bool:
    here = ctypes.addressof((ctypes.c_char * len(local)).from_buffer(local))
    return _kernel_at(call, here, address, len(local))


def _kernel_at(call: object, here: int, there: int, size: int) -> bool:
    done = 0
    while done < size:
        local, remote = _Iovec(here + done, size - done), _Iovec(there + done, size - done)
        moved = call(os.getpid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)  # type: ignore[operator]
        if moved <= 0:
            return False
        done += moved
    return True


def _access(address: int, size: int) -> str | None:
    """What this process may do with all those bytes, of "r" and "rw"; None if it cannot read them."""
    end, access = address + size, "rw"
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, permissions = line.split(maxsplit=2)[:2]
            first, last = (int(bound, 16) for bound in span.split("-"))
            if last <= address:
                continue
            if first > address or permissions[0] != "r":
                return None
            if permissions[1] != "w":
                access = "r"
            if last >= end:
                return access
            address = last
    return None
