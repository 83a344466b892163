"""Memory of GPUs by address: whose it is, and copies between it and host memory, which end before the call does.

Only where this process has CUDA's driver already: without one nobody has an address of that kind. Copies go by a piece of host
memory that the driver has pinned, on a stream of their own, which waits for no other: as with Mooncake, whoever puts has waited
for what writes there, and whoever gets is not there yet. The daemon's objects are copied on that stream, too (`stream_of`).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterable
from typing import Final

from .codes import log

HOST: Final = -1

# Of cuda.h.
_NAMES: Final = ("libcuda.so.1", "libcuda.so")
_MEMORY_TYPE, _IS_MANAGED, _DEVICE_ORDINAL = 2, 8, 9
_TYPE_DEVICE: Final = 2
_NON_BLOCKING: Final = 1
_PORTABLE: Final = 1

_STAGE_BYTES: Final = 16 << 20

_lock = threading.Lock()
_driver: ctypes.CDLL | None = None
_lanes: dict[int, _Lane] = {}


class GpuError(Exception):
    """What the driver answered."""


def device_of(address: int, size: int) -> int:
    """The GPU that has all those bytes (its ends are looked at), or HOST."""
    driver = _loaded()
    if driver is None or size <= 0:
        return HOST
    first = _device_at(driver, address)
    return first if first == HOST or first == _device_at(driver, address + size - 1) else HOST


def read(device: int, pieces: Iterable[tuple[int, int, int]]) -> bool:
    """Copies pieces (address on the GPU, address here, bytes) to host memory. False, and said why, if it cannot be done."""
    return _move(device, pieces, to_device=False)


def write(device: int, pieces: Iterable[tuple[int, int, int]]) -> bool:
    """The other way."""
    return _move(device, pieces, to_device=True)


def _loaded() -> ctypes.CDLL | None:
    global _driver
    if _driver is None:
        for name in _NAMES:
            try:
                _driver = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
                break
            except OSError:
                continue
    return _driver


def _attribute(driver: ctypes.CDLL, what: int, address: int) -> int | None:
    answer = ctypes.c_int(0)
    known = driver.cuPointerGetAttribute(ctypes.byref(answer), what, ctypes.c_uint64(address)) == 0
    return answer.value if known else None


def _device_at(driver: ctypes.CDLL, address: int) -> int:
    # Managed memory is the host's too.
    if _attribute(driver, _MEMORY_TYPE, address) != _TYPE_DEVICE or _attribute(driver, _IS_MANAGED, address):
        return HOST
    device = _attribute(driver, _DEVICE_ORDINAL, address)
    return HOST if device is None else device


def stream_of(device: int) -> int | None:
    """A stream for copies by others, which `finish` waits for. None, and said why, if there is none."""
    streams: list[int] = []
    return streams[0] if _on_lane(device, lambda lane: streams.append(lane.stream)) else None


def finish(device: int) -> bool:
    """Returns when all that was put on the stream of that GPU has ended. False, and said why, if nobody knows that."""
    return _on_lane(device, _Lane.finish)


def _move(device: int, pieces: Iterable[tuple[int, int, int]], to_device: bool) -> bool:
    return _on_lane(device, lambda lane: lane.move(pieces, to_device))


def _on_lane(device: int, use: Callable[[_Lane], None]) -> bool:
    driver = _loaded()
    if driver is None:
        return False
    try:
        with _lock:
            lane = _lanes.get(device) or _lanes.setdefault(device, _Lane(driver, device))
        use(lane)
    except GpuError as error:
        _forget(device)
        log.error("a copy with GPU %d: %s", device, error)
        return False
    except BaseException:
        _forget(device)
        raise
    return True


def _forget(device: int) -> None:
    """What its stream still does is done in memory that nobody uses again."""
    with _lock:
        _lanes.pop(device, None)


class _Lane:
    """Context, stream and pinned memory for the copies of one GPU; they stay for the life of the process."""

    def __init__(self, driver: ctypes.CDLL, device: int) -> None:
        self._driver, self._lock = driver, threading.Lock()
        self._context, self._stream, self._stage = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            self._call("cuStreamCreate", ctypes.byref(self._stream), _NON_BLOCKING)
            self._call("cuMemHostAlloc", ctypes.byref(self._stage), ctypes.c_size_t(_STAGE_BYTES), _PORTABLE)
        finally:
            self._pop()

    @property
    def stream(self) -> int:
        return self._stream.value or 0

    def move(self, pieces: Iterable[tuple[int, int, int]], to_device: bool) -> None:
        """Returns when all is copied."""
        with self._lock:
            self._call("cuCtxPushCurrent_v2", self._context)
            try:
                self._move(pieces, to_device)
            finally:
                self._pop()

    def finish(self) -> None:
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            self._call("cuStreamSynchronize", self._stream)
        finally:
            self._pop()

    def _move(self, pieces: Iterable[tuple[int, int, int]], to_device: bool) -> None:
        stage, used = self._stage.value or 0, 0
        staged: list[tuple[int, int, int]] = []

        def finish() -> None:
            nonlocal used
            self._call("cuStreamSynchronize", self._stream)
            for here, at, size in staged:
                ctypes.memmove(here, at, size)
            staged.clear()
            used = 0

        for address, here, size in pieces:
            done = 0
            while done < size:
                if used == _STAGE_BYTES:
                    finish()
                now, at = min(size - done, _STAGE_BYTES - used), stage + used
                there, length = ctypes.c_uint64(address + done), ctypes.c_size_t(now)
                if to_device:
                    ctypes.memmove(at, here + done, now)
                    self._call("cuMemcpyHtoDAsync_v2", there, ctypes.c_void_p(at), length, self._stream)
                else:
                    self._call("cuMemcpyDtoHAsync_v2", ctypes.c_void_p(at), there, length, self._stream)
                    staged.append((here + done, at, now))
                done, used = done + now, used + now
        finish()

    def _call(self, function: str, *arguments: object) -> None:
        try:
            code = self._driver[function](*arguments)
        except AttributeError:
            raise GpuError(f"the driver has no {function}") from None
        if code != 0:
            raise GpuError(f"{function} answered {code}")

    def _pop(self) -> None:
        self._driver.cuCtxPopCurrent_v2(None)
