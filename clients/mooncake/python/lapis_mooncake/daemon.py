"""One connection to a daemon: keys become objects of a pool, calls become codes.

Nothing here raises what a daemon can cause: answers are codes, or None for a miss.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import lapis_kv
from lapis_kv import Hint, PutStatus, Views

from . import codes, gpu
from .config import ReplicateConfig, pin_seconds

_DEFAULT_SOCKET: Final = "/run/lapis/lapis.sock"
_LABEL: Final = "objects"
_NAME_BYTES_MAX: Final = 1024
_BATCH_KEYS_MAX: Final = 8192
# Longest payload of an object's part: a longer object is one of several, which only a whole read puts together.
_PART_BYTES: Final = (64 << 20) - (64 << 10)
# What an object may have at most: the first that the daemon's memory allows, the same for all processes.
_VALUE_BYTES_MAX: Final = tuple(mib << 20 for mib in (256, 192, 128, 96, 64, 48, 32, 16, 8, 4, 2, 1))
_NAMES_MAX: Final = 1 << 20


class Names:
    """The keys that this process put, for removals by pattern: no more than a bound, the oldest are forgotten."""

    def __init__(self, most: int = _NAMES_MAX) -> None:
        self._lock = threading.Lock()
        self._names: dict[str, None] = {}
        self._most = most
        self.are_all = True

    def add(self, keys: Iterable[str]) -> None:
        with self._lock:
            self._names.update(dict.fromkeys(keys))
            while len(self._names) > self._most:
                self._names.pop(next(iter(self._names)))
                self.are_all = False

    def discard(self, keys: Iterable[str]) -> None:
        with self._lock:
            for key in keys:
                self._names.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._names.clear()

    def matching(self, pattern: re.Pattern[str]) -> list[str]:
        with self._lock:
            names = list(self._names)
        return [name for name in names if pattern.search(name)]


class Daemon:
    """Objects under Mooncake's keys. Raises a LapisError from `__init__` only."""

    def __init__(self, path: str, tenant: str) -> None:
        self.path = path
        self.names = Names()
        self._client = lapis_kv.Client(path, name="mooncake.store", gpus=True)
        # GPUs whose own copies cannot be had.
        self._without: set[int] = set()
        try:
            self._pool = _open(self._client, lapis_kv.Namespace("mooncake", salt=tenant))
        except lapis_kv.LapisError:
            self._client.close()
            raise

    def close(self) -> None:
        try:
            self._client.close()
        except lapis_kv.ForkedError:
            pass  # It is the parent's, who goes on with it.

    def is_connected(self) -> bool:
        try:
            return self._client.is_connected()
        except lapis_kv.LapisError:
            return False

    def exist(self, keys: Sequence[str]) -> list[int]:
        """1, 0 or a code for each key."""
        return self._each(keys, lambda _, names: list(self._client.exists(self._pool, names).mask))

    def put(self, keys: Sequence[str], places: Sequence[list[Any]], config: ReplicateConfig) -> list[int]:
        """Stores each key's places, one after the other, as one object; a code for each. OK also if the key is there.

        Once an object waited for room in vain, those of later batches are not tried.
        """
        has_waited = False

        def put(at: Sequence[int], names: list[bytes]) -> list[int]:
            nonlocal has_waited
            if has_waited:
                return [codes.NO_AVAILABLE_HANDLE] * len(names)
            done = self._client.put_objects(self._pool, names, [places[i] for i in at])
            if done:
                results = [codes.OK] * len(names)
            else:
                results = [codes.of_put(status) for status in done.statuses]
                has_waited = any(isinstance(code, codes.Waited) for code in results)
                codes.log.debug("not stored: %s", done.refusals)
            stored = [(keys[i], name) for i, name, code in zip(at, names, results) if code == codes.OK]
            self.names.add(key for key, _ in stored)
            self._pin([name for _, name in stored], pin_seconds(config))
            return results

        return self._each(keys, put)

    def replace(self, keys: Sequence[str], places: Sequence[list[Any]], config: ReplicateConfig) -> list[int]:
        """Stores each key's places instead of what is there. A reader in between finds neither, never a mixture."""
        results = [codes.OBJECT_ALREADY_EXISTS] * len(keys)
        todo = list(range(len(keys)))
        # Of a key that is given twice the last one stays, as if they came one after the other.
        while todo:
            first = {keys[i]: i for i in reversed(todo)}
            now, todo = sorted(first.values()), [i for i in todo if first[keys[i]] != i]
            for _ in range(_REPLACE_TRIES):
                codes_now = self._replace([keys[i] for i in now], [places[i] for i in now], config)
                for i, code in zip(now, codes_now):
                    results[i] = code
                now = [i for i, code in zip(now, codes_now) if code == codes.OBJECT_ALREADY_EXISTS]
                if not now:
                    break
        return results

    def _replace(self, keys: Sequence[str], places: Sequence[list[Any]], config: ReplicateConfig) -> list[int]:
        """-705 for those that another one put in between."""

        def replace(at: Sequence[int], names: list[bytes]) -> list[int]:
            self._client.remove(self._pool, names)
            statuses = self._client.put_objects(self._pool, names, [places[i] for i in at]).statuses
            stored = [(keys[i], name) for i, name, status in zip(at, names, statuses) if status == PutStatus.STORED]
            self.names.add(key for key, _ in stored)
            self._pin([name for _, name in stored], pin_seconds(config))
            is_there = codes.OBJECT_ALREADY_EXISTS
            return [is_there if status == PutStatus.EXISTS else codes.of_put(status) for status in statuses]

        return self._each(keys, replace)

    def remove(self, key: str) -> int:
        try:
            was_there = self._client.remove_object(self._pool, name(key))
        except (lapis_kv.LapisError, ValueError) as error:
            return codes.of_error(error)
        self.names.discard([key])
        return codes.OK if was_there else codes.OBJECT_NOT_FOUND

    def remove_matching(self, pattern: re.Pattern[str]) -> int:
        """How many were removed of those that this process put, or the first code."""
        keys = self.names.matching(pattern)
        count = 0
        for first in range(0, len(keys), _BATCH_KEYS_MAX):
            batch = keys[first : first + _BATCH_KEYS_MAX]
            try:
                count += self._client.remove(self._pool, [name(key) for key in batch])
            except lapis_kv.LapisError as error:
                return codes.of_error(error)
            self.names.discard(batch)
        return count

    def remove_all(self) -> int:
        """How many there were, or a code."""
        self.names.clear()
        try:
            return self._client.purge(self._pool)
        except lapis_kv.LapisError as error:
            return codes.of_error(error)

    def read(self, key: str) -> memoryview | None:
        """A copy of an object, wherever it is; None if it is not there."""
        try:
            return self._client.get_object(self._pool, name(key))
        except (lapis_kv.LapisError, ValueError) as error:
            codes.of_error(error)
            return None

    def read_all(self, keys: Sequence[str]) -> list[memoryview | None]:
        """Copies of objects, wherever they are; None for those that are not there."""
        found: list[memoryview | None] = [None] * len(keys)

        def read(at: Sequence[int], names: list[bytes]) -> list[int]:
            for i, data in zip(at, self._client.get_objects(self._pool, names)):
                found[i] = data
            return [codes.OK] * len(names)

        self._each(keys, read)
        return found

    def read_into(
        self, keys: Sequence[str], places: Sequence[list[tuple[int, int]]], offsets: Sequence[list[int]] | None = None
    ) -> list[int]:
        """Each object's bytes to its places in turn, or those at the offsets: how many it has, or a code."""

        def read(at: Sequence[int], names: list[bytes]) -> list[int]:
            to, of = [places[i] for i in at], None if offsets is None else [offsets[i] for i in at]
            found = self._client.get_objects_into(self._pool, names, to, offsets=of)
            return [codes.OBJECT_NOT_FOUND if n is None else n if n >= 0 else codes.INVALID_PARAMS for n in found]

        return self._each(keys, read)

    def read_to_gpu(
        self, device: int, keys: Sequence[str], places: Sequence[list[tuple[int, int]]], offsets: Sequence[list[int]] | None = None
    ) -> list[int | None]:
        """`read_into` memory of one GPU, copied by it, and there when this returns. None for what may come by way of the host's
        memory: it is not there, or of several parts, or this GPU copies none."""
        found: list[int | None] = [None] * len(keys)
        stream = None if device in self._without else gpu.stream_of(device)
        if stream is None:
            return found

        def read(at: Sequence[int], names: list[bytes]) -> list[int]:
            to, of = [places[i] for i in at], None if offsets is None else [offsets[i] for i in at]
            try:
                got = self._client.get_objects_device(self._pool, names, to, stream, device=device, offsets=of)
            except lapis_kv.GpuError as error:
                # Some copies may be under way, and what comes instead is not to meet them.
                gpu.finish(device)
                if not error.is_transient:
                    self._without.add(device)
                    codes.log.warning("GPU %d copies no objects itself, they go by the host's memory from now on: %s", device, error)
                return [codes.OK] * len(names)
            if gpu.finish(device) and got.still_valid():
                for i, n in zip(at, got.found):
                    found[i] = codes.INVALID_PARAMS if n is not None and n < 0 else n
            return [codes.OK] * len(names)

        self._each(keys, read)
        return found

    def size(self, key: str) -> int:
        """Bytes of an object, or a code."""
        [[found], [code]] = self.find([key])
        if code != codes.OK:
            return code
        if found is None:
            return codes.OBJECT_NOT_FOUND
        # A long one that is not in memory has to be fetched.
        return self.read_into([key], [[]], [[]])[0] if found[0] is None else found[0]

    def find(self, keys: Sequence[str]) -> tuple[list[tuple[int | None, bool] | None], list[int]]:
        """For each key the bytes of its object, if they are known, and whether it is in memory; and the codes."""
        found: list[tuple[int | None, bool] | None] = [None] * len(keys)

        def find(at: Sequence[int], names: list[bytes]) -> list[int]:
            for i, info in zip(at, self._client.find_objects(self._pool, names)):
                found[i] = info
            return [codes.OK] * len(names)

        results = self._each(keys, find)
        return found, results

    def views(self, keys: Sequence[str]) -> Iterator[Any]:
        """A view of each key's object, None for those that are absent, elsewhere than in memory, or in several parts."""
        views: Views | list[None]
        try:
            views = self._client.view(self._pool, [name(key) for key in keys])
        except (lapis_kv.LapisError, ValueError):
            views = [None] * len(keys)
        for at in range(len(keys)):
            view = views[at]
            if view is not None and view.nbytes >= _PART_BYTES:
                view.release()
                view = None
            yield view

    def _each(self, keys: Sequence[str], call: Callable[[Sequence[int], list[bytes]], list[int]]) -> list[int]:
        """What `call` answers for indices and names of as many keys as one call may have; a code where it raises.

        -600 for keys that are none, which are not in the way of the others.
        """
        results = [codes.INVALID_PARAMS] * len(keys)
        sound: Sequence[int] = range(len(keys))
        if not all(keys):
            codes.log.error("an empty key")
            sound = [i for i in sound if keys[i]]
        for first in range(0, len(sound), _BATCH_KEYS_MAX):
            at = sound[first : first + _BATCH_KEYS_MAX]
            try:
                answers = call(at, [name(keys[i]) for i in at])
            except (lapis_kv.LapisError, ValueError) as error:
                answers = [codes.of_error(error)] * len(at)
            for i, answer in zip(at, answers):
                results[i] = answer
        return results

    def _pin(self, names: list[bytes], seconds: float | None) -> None:
        if seconds is None or not names:
            return
        try:
            told = self._client.hint(self._pool, names, Hint.pinned(seconds))
        except lapis_kv.LapisError as error:
            told = not codes.of_error(error)
        if not told:
            codes.log.warning("%d objects are stored, but not pinned: no daemon to hear it", len(names))


