"""Figures of the drop-in's batches beside a copy of the same bytes between private blocks in the same rounds.

    target/mooncake/venv/bin/python clients/mooncake/benches/bench.py [--rounds 60]

Needs both wheels (`clients/mooncake/tests/run` installs them there) and target/release/lapis, or LAPIS_BINARY. A line for each
figure: the median of the rounds' ratios and their quartiles. The machine's load is told too.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pathlib
import random
import statistics
import sys
import time

import lapis_kv
import numpy
from mooncake.store import MooncakeDistributedStore

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python" / "tests"))
from host import Host, eventually  # noqa: E402

BATCH = 32
SIZES_KIB = (64, 256, 1024)
ARENA_BYTES = 4 << 30
# Gone through for each of: source, destination. Beyond any cache.
WORKING_SET_BYTES = 512 << 20
# Before the rounds of a size, this part of the arena is put and removed: all its memory has been touched, and puts find
# room. Where there is none, and no SSD, the daemon may find a new object worth less than those that are there.
WARM_UP = 0.75


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    print(f"load {' '.join(f'{load:.1f}' for load in os.getloadavg())} on {os.cpu_count()} processors, {rounds} rounds")
    host = Host(f"{ARENA_BYTES}B")
    try:
        eventually("the daemon's memory", lambda: is_populated(lapis_kv.status(host.socket)["dram"]))
        memory = [numpy.full(WORKING_SET_BYTES, n, numpy.uint8) for n in (1, 2)]
        for kib in SIZES_KIB:
            store = MooncakeDistributedStore()
            address = f"unix:{host.socket}"
            assert store.setup("bench", "P2PHANDSHAKE", 0, 16 << 20, "tcp", "", address, tenant_id=f"{kib} KiB") == 0
            for array in memory:
                assert store.register_buffer(array.ctypes.data, array.nbytes) == 0
            Batches(store, kib, *memory).run(rounds)
            store.remove_all()
            store.close()
    finally:
        host.end()
    print(f"load {' '.join(f'{load:.1f}' for load in os.getloadavg())}")


def is_populated(dram: dict[str, int]) -> bool:
    return dram["populated_bytes"] >= dram["bytes"]


class Batches:
    """One object size."""

    def __init__(self, store: MooncakeDistributedStore, kib: int, src: numpy.ndarray, dst: numpy.ndarray) -> None:
        self.store, self.kib, self.bytes = store, kib, kib << 10
        self.src, self.dst = src.ctypes.data, dst.ctypes.data
        self.batches = WORKING_SET_BYTES // (BATCH * self.bytes)
        self.random = random.Random(1)
        self.puts = 0
        self.at = 0

    def run(self, rounds: int) -> None:
        for _ in range(int(WARM_UP * ARENA_BYTES) // (BATCH * self.bytes)):
            self.put()
        self.store.remove_all()
        there = []
        for _ in range(self.batches):
            keys = self.fresh_keys()
            assert set(self.store.batch_put_from(keys, self.places(self.src), [self.bytes] * BATCH)) == {0}
            there.append(keys)
        gets = [in_turn(n, lambda: self.get(self.random.choice(there)), self.memmove) for n in range(rounds)]
        refused = 0
        puts = []
        for n in range(rounds):
            ratio = in_turn(n, self.put, self.memmove)
            if ratio is None:
                refused += 1
            else:
                puts.append(ratio)
        tell(f"batch_get_into, {BATCH} x {self.kib} KiB", gets)
        tell(f"batch_put_from, {BATCH} x {self.kib} KiB", puts)
        if refused:
            print(f"  {refused} batches of puts were refused in part and are not counted")
        times = []
        for _ in range(rounds):
            keys = self.random.choice(there)
            began = time.perf_counter_ns()
            self.store.batch_is_exist(keys)
            times.append((time.perf_counter_ns() - began) / 1e3)
        print(f"batch_is_exist of {BATCH} keys: {statistics.median(times):.1f} us (least {min(times):.1f})")

    def get(self, keys: list[str]) -> int:
        places = self.places(self.dst)
        began = time.perf_counter_ns()
        got = self.store.batch_get_into(keys, places, [self.bytes] * BATCH)
        took = time.perf_counter_ns() - began
        assert set(got) == {self.bytes}, got
        return took

    def put(self) -> int | None:
        keys, places = self.fresh_keys(), self.places(self.src)
        began = time.perf_counter_ns()
        put = self.store.batch_put_from(keys, places, [self.bytes] * BATCH)
        took = time.perf_counter_ns() - began
        return took if set(put) == {0} else None

    def memmove(self) -> int:
        memmove, size = ctypes.memmove, self.bytes
        pairs = list(zip(self.places(self.dst), self.places(self.src)))
        began = time.perf_counter_ns()
        for to, of in pairs:
            memmove(to, of, size)
        return time.perf_counter_ns() - began

    def places(self, memory: int) -> list[int]:
        """Addresses of one batch that were not touched for long."""
        self.at = (self.at + 1) % self.batches
        first = memory + self.at * BATCH * self.bytes
        return list(range(first, first + BATCH * self.bytes, self.bytes))

    def fresh_keys(self) -> list[str]:
        """Keys as long as SGLang's, that nobody has put."""
        self.puts += BATCH
        return [f"model_{n:064x}_0_k" for n in range(self.puts - BATCH, self.puts)]


def in_turn(n, ours, limit):  # type: ignore[no-untyped-def]
    """The limit's time by ours, the one first in one round and the other in the next; None if ours did not do it."""
    if n % 2:
        took = ours()
        return took and limit() / took
    bound = limit()
    took = ours()
    return took and bound / took


def tell(name: str, ratios: list[float]) -> None:
    low, median, high = statistics.quantiles(ratios, n=4)
    print(f"{name}: {median:.2f} of memmove ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
