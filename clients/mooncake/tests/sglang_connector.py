"""SGLang's own Mooncake storage (HiCache L3), its file unmodified, over the drop-in: put, exist, get, eviction, restart.

A program for an interpreter that has torch and this wheel; `test_sglang.py` runs it with the folder of SGLang's unpacked wheel.
What the file imports besides, and the host pool of pages that it is given, are stand-ins: SGLang itself needs a GPU's packages.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys
import time
import types
from typing import Any

import torch

_spec = importlib.util.spec_from_file_location("host", pathlib.Path(__file__).resolve().parents[2] / "python/tests/host.py")
assert _spec is not None and _spec.loader is not None
host_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(host_module)

PAGES, PAGE_TOKENS, TOKEN_BYTES = 64, 16, 4096
PAGE_BYTES = PAGE_TOKENS * TOKEN_BYTES
DRAM = 32 << 20


def stand_in(name: str, **members: object) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(members, __path__=[])
    sys.modules[name] = module


def load(root: pathlib.Path) -> tuple[Any, Any]:
    """SGLang's two files as they are, their neighbours as empty classes."""
    src = root / "sglang/srt"
    for package in ("sglang", "sglang.srt", "sglang.srt.mem_cache", "sglang.srt.mem_cache.hybrid_cache"):
        stand_in(package)
    sys.modules["sglang.srt"].__path__ = [str(src)]
    sys.modules["sglang.srt.mem_cache"].__path__ = [str(src / "mem_cache")]
    stand_in("sglang.srt.mem_cache.hybrid_cache.linker_pool_assembler", DevicePoolEntry=object)
    allocator = type("HostTensorAllocator", (), {})
    stand_in("sglang.srt.mem_cache.pool_host", HostKVCache=object, HostTensorAllocator=allocator)
    stand_in("sglang.srt.mem_cache.pool_host.mla", MLATokenToKVPoolHost=object)
    stand_in("sglang.srt.observability")
    stand_in("sglang.srt.observability.metrics_collector", StorageMetrics=object)
    if importlib.util.find_spec("requests") is None:
        stand_in("requests")
    storage = importlib.import_module("sglang.srt.mem_cache.hicache_storage")
    connector = importlib.import_module("sglang.srt.mem_cache.storage.mooncake_store.mooncake_store")
    return storage, connector


class Pages:
    """A host pool of pages, keys and values of a page apart, in memory of Mooncake's allocator."""

    page_size = PAGE_TOKENS

    def __init__(self, connector: Any) -> None:
        self.allocator = connector.MooncakeHostTensorAllocator()
        self.kv_buffer = self.allocator.allocate((2, PAGES, PAGE_BYTES), torch.uint8)
        self.layout = "page_first"

    def get_ksize_per_token(self) -> int:
        return TOKEN_BYTES

    def get_page_buffer_meta(self, indices: torch.Tensor) -> tuple[list[int], list[int]]:
        pages = [int(token) // PAGE_TOKENS for token in indices[::PAGE_TOKENS]]
        ptrs = [self.kv_buffer[half, page].data_ptr() for page in pages for half in (0, 1)]
        return ptrs, [PAGE_BYTES] * len(ptrs)

    def fill(self, page: int, n: int) -> None:
        self.kv_buffer[0, page], self.kv_buffer[1, page] = n % 251, (n + 1) % 251

    def holds(self, page: int, n: int) -> bool:
        halves = self.kv_buffer[0, page], self.kv_buffer[1, page]
        return bool((halves[0] == n % 251).all() and (halves[1] == (n + 1) % 251).all())


class Engine:
    def __init__(self, modules: tuple[Any, Any], groups: bool) -> None:
        storage, connector = modules
        extra = {"enable_group_semantics": groups, "extra_backend_tag": f"groups {groups}"}
        extra |= {"master_server_address": "127.0.0.1:50051", "local_hostname": "127.0.0.1", "protocol": "tcp"}
        config = storage.HiCacheStorageConfig(0, 1, 0, 1, 0, 1, False, False, True, "a/model", extra_config=extra)
        self.pages = Pages(connector)
        self.store = connector.MooncakeStore(config, self.pages)
        self.store.register_mem_pool_host(self.pages)

    def put(self, numbers: list[int]) -> list[bool]:
        for page, n in enumerate(numbers):
            self.pages.fill(page, n)
        result: list[bool] = self.store.batch_set_v1([f"{n:064x}" for n in numbers], tokens(numbers))
        return result

    def get(self, numbers: list[int]) -> int:
        """How many are hits; their bytes are what was put."""
        self.pages.kv_buffer.fill_(255)
        found = self.store.batch_get_v1([f"{n:064x}" for n in numbers], tokens(numbers))
        for page, (n, is_hit) in enumerate(zip(numbers, found, strict=True)):
            assert not is_hit or self.pages.holds(page, n), f"page {n} is another's"
        return sum(found)

    def leading(self, numbers: list[int]) -> int:
        result: int = self.store.batch_exists([f"{n:064x}" for n in numbers])
        return result


def tokens(numbers: list[int]) -> torch.Tensor:
    return torch.arange(len(numbers) * PAGE_TOKENS)


def scenes(host: Any, modules: tuple[Any, Any], groups: bool) -> None:
    engine, some = Engine(modules, groups), list(range(32))
    assert engine.leading(some) == 0 and engine.get(some) == 0
    assert engine.put(some) == [True] * 32
    assert engine.leading([0, 1, 2, 99, 3]) == 3 and engine.store.exists(f"{99:064x}") is False
    assert engine.get(some) == 32
    print("put, exist, get")
    assert engine.put(some) == [True] * 32 and engine.get(some) == 32
    print("put again")

    host.kill()
    started = time.monotonic()
    assert engine.put([500]) == [False] and engine.leading([500]) == 0 and engine.get(some) == 32
    assert time.monotonic() - started < 10
    print("without a daemon: no hang, hits in memory")
    host.start()
    while not all(engine.put([501])):
        assert time.monotonic() - started < 60
        time.sleep(0.01)
    assert engine.get([*some, 501]) == 33
    print("restart")

    many = list(range(1000, 1000 + 2 * DRAM // (2 * PAGE_BYTES)))
    for at in range(0, len(many), PAGES):
        engine.put(many[at : at + PAGES])
    hits = sum(engine.get(many[at : at + PAGES]) for at in range(0, len(many), PAGES))
    assert 0 < hits < len(many), hits
    print(f"eviction: {hits} of {len(many)} pages are left")
    engine.store.clear()
    assert engine.get(many[:PAGES]) == 0


def main() -> None:
    modules = load(pathlib.Path(sys.argv[1]))
    for groups in (False, True):
        host = host_module.Host("32MiB")
        os.environ["LAPIS_SOCKET"] = str(host.socket)
        try:
            print(f"groups {groups}")
            scenes(host, modules, groups)
        finally:
            host.end()
    print("all scenes passed")


if __name__ == "__main__":
    main()
