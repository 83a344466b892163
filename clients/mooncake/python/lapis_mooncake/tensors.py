"""Tensors of `MooncakeDistributedStore`: torch tensors on the CPU as objects, whole or in shards `<key>_tp_<rank>`."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from . import gpu
from .codes import FILE_NOT_FOUND, INVALID_PARAMS, NOT_SUPPORTED, OK, TRANSFER_FAIL, log, of_batch, once
from .config import ReplicateConfig, fits
from .daemon import Daemon
from .memory import Memory, place, source
from .parallel import Parallel
from .tensor_format import METADATA_BYTES, parts, tensor


class Tensors(Parallel):
    """Part of `MooncakeDistributedStore`, which has the calls of objects."""

    _daemon: Daemon | None
    _memory: Memory
    get_into: Callable[..., int]
    batch_get_into: Callable[..., list[int]]
    _put_many: Callable[..., list[int]]

    # ---- Whole tensors ----

    def put_tensor(self, key: str, tensor: Any) -> int:
        """0, -600 for what is no tensor or lies on a device, or what `put` answers."""
        return self._put_tensor(key, tensor)

    def batch_put_tensor(self, keys: Sequence[str], tensors_list: Sequence[Any]) -> list[int]:
        return self._put_tensors(keys, tensors_list)

    def pub_tensor(self, key: str, tensor: Any, config: ReplicateConfig = ReplicateConfig()) -> int:
        return self._put_tensor(key, tensor, config)

    def batch_pub_tensor(
        self, keys: Sequence[str], tensors_list: Sequence[Any], config: ReplicateConfig = ReplicateConfig()
    ) -> list[int]:
        return self._put_tensors(keys, tensors_list, config)

    def upsert_tensor(self, key: str, tensor: Any) -> int:
        return self._put_tensor(key, tensor, is_upsert=True)

    def batch_upsert_tensor(self, keys: Sequence[str], tensors_list: Sequence[Any]) -> list[int]:
        return self._put_tensors(keys, tensors_list, is_upsert=True)

    def upsert_pub_tensor(self, key: str, tensor: Any, config: ReplicateConfig = ReplicateConfig()) -> int:
        return self._put_tensor(key, tensor, config, is_upsert=True)

    def batch_upsert_pub_tensor(
        self, keys: Sequence[str], tensors_list: Sequence[Any], config: ReplicateConfig = ReplicateConfig()
    ) -> list[int]:
        return self._put_tensors(keys, tensors_list, config, is_upsert=True)

    def get_tensor(self, key: str) -> Any:
        """A torch tensor in memory of its own, None if it is not there or is none. Imports torch."""
        return self.batch_get_tensor([key])[0]

    def batch_get_tensor(self, keys: Sequence[str]) -> list[Any]:
        found = self._daemon.read_all(keys) if self._daemon else [None] * len(keys)
        return [None if data is None else tensor(data, len(data)) for data in found]

    # ---- Tensors in memory by address: metadata, then elements ----

    def put_tensor_from(self, key: str, buffer_ptr: int, size: int) -> int:
        return self._put_tensor_from(key, buffer_ptr, size)

    def batch_put_tensor_from(
        self, keys: Sequence[str], buffer_ptrs: Sequence[int], sizes: Sequence[int]
    ) -> list[int]:
        return self._put_tensors_from(keys, buffer_ptrs, sizes)

    def upsert_tensor_from(self, key: str, buffer_ptr: int, size: int) -> int:
        return self._put_tensor_from(key, buffer_ptr, size, is_upsert=True)

    def batch_upsert_tensor_from(
        self, keys: Sequence[str], buffer_ptrs: Sequence[int], sizes: Sequence[int]
    ) -> list[int]:
        return self._put_tensors_from(keys, buffer_ptrs, sizes, is_upsert=True)

    def get_tensor_into(self, key: str, buffer_ptr: int, size: int) -> Any:
        """The tensor over the buffer, which the caller keeps; None if it is not there, does not fit, or would be on a GPU."""
        return _over(buffer_ptr, self.get_into(key, buffer_ptr, size)) if _is_of_host(buffer_ptr, size) else None

    def batch_get_tensor_into(self, keys: Sequence[str], buffer_ptrs: Sequence[int], sizes: Sequence[int]) -> list[Any]:
        if self._daemon is None or not len(keys) == len(buffer_ptrs) == len(sizes) or 0 in buffer_ptrs:
            return [INVALID_PARAMS] * len(keys)
        places = [(n, ptr, size) for n, (ptr, size) in enumerate(zip(buffer_ptrs, sizes)) if _is_of_host(ptr, size)]
        found: list[Any] = [None] * len(keys)
        lengths = self.batch_get_into([keys[n] for n, *_ in places], [ptr for _, ptr, _ in places], [size for *_, size in places])
        for (n, ptr, _), length in zip(places, lengths):
            found[n] = _over(ptr, length)
        return found

    def get_tensor_into_cuda(self, key: str, tensor: Any) -> int:
        return self.batch_get_tensor_into_cuda([key], [tensor])[0]

    def batch_get_tensor_into_cuda(self, keys: Sequence[str], tensors_list: Sequence[Any]) -> list[int]:
        """Device memory is out of reach: -1012 for each key."""
        once("cuda", "get_tensor_into_cuda: no tensors on devices yet; use get_tensor(key).cuda()")
        return [NOT_SUPPORTED] * len(keys)

    # ---- Shards ----

    def put_tensor_with_tp(
        self, key: str, tensor: Any, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0
    ) -> int:
        """All shards of the tensor, under `<key>_tp_<rank>`; 0 or the first code that is not."""
        return self._put_shards(key, tensor, ReplicateConfig(), tp_size, split_dim)

    def batch_put_tensor_with_tp(
        self,
        base_keys: Sequence[str],
        tensors_list: Sequence[Any],
        tp_rank: int = 0,
        tp_size: int = 1,
        split_dim: int = 0,
    ) -> list[int]:
        return self._put_all_shards(base_keys, tensors_list, ReplicateConfig(), tp_size, split_dim)

    def pub_tensor_with_tp(
        self,
        key: str,
        tensor: Any,
        config: ReplicateConfig = ReplicateConfig(),
        tp_rank: int = 0,
        tp_size: int = 1,
        split_dim: int = 0,
    ) -> int:
        return self._put_shards(key, tensor, config, tp_size, split_dim)

    def batch_pub_tensor_with_tp(
        self,
        base_keys: Sequence[str],
        tensors_list: Sequence[Any],
        config: ReplicateConfig = ReplicateConfig(),
        tp_rank: int = 0,
        tp_size: int = 1,
        split_dim: int = 0,
    ) -> list[int]:
        return self._put_all_shards(base_keys, tensors_list, config, tp_size, split_dim)

    def put_tensor_with_tp_from(
        self, key: str, buffer_ptr: int, size: int, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0
    ) -> int:
        return self.batch_put_tensor_with_tp_from([key], [buffer_ptr], [size], tp_rank, tp_size, split_dim)[0]

    def batch_put_tensor_with_tp_from(
        self,
        base_keys: Sequence[str],
        buffer_ptrs: Sequence[int],
        sizes: Sequence[int],
        tp_rank: int = 0,
        tp_size: int = 1,
        split_dim: int = 0,
    ) -> list[int]:
        """Of whole tensors, which are cut here."""
        if tp_size <= 1:
            return self._put_tensors_from(base_keys, buffer_ptrs, sizes)
        if self._daemon is None or not len(base_keys) == len(buffer_ptrs) == len(sizes):
            return [INVALID_PARAMS] * len(base_keys)
        results = []
        for key, ptr, size in zip(base_keys, buffer_ptrs, sizes):
            data = source(self._memory.range(ptr, size, for_writing=False))
            whole = None if data is None else tensor(bytearray(data), size)
            results.append(INVALID_PARAMS if whole is None else self._put_shards(key, whole, ReplicateConfig(), tp_size, split_dim))
        return results

    def get_tensor_with_tp(self, key: str, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0) -> Any:
        """The shard of that rank, as it was put."""
        return self.get_tensor(_shard(key, tp_rank, tp_size))

    def batch_get_tensor_with_tp(self, base_keys: Sequence[str], tp_rank: int = 0, tp_size: int = 1) -> list[Any]:
        return self.batch_get_tensor([_shard(key, tp_rank, tp_size) for key in base_keys])

    def get_tensor_with_tp_into(
        self, key: str, buffer_ptr: int, size: int, tp_rank: int = 0, tp_size: int = 1, split_dim: int = 0
    ) -> Any:
        return self.get_tensor_into(_shard(key, tp_rank, tp_size), buffer_ptr, size)

    def batch_get_tensor_with_tp_into(
        self,
        base_keys: Sequence[str],
        buffer_ptrs: Sequence[int],
        sizes: Sequence[int],
        tp_rank: int = 0,
        tp_size: int = 1,
    ) -> list[Any]:
        return self.batch_get_tensor_into([_shard(key, tp_rank, tp_size) for key in base_keys], buffer_ptrs, sizes)

    # ---- Files ----

    def save_tensor_to_safetensor(self, key: str, file_name: str | None = None) -> int:
        """Writes it to a file, named like the key without another name. Needs safetensors."""
        found = self.get_tensor(key)
        if found is None:
            return FILE_NOT_FOUND if self._daemon else INVALID_PARAMS
        try:
            importlib.import_module("safetensors.torch").save_file({key: found}, file_name or key)
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            log.error("save_tensor_to_safetensor: %s: %s", file_name or key, error)
            return INVALID_PARAMS
        return OK

    def load_tensor_from_safetensor(self, key: str | None = None, file_name: str | None = None) -> Any:
        """Puts a tensor of a file under the key, and gives it; None if either fails. Needs safetensors."""
        if file_name is None:
            raise TypeError("load_tensor_from_safetensor(): file_name is missing")
        try:
            loaded = importlib.import_module("safetensors.torch").load_file(file_name)
            found = loaded[key if key in loaded else next(iter(loaded))]
        except (ImportError, OSError, ValueError, RuntimeError, StopIteration) as error:
            log.error("load_tensor_from_safetensor: %s: %s", file_name, error)
            return None
        if key is not None and key not in loaded:
            log.warning("%s has no tensor %s: its first one is taken", file_name, key)
        return found if self.put_tensor(file_name if key is None else key, found) == OK else None

    # ----

    def _put_tensor(
        self, key: str, tensor: Any, config: ReplicateConfig = ReplicateConfig(), is_upsert: bool = False
    ) -> int:
        return self._put_tensors([key], [tensor], config, is_upsert)[0]

    def _put_tensors(
        self,
        keys: Sequence[str],
        tensors: Sequence[Any],
        config: ReplicateConfig = ReplicateConfig(),
        is_upsert: bool = False,
    ) -> list[int]:
        if self._daemon is None or len(keys) != len(tensors) or not fits(config, len(keys)):
            return [INVALID_PARAMS] * len(keys)
        return self._put_many(keys, map(_source, tensors), config, is_upsert)

    def _put_tensor_from(
        self,
        key: str,
        ptr: int,
        size: int,
        config: ReplicateConfig = ReplicateConfig(),
        is_upsert: bool = False,
    ) -> int:
        return self._put_tensors_from([key], [ptr], [size], config, is_upsert)[0]

    def _put_tensors_from(
        self,
        keys: Sequence[str],
        ptrs: Sequence[int],
        sizes: Sequence[int],
        config: ReplicateConfig = ReplicateConfig(),
        is_upsert: bool = False,
    ) -> list[int]:
        if self._daemon is None or not len(keys) == len(ptrs) == len(sizes) or not fits(config, len(keys)):
            return [INVALID_PARAMS] * len(keys)

        def sources(ptr: int, size: int) -> list[Any] | int:
            if ptr == 0 or size < METADATA_BYTES:
                return INVALID_PARAMS
            data = place(self._memory.range(ptr, size, for_writing=False))
            return TRANSFER_FAIL if data is None else [data]

        return self._put_many(keys, map(sources, ptrs, sizes), config, is_upsert)

    def _put_shards(self, key: str, tensor: Any, config: ReplicateConfig, tp_size: int, split_dim: int) -> int:
        if tp_size <= 1:
            return self._put_tensor(key, tensor, config)
        if self._daemon is None or not fits(config, 1) or not hasattr(tensor, "chunk"):
            return INVALID_PARAMS
        try:
            shards = tensor.chunk(tp_size, split_dim)
        except (IndexError, RuntimeError) as error:
            log.error("%s in %d shards along %d: %s", key, tp_size, split_dim, error)
            return INVALID_PARAMS
        if len(shards) != tp_size:
            return INVALID_PARAMS
        results = self._put_many([_shard(key, rank, tp_size) for rank in range(tp_size)], map(_source, shards), config)
        return next((code for code in results if code != OK), OK)

    def _put_all_shards(
        self, keys: Sequence[str], tensors: Sequence[Any], config: ReplicateConfig, tp_size: int, split_dim: int
    ) -> list[int]:
        if len(keys) != len(tensors) or not fits(config, len(keys)):
            return [INVALID_PARAMS] * len(keys)
        each = config._of_one_key()
        return of_batch(partial(self._put_shards, key, one, each, tp_size, split_dim) for key, one in zip(keys, tensors))


def _source(tensor: Any) -> list[Any] | int:
    """What is put of a tensor, or the code of what is none."""
    found = parts(tensor)
    return INVALID_PARAMS if found is None else found.buffers()


def _shard(key: str, rank: int, size: int) -> str:
    return key if size <= 1 else f"{key}_tp_{rank}"


def _is_of_host(ptr: int, size: int) -> bool:
    """Whether a tensor may be made over that memory: one on a GPU would be torch's to make."""
    if gpu.device_of(ptr, size) == gpu.HOST:
        return True
    once("tensor over", "no tensors over memory of GPUs yet: get_into fills it")
    return False


def _over(ptr: int, length: int) -> Any:
    """The tensor in memory of the caller."""
    return tensor((ctypes.c_ubyte * length).from_address(ptr), length) if ptr and length > 0 else None