_REPLACE_TRIES: Final = 8


def name(key: str) -> bytes:
    """The object's name: the key itself, or its hash where Lapis could not have it or could take it for another's."""
    raw = key if isinstance(key, bytes) else key.encode()
    if len(raw) > _NAME_BYTES_MAX or raw[-1:] == b"\0" or raw[:1] == b"\xff":
        return b"\xff" + hashlib.sha256(raw).digest()
    if not raw:
        raise ValueError("an empty key")
    return raw


def socket_path(master_server_addr: str) -> str:
    """$LAPIS_SOCKET, or what a `lapis://`, `unix:` or plain path says, or the daemon's default."""
    if path := os.environ.get("LAPIS_SOCKET"):
        return path
    for scheme in ("lapis://", "unix://", "unix:"):
        if master_server_addr.startswith(scheme):
            path = urllib.parse.unquote(master_server_addr.removeprefix(scheme))
            return path or _default_path()
    return master_server_addr if master_server_addr.startswith("/") else _default_path()


def _default_path() -> str:
    """As `lapis serve` chooses it."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if pathlib.Path(_DEFAULT_SOCKET).parent.exists() or os.geteuid() == 0 or not runtime:
        return _DEFAULT_SOCKET
    return f"{runtime}/lapis/lapis.sock"


def _open(client: lapis_kv.Client, namespace: lapis_kv.Namespace) -> lapis_kv.Pool:
    """The pool with the longest objects that fit the daemon's memory."""
    for value_bytes in _VALUE_BYTES_MAX[:-1]:
        try:
            return client.pool(namespace, _LABEL, value_bytes, kind="object")
        except lapis_kv.RefusedError as error:
            codes.log.debug("objects of %d bytes: %s", value_bytes, error)
    return client.pool(namespace, _LABEL, _VALUE_BYTES_MAX[-1], kind="object")
