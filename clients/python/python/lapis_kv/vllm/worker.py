"""A worker's half: copies blocks between the engine's KV cache and Lapis.

On a CPU the daemon's memory and the KV cache are copied between directly. On a GPU that the daemon serves the GPU does it
(`gpu.py`), else blocks go by a pinned buffer: gathered on the engine's stream before the next step can change them, put from
there by a thread.

Saves are off the critical path: a thread puts them in order, and the blocks of a finished request stay until it has. Loads
have a deadline of their own: what has not come is reported as failed, never waited for.
"""

import collections
import logging
import queue
import threading
import time

import torch

import lapis_kv

from .gpu import Way, load_way, save_way
from .plan import Plan, Saved, Transfer
from .planes import Planes

logger = logging.getLogger("vllm.lapis")

# How long a step that computes nothing waits for a transfer to end: a request that comes meanwhile is as late. As long as
# transfers are under way the engine makes such steps one after the other, and its ranks spin between them: where they have all
# processors (two ranks on two), the daemon and the transfers' own threads got none for seconds.
_IDLE_SECONDS = 0.002


class Stats:
    """Counts since they were last taken."""

    NAMES = (
        "loads", "load_blocks", "load_failed_blocks", "load_bytes", "load_seconds",
        "saves", "save_blocks", "save_refused_blocks", "save_bytes", "save_seconds",
    )

    def __init__(self):
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(self.NAMES, 0)

    def add(self, **counts):
        with self._lock:
            for name, count in counts.items():
                self._counts[name] += count

    def take(self) -> dict:
        with self._lock:
            counts, self._counts = self._counts, dict.fromkeys(self.NAMES, 0)
        return counts


