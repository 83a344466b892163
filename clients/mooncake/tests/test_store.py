"""Calls of whole objects: put, look up, read, replace, remove."""

from __future__ import annotations

import mmap
import multiprocessing
import pathlib
import threading
import time

import numpy
import pytest
from conftest import Block, Host
from host import eventually
from lapis_mooncake import daemon as module
from lapis_mooncake import memory as memory_module
from mooncake.store import BufferHandle, MooncakeDistributedStore, ReplicateConfig, SoftPinAction

NOT_FOUND, INVALID, TRANSFER, PRESSURE, GONE = -704, -600, -800, -200, -900


def test_setup_takes_the_forms_of_mooncake_and_finds_the_socket(host: Host, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LAPIS_SOCKET", raising=False)
    positional = ("me", "P2PHANDSHAKE", 1 << 20, 1 << 20, "tcp", "")
    names = ("local_hostname", "metadata_server", "global_segment_size", "local_buffer_size", "protocol", "rdma_devices")
    keywords = dict(zip(names, positional))
    for address in (f"unix:{host.socket}", f"lapis://{host.socket}", str(host.socket)):
        for args, kwargs in [
            ((*positional, address), {}),
            ((*positional, address, None), {"tenant_id": "default"}),
            ((), keywords | {"master_server_addr": address, "engine": None}),
            (({**keywords, "master_server_addr": address},), {}),
            (({**keywords, "global_segment_size": "1024", "master_server_address": address},), {}),
            ((), {"config": {**keywords, "master_server_addr": address}}),
        ]:
            store = MooncakeDistributedStore()
            assert store.health_check() == 1 and store.is_exist("a") == INVALID
            assert store.setup(*args, **kwargs) == 0
            assert (store.health_check(), store.get_hostname()) == (0, "me")
            assert (store.close(), store.close(), store.health_check()) == (0, 0, 1)
    dummy = MooncakeDistributedStore()
    assert dummy.setup_dummy(1 << 20, 1 << 20, f"unix:{host.socket}") == 0 and dummy.close() == 0
    monkeypatch.setenv("LAPIS_SOCKET", str(host.socket))
    assert dummy.setup(*positional, "127.0.0.1:50051") == 0 and dummy.close() == 0
    for args, kwargs in [((), {}), (("me",), {}), (positional, {}), ((*positional, "x"), {"rdma": ""})]:
        with pytest.raises(TypeError, match="setup"):
            dummy.setup(*args, **kwargs)


def test_setup_without_a_daemon_answers_a_code_and_so_does_all_after_it(tmp_path: pathlib.Path, monkeypatch):
    monkeypatch.delenv("LAPIS_SOCKET", raising=False)
    store = MooncakeDistributedStore()
    assert store.setup("", "", 0, 0, "", "", f"unix:{tmp_path}/none.sock") == GONE
    assert store.is_exist("a") == 0, "to a connector that ignores the code of setup it is a miss, not a hit"
    assert store.put("a", b"1") == store.remove("a") == store.get_size("a") == INVALID
    assert store.get("a") == b"" and store.get_batch(["a", "b"]) == [b"", b""] and store.get_buffer("a") is None
    assert store.batch_get_into(["a"], [1], [1]) == store.batch_put_from(["a"], [1], [1]) == [INVALID]
    assert store.register_buffer(1, 1) == store.remove_all() == store.remove_by_regex("a") == INVALID
    assert store.batch_get_session_start(["a"]) == [] and store.get_replica_desc("a") == []


def test_what_was_put_is_found_read_and_removed(store):
    value = bytes(range(256)) * 1000
    assert (store.is_exist("a"), store.get("a"), store.get_size("a"), store.remove("a")) == (0, b"", NOT_FOUND, NOT_FOUND)
    assert store.put("a", value) == 0
    assert (store.is_exist("a"), store.get("a"), store.get_size("a")) == (1, value, len(value))
    assert store.put("a", b"other") == 0, "a put of a key that is there is harmless"
    assert store.get("a") == value
    assert store.remove("a", force=True) == 0 and store.is_exist("a") == 0


def test_values_are_buffers_of_any_kind_and_parts_are_joined(store):
    array = numpy.arange(1000, dtype=numpy.float32)
    assert store.put("array", array) == 0 and store.get("array") == array.tobytes()
    assert store.put_parts("parts", b"head", bytearray(b"body"), memoryview(b"tail")) == 0
    assert store.get("parts") == b"headbodytail"
    assert store.put("nothing", b"") == store.put_parts("nothing") == INVALID and store.is_exist("nothing") == 0
    with pytest.raises(TypeError):
        store.put("text", "text")


def test_batches_answer_for_each_key(store):
    keys = [f"key {n}" for n in range(20)]
    assert store.put_batch(keys, [key.encode() for key in keys]) == 0
    assert store.put_batch(keys, [b"1"]) == INVALID
    asked = [*keys, "none"]
    assert store.batch_is_exist(asked) == [1] * 20 + [0]
    assert store.get_batch(asked) == [key.encode() for key in keys] + [b""]
    handles = store.batch_get_buffer(asked)
    assert [handle and bytes(handle) for handle in handles] == [key.encode() for key in keys] + [None]
    assert store.batch_remove(["key 0", "none"]) == [0, NOT_FOUND]
    assert store.remove_all() == 19


def test_a_lookup_may_have_tens_of_thousands_of_keys(store):
    assert store.put("key 19999", b"1") == 0
    assert store.batch_is_exist([f"key {n}" for n in range(20000)]) == [0] * 19999 + [1]


def test_a_handle_is_a_buffer_with_an_address(store):
    store.put("a", b"x" * 5000)
    handle = store.get_buffer("a")
    assert isinstance(handle, BufferHandle) and len(handle) == handle.size() == 5000
    assert numpy.frombuffer(handle, numpy.uint8).sum() == 5000 * ord("x") and handle.ptr() != 0


def test_keys_that_lapis_could_mistake_are_kept_apart(store):
    keys = ["a", "a\0", "a\0\0", "k" * 1024, "k" * 1025, "k" * 5000, "Schlüssel"]
    for n, key in enumerate(keys):
        assert store.put(key, b"%d" % n) == 0
    assert store.get_batch(keys) == [b"%d" % n for n in range(len(keys))]
    assert store.put("", b"1") == INVALID and store.batch_is_exist([""]) == [INVALID]


def test_a_key_that_is_none_is_not_in_the_way_of_others(store, block):
    source, sink = block(30, b"0123456789" * 3), block(30)
    keys, ptrs, sizes = ["a", "", "b"], [source.ptr, source.ptr + 10, source.ptr + 20], [10] * 3
    assert store.batch_put_from(keys, ptrs, sizes) == store.batch_upsert_from(keys, ptrs, sizes) == [0, INVALID, 0]
    assert store.batch_is_exist(keys) == [1, INVALID, 1] and store.put_batch(keys, [b"1"] * 3) == INVALID
    assert store.batch_get_into(keys, [sink.ptr] * 3, sizes) == [10, INVALID, 10]
    assert store.get_batch(keys) == [b"0123456789", b"", b"0123456789"]
    assert list(store.batch_get_replica_desc(keys)) == ["a", "b"] and store.get_size("") == INVALID


def test_of_a_key_given_twice_the_first_put_stays_and_the_last_upsert(store, block):
    source = block(40, b"a" * 10 + b"b" * 10 + b"c" * 10 + b"d" * 10)
    ptrs = [source.ptr + at for at in (0, 10, 20, 30)]
    assert store.batch_put_from(["k", "k", "l", "k"], ptrs, [10] * 4) == [0] * 4
    assert store.get_batch(["k", "l", "k"]) == [b"a" * 10, b"c" * 10, b"a" * 10]
    assert store.batch_upsert_from(["k", "l", "k", "k"], ptrs, [10] * 4) == [0] * 4
    assert store.get_batch(["k", "l"]) == [b"d" * 10, b"b" * 10]


def test_in_one_batch_some_memory_is_registered_some_is_not_and_some_is_none(store, block):
    ours, other, nowhere = block(1000, b"r" * 1000), Block(1000, b"o" * 1000), 1 << 40
    keys, ptrs = ["r", "o", "n", "r2"], [ours.ptr, other.ptr, nowhere, ours.ptr + 500]
    assert store.batch_put_from(keys, ptrs, [500] * 4) == [0, 0, TRANSFER, 0]
    assert store.batch_is_exist(keys) == [1, 1, 0, 1]
    assert store.put("n", b"n" * 500) == 0
    assert store.batch_get_into(keys, [other.ptr, ours.ptr, nowhere, other.ptr + 500], [500] * 4) == [500, 500, TRANSFER, 500]
    assert bytes(other) == b"r" * 1000 and bytes(ours)[:500] == b"o" * 500
    both = store.batch_put_from_multi_buffers(["m", "x"], [[ours.ptr, other.ptr], [ours.ptr, nowhere]], [[3, 2], [1, 1]])
    assert both == [0, TRANSFER] and store.get("m") == b"ooorr" and store.is_exist("x") == 0
    for call in (store.put_from, store.get_into):
        with pytest.raises(TypeError, match="negative"):
            call("k", ours.ptr, -1)
    assert store.put_from("zero", ours.ptr, 0) == INVALID
    assert store.batch_put_from(["zero", "one"], [ours.ptr] * 2, [0, 1]) == [INVALID, 0]


def test_values_that_are_not_contiguous_are_stored_as_they_read(store):
    array = numpy.arange(60, dtype=numpy.int16).reshape(6, 10)
    for n, value in enumerate([array[:, ::3], array.T, memoryview(bytes(range(100)))[::7], array[::-1]]):
        assert store.put(f"k{n}", value) == 0
        assert store.get(f"k{n}") == (value.tobytes() if isinstance(value, memoryview) else value.tobytes("C"))
    assert store.put_parts("parts", b"head", array[:, 1]) == 0
    assert store.get("parts") == b"head" + array[:, 1].tobytes()
    with pytest.raises(TypeError):
        store.put("an address is no value", (id(array), 10))


def test_batches_may_have_no_keys_or_more_than_the_client_takes_at_once(store, block, monkeypatch):
    assert store.batch_put_from([], [], []) == store.batch_get_into([], [], []) == store.batch_is_exist([]) == []
    assert store.get_batch([]) == store.batch_get_buffer([]) == store.batch_remove([]) == []
    assert store.put_batch([], []) == 0 and store.batch_get_replica_desc([]) == {}
    monkeypatch.setattr(module, "_BATCH_KEYS_MAX", 7)
    source, sink = block(200, bytes(range(200))), block(200)
    keys, sizes = [f"key {n}" for n in range(200)], [1] * 200
    assert store.batch_put_from(keys, [source.ptr + n for n in range(200)], sizes) == [0] * 200
    assert store.batch_get_into(keys, [sink.ptr + n for n in range(200)], sizes) == sizes
    assert bytes(sink) == bytes(source) == b"".join(store.get_batch(keys))
    assert len(store.batch_get_replica_desc(keys)) == 200
    assert store.remove_by_regex("^key [0-9]+5$") == 19 and store.batch_is_exist(["key 5", "key 15"]) == [1, 0]
    assert store.remove_all() == 181


def test_many_threads_put_and_read_batches_of_their_own(store):
    failed = []

    def run(thread: int) -> None:
        memory = [Block(8 * 5000), Block(8 * 5000)]
        for made in memory:
            assert store.register_buffer(made.ptr, made.size) == 0
        for turn in range(10):
            memory[0].array[:] = bytes([thread * 16 + turn]) * memory[0].size
            keys = [f"{thread} {turn} {n}" for n in range(8)]
            sizes = [5000] * 8
            put = store.batch_put_from(keys, [memory[0].ptr + 5000 * n for n in range(8)], sizes)
            got = store.batch_get_into(keys, [memory[1].ptr + 5000 * n for n in range(8)], sizes)
            if put != [0] * 8 or got != sizes or bytes(memory[0]) != bytes(memory[1]):
                failed.append((keys, put, got))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_after_close_calls_answer_that_there_is_no_setup(store):
    assert store.put("a", b"1") == 0 and store.close() == 0
    assert store.put("a", b"1") == store.get_size("a") == store.remove("a") == store.is_exist("a") == INVALID
    assert store.batch_put_from(["a"], [1], [1]) == store.batch_get_into(["a"], [1], [1]) == [INVALID]
    assert (store.get("a"), store.get_buffer("a"), store.get_replica_desc("a")) == (b"", None, [])


def test_an_object_of_several_parts_is_read_whole(store):
    value = numpy.random.default_rng(1).integers(0, 256, (64 << 20) + 12345, numpy.uint8)
    assert store.put("long", value) == 0
    into = Block(len(value))
    assert store.get_into("long", into.ptr, into.size) == len(value)
    assert numpy.array_equal(numpy.frombuffer(into.array, numpy.uint8), value)
    assert store.get_size("long") == len(value) and store.remove("long") == 0


def test_registered_memory_is_put_and_read_by_address(store, block):
    source, sink = block(30000, bytes(range(200)) * 150), block(30000)
    assert store.put_from("one", source.ptr + 100, 10000) == 0
    assert store.get_into("one", sink.ptr, 10000) == 10000
    assert bytes(sink)[:10001] == bytes(source)[100:10100] + b"\0"
    keys, offsets = ["x", "y", "z"], [0, 10000, 20000]
    assert store.batch_put_from(keys, [source.ptr + at for at in offsets], [10000] * 3) == [0] * 3
    got = store.batch_get_into(["x", "none", "z"], [sink.ptr + at for at in offsets], [10000, 10000, 9999])
    assert got == [10000, NOT_FOUND, INVALID], "the last one is longer than its place"
    assert bytes(sink)[:10000] == bytes(source)[:10000]
    assert store.batch_put_from(keys, [1], [1]) == store.batch_get_into(keys, [1], [1]) == [INVALID] * 3
    assert store.put_from("numpy", numpy.int64(source.ptr), numpy.int64(10)) == 0 and store.get_size("numpy") == 10
    assert store.put_from_with_metadata("meta", source.ptr, source.ptr + 7, 5, 3) == 0
    assert store.get("meta") == bytes(source)[7:10] + bytes(source)[:5]


def test_one_key_has_many_buffers(store, block):
    source, sink = block(4000, bytes(range(250)) * 16), block(5000)
    ptrs, sizes = [source.ptr + 3000, source.ptr, source.ptr + 1000], [500, 700, 1]
    whole = bytes(source)[3000:3500] + bytes(source)[:700] + bytes(source)[1000:1001]
    assert store.batch_put_from_multi_buffers(["k"], [ptrs], [sizes]) == [0] and store.get("k") == whole
    into = [sink.ptr + 2000, sink.ptr, sink.ptr + 4000]
    got = store.batch_get_into_multi_buffers(["k", "none"], [into, [sink.ptr]], [[1000, 200, 900], [10]], True)
    assert got == [1201, NOT_FOUND]
    assert bytes(sink)[2000:3000] + bytes(sink)[:200] + bytes(sink)[4000:4001] == whole
    assert store.batch_get_into_multi_buffers(["k"], [into], [[1, 1, 1]]) == [INVALID]
    assert store.batch_put_from_multi_buffers(["k"], [ptrs], [[1]]) == [INVALID]


def test_addresses_that_are_no_host_memory_answer_a_code_and_one_warning(store, caplog):
    store.put("a", b"x" * 100)
    device = 0x7000_0000_0000
    assert store.register_buffer(device, 4096) == INVALID
    assert store.put_from("b", device, 100) == TRANSFER and store.is_exist("b") == 0
    assert store.get_into("a", device, 100) == TRANSFER
    assert sum("are no readable memory of the host" in line for line in caplog.messages) == 1


def test_memory_that_is_not_registered_is_copied_by_the_kernel(store):
    source, sink = Block(100000, b"abc" * 30000), Block(100000)
    assert store.put_from("a", source.ptr, source.size) == 0
    assert store.get_into("a", sink.ptr, sink.size) == source.size and bytes(sink) == bytes(source)


def test_a_read_into_read_only_memory_answers_a_code(store):
    store.put("a", b"x" * 100)
    memory = mmap.mmap(-1, 4096)
    address = memory_module.base(memory)
    libc = memory_module._libc
    assert libc.mprotect(memory_module.ctypes.c_void_p(address), 4096, mmap.PROT_READ) == 0
    assert store.register_buffer(address, 4096) == 0, "a source may be read-only"
    assert store.put_from("zeros", address, 4096) == 0
    assert store.get_into("a", address, 4096) == TRANSFER


def test_buffers_are_registered_once_and_forgotten(store):
    made = Block(8192)
    assert store.register_buffer(made.ptr, 4096) == 0
    for ptr, size in [(made.ptr, 4096), (made.ptr + 4000, 200), (made.ptr - 10, 20), (made.ptr, 0), (0, 10)]:
        assert store.register_buffer(ptr, size) == INVALID
    assert store.register_buffer(made.ptr + 4096, 4096) == 0
    assert store.unregister_buffer(made.ptr) == 0 and store.unregister_buffer(made.ptr) == INVALID


def test_an_upsert_replaces_and_inserts(store, block):
    for n, call in enumerate([store.upsert, store.upsert_parts]):
        assert call("a", b"new %d" % n) == 0 and store.get("a") == b"new %d" % n
    assert store.upsert_batch(["a", "b"], [b"1", b"2"]) == 0 and store.get_batch(["a", "b"]) == [b"1", b"2"]
    source = block(10, b"0123456789")
    assert store.upsert_from("a", source.ptr, 4) == 0 and store.get("a") == b"0123"
    assert store.batch_upsert_from(["a", "b"], [source.ptr + 5] * 2, [3, 5]) == [0, 0]
    assert store.get_batch(["a", "b"]) == [b"567", b"56789"]


def test_readers_of_an_upserted_key_see_an_old_value_a_new_one_or_none(host, opened):
    writer, reader = opened(host, "upserts"), opened(host, "upserts")
    values = [bytes([n]) * 200_000 for n in range(4)]
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(reader.get("a"))

    thread = threading.Thread(target=read)
    thread.start()
    # The reader may not have had a turn yet.
    n, end = 0, time.monotonic() + 30
    while n < 12 or (len(seen) < 2 and time.monotonic() < end):
        assert writer.upsert("a", values[n % 4]) == 0
        n += 1
    done.set()
    thread.join()
    assert seen - {b""} <= set(values) and len(seen) > 1


def test_removal_by_pattern_sees_the_keys_of_this_store(host, opened, caplog):
    ours, other = opened(host, "patterns"), opened(host, "patterns")
    ours.put_batch(["kv_1", "kv_2", "meta_1"], [b"1"] * 3)
    other.put("kv_3", b"1")
    assert ours.remove_by_regex("^kv_") == 2 and ours.remove_by_regex("(") == INVALID
    assert ours.batch_is_exist(["kv_1", "kv_2", "kv_3", "meta_1"]) == [0, 0, 1, 1]
    assert "only keys that this store put" in caplog.text


def test_only_so_many_keys_are_remembered():
    names = module.Names(most=3)
    for n in range(5):
        names.add([f"key {n}"])
    assert names.matching(module.re.compile("key")) == ["key 2", "key 3", "key 4"] and not names.are_all


def test_tenants_share_nothing(host, opened):
    one, two = opened(host, "one"), opened(host, "two")
    one.put("a", b"1")
    two.put("a", b"2")
    assert one.remove_all() == 1 and (one.get("a"), two.get("a")) == (b"", b"2")


def test_descriptors_say_where_an_object_is(store):
    store.put("a", b"x" * 100)
    found = store.batch_get_replica_desc(["a", "none"])
    [replica] = found["a"]
    assert list(found) == ["a"] and replica.is_memory_replica()
    assert not replica.is_disk_replica() and not replica.is_local_disk_replica()
    assert replica.get_memory_descriptor().buffer_descriptor.size == 100
    with pytest.raises(RuntimeError):
        replica.get_disk_descriptor()
    assert store.get_replica_desc("none") == []


def test_configs_that_mooncake_refuses_are_refused(store, block):
    config, source = ReplicateConfig(), block(10)
    config.group_ids = ["g"]
    assert store.put("a", b"1", config) == 0
    assert store.put_batch(["b", "c"], [b"1", b"2"], config) == INVALID
    assert store.batch_put_from(["b", "c"], [source.ptr] * 2, [5] * 2, config) == [INVALID] * 2
    config.group_ids = ["g", "h"]
    assert store.batch_put_from(["b", "c"], [source.ptr] * 2, [5] * 2, config) == [0] * 2
    config = ReplicateConfig()
    config.replica_num = 0
    assert store.put("d", b"1", config) == INVALID
    config.replica_num, config.prefer_alloc_in_same_node = 2, True
    assert store.put("d", b"1", config) == INVALID
    assert store.batch_put_from_multi_buffers(["d"], [[source.ptr]], [[5]], config) == [0]
    with pytest.raises(AttributeError):
        config.replicas = 2
    with pytest.raises(TypeError):
        config.replica_num = "2"


def test_calls_without_a_meaning_say_so(store, caplog):
    none = -1012
    assert store.mount_segment("/dev/shm/x", 4096) == {"ret": none, "segment_ids": []}
    assert store.allocate_and_mount_segment(4096)["ret"] == none
    assert store.unmount_segment(["s"]) == store.unmount_and_free_segment(["s"]) == none
    assert store.unmount_local_disk_segment() == store.init_all("tcp", "", 4096) == none
    assert store.create_copy_task("a", ["s"])[1] == store.create_move_task("a", "s", "t")[1] == none
    assert store.query_task((0, 0)) == (None, none) and store.batch_replica_clear(["a"]) == []
    assert store.get_tensor_into_cuda("a", None) == none and store.get_offload_rpc_read_count() == 0
    store.mount_segment("/dev/shm/x", 4096)
    assert sum("mount_segment does nothing" in line for line in caplog.messages) == 3, "one each for three calls"


# ---- With a daemon of its own ----


def block_of(store: MooncakeDistributedStore, size: int) -> Block:
    made = Block(size)
    assert store.register_buffer(made.ptr, size) == 0
    return made


def fill(store: MooncakeDistributedStore, count: int, first: int = 0) -> list[int]:
    return [store.put(f"filler {n}", n.to_bytes(8, "little") * (1 << 17)) for n in range(first, first + count)]


def test_old_objects_make_room_and_are_misses_then(own_host, opened):
    store = opened(own_host)
    assert set(fill(store, 64)) <= {0, PRESSURE}, "64 MiB into 32 MiB"
    there = store.batch_is_exist([f"filler {n}" for n in range(64)])
    assert 0 < sum(there) < 64
    for n, is_there in enumerate(there):
        assert store.get(f"filler {n}") == (n.to_bytes(8, "little") * (1 << 17) if is_there else b"")


def test_objects_come_back_from_ssd_also_after_daemon_and_memory_are_gone(tmp_path, opened):
    host = Host("32MiB", "--ssd-paths", str(tmp_path / "blocks.ssd"), "--ssd-bytes", "512MiB")
    keys = [f"filler {n}" for n in range(64)]
    try:
        store = opened(host, "ssd")
        for n in range(64):
            assert eventually("room", lambda n=n: fill(store, 1, first=n) == [0])
        found = store.batch_get_replica_desc(keys)
        on_ssd = [key for key, [replica] in found.items() if replica.is_local_disk_replica()]
        assert on_ssd and not found[on_ssd[0]][0].is_memory_replica()
        read = set(range(64)) & {n for n in range(64) if store.get(f"filler {n}") == n.to_bytes(8, "little") * (1 << 17)}
        assert len(read) > 40, "more than memory has room for"
        assert store.get_size(on_ssd[0]) == 1 << 20 and store.batch_get_session_start(on_ssd[:1]) == [0]
        store.close()
        host.kill()
        host.lose_memory()
        host.start()
        store = opened(host, "ssd")
        assert eventually("what the log has", lambda: sum(store.batch_is_exist(keys)) > 8)
        again = [n for n in range(64) if store.get(f"filler {n}") == n.to_bytes(8, "little") * (1 << 17)]
        assert len(again) > 8
    finally:
        host.end()


@pytest.mark.parametrize("pin", ["hard", "soft"])
def test_pinned_objects_outlive_others(own_host, opened, pin):
    store, config = opened(own_host), ReplicateConfig()
    config.with_hard_pin = pin == "hard"
    config.soft_pin_action = SoftPinAction.ENABLE if pin == "soft" else SoftPinAction.PRESERVE
    keys = [f"pinned {n}" for n in range(4)]
    assert store.put_batch(keys, [b"x" * (1 << 20)] * 4, config) == 0
    fill(store, 128)
    assert store.batch_is_exist(keys) == [1] * 4


def test_where_everything_is_pinned_by_views_a_put_answers_pressure(impatient_host, opened):
    store = opened(impatient_host)
    eventually("the memory to be full", lambda: set(fill(store, 24)) == {0})
    held = [f"filler {n}" for n in range(24) if store.is_exist(f"filler {n}")]
    assert set(store.batch_get_session_start(held)) == {0}
    source = block_of(store, 1 << 20)
    started = time.monotonic()
    results = store.batch_put_from([f"more {n}" for n in range(32)], [source.ptr] * 32, [source.size] * 32)
    assert results[-1] == PRESSURE and set(results) <= {0, PRESSURE}
    assert time.monotonic() - started < 20, "a batch waits for room once, not for each key"
    store.batch_get_session_end(held)
    assert eventually("room", lambda: 0 in fill(store, 1, first=200))


def test_without_a_daemon_calls_end_and_with_it_they_work_again(own_host, opened):
    store = opened(own_host)
    assert store.put("a", b"before") == 0
    own_host.kill()
    eventually("the loss to be seen", lambda: store.health_check() == 2)
    assert store.put("b", b"1") == GONE and store.is_exist("b") == 0 and store.remove("a") == GONE
    assert store.get("a") == b"before", "memory outlives the daemon"
    assert store.get("b") == b"" and store.remove_all() == GONE
    own_host.start()
    eventually("the daemon", lambda: store.health_check() == 0)
    assert store.get("a") == b"before" and eventually("a put", lambda: store.put("b", b"1") == 0)
    assert store.get("b") == b"1"


def test_with_a_daemon_that_stands_still_calls_end(impatient_host, opened):
    store = opened(impatient_host)
    eventually("a put", lambda: store.put("a", b"before") == 0)
    impatient_host.pause()
    assert store.put("b", b"x" * 100_000) < 0
    assert store.get("a") == b"before" and store.get("none") == b""


def test_a_forked_child_is_told_and_harms_nothing(store):
    assert store.put("a", b"1") == 0
    reader, writer = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: writer.send([store.put("b", b"1"), store.is_exist("a"), store.get("a"), store.close()])
    )
    child.start()
    assert reader.poll(30) and reader.recv() == [-601, -601, b"", 0]
    child.join()
    assert store.get("a") == b"1" and store.put("b", b"2") == 0


def _other_process(socket: str, results: multiprocessing.Queue) -> None:
    store = MooncakeDistributedStore()
    results.put(store.setup("other", "", 0, 1 << 20, "tcp", "", f"unix:{socket}", None, tenant_id="two processes"))
    sink = Block(100_000)
    results.put([store.get_into("from one", sink.ptr, sink.size), bytes(sink)[:5]])
    results.put(store.put("from two", b"hello back"))
    store.close()


def test_two_processes_share_what_they_put(host, opened):
    store = opened(host, "two processes")
    assert store.put("from one", b"hello" * 20_000) == 0
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    other = context.Process(target=_other_process, args=(str(host.socket), results))
    other.start()
    assert [results.get(timeout=60) for _ in range(3)] == [0, [100_000, b"hello"], 0]
    other.join()
    assert store.get("from two") == b"hello back"
