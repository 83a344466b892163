"""Ranges of objects, sessions of layers, and memory that is handed out."""

from __future__ import annotations

import threading

import numpy
import pytest
from conftest import Block
from lapis_mooncake import ranges
from mooncake.store import BufferPool, MooncakeDistributedStore, MooncakeHostMemAllocator

NOT_FOUND, INVALID, EXPIRED, EXISTS = -704, -600, -707, -705
LAYER, LAYERS = 1000, 4
WHOLE = b"".join(bytes([n]) * LAYER for n in range(1, LAYERS + 1))


def test_ranges_of_several_objects_go_to_several_buffers(store, block):
    store.put_batch(["a", "b"], [bytes(range(100)), bytes(range(100, 200))])
    one, two = block(50), block(50)
    got = store.get_into_ranges(
        [one.ptr, two.ptr],
        [["a", "b"], ["b", "none"]],
        [[[0, 10], [20]], [[5], [0, 1]]],
        [[[90, 0], [50]], [[99], [0, 0]]],
        [[[10, 5], [7]], [[1], [1, 1]]],
    )
    assert got == [[[10, 5], [7]], [[1], [NOT_FOUND, NOT_FOUND]]]
    assert bytes(one)[:27] == bytes([*range(90, 100), *range(5), *[0] * 5, *range(150, 157)])
    assert bytes(two)[:7] == bytes([0] * 5 + [199, 0])
    assert store.get_into_ranges([one.ptr], [["a"]], [[[0, 0]]], [[[95, 0]]], [[[6, 1]]]) == [[[INVALID, 1]]]
    assert store.get_into_ranges([one.ptr], [["a"]], [[[0]]], [[[0, 1]]], [[[1]]]) == [[[INVALID]]]
    assert store.get_into_ranges([one.ptr], [["a"]], [[[0, 0]]], [[[-1, 0]]], [[[1, 1]]]) == [[[INVALID, 1]]]
    assert store.get_into_ranges([one.ptr], [], [[[0]]], [[[0]]], [[[1]]]) == [[[INVALID]]]


def test_ranges_go_to_memory_that_is_not_registered_and_what_is_none_is_told(store, block):
    store.put_batch(["a", "b"], [bytes(range(100)), bytes(range(100, 200))])
    ours, other = block(20), Block(20)
    got = store.get_into_ranges(
        [ours.ptr, other.ptr, 1 << 40],
        [["a"], ["b", "none"], ["a"]],
        [[[0, 5]], [[0, 4], [1]], [[0]]],
        [[[10, -1]], [[0, 99], [0]], [[0]]],
        [[[5, 1]], [[4, 1], [1]], [[1]]],
    )
    assert got == [[[5, INVALID]], [[4, 1], [NOT_FOUND]], [[-800]]]
    assert bytes(ours)[:6] == bytes([10, 11, 12, 13, 14, 0]) and bytes(other)[:6] == bytes([100, 101, 102, 103, 199, 0])


