"""LapisTier: Lapis below vLLM's own host memory.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "OffloadingConnector", "kv_role": "kv_both",
        "kv_connector_extra_config": {"spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": 17179869184,
            "secondary_tiers": [{"type": "LapisTier", "module_path": "lapis_kv.vllm.tier"}]}}'

A tier's own settings, beside "type" and "module_path": socket, revision, salt, load_seconds, store_seconds (as the
connector's `lapis.*`).

Look-ups read the daemon's block table in this process. Jobs are copied between the engine's shared memory and the
daemon's by two threads, one for loads and one for stores. A load of which blocks are missing succeeds in part.
"""

import logging
import os
import queue
import threading
import time

import vllm
from vllm.v1.kv_offload.base import LookupResult, Medium, RequestOffloadingContext
from vllm.v1.kv_offload.file_mapper import FileMapper
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

import lapis_kv

from .identity import revision_of
from .link import Link, socket_of
from .options import seconds

logger = logging.getLogger("vllm.lapis")

_KEY_BYTES = 32
# A key of vLLM's ends with its group, big endian.
_GROUP_BYTES = 4


def _split(key: bytes) -> tuple[int, bytes]:
    key = bytes(key)
    return int.from_bytes(key[-_GROUP_BYTES:], "big"), key[:-_GROUP_BYTES].ljust(_KEY_BYTES, b"\0")


def _hash_seed() -> str:
    from vllm.v1.core import kv_cache_utils

    seed = os.environ.get("PYTHONHASHSEED")
    if seed is not None and seed != "random":
        return seed
    get = getattr(kv_cache_utils, "get_none_hash_seed", None)
    resolved = get() if get else None
    if resolved != getattr(kv_cache_utils, "DEFAULT_NONE_HASH_SEED", object()):
        raise ValueError(
            "block hashes have a random seed in each process: set PYTHONHASHSEED to a number, the same for all engines that "
            "share blocks, or choose --prefix-caching-hash-algo sha256"
        )
    return resolved


class LapisTier(SecondaryTierManager):
    medium = Medium.CPU

    def __init__(
        self, offloading_spec, primary_kv_view, tier_type, backpressure_detector=None, socket=None, revision=None, salt="",
        load_seconds=5.0, store_seconds=10.0, locality=None,
    ):
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self._memory = primary_kv_view.cast("B") if primary_kv_view.format != "B" or primary_kv_view.ndim > 1 else primary_kv_view
        self._row = self.block_size_bytes
        self._load_seconds = seconds("load_seconds", load_seconds)
        self._store_seconds = seconds("store_seconds", store_seconds)
        mapper = FileMapper.from_offloading_spec(
            root_dir="", offloading_spec=offloading_spec, blocks_per_file=offloading_spec.blocks_per_chunk,
            parallel_agnostic=True,
        )
        fields = mapper.get_run_config()
        config = offloading_spec.config
        namespace = lapis_kv.Namespace(
            model=config.model.name,
            revision=revision or revision_of(config.model.name, None, "auto", 0),
            dtype=config.model.dtype,
            layout=str(config.kv_cache_layout),
            tokens_per_block=config.cache.tokens_per_hash,
            hash_seed=_hash_seed(),
            salt=salt,
            extra={
                "engine": f"vllm offloading {vllm.__version__}", "row": str(self._row),
                **{name: str(fields[name]) for name in sorted(fields)},
            },
        )
        groups = sorted(group.group_id for group in config.groups)

        def open_pools(client):
            return {group: client.pool(namespace, f"tier g{group}", self._row) for group in groups}

        self._link = Link(socket_of(socket), f"vllm {tier_type}", open_pools)
        self._lock = threading.Condition()
        self._results, self._under_way = [], 0
        self._jobs = [queue.SimpleQueue(), queue.SimpleQueue()]
        self._threads = [
            threading.Thread(target=self._run, args=(jobs,), name=name, daemon=True)
            for jobs, name in zip(self._jobs, ("lapis-tier-load", "lapis-tier-store"))
        ]
        for thread in self._threads:
            thread.start()

    # ---- Look-up ----

    def lookup(self, key, req_context):
        client = self._link.client
        if client is None:
            return LookupResult.MISS
        group, name = _split(key)
        pool = self._link.made.get(group)
        if pool is None:
            return LookupResult.MISS
        try:
            return LookupResult.HIT if client.exists(pool, name).count else LookupResult.MISS
        except lapis_kv.LapisError as error:
            logger.debug("a look-up failed: %s", error)
            return LookupResult.MISS

    def on_new_request(self, req_context):
        return RequestOffloadingContext()

    # ---- Jobs ----

    def submit_load(self, job_metadata):
        self._submit(self._jobs[0], job_metadata, self._load)

    def submit_store(self, job_metadata):
        self._submit(self._jobs[1], job_metadata, self._store)

    def _submit(self, jobs, job, work):
        with self._lock:
            self._under_way += 1
        jobs.put((job, work))

    def _run(self, jobs):
        while (next_job := jobs.get()) is not None:
            job, work = next_job
            started, done = time.monotonic(), []
            try:
                done = work(job)
            except Exception as error:
                logger.warning("a transfer of %d blocks failed: %s", len(job.keys), error)
            result = JobResult(
                job_id=job.job_id,
                success=len(done) == len(job.keys),
                successful_keys=tuple(done) if job.is_promotion and len(done) < len(job.keys) else None,
                transfer_time=time.monotonic() - started,
                transfer_bytes=len(done) * self._row,
            )
            with self._lock:
                self._results.append(result)
                self._under_way -= 1
                self._lock.notify_all()

    def _parts(self, job):
        """The job's blocks by group, in its order: (pool, keys of vLLM, keys, memory of each block)."""
        parts = {}
        for key, chunk in zip(job.keys, job.chunk_ids):
            group, name = _split(key)
            keys, names, memory = parts.setdefault(group, ([], [], []))
            keys.append(key)
            names.append(name)
            memory.append(self._memory[int(chunk) * self._row : (int(chunk) + 1) * self._row])
        pools = self._link.made
        return [(pools[group], keys, b"".join(names), memory) for group, (keys, names, memory) in parts.items()]

    def _load(self, job) -> list:
        client, done = self._link.client, []
        if client is None:
            return done
        for pool, keys, names, memory in self._parts(job):
            got = client.get_into(pool, names, memory, deadline=self._load_seconds)
            done += [key for at, key in enumerate(keys) if got[at]]
        return done

    def _store(self, job) -> list:
        client, done = self._link.client, []
        if client is None:
            return done
        for pool, keys, names, memory in self._parts(job):
            put = client.put_from(pool, names, memory, deadline=self._store_seconds)
            done += [key for key, status in zip(keys, put.statuses) if not status.is_refused]
        return done

    def get_finished_jobs(self):
        with self._lock:
            results, self._results = self._results, []
        return results

    def has_pending_work(self):
        return self._under_way > 0

    def drain_jobs(self):
        with self._lock:
            self._lock.wait_for(lambda: self._under_way == 0)

    def shutdown(self):
        for jobs in self._jobs:
            jobs.put(None)
        for thread in self._threads:
            thread.join(timeout=self._load_seconds + self._store_seconds)
        self._link.close()
