"""Memory of GPUs by address, over the stand-in for CUDA's driver."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import lapis_kv
import pytest
from conftest import Host
from cuda import Cuda, stand_in
from host import eventually
from lapis_mooncake import gpu, memory
from lapis_mooncake.memory import HOST, Range

NOT_FOUND, INVALID, TRANSFER = -704, -600, -800
WHOLE = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cuda]:
    cuda = Cuda(tmp_path_factory.mktemp("cuda") / "misuses")
    yield cuda
    misuses = cuda.misuses.read_text() if cuda.misuses.exists() else ""
    assert misuses == "", "misuse of the driver"


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies that are longer than what is pinned for them."""
    monkeypatch.setattr(gpu, "_lanes", {})
    monkeypatch.setattr(gpu, "_STAGE_BYTES", 1000)


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize("registered", [True, False])
def test_objects_come_from_a_gpu_and_go_to_one(cuda, store, stage, device, registered):
    cuda.use(device)
    source, sink = cuda.memory(WHOLE), cuda.memory(bytes(len(WHOLE)))
    cuda.use(1 - device)  # Whatever is current in the calling thread.
    if registered:
        assert store.register_buffer(source.ptr, source.size) == store.register_buffer(sink.ptr, sink.size) == 0
        assert store.register_buffer(source.ptr + 5, 10) == INVALID, "it is registered"
    # The parts of each object in an order of their own.
    ptrs = [[source.ptr + 5000, source.ptr, source.ptr + 10_000], [source.ptr + 20_000]]
    assert store.batch_put_from_multi_buffers(["a", "b"], ptrs, [[5000, 3000, 7], [9000]]) == [0, 0]
    a, b = WHOLE[5000:10_000] + WHOLE[:3000] + WHOLE[10_000:10_007], WHOLE[20_000:29_000]
    assert (store.get("a"), store.get("b")) == (a, b)
    to = [[sink.ptr + 50_000, sink.ptr + 10], [sink.ptr + 60_000], [sink.ptr + 90_000]]
    got = store.batch_get_into_multi_buffers(["a", "none", "b"], [to[0], to[1], to[2]], [[4000, 5000], [10], [9000]])
    assert got == [8007, NOT_FOUND, 9000]
    cuda.use(device)
    read = bytes(sink)
    expected = bytearray(len(WHOLE))
    expected[50_000:54_000], expected[10:4017], expected[90_000:99_000] = a[:4000], a[4000:], b
    assert read == expected, "those bytes, and no other"
    assert store.put_from("c", source.ptr, source.size) == 0 and store.get("c") == WHOLE
    assert store.get_into("c", sink.ptr, sink.size - 1) == INVALID and bytes(sink) == read
    assert store.get_into("c", sink.ptr, sink.size) == len(WHOLE) and bytes(sink) == WHOLE
    assert store.batch_upsert_from(["c"], [source.ptr + 1], [3]) == [0] and store.get("c") == WHOLE[1:4]
    if registered:
        assert store.unregister_buffer(source.ptr) == store.unregister_buffer(sink.ptr) == 0
    source.free()
    sink.free()


@pytest.fixture(scope="module")
def gpu_host() -> Iterator[Host]:
    """Whose daemon has memory on the first GPU."""
    host = Host("256MiB", "--hbm-bytes", "16MiB", "--hbm-cuda-library", str(stand_in()))
    yield host
    host.end()


