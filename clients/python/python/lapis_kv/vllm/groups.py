"""The KV cache groups of an engine, and which pool holds which of their blocks.

One object per block, group and shard holds all layers of the group, one after the other. A shard is a rank, or the only
one where every rank holds the same (MLA).
"""

import dataclasses
import math

from vllm.v1.kv_cache_interface import (
    KVCacheSpecKind,
    RSWASpec,
    get_kv_cache_spec_kind,
    get_kv_cache_spec_sliding_window,
)

import lapis_kv

_WHOLE = (KVCacheSpecKind.FULL_ATTENTION, KVCacheSpecKind.MLA_ATTENTION)
_WINDOWS = (KVCacheSpecKind.SLIDING_WINDOW, KVCacheSpecKind.SLIDING_WINDOW_MLA)
_REPLICATED = (KVCacheSpecKind.MLA_ATTENTION, KVCacheSpecKind.SLIDING_WINDOW_MLA)
_KEY_BYTES = 32


@dataclasses.dataclass(frozen=True)
class Group:
    index: int
    # Tokens of a block of this group, and how many block hashes they are.
    tokens: int
    hashes: int
    layers: tuple
    block_bytes: int
    # Blocks before a length that must be there for it; None: all.
    window: int | None
    replicated: bool
    # Whether blocks may be written by a step, or their memory go, before workers hear that their request was preempted.
    is_lent: bool = False


def groups_of(kv_cache_config, hash_tokens: int, sleeps: bool = False) -> list[Group]:
    """The groups that are looked up by hash. `sleeps`: whether the engine may give the memory of its KV cache back for a while.

    Raises ValueError where a block is no whole number of hashes, and for kinds of groups that are not supported.
    """
    ids = getattr(kv_cache_config, "prefix_cacheable_group_ids", None)
    if ids is None:
        ids = range(len(kv_cache_config.kv_cache_groups))
    # What is zeroed for another request is so before workers hear of the preemption, by one of vLLM's model runners.
    is_lent, groups = sleeps or bool(getattr(kv_cache_config, "needs_kv_cache_zeroing", False)), []
    for index in ids:
        group = kv_cache_config.kv_cache_groups[index]
        spec = group.kv_cache_spec
        window = _window(index, spec)
        if spec.block_size % hash_tokens:
            raise ValueError(
                f"group {index} has blocks of {spec.block_size} tokens, which are no whole number of hashes of "
                f"{hash_tokens} tokens: choose a block size that is a multiple"
            )
        groups.append(
            Group(
                index=index,
                tokens=spec.block_size,
                hashes=spec.block_size // hash_tokens,
                layers=tuple(group.layer_names),
                block_bytes=_block_bytes(spec, len(group.layer_names)),
                window=window,
                replicated=get_kv_cache_spec_kind(spec) in _REPLICATED,
                # Blocks of a window are given to others while their request runs.
                is_lent=is_lent or window is not None,
            )
        )
    if not groups:
        raise ValueError("no KV cache group of this model can be looked up by hash")
    return groups


def _block_bytes(spec, layers: int) -> int:
    own = getattr(spec, "kv_cache_specs", None)
    if own:
        return sum(layer.page_size_bytes for layer in own.values())
    return spec.page_size_bytes * layers


def _window(index: int, spec) -> int | None:
    kind = get_kv_cache_spec_kind(spec)
    # By kind, not by its attributes: a group of full attention that layers with a window share names the window, too.
    if kind in _WHOLE and not isinstance(spec, RSWASpec):
        return None
    window = get_kv_cache_spec_sliding_window(spec) if kind in _WINDOWS else None
    if window is None:
        raise ValueError(
            f"group {index} of the KV cache is {type(spec).__name__} ({kind.value}), whose blocks the engine changes or gives "
            "away while their request runs: LapisConnector has full, MLA and sliding window attention"
        )
    # Of the tokens before the next one, so many matter.
    return max(1, math.ceil((window - 1) / spec.block_size))


def shards(group: Group, world_size: int) -> range:
    return range(1 if group.replicated else world_size)


def label(group: Group, shard: int) -> str:
    return f"g{group.index}s{shard}"


def open_pool(client, namespace, group: Group, shard: int):
    return client.pool(namespace, label(group, shard), group.block_bytes)


def policy(group: Group):
    return lapis_kv.HitPolicy.PREFIX if group.window is None else lapis_kv.HitPolicy.trailing(group.window)


def keys_of(hashes, group: Group, first: int, end: int) -> bytes:
    """The keys of blocks `first` to `end` of a request, 32 bytes each: of a block, the hash of its last tokens."""
    return b"".join(bytes(hashes[(block + 1) * group.hashes - 1]).ljust(_KEY_BYTES, b"\0") for block in range(first, end))
