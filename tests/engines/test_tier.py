"""LapisTier as vLLM's tiering manager drives it: the real configuration, jobs and look-ups of vLLM, over memory of the test's.

vLLM itself runs this surface on GPUs only.
"""

import random
import time
from types import SimpleNamespace

import numpy
import pytest
from vllm.v1.kv_offload.base import LookupResult, make_offload_key
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.base import TransferJob

from hosts import Host
from lapis_kv.vllm.tier import LapisTier

ROW, CHUNKS = 64 << 10, 32


def spec(dtype: str = "bfloat16"):
    parallel = OffloadingParallelConfig(
        rank=0, world_size=1, tp_size=1, pp_size=1, pcp_size=1, dcp_size=1, data_parallel_index=0, data_parallel_size=1,
        data_parallel_rank_local=None, is_parallelism_agnostic=False,
    )
    groups = tuple(OffloadingGroupConfig(tokens_per_block=16, layer_names=("l0", "l1"), group_id=group) for group in range(2))
    config = OffloadingConfig(
        groups=groups, worker_kv_bytes_per_block=ROW, enable_kv_cache_events=False, extra_config={}, engine_id="e",
        model=OffloadingModelConfig(name="tiny", dtype=dtype),
        cache=OffloadingCacheConfig(tokens_per_hash=16, blocks_per_chunk=1), parallel=parallel, kv_cache_layout="LBHNC",
    )
    return SimpleNamespace(config=config, blocks_per_chunk=1)


class Engine:
    """The engine's host memory, and a tier below it."""

    def __init__(self, host, **config):
        self.memory = bytearray(random.Random(7).randbytes(ROW * CHUNKS))
        view = memoryview(self.memory).cast("B", (CHUNKS, ROW))
        self.tier = LapisTier(
            spec(config.pop("dtype", "bfloat16")), view, "LapisTier", socket=host.socket, revision="r1", **config
        )
        self.jobs = 0

    def row(self, chunk: int) -> bytes:
        return bytes(self.memory[chunk * ROW : (chunk + 1) * ROW])

    def run(self, keys, chunks, loads: bool):
        self.jobs += 1
        job = TransferJob(self.jobs, keys, numpy.array(chunks), loads, None)
        (self.tier.submit_load if loads else self.tier.submit_store)(job)
        until, results = time.monotonic() + 20, []
        while not results and time.monotonic() < until:
            results = list(self.tier.get_finished_jobs())
            time.sleep(0.002)
        assert [result.job_id for result in results] == [self.jobs]
        return results[0]

    def found(self, keys) -> list[bool]:
        return [self.tier.lookup(key, None) == LookupResult.HIT for key in keys]


def keys(count: int, group: int = 0):
    return [make_offload_key(bytes([at, group]) * 16, group) for at in range(count)]


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path).start()
    yield host
    host.close()


def test_blocks_go_down_and_come_back_into_other_places(host):
    engine = Engine(host)
    both = keys(4) + keys(4, group=1)
    assert engine.found(both) == [False] * 8
    rows = [engine.row(chunk) for chunk in range(8)]
    stored = engine.run(both, range(8), loads=False)
    assert stored.success and stored.transfer_bytes == 8 * ROW and engine.found(both) == [True] * 8
    loaded = engine.run(both, range(20, 28), loads=True)
    assert loaded.success and [engine.row(chunk) for chunk in range(20, 28)] == rows
    engine.tier.shutdown()


def test_a_load_of_which_blocks_are_missing_succeeds_in_part(host):
    engine = Engine(host)
    engine.run(keys(3), range(3), loads=False)
    rows, before = [engine.row(chunk) for chunk in range(3)], engine.row(23)
    loaded = engine.run(keys(4), range(20, 24), loads=True)
    assert not loaded.success and list(loaded.successful_keys) == keys(3)
    assert [engine.row(chunk) for chunk in range(20, 23)] == rows and engine.row(23) == before
    engine.tier.shutdown()


def test_another_engine_finds_the_blocks_and_one_of_another_dtype_does_not(host):
    first, second, other = Engine(host), Engine(host), Engine(host, dtype="float8_e4m3fn")
    first.run(keys(4), range(4), loads=False)
    assert second.found(keys(5)) == [True] * 4 + [False] and other.found(keys(4)) == [False] * 4
    for engine in (first, second, other):
        engine.tier.shutdown()


def test_a_daemon_that_dies_is_a_miss_and_comes_back(host):
    engine = Engine(host, load_seconds=2, store_seconds=2)
    engine.run(keys(4), range(4), loads=False)
    host.kill()
    assert not engine.run(keys(8), range(8), loads=False).success
    engine.tier.drain_jobs()
    host.start()
    until = time.monotonic() + 20
    while not all(engine.found(keys(4))) and time.monotonic() < until:
        time.sleep(0.05)
    assert engine.run(keys(4), range(8, 12), loads=True).success
    engine.tier.shutdown()


def test_without_a_daemon_everything_is_a_miss(tmp_path):
    engine = Engine(Host(tmp_path))
    assert engine.found(keys(2)) == [False] * 2
    assert not engine.run(keys(2), range(2), loads=False).success
    loaded = engine.run(keys(2), range(2), loads=True)
    assert not loaded.success and list(loaded.successful_keys) == []
    engine.tier.shutdown()
