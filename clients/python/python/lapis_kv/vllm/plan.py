"""What the scheduler tells the workers at each step: which blocks to load and which to save."""

import dataclasses

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata


@dataclasses.dataclass
class Blocks:
    """Blocks of one group: 32 bytes of key each, and where in the engine's KV cache they are."""

    group: int
    keys: bytes
    block_ids: list[int]
    # Of the block before the first one, None for a request's first.
    parent: bytes | None = None


@dataclasses.dataclass
class Transfer:
    request: str
    parts: list[Blocks]


class Plan(KVConnectorMetadata):
    def __init__(self):
        self.loads: list[Transfer] = []
        self.saves: list[Transfer] = []
        # Whether the loads are awaited by this step's forward pass.
        self.loads_at_once = False
        # Whether blocks of a request that was preempted are given to others.
        self.preempts = False
        # Finished requests whose blocks are kept until a worker has named them.
        self.awaited: set[str] = set()
        # Whether the step computes nothing: it is made for what the workers have to say.
        self.idle = False
        # How often the cache was reset: what was saved before must be over.
        self.resets = 0


@dataclasses.dataclass
class Saved(KVConnectorWorkerMetadata):
    """What ranks have saved since they last said."""

    # (group, key): how many ranks have the block now, and how many of them did not before.
    counts: dict
    # The reset before which nothing is under way any more.
    resets: int

    def aggregate(self, other):
        counts = dict(self.counts)
        for block, (ranks, new) in other.counts.items():
            before = counts.get(block, (0, 0))
            counts[block] = (before[0] + ranks, before[1] + new)
        return Saved(counts, min(self.resets, other.resets))