def test_a_gpu_reads_objects_itself_and_from_its_own_memory_what_it_reads_again(cuda, gpu_host, opened, monkeypatch):
    cuda.use(0)
    store, sink = opened(gpu_host), cuda.memory(bytes(20_000))
    assert store.register_buffer(sink.ptr, sink.size) == 0
    values = {"a": WHOLE[:9000], "b": WHOLE[100:5100], "c": WHOLE[7:4007]}
    assert [store.put(*one) for one in values.items()] == [0] * 3
    to, sizes = [[sink.ptr + 10_000, sink.ptr], [sink.ptr + 12_000], [sink.ptr + 17_000], [sink.ptr]], [[2000, 7000], [5000], [3000], [9]]
    expected = WHOLE[2000:9000] + bytes(3000) + WHOLE[:2000] + WHOLE[100:5100] + bytes(3000)

    def read() -> bool:
        assert store.batch_get_into_multi_buffers(["a", "b", "c", "none"], to, sizes) == [9000, 5000, INVALID, NOT_FOUND]
        return bytes(sink) == expected

    # Until the host's memory is registered with the driver objects come by way of the process.
    staged: list[int] = []
    write = gpu.write
    monkeypatch.setattr(gpu, "write", lambda device, pieces: staged.append(device) or write(device, pieces))
    eventually("reads by the GPU", lambda: read() and (not staged or staged.clear()))
    eventually("copies on the GPU", lambda: read() and lapis_kv.status(gpu_host.socket)["gpus"][0]["held"]["blocks"] >= 2)
    assert read() and not staged
    ranges = store.get_into_ranges([sink.ptr], [["b", "none"]], [[[0, 9], [20]]], [[[5, 4995], [0]]], [[[4, 6], [1]]])
    assert ranges == [[[4, INVALID], [NOT_FOUND]]] and bytes(sink) == WHOLE[105:109] + expected[4:] and not staged
    sink.free()


def test_a_gpu_is_asked_for_the_objects_whose_places_are_all_its_own():
    def place(device: int, size: int = 8) -> Range:
        return Range(1000 * (device + 2), size, device == HOST, device)

    asked = []

    def read(device: int, keys: list[str], places: object, offsets: object) -> list[int | None]:
        asked.append((device, keys, places, offsets))
        return [None if key == "d" else 10 + device for key in keys]

    zero, one, host, none = place(0), place(1), place(HOST), place(HOST, 0)
    places = [[zero, zero], [one], [zero, one], [one, none], [zero, host], [none], []]
    offsets = [[n] * len(of_key) for n, of_key in enumerate(places)]
    assert memory.read_to_gpus(read, list("abcdefg"), places, offsets) == [10, 11, None, None, None, None, None]
    at = [(zero.address, 8)], [(one.address, 8)]
    assert asked == [(0, ["a"], [2 * at[0]], [[0, 0]]), (1, ["b", "d"], [at[1], [*at[1], (1000, 0)]], [[1], [3, 3]])]


class Instead:
    """A client with another `get_objects_device`."""

    def __init__(self, client: object, get_objects_device: Callable[..., object]) -> None:
        self._client, self.get_objects_device = client, get_objects_device

    def __getattr__(self, name: str) -> object:
        return getattr(self._client, name)


def test_a_gpu_that_reads_nothing_itself_is_asked_once(cuda, store, monkeypatch):
    cuda.use(0)
    sink, asked = cuda.memory(bytes(100)), []
    store.put("k", b"x" * 100)

    def refuses(*_given: object, **_named: object) -> None:
        asked.append(is_transient)
        error = lapis_kv.GpuError("no")
        error.is_transient = is_transient
        raise error

    monkeypatch.setattr(store._daemon, "_client", Instead(store._daemon._client, refuses))
    for is_transient in (True, False, False):
        assert store.get_into("k", sink.ptr, 100) == 100 and bytes(sink) == b"x" * 100
    assert asked == [True, False]
    sink.free()


def test_what_the_daemon_took_back_while_a_gpu_read_it_is_read_again(cuda, store, monkeypatch):
    cuda.use(0)
    sink = cuda.memory(bytes(100))
    store.put("k", b"x" * 100)
    lost = SimpleNamespace(found=[100], still_valid=lambda: False)
    monkeypatch.setattr(store._daemon, "_client", Instead(store._daemon._client, lambda *_given, **_named: lost))
    assert store.get_into("k", sink.ptr, 100) == 100 and bytes(sink) == b"x" * 100
    sink.free()


