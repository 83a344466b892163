"""`MooncakeDistributedStore`: its life, and its calls of whole objects. Ranges, tensors and the rest come by inheritance."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import lapis_kv

from . import buffers, codes, memory
from .admin import Admin
from .buffers import BufferHandle
from .codes import INVALID_PARAMS, OK, TRANSFER_FAIL
from .config import ReplicateConfig, fits
from .daemon import Daemon, socket_path
from .memory import Memory
from .ranges import Ranges
from .replicas import ReplicaDescriptor
from .tensors import Tensors

# In their order; those after the first seven have defaults.
_SETUP = (
    "local_hostname",
    "metadata_server",
    "global_segment_size",
    "local_buffer_size",
    "protocol",
    "rdma_devices",
    "master_server_addr",
    "engine",
    "enable_ssd_offload",
    "ssd_offload_path",
    "tenant_id",
    "enable_client_http_server",
    "client_http_port",
)
_SETUP_REQUIRED = 7
_LOCAL_BUFFER_BYTES = 16 << 20
# Bytes that one put call of several objects holds copies of.
_HELD_BYTES_MAX = 64 << 20


class MooncakeDistributedStore(Ranges, Tensors, Admin):
    """Mooncake's store over the Lapis daemon of this host. Any thread may use it.

    Calls answer 0, a count, or one of Mooncake's negative codes; see `docs/mooncake.md` for which says what.
    """

    def __init__(self) -> None:
        super().__init__()
        self._daemon: Daemon | None = None
        self._was_set_up = False
        self._memory = Memory()
        self._hostname = ""
        self._local_buffer_size: int | None = None
        self._pool_memory: list[mmap.mmap] = []

    # ---- Its life ----

    def setup(self, *args: Any, **kwargs: Any) -> int:
        """Connects to the daemon, in one of two forms:

        setup(local_hostname, metadata_server, global_segment_size, local_buffer_size, protocol, rdma_devices,
        master_server_addr, engine = None, enable_ssd_offload = False, ssd_offload_path = "", tenant_id = "default",
        enable_client_http_server = False, client_http_port = 9300)

        setup(config), a dict with these names.

        master_server_addr: where the daemon listens, as `lapis:///path`, `unix:/path` or a path; of anything else, and where
        $LAPIS_SOCKET is set, no use is made. tenant_id: stores of different tenants share nothing. The memory and the SSD
        are the daemon's, so the other arguments have no effect. 0, or a negative code if no daemon answers.
        """
        given = _setup_arguments(args, kwargs)
        if given.get("enable_client_http_server") in (True, "true", "True", "1"):
            codes.once("http", "enable_client_http_server: Lapis's figures are at the daemon (metrics.listen); no server here")
        return self._connect(
            str(given.get("local_hostname", "")),
            int(given.get("local_buffer_size") or _LOCAL_BUFFER_BYTES),
            # LMCache's dict has the longer name.
            str(given.get("master_server_addr") or given.get("master_server_address") or ""),
            str(given.get("tenant_id") or "default"),
        )

    def setup_dummy(self, mem_pool_size: int, local_buffer_size: int, server_address: str) -> int:
        """The same store: a daemon is another process anyhow. mem_pool_size has no effect."""
        return self._connect("", local_buffer_size, server_address, "default")

    def close(self) -> int:
        """Ends the connection; objects stay. Twice is once."""
        daemon, self._daemon = self._daemon, None
        self._was_set_up = False
        self._local_buffer_size = None
        self._end_sessions()
        self._memory.forget()
        while self._pool_memory:
            memory.free(self._pool_memory.pop())
        if daemon is not None:
            daemon.close()
        return OK

    def health_check(self) -> int:
        """0 if a daemon answers, 1 before `setup` and after `close`, 2 if none does."""
        if self._daemon is None:
            return 1
        return 0 if self._daemon.is_connected() else 2

    def get_hostname(self) -> str:
        return self._hostname

    def _connect(self, hostname: str, local_buffer_size: int, address: str, tenant: str) -> int:
        self.close()
        self._was_set_up = True
        path = socket_path(address)
        try:
            self._daemon = Daemon(path, tenant)
        except (lapis_kv.LapisError, ValueError) as error:
            codes.log.error("setup: no Lapis daemon at %s: %s", path, error)
            return codes.RPC_FAIL if isinstance(error, lapis_kv.LapisError) else INVALID_PARAMS
        self._hostname, self._local_buffer_size = hostname, local_buffer_size
        codes.log.info("mooncake.store is the Lapis daemon at %s, tenant %r", path, tenant)
        return OK

    # ---- Bytes ----

    def put(self, key: str, value: Any, config: ReplicateConfig = ReplicateConfig()) -> int:
        """0 also if the key is there, whatever is under it: objects never change."""
        return self._put(key, [value], config, not config.prefer_alloc_in_same_node)

    def put_parts(self, key: str, *args: Any, config: ReplicateConfig = ReplicateConfig()) -> int:
        return self._put(key, list(args), config, not config.prefer_alloc_in_same_node)

    def put_batch(self, keys: Sequence[str], values: Sequence[Any], config: ReplicateConfig = ReplicateConfig()) -> int:
        """0 if all are stored, else the first code that is not."""
        if len(keys) != len(values) or config.prefer_alloc_in_same_node or not fits(config, len(keys)):
            return INVALID_PARAMS
        return _first(self._put_many(keys, [[value] for value in values], config))

    def upsert(self, key: str, value: Any, config: ReplicateConfig = ReplicateConfig()) -> int:
        """Replaces what is there. In between the key is a miss for others, never a mixture."""
        return self._put(key, [value], config, is_upsert=True)

    def upsert_parts(self, key: str, *args: Any, config: ReplicateConfig = ReplicateConfig()) -> int:
        return self._put(key, list(args), config, is_upsert=True)

    def upsert_batch(self, keys: Sequence[str], values: Sequence[Any], config: ReplicateConfig = ReplicateConfig()) -> int:
        if len(keys) != len(values) or not fits(config, len(keys)):
            return INVALID_PARAMS
        return _first(self._put_many(keys, [[value] for value in values], config, is_upsert=True))

    def get(self, key: str, /) -> bytes:
        """The object's bytes, b"" if it is not there."""
        return self.get_batch([key])[0]

    def get_batch(self, keys: Sequence[str], /) -> list[bytes]:
        found = self._daemon.read_all(keys) if self._daemon else [None] * len(keys)
        return [b"" if data is None else bytes(data) for data in found]

    def get_buffer(self, key: str, /) -> BufferHandle | None:
        """The object's bytes in memory of their own, None if it is not there."""
        return self.batch_get_buffer([key])[0]

    def batch_get_buffer(self, keys: Sequence[str], /) -> list[BufferHandle | None]:
        found = self._daemon.read_all(keys) if self._daemon else [None] * len(keys)
        return [None if data is None else buffers.handle(data) for data in found]

    # ---- Memory by address ----

    def register_buffer(self, buffer_ptr: int, size: int) -> int:
        """Tells that addresses in it may be read and written as they are. -600 for what is no memory of the host or a GPU, or
        overlaps."""
        return self._memory.register(buffer_ptr, size) if self._daemon else INVALID_PARAMS

    def unregister_buffer(self, buffer_ptr: int) -> int:
        return self._memory.unregister(buffer_ptr) if self._daemon else INVALID_PARAMS

    def alloc_from_mem_pool(self, size: int, /) -> int:
        """The address of host memory that lives until `close`, 0 if there is none."""
        try:
            self._pool_memory.append(memory.allocate(size))
        except (OSError, ValueError, OverflowError):
            return 0
        return memory.base(self._pool_memory[-1])

    def put_from(self, key: str, buffer_ptr: int, size: int, config: ReplicateConfig = ReplicateConfig()) -> int:
        return self._put_from(key, [(buffer_ptr, size)], config, not config.prefer_alloc_in_same_node)

    def put_from_with_metadata(
        self,
        key: str,
        buffer_ptr: int,
        metadata_buffer_ptr: int,
        size: int,
        metadata_size: int,
        config: ReplicateConfig = ReplicateConfig(),
    ) -> int:
        """One object: the metadata, then the data."""
        places = [(metadata_buffer_ptr, metadata_size), (buffer_ptr, size)]
        return self._put_from(key, places, config, not config.prefer_alloc_in_same_node)

    def batch_put_from(
        self,
        keys: Sequence[str],
        buffer_ptrs: Sequence[int],
        sizes: Sequence[int],
        config: ReplicateConfig = ReplicateConfig(),
    ) -> list[int]:
        return self._batch_put_from(keys, [[ptr] for ptr in buffer_ptrs], [[size] for size in sizes], config)

    def batch_put_from_multi_buffers(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Sequence[int]],
        all_sizes: Sequence[Sequence[int]],
        config: ReplicateConfig = ReplicateConfig(),
    ) -> list[int]:
        """Each key's object is its buffers, one after the other."""
        return self._batch_put_from(keys, all_buffer_ptrs, all_sizes, config)

    def upsert_from(self, key: str, buffer_ptr: int, size: int, config: ReplicateConfig = ReplicateConfig()) -> int:
        return self._put_from(key, [(buffer_ptr, size)], config, is_upsert=True)

    def batch_upsert_from(
        self,
        keys: Sequence[str],
        buffer_ptrs: Sequence[int],
        sizes: Sequence[int],
        config: ReplicateConfig = ReplicateConfig(),
    ) -> list[int]:
        return self._batch_put_from(keys, [[ptr] for ptr in buffer_ptrs], [[size] for size in sizes], config, True)

    def get_into(self, key: str, buffer_ptr: int, size: int) -> int:
        """Bytes of the object, -704 if it is not there, -600 if it is longer than the buffer."""
        return self.batch_get_into([key], [buffer_ptr], [size])[0]

    def batch_get_into(self, keys: Sequence[str], buffer_ptrs: Sequence[int], sizes: Sequence[int]) -> list[int]:
        return self.batch_get_into_multi_buffers(keys, [[ptr] for ptr in buffer_ptrs], [[size] for size in sizes])

    def batch_get_into_multi_buffers(
        self,
        keys: Sequence[str],
        all_buffer_ptrs: Sequence[Sequence[int]],
        all_sizes: Sequence[Sequence[int]],
        prefer_alloc_in_same_node: bool = False,
    ) -> list[int]:
        """Each object to its buffers in turn: its bytes, or a code."""
        if self._daemon is None or not len(keys) == len(all_buffer_ptrs) == len(all_sizes):
            return [INVALID_PARAMS] * len(keys)
        if any(len(ptrs) != len(sizes) for ptrs, sizes in zip(all_buffer_ptrs, all_sizes)):
            return [INVALID_PARAMS] * len(keys)
        ptrs, sizes = list(chain.from_iterable(all_buffer_ptrs)), list(chain.from_iterable(all_sizes))
        if self._memory.holds(ptrs, sizes, for_writing=True):
            return self._daemon.read_into(keys, [list(zip(*one)) for one in zip(all_buffer_ptrs, all_sizes)])
        places = [
            [self._memory.range(ptr, size, for_writing=True) for ptr, size in zip(*one)]
            for one in zip(all_buffer_ptrs, all_sizes)
        ]
        found = memory.read_to_gpus(self._daemon.read_to_gpu, keys, places)
        return [self._copy_out(key, to) if n is None else n for key, to, n in zip(keys, places, found)]

    def _copy_out(self, key: str, places: list[memory.Range]) -> int:
        """An object to places that are not all registered."""
        assert self._daemon is not None
        data = self._daemon.read_all([key])[0]
        if data is None:
            return codes.OBJECT_NOT_FOUND
        if sum(place.size for place in places) < len(data):
            return INVALID_PARAMS
        return len(data) if memory.scatter(data, places) else TRANSFER_FAIL

    # ---- Questions and removals ----

    def is_exist(self, key: str, /) -> int:
        return self.batch_is_exist([key])[0]

    def batch_is_exist(self, keys: Sequence[str]) -> list[int]:
        """1 if it is there, 0 if not, a negative code before `setup`. Without a daemon: what was there last."""
        if self._daemon is None:
            # After a setup in vain nothing is there. Connectors that do not look at its code take any other number for a hit.
            return [OK if self._was_set_up else INVALID_PARAMS] * len(keys)
        return self._daemon.exist(keys)

    def get_size(self, key: str, /) -> int:
        """Bytes of the object; of one over 64 MiB that is not in memory, by fetching it."""
        return self._daemon.size(key) if self._daemon else INVALID_PARAMS

    def get_replica_desc(self, key: str) -> list[ReplicaDescriptor]:
        return self.batch_get_replica_desc([key]).get(key, [])

    def batch_get_replica_desc(self, keys: Sequence[str]) -> dict[str, list[ReplicaDescriptor]]:
        """Where each object is: in memory, or (as a local disk replica) where the daemon would fetch it from."""
        found: dict[str, list[ReplicaDescriptor]] = {}
        if self._daemon is None:
            return found
        for key, info in zip(keys, self._daemon.find(keys)[0]):
            if info is not None:
                size, in_memory = info
                found[key] = [ReplicaDescriptor(size if in_memory else None, self._daemon.path)]
        return found

    def remove(self, key: str, force: bool = False) -> int:
        """0, or -704 if it was not there. There are no leases: pins and readers do not hinder it."""
        return self._daemon.remove(key) if self._daemon else INVALID_PARAMS

    def batch_remove(self, keys: Sequence[str], force: bool = False) -> list[int]:
        return [self.remove(key) for key in keys]

    def remove_by_regex(self, regex_pattern: str, force: bool = False) -> int:
        """How many were removed. Looks among the keys that this store put, the last 2^20 of them: a daemon keeps no keys."""
        if self._daemon is None:
            return INVALID_PARAMS
        try:
            pattern = re.compile(regex_pattern)
        except re.error as error:
            codes.log.error("remove_by_regex: %r: %s", regex_pattern, error)
            return INVALID_PARAMS
        codes.once("regex", "remove_by_regex sees only keys that this store put itself")
        if not self._daemon.names.are_all:
            codes.once("regex old", "remove_by_regex: more keys were put than are remembered; the oldest stay")
        return self._daemon.remove_matching(pattern)

    def remove_all(self, force: bool = False) -> int:
        """How many were removed: all of this tenant on this host, whoever put them. An object over 64 MiB counts by its parts."""
        return self._daemon.remove_all() if self._daemon else INVALID_PARAMS

    # ---- Puts, whatever they come from ----

    def _put(
        self,
        key: str,
        parts: Sequence[Any],
        config: ReplicateConfig = ReplicateConfig(),
        is_valid: bool = True,
        is_upsert: bool = False,
    ) -> int:
        if self._daemon is None or not is_valid or not fits(config, 1):
            return INVALID_PARAMS
        return self._put_many([key], [parts], config, is_upsert)[0]

    def _put_from(
        self,
        key: str,
        places: Sequence[tuple[int, int]],
        config: ReplicateConfig,
        is_valid: bool = True,
        is_upsert: bool = False,
    ) -> int:
        if not is_valid:
            return INVALID_PARAMS
        ptrs, sizes = zip(*places)
        return self._batch_put_from([key], [ptrs], [sizes], config, is_upsert)[0]

    def _batch_put_from(
        self,
        keys: Sequence[str],
        all_ptrs: Sequence[Sequence[int]],
        all_sizes: Sequence[Sequence[int]],
        config: ReplicateConfig,
        is_upsert: bool = False,
    ) -> list[int]:
        if self._daemon is None or not len(keys) == len(all_ptrs) == len(all_sizes) or not fits(config, len(keys)):
            return [INVALID_PARAMS] * len(keys)
        ptrs, sizes = list(chain.from_iterable(all_ptrs)), list(chain.from_iterable(all_sizes))
        if len(ptrs) == len(sizes) and self._memory.holds(ptrs, sizes, for_writing=False):
            is_valid = all(len(one) == len(other) for one, other in zip(all_ptrs, all_sizes))
            if is_valid and 0 not in sizes and all(all_sizes):
                daemon_put = self._daemon.replace if is_upsert else self._daemon.put
                return daemon_put(keys, [list(zip(*one)) for one in zip(all_ptrs, all_sizes)], config)
        return self._put_many(keys, map(self._sources, all_ptrs, all_sizes), config, is_upsert)

    def _sources(self, ptrs: Sequence[int], sizes: Sequence[int]) -> list[Any] | int:
        """What is to be put of one key, or the code of why it cannot be."""
        if len(ptrs) != len(sizes):
            return INVALID_PARAMS
        places = memory.places([self._memory.range(ptr, size, for_writing=False) for ptr, size in zip(ptrs, sizes)])
        return TRANSFER_FAIL if places is None else places

    def _put_many(
        self,
        keys: Sequence[str],
        sources: Iterable[Sequence[Any] | int],
        config: ReplicateConfig = ReplicateConfig(),
        is_upsert: bool = False,
    ) -> list[int]:
        """A code for each key. A source: buffers and addresses of direct ranges, or a code to be answered.

        Sources may be copies that are made as this goes: only so many bytes of them are kept at a time.
        """
        if self._daemon is None:
            return [INVALID_PARAMS] * len(keys)
        put = self._daemon.replace if is_upsert else self._daemon.put
        results = [INVALID_PARAMS] * len(keys)
        at: list[int] = []
        places: list[list[Any]] = []
        held_bytes = 0

        def flush() -> bool:
            """False if room was waited for in vain."""
            nonlocal held_bytes
            done = put([keys[i] for i in at], places, config)
            for i, code in zip(at, done):
                results[i] = int(code)
            at.clear()
            places.clear()
            held_bytes = 0
            return not any(isinstance(code, codes.Waited) for code in done)

        for i, source in enumerate(sources):
            if isinstance(source, int):
                results[i] = source
                continue
            parts = [_flat(part) for part in source]
            size = sum(part[1] if isinstance(part, tuple) else part.nbytes for part in parts)
            if size == 0:
                codes.once("empty", "%s: objects without bytes are not stored (code %d)", keys[i], INVALID_PARAMS)
                continue
            at.append(i)
            places.append(parts)
            held_bytes += size
            if held_bytes >= _HELD_BYTES_MAX and not flush():
                results[i + 1 :] = [codes.NO_AVAILABLE_HANDLE] * (len(keys) - i - 1)
                return results
        if at:
            flush()
        return results


def _flat(part: Any) -> Any:
    """As contiguous bytes: copied if it is not. The addresses of direct ranges stay as they are."""
    if type(part) is memory.Direct:
        return part
    view = memoryview(part)
    return view if view.c_contiguous else memoryview(view.tobytes())


def _first(results: Iterable[int]) -> int:
    """The first code of a batch that is no success, else 0."""
    return next((code for code in results if code != OK), OK)


def _setup_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """By name, whichever of the two forms was used. Raises TypeError for neither."""
    config = kwargs["config"] if list(kwargs) == ["config"] and not args else args[0] if len(args) == 1 and not kwargs else None
    if isinstance(config, dict):
        return {str(name): value for name, value in config.items()}
    given = dict(zip(_SETUP, args))
    missing = [name for name in _SETUP[:_SETUP_REQUIRED] if name not in given and name not in kwargs]
    if len(args) > len(_SETUP) or missing or not kwargs.keys() <= set(_SETUP) - given.keys():
        raise TypeError(f"setup(): expected a dict or the arguments {', '.join(_SETUP)}; missing: {', '.join(missing) or 'none'}")
    return given | kwargs
