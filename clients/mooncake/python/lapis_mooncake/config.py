"""`ReplicateConfig` and its words, with Mooncake's names, numbers and defaults."""

from __future__ import annotations

import enum
from typing import Any

from .codes import once


class ObjectDataType(enum.Enum):
    UNKNOWN = 0
    KVCACHE = 1
    TENSOR = 2
    WEIGHT = 3
    SAMPLE = 4
    ACTIVATION = 5
    GRADIENT = 6
    OPTIMIZER_STATE = 7
    METADATA = 8
    GENERAL = 9

    def __int__(self) -> int:
        return int(self.value)


class SoftPinAction(enum.Enum):
    PRESERVE = 0
    ENABLE = 1
    DISABLE = 2

    def __int__(self) -> int:
        return int(self.value)


class ReplicateConfig:
    """What a put asks for. Heeded: soft_pin_action, soft_pin_ttl_ms, with_hard_pin (see `pin_seconds`).

    Lapis keeps one copy in the memory of this host, and decides by itself what is on SSD: the numbers and places of
    replicas, data_type and group_ids are checked and otherwise without effect.
    """

    def __init__(self) -> None:
        self.replica_num = 1
        self.nof_replica_num = 0
        self.dfs_replica_num = 0
        self.soft_pin_action = SoftPinAction.PRESERVE
        self.soft_pin_ttl_ms: int | None = None
        self.with_hard_pin = False
        self.preferred_segments: list[str] = []
        self.preferred_nof_segments: list[str] = []
        self.preferred_segment = ""
        self.prefer_alloc_in_same_node = False
        self.data_type = ObjectDataType.UNKNOWN
        self.group_ids: list[str] | None = None

    def _of_one_key(self) -> ReplicateConfig:
        """For one key of a batch: without the groups, which are a list of one for each key."""
        if self.group_ids is None:
            return self
        one = ReplicateConfig()
        one.__dict__.update(self.__dict__, group_ids=None)
        return one

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _FIELDS:
            raise AttributeError(f"'ReplicateConfig' object has no attribute {name!r}")
        if not isinstance(value, _FIELDS[name]) or (_FIELDS[name] is int and isinstance(value, bool)):
            raise TypeError(f"ReplicateConfig.{name}: a {type(value).__name__} does not fit")
        object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return "ReplicateConfig: { " + ", ".join(f"{name}: {getattr(self, name)}" for name in _FIELDS) + " }"


_FIELDS: dict[str, Any] = {
    "replica_num": int,
    "nof_replica_num": int,
    "dfs_replica_num": int,
    "soft_pin_action": SoftPinAction,
    "soft_pin_ttl_ms": (int, type(None)),
    "with_hard_pin": bool,
    "preferred_segments": list,
    "preferred_nof_segments": list,
    "preferred_segment": str,
    "prefer_alloc_in_same_node": bool,
    "data_type": ObjectDataType,
    "group_ids": (list, type(None)),
}

_SOFT_PIN_S = 30 * 60
_SOFT_PIN_S_MAX = 24 * 3600
# The longest that a daemon takes, 49 days.
_HARD_PIN_S = (2**32 - 1) // 1000


def pin_seconds(config: ReplicateConfig) -> float | None:
    """How long what is put is kept as long as anything else can go; None if it was not asked for."""
    if config.with_hard_pin:
        return _HARD_PIN_S
    match config.soft_pin_action:
        case SoftPinAction.ENABLE:
            asked = _SOFT_PIN_S if config.soft_pin_ttl_ms is None else config.soft_pin_ttl_ms / 1000
            return min(asked, _SOFT_PIN_S_MAX)
        case SoftPinAction.DISABLE:
            return 0
    return None


def fits(config: ReplicateConfig, keys: int) -> bool:
    """Whether Mooncake's master would take it for so many keys."""
    if config.group_ids is not None and len(config.group_ids) != keys:
        return False
    if config.replica_num + config.nof_replica_num + config.dfs_replica_num < 1:
        return False
    if config.replica_num > 1 or config.nof_replica_num or config.dfs_replica_num:
        once("replicas", "%s: Lapis keeps one copy, in memory or on SSD of this host", config)
    return True


class ParallelAxis:
    def __init__(self) -> None:
        self.kind = ""
        self.rank = 0
        self.size = 1
        self.split_dim: int | None = None
        self.expert_id: int | None = None
        self.stage_id: int | None = None


class TensorParallelism:
    def __init__(self) -> None:
        self.axes: list[ParallelAxis] = []


class ReadTarget:
    def __init__(self) -> None:
        self.mode = "as_stored"
        self.parallelism: TensorParallelism | None = None
