"""LMCache's own Mooncake connector, unmodified, over the drop-in: put, exist, get, eviction, restart, a dead daemon.

A program for an interpreter that has torch, lmcache and this wheel; `test_lmcache.py` runs it. Prints a line for each scene.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pathlib
import sys
import time
from typing import Any

import torch

_spec = importlib.util.spec_from_file_location("host", pathlib.Path(__file__).resolve().parents[2] / "python/tests/host.py")
assert _spec is not None and _spec.loader is not None
host_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(host_module)

from lmcache.utils import CacheEngineKey  # noqa: E402
from lmcache.v1.config import LMCacheEngineConfig  # noqa: E402
from lmcache.v1.memory_management import MemoryFormat  # noqa: E402
from lmcache.v1.metadata import LMCacheMetadata  # noqa: E402
from lmcache.v1.storage_backend.connector.mooncakestore_connector import MooncakestoreConnector  # noqa: E402
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend  # noqa: E402

LAYERS, CHUNK, HEADS, HEAD_DIM = 4, 64, 2, 32
SHAPE = torch.Size([2, LAYERS, CHUNK, HEADS * HEAD_DIM])
CHUNK_BYTES = 2 * LAYERS * CHUNK * HEADS * HEAD_DIM * 2
DRAM = 32 << 20


class Engine:
    """The connector with what LMCache's engine gives it."""

    def __init__(self, socket: pathlib.Path, save_chunk_meta: bool) -> None:
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=CHUNK,
            local_cpu=False,
            max_local_cpu_size=0.25,
            extra_config={
                "local_hostname": "127.0.0.1",
                "metadata_server": "P2PHANDSHAKE",
                "master_server_address": f"unix:{socket}",
                "save_chunk_meta": save_chunk_meta,
                "transfer_timeout": 10,
                "mooncake_tenant_id": f"meta {save_chunk_meta}",
            },
        )
        shape = (LAYERS, 2, CHUNK, HEADS, HEAD_DIM)
        metadata = LMCacheMetadata("model", 1, 1, 0, 0, torch.bfloat16, shape, chunk_size=CHUNK)
        self.backend = LocalCPUBackend(config, metadata, dst_device="cpu")
        self.connector = MooncakestoreConnector(asyncio.get_running_loop(), self.backend, config)

    def chunk(self, n: int) -> Any:
        made = self.backend.allocate(SHAPE, torch.bfloat16, MemoryFormat.KV_2LTD)
        assert made is not None and made.tensor is not None
        made.tensor.copy_(values(n))
        return made

    async def put(self, numbers: list[int]) -> None:
        for n in numbers:
            chunk = self.chunk(n)
            await self.connector.batched_put([key(n)], [chunk])
            chunk.ref_count_down()

    async def get(self, numbers: list[int]) -> int:
        """How many are hits; their bytes are what was put."""
        found = await self.connector.batched_get([key(n) for n in numbers])
        for n, chunk in zip(numbers, found, strict=True):
            if chunk is not None:
                assert torch.equal(chunk.tensor, values(n)), f"chunk {n} is another's"
                chunk.ref_count_down()
        return sum(chunk is not None for chunk in found)


def key(n: int) -> CacheEngineKey:
    return CacheEngineKey("model", 1, 0, n, torch.bfloat16)


def values(n: int) -> torch.Tensor:
    return torch.full(SHAPE, n % 251, dtype=torch.bfloat16)


async def scenes(host: Any, save_chunk_meta: bool) -> None:
    engine = Engine(host.socket, save_chunk_meta)
    connector, some = engine.connector, list(range(8))
    assert (connector.registered_buffer_ptr is not None) or not hasattr(engine.backend.memory_allocator, "pin_allocator")
    assert not await connector.exists(key(0)) and await engine.get(some) == 0
    await engine.put(some)
    assert await connector.exists(key(0)) and connector.exists_sync(key(7)) and not connector.exists_sync(key(8))
    assert await connector.batched_async_contains("lookup", [key(n) for n in (0, 1, 99, 2)]) == 2
    assert await engine.get([*some, 99]) == 8
    print("put, exist, get")
    await engine.put(some)
    assert await engine.get(some) == 8
    print("put again")

    host.kill()
    started = time.monotonic()
    await engine.put([50])
    assert not connector.exists_sync(key(50)) and await engine.get([50]) == 0 and await engine.get(some) == 8
    assert time.monotonic() - started < 10
    print("without a daemon: no hang, hits in memory")
    host.start()
    while connector.store.health_check() != 0 or connector.store.put(f"up {time.monotonic()}", b"1") != 0:
        assert time.monotonic() - started < 60
        await asyncio.sleep(0.01)
    await engine.put([50])
    assert await engine.get([*some, 50]) == 9
    print("restart")

    many = list(range(1000, 1000 + 2 * DRAM // CHUNK_BYTES))
    await engine.put(many)
    hits = sum([await engine.get(many[at : at + 50]) for at in range(0, len(many), 50)])
    assert 0 < hits < len(many), hits
    print(f"eviction: {hits} of {len(many)} chunks are left")
    await connector.close()


def main() -> None:
    for save_chunk_meta in (False, True):
        host = host_module.Host("32MiB")
        try:
            print(f"save_chunk_meta {save_chunk_meta}")
            asyncio.run(scenes(host, save_chunk_meta))
        finally:
            host.end()
    print("all scenes passed")
    sys.stdout.flush()
    # LMCache leaves threads.
    os._exit(0)


if __name__ == "__main__":
    main()