class Worker:
    """`by_block`: whether the engine takes back a load by the blocks that failed; else it does by request."""

    def __init__(
        self, link, groups, rank: int, load_seconds: float, save_seconds: float, staged: bool, by_block: bool,
        open_seconds: float = 60.0,
    ):
        self._link, self._rank, self._by_block = link, rank, by_block
        self._groups = {group.index: group for group in groups}
        self._load_seconds, self._save_seconds, self._staged = load_seconds, save_seconds, staged
        self._open_seconds = open_seconds
        self._planes: dict[int, Planes] = {}
        self.stats = Stats()
        self._lock = threading.Condition()
        # What loads came to: requests that are over, those of them that failed, and block ids that were not loaded.
        self._received, self._failed, self._bad_blocks = set(), set(), set()
        # (group, key): whether the block was new, since that was last asked for.
        self._stored = {}
        self._resets, self._resets_said = 0, 0
        # Loads between steps that are under way; saves, by request; finished requests whose blocks the engine keeps until
        # these are over.
        self._loading, self._saving, self._awaited = 0, collections.Counter(), set()
        self._load_failed_now = False
        # Of this step, on their way while it is computed.
        self._under_way = []
        # Layers that have been waited for in some step. Others may be read by what waits for none, such as an index of what is
        # to be attended to: these are there before a step begins.
        self._asking = set()
        self._gpu_fails = False
        self._jobs = {name: queue.SimpleQueue() for name in ("load", "save")}
        self._threads = []

    def register(self, kv_caches: dict, blocks: int | None = None):
        """`blocks`: how many the engine has, where a tensor may be divided finer."""
        self._planes = {index: Planes(group, kv_caches, blocks) for index, group in self._groups.items()}
        for name, jobs in self._jobs.items():
            thread = threading.Thread(target=self._run, args=(jobs,), name=f"lapis-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._open_gpus()

    def _open_gpus(self):
        """Before the first load, which would miss what the driver has not registered by then."""
        client, until = self._link.client, time.monotonic() + self._open_seconds
        gpus = {planes.device.index for planes in self._planes.values() if self._way(planes) is Way.GPU}
        try:
            for gpu in sorted(gpus) if client is not None else ():
                there, count = client.open_gpu(gpu, deadline=max(0.0, until - time.monotonic()))
                if there < count:
                    logger.warning(
                        "%d of the daemon's %d MiB are registered with GPU %d after %g s: until all is, loads may miss blocks",
                        there >> 20, count >> 20, gpu, self._open_seconds,
                    )
        except lapis_kv.GpuError as error:
            self._failed_on_gpu(error)
        except lapis_kv.LapisError as error:
            logger.warning("the GPU is opened by the first load: %s", error)

    @staticmethod
    def _run(jobs):
        while (job := jobs.get()) is not None:
            try:
                job()
            except Exception:
                logger.exception("a transfer of KV blocks failed")

    # ---- Loads ----

    def load(self, plan: Plan):
        self._awaited |= plan.awaited
        self._settle()
        self._load_failed_now = False
        until = time.monotonic() + self._load_seconds
        for load in plan.loads:
            if plan.loads_at_once:
                self._load_failed_now |= not self._load(load, until, reports_request=False)
            else:
                marks = {part.group: self._mark(self._planes[part.group]) for part in load.parts}
                with self._lock:
                    self._loading += 1
                self._jobs["load"].put(lambda load=load, marks=marks: self._load(load, until, reports_request=True, marks=marks))

    def _mark(self, planes):
        """Behind what the engine does with blocks until now: steps that are under way may write blocks of requests that have
        ended. None where the CPU has seen the end of it."""
        return None if planes.gpu is None else planes.gpu.mark()

    def _load(self, load: Transfer, until: float, reports_request: bool, marks=None) -> bool:
        bad = set()
        try:
            for part in load.parts:
                mark = marks[part.group] if marks else None
                bad |= self._load_part(part, max(0.0, until - time.monotonic()), mark)
        except Exception as error:
            logger.warning("blocks of request %s were not loaded: %s", load.request, error)
            bad |= {block for part in load.parts for block in part.block_ids}
        with self._lock:
            if self._by_block:
                # The engine goes on from the first that is missing.
                self._bad_blocks |= bad
            elif bad:
                self._failed.add(load.request)
            if reports_request:
                self._received.add(load.request)
                self._loading -= 1
                self._lock.notify_all()
        return not bad

    def _load_part(self, part, seconds: float, mark) -> set[int]:
        """The blocks that were not loaded; without a mark those that are still on their way may be such, too."""
        client, planes = self._link.client, self._planes[part.group]
        if client is None:
            return set(part.block_ids)
        pool = self._pool(planes.group)
        if self._way(planes) is Way.GPU:
            return self._load_by_gpu(client, pool, planes, part, seconds, mark)
        started = time.monotonic()
        is_direct = self._way(planes) is Way.DIRECT
        if is_direct:
            got = client.get_into(pool, part.keys, planes.vectors(part.block_ids), deadline=seconds)
        else:
            buffers = planes.buffers(len(part.block_ids))
            rows = planes.rows_of(buffers, range(len(part.block_ids)))
            got = client.get_into(pool, part.keys, rows, deadline=seconds)
        hits = [got[at] for at in range(len(part.block_ids))]
        if not is_direct:
            there = [at for at, hit in enumerate(hits) if hit]
            planes.scatter([part.block_ids[at] for at in there], [buffer[there] for buffer in buffers], mark)
        bad = {block for block, hit in zip(part.block_ids, hits) if not hit}
        count = sum(hits)
        self.stats.add(
            loads=1, load_blocks=count, load_failed_blocks=len(bad), load_bytes=count * planes.group.block_bytes,
            load_seconds=time.monotonic() - started,
        )
        return bad

    def _load_by_gpu(self, client, pool, planes, part, seconds: float, mark) -> set[int]:
        try:
            load = planes.gpu.begin_load(client, pool, part, seconds, behind=mark, asking=self._asking)
        except lapis_kv.GpuError as error:
            self._failed_on_gpu(error)
            raise
        if mark is None:
            self._under_way.append(load)
            return load.missing
        return self._end(load)

    def _end(self, load) -> set[int]:
        bad = load.end()
        count = len(load.part.block_ids) - len(bad)
        self.stats.add(
            loads=1, load_blocks=count, load_failed_blocks=len(bad),
            load_bytes=count * self._groups[load.part.group].block_bytes, load_seconds=time.monotonic() - load.started,
        )
        return bad

    def wait_for_layer(self, layer: str):
        """What this step computes from here on finds the layer's blocks."""
        self._asking.add(layer)
        for load in self._under_way:
            load.wait(layer)

    def _settle(self):
        """Returns when nothing is on its way to this step any more. What it was not is known then."""
        under_way, self._under_way = self._under_way, []
        for load in under_way:
            bad = self._end(load)
            self._load_failed_now |= bool(bad)
            with self._lock:
                self._bad_blocks |= bad

    def _failed_on_gpu(self, error):
        """What no waiting mends is said once, and not tried again."""
        if not error.is_transient and not self._gpu_fails:
            self._gpu_fails = True
            logger.warning("the GPU's own copies cannot be had, blocks go by the host's memory from now on: %s", error)

    # ---- Saves ----

    def save(self, plan: Plan):
        self._settle()
        if self._link.client is None or self._load_failed_now:
            # After a failed load this step computed on blocks that are not what their hashes say.
            return
        for save in plan.saves:
            parts = [part for part in save.parts if self._is_writer(part.group)]
            for part in parts:
                self._save_part(save.request, part)

    def _is_writer(self, group: int) -> bool:
        return not self._groups[group].replicated or self._rank == 0

    def _save_part(self, request: str, part):
        planes, event = self._planes[part.group], None
        # Null blocks stand for what is before a window.
        keep = [at for at, block in enumerate(part.block_ids) if block != 0]
        if not keep:
            return
        ids = [part.block_ids[at] for at in keep]
        keys = b"".join(part.keys[32 * at : 32 * at + 32] for at in keep)
        parent = part.parent if keep[0] == 0 else None
        way = save_way(self._way(planes), planes.row_bytes, planes.group.is_lent)
        source = None
        if way is Way.GPU:
            event = planes.gpu.mark()
        elif way is Way.DIRECT:
            source = planes.vectors(ids)
        else:
            buffers = planes.buffers(len(ids))
            planes.gather(ids, buffers)
            source = planes.rows_of(buffers, range(len(ids)))
            if planes.device.type != "cpu":
                event = torch.cuda.Event()
                event.record()
        with self._lock:
            self._saving[request] += 1

        def store(client, pool, seconds: float):
            if way is Way.GPU:
                return planes.gpu.put(client, pool, keys, ids, parent, event, seconds)
            return client.put_from(pool, keys, source, parent=parent, deadline=seconds)

        until = time.monotonic() + self._save_seconds
        waits = event if way is Way.STAGED else None
        self._jobs["save"].put(lambda: self._put(request, part.group, keys, store, waits, until))
        if way is Way.DIRECT and planes.group.is_lent:
            self.flush()

    def _put(self, request: str, group: int, keys: bytes, store, event, until: float):
        started = time.monotonic()
        try:
            if event is not None:
                event.synchronize()
            client = self._link.client
            if client is None or started >= until:
                # Those before it took all the time there is: blocks of finished requests are not kept for longer.
                self.stats.add(save_refused_blocks=len(keys) // 32)
                return
            pool = self._pool(self._groups[group])
            put = store(client, pool, until - started)
            stored = put.stored
            self.stats.add(
                saves=1, save_blocks=stored, save_refused_blocks=put.refused,
                save_bytes=stored * self._groups[group].block_bytes, save_seconds=time.monotonic() - started,
            )
            with self._lock:
                for at, status in enumerate(put.statuses):
                    if status.is_there:
                        block = group, keys[32 * at : 32 * at + 32]
                        self._stored[block] = self._stored.get(block, False) or status == lapis_kv.PutStatus.STORED
        except lapis_kv.GpuError as error:
            self._failed_on_gpu(error)
            self.stats.add(save_refused_blocks=len(keys) // 32)
        finally:
            with self._lock:
                self._saving[request] -= 1
                if not self._saving[request]:
                    del self._saving[request]
                    self._lock.notify_all()

    def before_step(self, plan: Plan):
        """Before this step's blocks are overwritten."""
        if plan.preempts or plan.resets != self._resets:
            self.flush()
        self._resets = plan.resets

    def flush(self):
        """Returns when all saves planned so far are over."""
        done = threading.Event()
        self._jobs["save"].put(done.set)
        done.wait()

    # ---- What the scheduler hears ----

    def results(self, idle: bool = False):
        """Requests whose saves are over, whose loads are over, and of these the failed ones. `idle`: the step computes
        nothing, and waits a little for transfers that are under way."""
        with self._lock:
            if idle and (self._loading or self._awaited):
                self._lock.wait_for(lambda: self._received or not self._awaited <= self._saving.keys(), _IDLE_SECONDS)
            sent = {request for request in self._awaited if request not in self._saving}
            self._awaited -= sent
            received, self._received = self._received, set()
            failed, self._failed = self._failed, set()
        return sent, received, failed

    def bad_blocks(self) -> set[int]:
        self._settle()
        with self._lock:
            bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    def saved(self, wants_blocks: bool) -> Saved | None:
        """What is new to the scheduler, None: nothing."""
        with self._lock:
            stored, self._stored = self._stored, {}
        counts = {block: (1, int(new)) for block, new in stored.items()} if wants_blocks else {}
        if not counts and self._resets == self._resets_said:
            return None
        self._resets_said = self._resets
        return Saved(counts, self._resets)

    # ---- Memory ----

    def _pool(self, group):
        return self._link.made[group.index, 0 if group.replicated else self._rank]

    def _way(self, planes) -> Way:
        return load_way(planes.device.type, self._staged, self._link.serves_gpus and not self._gpu_fails)

    def close(self):
        for jobs in self._jobs.values():
            jobs.put(None)
        for thread in self._threads:
            thread.join(timeout=self._save_seconds + self._load_seconds)
