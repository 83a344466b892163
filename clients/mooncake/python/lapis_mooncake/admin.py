"""Calls of `MooncakeDistributedStore` that have no meaning over Lapis: they answer that they did nothing, and say so once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .codes import NOT_SUPPORTED, once

_SEGMENTS = "memory is the daemon's (tiers.dram.bytes in its configuration), not a segment of a client"
_SSD = "SSD is the daemon's (tiers.ssd in its configuration)"
_COPIES = "there is one copy of an object on a host, and the daemon moves it"
_NO_TASK = (0, 0)


class Admin:
    """Part of `MooncakeDistributedStore`. -1012 is Mooncake's NOT_SUPPORTED."""

    def init_all(self, protocol: str, device_name: str, mount_segment_size: int, /) -> int:
        return _no("init_all", _SEGMENTS)

    def mount_segment(
        self, path: str, size: int, offset: int = 0, protocol: str = "tcp", location: str = ""
    ) -> dict[str, Any]:
        return {"ret": _no("mount_segment", _SEGMENTS), "segment_ids": []}

    def allocate_and_mount_segment(self, size: int, protocol: str = "tcp", location: str = "") -> dict[str, Any]:
        return {"ret": _no("allocate_and_mount_segment", _SEGMENTS), "segment_ids": [], "allocated_size": 0}

    def unmount_segment(self, segment_ids: Sequence[str], grace_period_seconds: int = 0) -> int:
        return _no("unmount_segment", _SEGMENTS)

    def unmount_and_free_segment(self, segment_ids: Sequence[str], grace_period_seconds: int = 0) -> int:
        return _no("unmount_and_free_segment", _SEGMENTS)

    def unmount_local_disk_segment(self, grace_period_seconds: int = 0) -> int:
        return _no("unmount_local_disk_segment", _SSD)

    def create_copy_task(self, key: str, targets: Sequence[str]) -> tuple[tuple[int, int], int]:
        return _NO_TASK, _no("create_copy_task", _COPIES)

    def create_move_task(self, key: str, source: str, target: str) -> tuple[tuple[int, int], int]:
        return _NO_TASK, _no("create_move_task", _COPIES)

    def query_task(self, task_id: tuple[int, int]) -> tuple[None, int]:
        return None, _no("query_task", _COPIES)

    def batch_replica_clear(self, keys: Sequence[str], segment_name: str = "") -> list[str]:
        """The keys that were cleared: none. `batch_remove` removes objects."""
        _no("batch_replica_clear", _COPIES)
        return []

    def get_offload_rpc_read_count(self) -> int:
        """Reads from another client's SSD: there are none."""
        return 0


def _no(call: str, reason: str) -> int:
    once(call, "%s does nothing (code %d): %s", call, NOT_SUPPORTED, reason)
    return NOT_SUPPORTED
