"""The scheduler's half: how much of a prompt is in Lapis, what is loaded into which blocks, what is saved when."""

import logging
import time

import lapis_kv

from . import groups as kv
from .plan import Blocks, Plan, Transfer

logger = logging.getLogger("vllm.lapis")

# Most keys of one call of the client.
_KEYS_MAX = 8192
# For what other hosts have, where there are any: the engine's loop stands still meanwhile. What is longer on its way is there
# for the next request.
_LOOK_UP_S = 0.05
# Loads of one request that begin at the same token. Blocks that are found and never come (a GPU that refuses, say) would be
# looked up and loaded for ever.
_LOADS_MAX = 3
# The engine stands still meanwhile.
_PURGE_SECONDS = 2.0
_PURGE_PAUSE_SECONDS = 5.0


class _Request:
    """A request that is not finished."""

    def __init__(self, request, groups: int):
        self.request = request
        # Of the last look-up: tokens that the engine had itself.
        self.local_tokens = 0
        # How often it was loaded from a token on.
        self.loads: dict[int, int] = {}
        # Block ids by group.
        self.block_ids = [[] for _ in range(groups)]
        # Leading blocks by group whose save was planned.
        self.saved = [0] * groups
        self.has_saves = False


class Scheduler:
    """`link.made` has the pools by (group, shard). Runs in the one thread of the engine's core."""

    def __init__(
        self, link, groups, hash_tokens: int, world_size: int, load_async: bool, may_load: bool = True, may_save: bool = True
    ):
        self._link, self._groups, self._hash_tokens = link, groups, hash_tokens
        self._world_size, self._load_async = world_size, load_async
        self._may_load, self._may_save = may_load, may_save
        self._requests: dict[str, _Request] = {}
        self._loads: list[Transfer] = []
        # Requests that are loaded between steps; finished ones whose saves are waited for, as of the next plan.
        self._loading, self._awaited = set(), set()
        # Resets so far, and of these: how many all workers have heard of, and how many are over.
        self._resets, self._resets_heard, self._resets_done = 0, 0, 0
        self._purge_at = 0.0

    # ---- Look-up ----

    def on_new_request(self, request):
        self._requests.setdefault(request.request_id, _Request(request, len(self._groups)))

    def matched(self, request, local_tokens: int) -> tuple[int, bool]:
        """Tokens in Lapis beyond those that the engine has, and whether they are loaded between steps."""
        if self._link.client is None or not self._may_load or self._resets_done < self._resets:
            return 0, False
        self.on_new_request(request)
        state = self._requests[request.request_id]
        state.local_tokens = local_tokens
        if state.loads.get(local_tokens, 0) >= _LOADS_MAX:
            return 0, False
        # One token at least is computed, for its logits.
        try:
            more = self._hit_tokens(request.block_hashes, request.num_tokens - 1) - local_tokens
        except lapis_kv.LapisError as error:
            logger.debug("a look-up failed: %s", error)
            return 0, False
        return (more, self._load_async) if more > 0 else (0, False)

    def _hit_tokens(self, hashes, limit: int) -> int:
        """The longest length up to `limit` for which every shard of every group has what it needs."""
        length, before = min(limit // self._hash_tokens, len(hashes)) * self._hash_tokens, None
        while length and length != before:
            before = length
            for group in self._groups:
                blocks = length // group.tokens
                length = min(length, self._hit_blocks(hashes, group, blocks) * group.tokens)
        return length

    def _hit_blocks(self, hashes, group, blocks: int) -> int:
        """The longest number of blocks up to `blocks` that every shard of a group accepts."""
        client = self._link.client
        if client is None:
            return 0
        pools = [self._link.made[group.index, shard] for shard in kv.shards(group, self._world_size)]
        wanted, hit = [(pool, kv.policy(group)) for pool in pools], 0
        if group.window is not None:
            # Only what is before the end matters.
            hit = max(0, blocks - _KEYS_MAX)
        while hit < blocks:
            end = min(blocks, hit + _KEYS_MAX)
            more = client.fetch_prefix(wanted, kv.keys_of(hashes, group, hit, end), deadline=_LOOK_UP_S)
            if group.window is not None and not more:
                return 0
            hit += more
            if hit < end:
                break
        return hit

    def allocated(self, request, blocks, tokens: int):
        """The engine has blocks for so many tokens of the look-up."""
        if not tokens:
            return
        self.on_new_request(request)
        state, ids, parts = self._requests[request.request_id], blocks.get_block_ids(), []
        begin = state.local_tokens
        state.loads[begin] = state.loads.get(begin, 0) + 1
        for group in self._groups:
            first, end = begin // group.tokens, (begin + tokens) // group.tokens
            if group.window is not None:
                first = max(first, end - group.window)
            parts += _blocks(request.block_hashes, group, ids[group.index], first, end)
        self._loads.append(Transfer(request.request_id, parts))
        if self._load_async:
            self._loading.add(request.request_id)

    # ---- Each step ----

    def plan(self, output) -> Plan:
        self._end_resets()
        plan = Plan()
        plan.loads, self._loads = self._loads, []
        plan.loads_at_once = not self._load_async
        plan.preempts = bool(getattr(output, "preempted_req_ids", None))
        plan.awaited, self._awaited = self._awaited, set()
        plan.resets = self._resets
        plan.idle = not output.total_num_scheduled_tokens
        # Where blocks are is followed without a daemon, too: it may come while their requests run.
        scheduled = []
        for new in output.scheduled_new_reqs:
            self._took(new.req_id, new.block_ids, whole=True)
            scheduled.append((new.req_id, new.num_computed_tokens))
        cached = output.scheduled_cached_reqs
        for at, request in enumerate(cached.req_ids):
            if (ids := cached.new_block_ids[at]) is not None:
                self._took(request, ids, whole=request in cached.resumed_req_ids)
            scheduled.append((request, cached.num_computed_tokens[at]))
        # What was saved while a reset is not over would be forgotten with the rest; later steps begin at the first block.
        if self._link.client is None or not self._may_save or self._resets_done < self._resets:
            return plan
        for request, computed in scheduled:
            if state := self._requests.get(request):
                parts = self._saves(state, computed, computed + output.num_scheduled_tokens[request])
                if parts:
                    state.has_saves = True
                    plan.saves.append(Transfer(request, parts))
        return plan

    def _took(self, request: str, ids, whole: bool):
        if state := self._requests.get(request):
            for at, group in enumerate(self._groups):
                new = list(ids[group.index])
                state.block_ids[at] = new if whole else state.block_ids[at] + new
            if whole:
                state.saved = [0] * len(self._groups)

    def _saves(self, state: _Request, computed: int, end: int) -> list[Blocks]:
        """Blocks that are full after this step. From the first one on, also those that the engine or Lapis had: what is
        there is not copied again, and a chain has no gap."""
        hashes, parts = state.request.block_hashes, []
        for at, group in enumerate(self._groups):
            ids = state.block_ids[at]
            # A load that failed takes its request back.
            first = min(state.saved[at], computed // group.tokens)
            last = min(end // group.tokens, len(hashes) // group.hashes, len(ids))
            if group.window is not None:
                # What is before the window may be given to others.
                first = max(first, computed // group.tokens - group.window)
            if first < last:
                state.saved[at] = last
                parts += _blocks(hashes, group, ids, first, last)
        return parts

    def heard(self, received, saved):
        """What workers say after a step: requests whose loads are over, and what they have saved."""
        self._loading -= set(received or ())
        if saved is not None:
            self._resets_heard = max(self._resets_heard, saved.resets)

    def finished(self, request) -> bool:
        """Whether its blocks are to be kept until its saves are over."""
        state = self._requests.pop(request.request_id, None)
        if request.request_id in self._loading:
            # The engine keeps the blocks until the load is over, and would free them twice. Saves of before it are over:
            # only a preemption can have put a load after them.
            return False
        if state is None or not state.has_saves:
            return False
        self._awaited.add(request.request_id)
        return True

    def reset(self) -> bool:
        """Nothing of before is found from now on: after a change of the weights it would be wrong."""
        self._resets += 1
        return True

    def _end_resets(self):
        """Forgets all blocks once no worker is saving any of before the reset."""
        if not self._resets_done < self._resets == self._resets_heard or time.monotonic() < self._purge_at:
            return
        client = self._link.client
        try:
            if client is None:
                raise lapis_kv.GoneError("no daemon answers")
            for pool in self._link.made.values():
                client.purge(pool, deadline=_PURGE_SECONDS)
        except lapis_kv.LapisError as error:
            logger.warning("the blocks in Lapis are not forgotten yet, nothing is looked up until they are: %s", error)
            self._purge_at = time.monotonic() + _PURGE_PAUSE_SECONDS
            return
        self._resets_done = self._resets


def _blocks(hashes, group, ids, first: int, end: int) -> list[Blocks]:
    """Blocks `first` to `end` of a request, in calls' worths."""
    parts = []
    while first < end:
        last = min(end, first + _KEYS_MAX)
        parent = kv.keys_of(hashes, group, first - 1, first) if first else None
        parts.append(Blocks(group.index, kv.keys_of(hashes, group, first, last), list(ids[first:last]), parent))
        first = last
    return parts