def test_one_object_may_lie_on_the_host_and_on_two_gpus(cuda, store, block):
    on_host = block(100, b"h" * 100)
    cuda.use(0)
    first = cuda.memory(b"0" * 100)
    cuda.use(1)
    second = cuda.memory(b"1" * 100)
    ptrs = [second.ptr, on_host.ptr, first.ptr, second.ptr + 50]
    assert store.batch_put_from_multi_buffers(["k"], [ptrs], [[1, 2, 3, 4]]) == [0]
    assert store.get("k") == b"1hh0001111"
    store.put("l", b"abcdefghij")
    assert store.batch_get_into_multi_buffers(["l"], [ptrs], [[1, 2, 3, 4]]) == [10]
    assert bytes(second)[:2] + bytes(second)[50:55] == b"a1ghij1" and bytes(on_host)[:3] == b"bch"
    cuda.use(0)
    assert bytes(first)[:4] == b"def0"
    first.free()
    cuda.use(1)
    second.free()


def test_ranges_and_sessions_reach_gpus(cuda, store):
    cuda.use(0)
    memory = cuda.memory(WHOLE[:1000])
    assert store.register_buffer(memory.ptr, 1000) == 0
    assert store.batch_put_session_start(["k"], [1000]) == [0]
    halves = [memory.ptr + 500, memory.ptr]
    assert store.batch_put_from_multi_buffer_ranges(["k"], [halves], [[500, 500]], [[0, 500]]) == [1000]
    assert store.batch_put_session_end(["k"]) == [0] and store.get("k") == WHOLE[500:1000] + WHOLE[:500]
    assert store.get_into_ranges([memory.ptr], [["k"]], [[[0, 10]]], [[[500, 0]]], [[[4, 2]]]) == [[[4, 2]]]
    assert store.batch_get_session_start(["k"]) == [0]
    assert store.batch_get_into_multi_buffer_ranges(["k"], [[memory.ptr + 100]], [[3]], [[501]]) == [3]
    store.batch_get_session_end(["k"])
    expected = bytearray(WHOLE[:1000])
    expected[:4], expected[10:12], expected[100:103] = WHOLE[:4], WHOLE[500:502], WHOLE[1:4]
    assert bytes(memory) == expected
    memory.free()


def test_what_is_freed_or_beyond_its_end_is_no_memory(cuda, store):
    cuda.use(0)
    memory = cuda.memory(bytes(512))
    assert store.register_buffer(memory.ptr, 1 << 30) == INVALID
    assert store.put_from("k", memory.ptr, 1 << 20) == TRANSFER and store.is_exist("k") == 0
    store.put("k", b"x" * 100)
    memory.free()
    assert store.register_buffer(memory.ptr, 100) == INVALID
    assert store.put_from("l", memory.ptr, 100) == store.get_into("k", memory.ptr, 100) == TRANSFER


def test_a_process_without_a_driver_loads_none(host):
    program = """
import sys
from lapis_mooncake import gpu
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
assert store.setup("me", "", 0, 1 << 20, "tcp", "", "unix:" + sys.argv[1]) == 0
assert store.put_from("k", 1 << 40, 8) == -800 and store.register_buffer(1 << 40, 8) == -600
assert gpu.device_of(1 << 40, 8) == gpu.HOST and "libcuda" not in open("/proc/self/maps").read()
"""
    ran = subprocess.run([sys.executable, "-c", program, host.socket], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr


def test_no_tensor_is_made_over_memory_of_a_gpu(cuda, store):
    cuda.use(0)
    store.put("t", WHOLE)
    memory = cuda.memory(b"m" * len(WHOLE))
    assert store.get_tensor_into("t", memory.ptr, memory.size) is None
    assert store.batch_get_tensor_into(["t", "none"], [memory.ptr] * 2, [memory.size] * 2) == [None, None]
    assert bytes(memory) == b"m" * len(WHOLE)
    memory.free()
