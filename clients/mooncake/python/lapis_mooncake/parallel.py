"""Tensors by a description of their parallel layout. Without one they are whole tensors; with one they are not supported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .codes import INVALID_PARAMS, NOT_SUPPORTED, of_batch, once
from .config import ReplicateConfig


class Parallel:
    """Part of `MooncakeDistributedStore`. -1012, or None for a tensor, where a layout is asked for."""

    get_tensor: Callable[..., Any]
    get_tensor_into: Callable[..., Any]
    batch_get_tensor_into: Callable[..., list[Any]]
    _put_tensor: Callable[..., int]
    _put_tensor_from: Callable[..., int]

    def put_tensor_with_parallelism(
        self,
        key: str,
        tensor: Any,
        parallelism: Any = None,
        config: ReplicateConfig = ReplicateConfig(),
        writer_partition: Any = None,
    ) -> int:
        return _unless(parallelism, writer_partition) or self._put_tensor(key, tensor, config)

    def upsert_tensor_with_parallelism(
        self,
        key: str,
        tensor: Any,
        parallelism: Any = None,
        config: ReplicateConfig = ReplicateConfig(),
        writer_partition: Any = None,
    ) -> int:
        return _unless(parallelism, writer_partition) or self._put_tensor(key, tensor, config, True)

    def put_tensor_with_parallelism_from(
        self,
        key: str,
        buffer_ptr: int,
        size: int,
        parallelism: Any = None,
        config: ReplicateConfig = ReplicateConfig(),
        writer_partition: Any = None,
    ) -> int:
        return _unless(parallelism, writer_partition) or self._put_tensor_from(key, buffer_ptr, size, config)

    def upsert_tensor_with_parallelism_from(
        self,
        key: str,
        buffer_ptr: int,
        size: int,
        parallelism: Any = None,
        config: ReplicateConfig = ReplicateConfig(),
        writer_partition: Any = None,
    ) -> int:
        return _unless(parallelism, writer_partition) or self._put_tensor_from(key, buffer_ptr, size, config, True)

    def batch_put_tensor_with_parallelism(
        self,
        keys: Sequence[str],
        tensors_list: Sequence[Any],
        parallelisms: Sequence[Any] | None = None,
        config: ReplicateConfig = ReplicateConfig(),
        writer_partitions: Sequence[Any] | None = None,
    ) -> list[int]:
        one = self.put_tensor_with_parallelism
        return _each(one, (keys, tensors_list), parallelisms, config, writer_partitions)

    def batch_upsert_tensor_with_parallelism(
        self,
        keys: Sequence[str],
        tensors_list: Sequence[Any],
        parallelisms: Sequence[Any] | None = None,
        config: ReplicateConfig = ReplicateConfig(),
        writer_partitions: Sequence[Any] | None = None,
    ) -> list[int]:
        one = self.upsert_tensor_with_parallelism
        return _each(one, (keys, tensors_list), parallelisms, config, writer_partitions)

    def batch_put_tensor_with_parallelism_from(
        self,
        keys: Sequence[str],
        buffer_ptrs: Sequence[int],
        sizes: Sequence[int],
        parallelisms: Sequence[Any] | None = None,
        config: ReplicateConfig = ReplicateConfig(),
        writer_partitions: Sequence[Any] | None = None,
    ) -> list[int]:
        one = self.put_tensor_with_parallelism_from
        return _each(one, (keys, buffer_ptrs, sizes), parallelisms, config, writer_partitions)

    def batch_upsert_tensor_with_parallelism_from(
        self,
        keys: Sequence[str],
        buffer_ptrs: Sequence[int],
        sizes: Sequence[int],
        parallelisms: Sequence[Any] | None = None,
        config: ReplicateConfig = ReplicateConfig(),
        writer_partitions: Sequence[Any] | None = None,
    ) -> list[int]:
        one = self.upsert_tensor_with_parallelism_from
        return _each(one, (keys, buffer_ptrs, sizes), parallelisms, config, writer_partitions)

    def get_tensor_with_parallelism(self, key: str, target: Any = None) -> Any:
        return None if _unless(_layout(target)) else self.get_tensor(key)

    def batch_get_tensor_with_parallelism(self, keys: Sequence[str], targets: Sequence[Any] | None = None) -> list[Any]:
        if targets is not None and len(targets) != len(keys):
            return [None] * len(keys)
        return [self.get_tensor_with_parallelism(*one) for one in zip(keys, targets or [None] * len(keys))]

    def get_tensor_with_parallelism_into(self, key: str, buffer_ptr: int, size: int, target: Any = None) -> Any:
        return None if _unless(_layout(target)) else self.get_tensor_into(key, buffer_ptr, size)

    def batch_get_tensor_with_parallelism_into(
        self,
        keys: Sequence[str],
        buffer_ptrs: Sequence[int],
        sizes: Sequence[int],
        targets: Sequence[Any] | None = None,
    ) -> list[Any]:
        if any(_unless(_layout(target)) for target in targets or []):
            return [None] * len(keys)
        return self.batch_get_tensor_into(keys, buffer_ptrs, sizes)


def _unless(*layouts: Any) -> int:
    """The code of a layout that is asked for, else 0."""
    if all(layout is None for layout in layouts):
        return 0
    once("parallelism", "tensors by parallel layout are not supported (code %d): use the calls with_tp", NOT_SUPPORTED)
    return NOT_SUPPORTED


def _layout(target: Any) -> Any:
    return None if target is None or (target.mode == "as_stored" and target.parallelism is None) else target


def _each(
    one: Callable[..., int],
    columns: tuple[Sequence[Any], ...],
    parallelisms: Sequence[Any] | None,
    config: ReplicateConfig,
    partitions: Sequence[Any] | None,
) -> list[int]:
    count = len(columns[0])
    nothing = [None] * count
    if any(len(column) != count for column in (*columns, parallelisms or nothing, partitions or nothing)):
        return [INVALID_PARAMS] * count
    each = config._of_one_key()
    rows = zip(*columns, parallelisms or nothing, partitions or nothing)
    return of_batch(partial(one, *row[:-1], each, row[-1]) for row in rows)
