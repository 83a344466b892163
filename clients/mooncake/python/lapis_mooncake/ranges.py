"""Calls of byte ranges of objects, and sessions: one object for many layers, moved a layer at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from . import codes, memory
from .codes import (
    INVALID_PARAMS,
    LEASE_EXPIRED,
    NO_AVAILABLE_HANDLE,
    OBJECT_ALREADY_EXISTS,
    OBJECT_NOT_FOUND,
    OK,
    TRANSFER_FAIL,
)
from .config import ReplicateConfig, fits
from .daemon import Daemon
from .memory import Memory, Range

# As long as Mooncake's leases: a session that nobody ends must not keep a block from reuse.
LEASE_S: Final = 10.0
# As long as Mooncake keeps the space of a put that was begun and never ended.
_PUT_S: Final = 600.0


class _Reading:
    """An object of a get session: pinned in place, or a copy of one that is not in memory."""

    def __init__(self, view: Any, copy: memoryview | None) -> None:
        self._view, self._copy = view, copy
        self.until = time.monotonic() + LEASE_S

    def use(self, use: Callable[[memoryview], int]) -> int:
        """What `use` of the bytes answers, or that the daemon took them away."""
        if self._copy is not None:
            return use(self._copy)
        try:
            with memoryview(self._view) as data:
                code = use(data)
        except BufferError:
            return LEASE_EXPIRED
        return code if self._view.still_valid() else LEASE_EXPIRED

    def end(self) -> None:
        if self._view is None:
            return
        try:
            self._view.release()
        except BufferError:
            pass  # Another thread copies from it: its pin goes when that has ended.


class _Writing:
    """An object of a put session, gathered here: it becomes an object when it is whole."""

    def __init__(self, size: int, config: ReplicateConfig) -> None:
        self.bytes = bytearray(size)
        self.config = config
        self.until = time.monotonic() + _PUT_S


class Ranges:
    """Part of `MooncakeDistributedStore`, which has `_daemon` and `_memory`."""

    _daemon: Daemon | None
    _memory: Memory

    def __init__(self) -> None:
        super().__init__()
        self._session_lock = threading.Lock()
        self._readings: dict[str, _Reading] = {}
        self._writings: dict[str, _Writing] = {}

    def get_into_ranges(
        self,
        buffer_ptrs: Sequence[int],
        all_keys: Sequence[Sequence[str]],
        all_dst_offsets: Sequence[Sequence[Sequence[int]]],
        all_src_offsets: Sequence[Sequence[Sequence[int]]],
        all_sizes: Sequence[Sequence[Sequence[int]]],
    ) -> list[list[list[int]]]:
        """For each buffer, key and range: the bytes copied, or a code."""
        results = [[[INVALID_PARAMS] * len(offsets) for offsets in per_key] for per_key in all_dst_offsets]
        levels = (all_keys, all_dst_offsets, all_src_offsets, all_sizes)
        if self._daemon is None or any(len(level) != len(buffer_ptrs) for level in levels):
            return results
        asked: list[tuple[int, int]] = []
        for at, per_buffer in enumerate(zip(*levels)):
            if len({len(level) for level in per_buffer}) == 1:
                keys = range(len(all_keys[at]))
                asked += [(at, k) for k in keys if len({len(level[k]) for level in per_buffer[1:]}) == 1]

        pieces = [
            [(src, buffer_ptrs[at] + dst, size) for dst, src, size in zip(*(level[at][k] for level in levels[1:]))]
            for at, k in asked
        ]
        found = self._read_pieces([all_keys[at][k] for at, k in asked], pieces)
        for (at, k), total, of_key in zip(asked, found, pieces):
            results[at][k] = [
                total if total < 0 else size if _is_within(src, size, total) else INVALID_PARAMS for src, _, size in of_key
            ]
        return results

    def _read_pieces(self, keys: Sequence[str], pieces: Sequence[list[tuple[int, int, int]]]) -> list[int]:
        """Copies those of the pieces (offset, address, size) that are within each key's object: its bytes, or a code."""
        assert self._daemon is not None
        every = [piece for of_key in pieces for piece in of_key]
        addresses, sizes = [address for _, address, _ in every], [size for *_, size in every]
        if min([src for src, *_ in every], default=0) >= 0 and self._memory.holds(addresses, sizes, for_writing=True):
            places = [[(address, size) for _, address, size in of_key] for of_key in pieces]
            return self._daemon.read_into(keys, places, [[src for src, *_ in of_key] for of_key in pieces])
        found = self._read_to_gpus(keys, pieces)
        left = [n for n, total in enumerate(found) if total is None]
        for n, data in zip(left, self._daemon.read_all([keys[n] for n in left])):
            if data is None:
                found[n] = OBJECT_NOT_FOUND
                continue
            copied = [self._copy(data, *piece) for piece in pieces[n]]
            found[n] = TRANSFER_FAIL if TRANSFER_FAIL in copied else len(data)
        return [TRANSFER_FAIL if total is None else total for total in found]

    def _read_to_gpus(self, keys: Sequence[str], pieces: Sequence[list[tuple[int, int, int]]]) -> list[int | None]:
        """What GPUs copy themselves: the object's bytes, or None."""
        assert self._daemon is not None
        if min((number for of_key in pieces for piece in of_key for number in piece), default=0) < 0:
            return [None] * len(keys)
        to = [[self._memory.range(address, size, for_writing=True) for _, address, size in of_key] for of_key in pieces]
        return memory.read_to_gpus(self._daemon.read_to_gpu, keys, to, [[src for src, *_ in of_key] for of_key in pieces])

    # ---- Get sessions ----

    def batch_get_session_start(self, keys: Sequence[str]) -> list[int]:
        """0 for each key whose object is held for `LEASE_S` seconds, -704 for those that are not there."""
        if self._daemon is None:
            return []
        self._sweep()
        results = []
        for key, view in zip(keys, self._daemon.views(keys)):
            copy = self._daemon.read_all([key])[0] if view is None else None
            is_there = view is not None or copy is not None
            with self._session_lock:
                before = self._readings.pop(key, None)
                if is_there:
                    self._readings[key] = _Reading(view, copy)
            if before is not None:
                before.end()
            results.append(OK if is_there else OBJECT_NOT_FOUND)
        return results

    def batch_get_into_multi_buffer_ranges(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Sequence[int]],
        all_sizes: Sequence[Sequence[int]],
        all_src_offsets: Sequence[Sequence[int]],
    ) -> list[int]:
        """For each key the bytes copied; -600 without a session or out of the object, -707 after its time."""
        if self._daemon is None:
            return []
        if not len(keys) == len(all_buffer_ptrs) == len(all_sizes) == len(all_src_offsets):
            return [INVALID_PARAMS] * len(keys)
        return [self._read_ranges(*one) for one in zip(keys, all_buffer_ptrs, all_sizes, all_src_offsets)]

    def batch_get_session_end(self, keys: Sequence[str]) -> int:
        for key in keys:
            self._end_reading(key)
        return OK

    # ---- Put sessions ----

    def batch_put_session_start(
        self, keys: Sequence[str], sizes: Sequence[int], config: ReplicateConfig = ReplicateConfig()
    ) -> list[int]:
        """0 for each key that may be written, -705 for those that are there, -600 for those in a session already."""
        if self._daemon is None:
            return []
        if len(keys) != len(sizes) or not fits(config, len(keys)):
            return [INVALID_PARAMS] * len(keys)
        self._sweep()
        results = []
        for key, size, is_there in zip(keys, sizes, self._daemon.exist(keys)):
            with self._session_lock:
                if key in self._writings or size <= 0:
                    code = INVALID_PARAMS
                else:
                    code = OBJECT_ALREADY_EXISTS if is_there == 1 else min(is_there, OK)
                try:
                    if code == OK:
                        self._writings[key] = _Writing(size, config._of_one_key())
                except (MemoryError, OverflowError):
                    code = NO_AVAILABLE_HANDLE
            results.append(code)
        return results

    def batch_put_from_multi_buffer_ranges(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Sequence[int]],
        all_sizes: Sequence[Sequence[int]],
        all_dst_offsets: Sequence[Sequence[int]],
    ) -> list[int]:
        """For each key the bytes copied; -600 without a session or out of the object."""
        if self._daemon is None:
            return []
        if not len(keys) == len(all_buffer_ptrs) == len(all_sizes) == len(all_dst_offsets):
            return [INVALID_PARAMS] * len(keys)
        return [self._write_ranges(*one) for one in zip(keys, all_buffer_ptrs, all_sizes, all_dst_offsets)]

    def batch_put_session_end(self, keys: Sequence[str]) -> list[int]:
        """Makes the objects readable: 0 or a code for each key; one that is refused stays in its session, to be tried again."""
        if self._daemon is None:
            return []
        results = []
        for key in keys:
            with self._session_lock:
                writing = self._writings.get(key)
            code = INVALID_PARAMS
            if writing is not None:
                [code] = self._daemon.put([key], [[writing.bytes]], writing.config)
            if code == OK:
                with self._session_lock:
                    self._writings.pop(key, None)
            results.append(code)
        return results

    def batch_put_session_revoke(self, keys: Sequence[str]) -> list[int]:
        if self._daemon is None:
            return []
        with self._session_lock:
            return [INVALID_PARAMS if self._writings.pop(key, None) is None else OK for key in keys]

    # ----

    def _end_sessions(self) -> None:
        with self._session_lock:
            readings, self._readings, self._writings = self._readings, {}, {}
        for reading in readings.values():
            reading.end()

    def _sweep(self) -> None:
        """Lets go of sessions that nobody ended."""
        now = time.monotonic()
        with self._session_lock:
            self._writings = {key: writing for key, writing in self._writings.items() if writing.until > now}
            expired = [key for key, reading in self._readings.items() if reading.until <= now]
        for key in expired:
            self._end_reading(key)

    def _end_reading(self, key: str) -> None:
        with self._session_lock:
            reading = self._readings.pop(key, None)
        if reading is not None:
            reading.end()

    def _read_ranges(self, key: str, ptrs: Sequence[int], sizes: Sequence[int], offsets: Sequence[int]) -> int:
        with self._session_lock:
            reading = self._readings.get(key)
        if reading is None or not len(ptrs) == len(sizes) == len(offsets):
            return INVALID_PARAMS
        if reading.until <= time.monotonic():
            self._end_reading(key)
            return LEASE_EXPIRED

        def use(data: memoryview) -> int:
            if any(not _is_within(offset, size, len(data)) for offset, size in zip(offsets, sizes)):
                return INVALID_PARAMS
            copied = [self._copy(data, offset, ptr, size) for offset, ptr, size in zip(offsets, ptrs, sizes)]
            return next((code for code in copied if code < 0), sum(copied))

        code = reading.use(use)
        if code == LEASE_EXPIRED:
            self._end_reading(key)
        return code

    def _write_ranges(self, key: str, ptrs: Sequence[int], sizes: Sequence[int], offsets: Sequence[int]) -> int:
        with self._session_lock:
            writing = self._writings.get(key)
        if writing is None or not len(ptrs) == len(sizes) == len(offsets):
            return INVALID_PARAMS
        if any(not _is_within(offset, size, len(writing.bytes)) for offset, size in zip(offsets, sizes)):
            return INVALID_PARAMS
        for ptr, size, offset in zip(ptrs, sizes, offsets):
            data = memory.source(self._memory.range(ptr, size, for_writing=False))
            if data is None:
                return TRANSFER_FAIL
            memory.scatter(data, [memory.inside(writing.bytes, offset, size)])
        return sum(sizes)

    def _copy(self, data: memoryview, offset: int, address: int, size: int) -> int:
        if not _is_within(offset, size, len(data)):
            return INVALID_PARAMS
        if size == 0:
            return 0
        place: Range = self._memory.range(address, size, for_writing=True)
        with data[offset : offset + size] as section:
            return size if memory.scatter(section, [place]) else codes.TRANSFER_FAIL


def _is_within(offset: int, size: int, total: int) -> bool:
    return offset >= 0 and size >= 0 and offset + size <= total