def test_layers_are_written_one_by_one_and_readable_in_the_end(store, block):
    source = block(len(WHOLE), WHOLE)
    assert store.batch_put_session_start(["k", "l"], [len(WHOLE)] * 2) == [0, 0]
    assert store.batch_put_session_start(["k"], [5]) == [INVALID], "it is in a session"
    for layer in reversed(range(LAYERS)):
        at = layer * LAYER
        sizes, halves = [LAYER // 2] * 2, [at, at + LAYER // 2]
        ptrs = [source.ptr + half for half in halves]
        assert store.batch_put_from_multi_buffer_ranges(["k"], [ptrs], [sizes], [halves]) == [LAYER]
        assert store.is_exist("k") == 0
    assert store.batch_put_from_multi_buffer_ranges(["k"], [[source.ptr]], [[2]], [[len(WHOLE) - 1]]) == [INVALID]
    assert store.batch_put_from_multi_buffer_ranges(["none"], [[source.ptr]], [[2]], [[0]]) == [INVALID]
    assert store.batch_put_session_end(["k", "none"]) == [0, INVALID] and store.get("k") == WHOLE
    assert store.batch_put_session_revoke(["l", "l"]) == [0, INVALID] and store.batch_put_session_end(["l"]) == [INVALID]
    assert store.batch_put_session_start(["k", "m", "n"], [10, 0, 1 << 60]) == [EXISTS, INVALID, -200]
    assert store.is_exist("l") == 0


def test_a_session_holds_what_was_there_and_says_when_it_is_gone(store, block):
    store.put("k", WHOLE)
    sink = block(len(WHOLE))
    read = store.batch_get_into_multi_buffer_ranges
    assert read(["k"], [[sink.ptr]], [[1]], [[0]]) == [INVALID], "no session yet"
    assert store.batch_get_session_start(["k", "none"]) == [0, NOT_FOUND]
    assert read(["k", "none"], [[sink.ptr]] * 2, [[1]] * 2, [[0]] * 2) == [1, INVALID]
    assert read(["k"], [[sink.ptr]], [[1]], [[len(WHOLE)]]) == [INVALID]
    assert store.remove("k") == 0
    assert read(["k"], [[sink.ptr]], [[1]], [[0]]) == [EXPIRED] and read(["k"], [[sink.ptr]], [[1]], [[0]]) == [INVALID]


def test_a_whole_object_comes_by_layers(store, block):
    store.put("k", WHOLE)
    sink = block(len(WHOLE))
    assert store.batch_get_session_start(["k"]) == [0]
    for at in range(0, len(WHOLE), LAYER):
        assert store.batch_get_into_multi_buffer_ranges(["k"], [[sink.ptr + at]], [[LAYER]], [[at]]) == [LAYER]
    assert bytes(sink) == WHOLE and store.batch_get_session_end(["k"]) == 0
    assert store.batch_get_into_multi_buffer_ranges(["k"], [[sink.ptr]], [[1]], [[0]]) == [INVALID]


def test_a_session_that_nobody_ends_is_over_after_its_time(store, block, monkeypatch):
    monkeypatch.setattr(ranges, "LEASE_S", 0.0)
    store.put("k", WHOLE)
    sink = block(10)
    assert store.batch_get_session_start(["k"]) == [0]
    assert store.batch_get_into_multi_buffer_ranges(["k"], [[sink.ptr]], [[1]], [[0]]) == [EXPIRED]
    assert store.batch_get_into_multi_buffer_ranges(["k"], [[sink.ptr]], [[1]], [[0]]) == [INVALID]


def test_memory_of_the_allocator_needs_no_registration(store):
    allocator = MooncakeHostMemAllocator()
    address = allocator.alloc(100_000)
    store.put("a", b"x" * 100_000)
    assert address and store.get_into("a", address, 100_000) == 100_000
    assert store.register_buffer(address, 100_000) == 0, "engines register it all the same"
    assert store.put_from("b", address, 100_000) == 0 and store.get("b") == b"x" * 100_000
    assert store.unregister_buffer(address) == 0
    assert (allocator.free(address), allocator.free(address), allocator.alloc(1 << 60)) == (0, -1, 0)
    assert store.get_into("a", store.alloc_from_mem_pool(100_000), 100_000) == 100_000


def test_leases_are_memory_for_raw_calls_and_used_again(store):
    pool = BufferPool(store)
    with pool.acquire(5000) as lease:
        assert lease.size == len(lease.buffer) == 5000
        lease.buffer[:5] = b"lease"
        assert store.put_from("a", lease.ptr, 5) == 0 and store.get("a") == b"lease"
        first = lease.ptr
    with pool.buffer(5001) as lease:
        assert lease.ptr == first
    with pytest.raises(RuntimeError, match="closed"):
        lease.ptr
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.acquire(1)


def test_a_lease_is_not_given_back_under_an_array(store):
    pool = BufferPool(store)
    lease = pool.acquire(4096)
    array = numpy.frombuffer(lease.buffer, numpy.uint8)
    with pytest.raises(RuntimeError, match="exported views exist"):
        lease.release()
    with pytest.raises(RuntimeError, match="active leases"):
        pool.close()
    del array
    lease.release()
    lease.release()
    pool.close()


def test_a_pool_has_a_bound_and_waits_for_room(store):
    pool = BufferPool(store, max_bytes=1 << 20)
    lease = pool.acquire(1 << 20)
    with pytest.raises(RuntimeError, match="exhausted"):
        pool.acquire(1, block=False)
    with pytest.raises(RuntimeError, match="timed out"):
        pool.acquire(1, timeout=0.01)
    with pytest.raises(RuntimeError, match="exceeds pool capacity"):
        pool.acquire((1 << 20) + 1)
    got = []
    waiter = threading.Thread(target=lambda: got.append(pool.acquire(1).size))
    waiter.start()
    lease.release()
    waiter.join(timeout=30)
    assert got == [1]
    with pytest.raises(RuntimeError, match="not initialized"):
        BufferPool(MooncakeDistributedStore())


def test_a_lease_that_was_dropped_frees_its_place(store):
    pool = BufferPool(store, max_bytes=1 << 20)
    for _ in range(3):
        assert pool.acquire(1 << 20, block=False).size == 1 << 20
    kept = pool.acquire(1 << 20).buffer
    kept[:1] = b"x"
    again = pool.acquire(1 << 20, block=False)
    again.buffer[:1] = b"y"
    assert kept[:1] == b"x", "what an array still shows is not used again"


