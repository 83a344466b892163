"""Figures of the Python client beside a copy of the same bytes between private blocks in the same rounds.

    target/python/venv/bin/python clients/python/benches/bench.py [--rounds 60]

Needs `lapis_kv` (`clients/python/tests/run` installs it there) and target/release/lapis, or LAPIS_BINARY. A line for each
figure: the median of the rounds' ratios (or of times), the goal, and whether it is met. The machine's load is told too.
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
from collections.abc import Callable

import lapis_kv
import numpy

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))
from host import Host, eventually  # noqa: E402

BATCH = 32
GOALS = {64: (0.8, 0.76), 256: (0.9, 0.95), 1024: (1.2, 1.24)}  # KiB: get_into; put_from, the Rust client's less 5 %.
EXISTS_GOAL_US = 2.0
LOOK_UP_GOAL_US = 1000.0
LOOK_UP_KEYS = 8192
ARENA_BYTES = 4 << 30
# Gone through for each of: private source, destination. Beyond any cache.
WORKING_SET_BYTES = 512 << 20
# Before the rounds of a size, so many times the arena is put: all slots are of that size, and puts evict.
WARM_UP = 1.125


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    print(f"load {' '.join(f'{load:.1f}' for load in os.getloadavg())} on {os.cpu_count()} processors, {rounds} rounds")
    host = Host(f"{ARENA_BYTES}B")
    try:
        eventually("the daemon's memory", lambda: is_populated(lapis_kv.status(host.socket)["dram"]))
        with host.client(name="bench.py") as client:
            namespace = lapis_kv.Namespace("bench")
            look_ups(client, namespace, rounds)
            memory = [numpy.full(WORKING_SET_BYTES, n, numpy.uint8) for n in (1, 2)]
            for kib, (get_goal, put_goal) in GOALS.items():
                Copies(client, namespace, kib, *memory).run(rounds, get_goal, put_goal)
    finally:
        host.end()
    print(f"load {' '.join(f'{load:.1f}' for load in os.getloadavg())}")


def is_populated(dram: dict[str, int]) -> bool:
    return dram["populated_bytes"] >= dram["bytes"]


class Copies:
    """One block size."""

    def __init__(
        self, client: lapis_kv.Client, namespace: lapis_kv.Namespace, kib: int, src: numpy.ndarray, dst: numpy.ndarray
    ) -> None:
        self.client, self.kib, self.block_bytes = client, kib, kib << 10
        self.pool = client.pool(namespace, f"{kib} KiB", self.block_bytes)
        self.batch_bytes = BATCH * self.block_bytes
        self.src, self.dst = src, dst
        self.batches = WORKING_SET_BYTES // self.batch_bytes
        self.random = random.Random(1)
        self.put = 0
        self.at = 0

    def run(self, rounds: int, get_goal: float, put_goal: float) -> None:
        there: list[bytes] = []
        for _ in range(int(WARM_UP * ARENA_BYTES) // self.batch_bytes):
            keys, src = self.fresh_keys(), self.run_of(self.src)
            for _ in range(100):
                if self.client.put_from(self.pool, keys, src, deadline=30.0):
                    break
            there.append(keys)
        there = [keys for keys in there[-self.batches :] if self.client.exists(self.pool, keys)]
        gets, puts = [], []
        for n in range(rounds):
            gets.append(in_turn(n, lambda: self.get(self.random.choice(there)), self.memmove))
        for n in range(rounds):
            puts.append(in_turn(n, self.put_one, self.memmove))
        ratio(f"get_into, {BATCH} x {self.kib} KiB", gets, get_goal)
        ratio(f"put_from, {BATCH} x {self.kib} KiB", puts, put_goal)

    def get(self, keys: bytes) -> int:
        dst = self.run_of(self.dst)
        began = time.perf_counter_ns()
        got = self.client.get_into(self.pool, keys, dst)
        took = time.perf_counter_ns() - began
        assert got or self.client.put_from(self.pool, keys, self.run_of(self.src), deadline=30.0)
        return took

    def put_one(self) -> int:
        keys, src = self.fresh_keys(), self.run_of(self.src)
        began = time.perf_counter_ns()
        put = self.client.put_from(self.pool, keys, src)
        took = time.perf_counter_ns() - began
        assert put or put.refusals.keys() <= {"LATE", "ALL_PINNED"}, put.refusals
        return took

    def memmove(self) -> int:
        block_bytes, memmove = self.block_bytes, ctypes.memmove
        to, of = self.run_of(self.dst).ctypes.data, self.run_of(self.src).ctypes.data
        began = time.perf_counter_ns()
        for at in range(0, self.batch_bytes, block_bytes):
            memmove(to + at, of + at, block_bytes)
        return time.perf_counter_ns() - began

    def run_of(self, memory: numpy.ndarray) -> numpy.ndarray:
        """Memory of one batch that was not touched for long."""
        self.at = (self.at + 1) % self.batches
        return memory[self.at * self.batch_bytes :][: self.batch_bytes]

    def fresh_keys(self) -> bytes:
        """The next keys that nobody has put; a chain of their own."""
        self.put += BATCH
        return lapis_kv.pack_keys(b"%d" % n for n in range(self.put - BATCH, self.put))


def in_turn(n: int, ours: Callable[[], int], limit: Callable[[], int]) -> float:
    """The limit's time by ours, the one first in one round and the other in the next."""
    if n % 2:
        return 1 / (ours() / limit())
    return limit() / ours()


def look_ups(client: lapis_kv.Client, namespace: lapis_kv.Namespace, rounds: int) -> None:
    pool = client.pool(namespace, "small", 4096)
    keys = lapis_kv.pack_keys(b"key %d" % n for n in range(LOOK_UP_KEYS))
    assert client.put_from(pool, keys, bytes(LOOK_UP_KEYS * 4096), deadline=30.0).stored == LOOK_UP_KEYS
    one, exists = keys[:32], client.exists
    times = []
    for _ in range(rounds):
        began = time.perf_counter_ns()
        for _ in range(1000):
            exists(pool, one)
        times.append((time.perf_counter_ns() - began) / 1e6)
    duration("exists of one key", times, EXISTS_GOAL_US)
    for name, call in (
        (f"exists of {LOOK_UP_KEYS} keys in one buffer", lambda: exists(pool, keys).count),
        (f"match_prefix of {LOOK_UP_KEYS} keys in one buffer", lambda: client.match_prefix(pool, keys)),
    ):
        times = []
        for _ in range(rounds):
            began = time.perf_counter_ns()
            found = call()
            times.append((time.perf_counter_ns() - began) / 1e3)
            assert found == LOOK_UP_KEYS
        duration(name, times, LOOK_UP_GOAL_US)


def ratio(name: str, ratios: list[float], goal: float) -> None:
    low, _, high = statistics.quantiles(ratios, n=4)
    line(name, f"{statistics.median(ratios):.2f} of memmove ({low:.2f} to {high:.2f})", f"{goal:.2f}",
         statistics.median(ratios) >= goal)  # fmt: skip


def duration(name: str, times_us: list[float], goal_us: float) -> None:
    median = statistics.median(times_us)
    line(name, f"{median:.2f} us (least {min(times_us):.2f})", f"{goal_us:.0f} us", median <= goal_us)


def line(name: str, measured: str, goal: str, met: bool) -> None:
    print(f"{name:44} {measured:36} goal {goal:8} {'met' if met else 'MISSED'}")


if __name__ == "__main__":
    main()
