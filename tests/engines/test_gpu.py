"""The worker over a KV cache on a GPU: a real daemon and client over the stand-in for CUDA's driver, and of torch no more than
is used of it, made here of the driver's calls. The stand-in tells of two that touch the same bytes in no order."""

import contextlib
import ctypes
import importlib.util
import os
import random
import threading
from types import SimpleNamespace

import numpy
import pytest

import lapis_kv
from lapis_kv.vllm import gpu as module
from lapis_kv.vllm import groups as kv
from lapis_kv.vllm.connector import LapisConnector
from lapis_kv.vllm.gpu import Way, load_way, save_way
from lapis_kv.vllm.plan import Blocks, Plan, Transfer
from lapis_kv.vllm.worker import Worker
from hosts import HERE



def _of_the_client(name: str):
    """A module of the client's own tests; `cuda` is a package of NVIDIA's, too."""
    spec = importlib.util.spec_from_file_location(f"client_{name}", HERE.parents[1] / f"clients/python/tests/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Cuda, stand_in = (getattr(_of_the_client("cuda"), name) for name in ("Cuda", "stand_in"))
Host, eventually, patiently = (getattr(_of_the_client("host"), name) for name in ("Host", "eventually", "patiently"))

TOKENS, BLOCKS, ROW = 16, 12, 4096
DRAM_BYTES = 64 << 20
LAYERS = ("l0", "l1", "l2")
FULL = kv.Group(0, TOKENS, 1, LAYERS, len(LAYERS) * ROW, None, False)
# Slower than the calls that follow, so that copies are under way when a layer is waited for.
LATENCY_US = "2000-4000"
REGISTER_US = "300000"


def test_the_gpu_copies_only_where_the_cache_is_on_one_of_cuda_and_the_daemon_serves_it():
    ways = {
        (device, staged, serve): load_way(device, staged, serve)
        for device in ("cpu", "cuda") for staged in (False, True) for serve in (False, True)
    }
    assert ways == {
        ("cpu", False, False): Way.DIRECT, ("cpu", False, True): Way.DIRECT,
        ("cpu", True, False): Way.STAGED, ("cpu", True, True): Way.STAGED,
        ("cuda", False, False): Way.STAGED, ("cuda", False, True): Way.GPU,
        ("cuda", True, False): Way.STAGED, ("cuda", True, True): Way.STAGED,
    }


def test_saves_go_by_the_gpu_only_of_equal_parts_that_nobody_overwrites():
    assert save_way(Way.GPU, [64, 64], is_lent=False) is Way.GPU
    assert save_way(Way.GPU, [64, 32], is_lent=False) is Way.STAGED
    assert save_way(Way.GPU, [64, 64], is_lent=True) is Way.STAGED
    for way in (Way.DIRECT, Way.STAGED):
        assert save_way(way, [64, 32], is_lent=True) is way


def test_graphs_of_whole_steps_are_given_up_only_for_loads_within_a_step():
    needs = LapisConnector.requires_piecewise_for_cudagraph
    assert needs({"lapis.load": "sync"}) and not needs({"lapis.load": "async"}) and not needs({})


class Torch:
    """`torch.cuda` of one device, with one stream that the engine computes on: that of the thread that makes this, for other
    threads have the default stream, as with vLLM."""

    def __init__(self, cuda: Cuda, device: int):
        self._cuda, self.device = cuda, SimpleNamespace(type="cuda", index=device)
        self.engine, self.cuda, self._current = self.Stream(), self, threading.local()
        self._current.stream, self._default = self.engine, Stream(self, 0)

    def call(self, function: str, *arguments):
        # As torch's guards do it, in each thread.
        self._cuda.use(self.device.index)
        try:
            self._cuda(function, *arguments)
        except AssertionError as error:
            raise RuntimeError(f"CUDA error: {error}") from error

    def Stream(self, device=None):
        self._cuda.use(self.device.index)
        return Stream(self, self._cuda.stream())

    def current_stream(self, device):
        assert device is self.device
        return getattr(self._current, "stream", self._default)

    @contextlib.contextmanager
    def stream(self, stream):
        before, self._current.stream = self.current_stream(self.device), stream
        yield
        self._current.stream = before

    def Event(self):
        return Event(self)

    def synchronize(self, device):
        assert device is self.device
        self.call("cuCtxSynchronize")

    def memory(self, data: bytes):
        self._cuda.use(self.device.index)
        return self._cuda.memory(data)


class Stream:
    def __init__(self, torch: Torch, raw: int):
        self._torch, self.cuda_stream = torch, raw

    def synchronize(self):
        self._torch.call("cuStreamSynchronize", ctypes.c_void_p(self.cuda_stream))

    def wait_event(self, event):
        self._torch.call("cuStreamWaitEvent", ctypes.c_void_p(self.cuda_stream), event.raw, 0)

    def copy(self, to: int, at: int, count: int):
        self._torch.call("cuMemcpyDtoDAsync_v2", *map(ctypes.c_uint64, (to, at, count)), ctypes.c_void_p(self.cuda_stream))


class Event:
    def __init__(self, torch: Torch):
        self._torch, self.raw = torch, ctypes.c_void_p()
        torch.call("cuEventCreate", ctypes.byref(self.raw), 2)

    def record(self, stream: Stream):
        self._torch.call("cuEventRecord", self.raw, ctypes.c_void_p(stream.cuda_stream))


class Tensor:
    """[blocks, elements of two bytes], each row so many bytes after the one before."""

    def __init__(self, torch: Torch, row_bytes: int, data: bytes, gap: int = 0):
        self.device, self.row_bytes, self.gap = torch.device, row_bytes, gap
        self.shape, self.memory = (BLOCKS, row_bytes // 2), torch.memory(data)

    def data_ptr(self):
        return self.memory.ptr

    def stride(self, dim: int | None = None):
        strides = (self.row_bytes + self.gap) // 2, 1
        return strides if dim is None else strides[dim]

    def element_size(self):
        return 2

    def row(self, block: int) -> int:
        return self.data_ptr() + block * (self.row_bytes + self.gap)

    def rows(self) -> list[bytes]:
        each, data = self.row_bytes + self.gap, bytes(self.memory)
        return [data[at * each : at * each + self.row_bytes] for at in range(BLOCKS)]


@pytest.fixture(scope="module")
def cuda(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda")
    stand_in()
    os.environ.update(LAPIS_CUDA_LATENCY_US=LATENCY_US, LAPIS_CUDA_REGISTER_US=REGISTER_US, LAPIS_CUDA_LOSE=f"1@{folder / 'lose'}")
    cuda = Cuda(folder / "misuses")
    cuda.lose = folder / "lose"
    yield cuda
    assert not cuda.misuses.exists() or cuda.misuses.read_text() == "", "misuse of the driver"


@pytest.fixture(scope="module")
def host(cuda):
    host = Host(f"{DRAM_BYTES >> 20}MiB", "--hbm-bytes", "16MiB", "--hbm-cuda-library", str(stand_in()))
    yield host
    host.end()


class Engine:
    """A worker, the KV cache that it works on, and what the engine computes with: what each layer found."""

    def __init__(self, cuda, host, monkeypatch, name: str, device: int = 0, group=FULL, by_block: bool = True, rows=None,
                 open_seconds: float = 20.0):
        self.torch, self.group = Torch(cuda, device), group
        monkeypatch.setattr(module, "torch", self.torch)
        self.client = host.client(gpus=True)
        space = lapis_kv.Namespace(name)
        self.pool = patiently(lambda: self.client.pool(space, "g0s0", group.block_bytes))
        link = SimpleNamespace(client=self.client, made={(0, 0): self.pool}, serves_gpus=True)
        self.worker = Worker(link, [group], 0, 20.0, 20.0, False, by_block, open_seconds)
        draw = random.Random(name)
        self.caches, self.found = {}, {}
        # Layers that the step reads without waiting for them.
        self.silent = set()
        for layer in group.layers:
            given = (rows or {}).get(layer, [(ROW, 0)])
            made = [Tensor(self.torch, row, draw.randbytes(BLOCKS * (row + gap)), gap) for row, gap in given]
            self.caches[layer] = made if len(made) > 1 else made[0]
        self.worker.register(self.caches)

    def tensors(self, layer):
        tensors = self.caches[layer]
        return tensors if isinstance(tensors, list) else [tensors]

    def block(self, block: int) -> bytes:
        return b"".join(tensor.rows()[block] for layer in self.group.layers for tensor in self.tensors(layer))

    def blocks(self) -> list[bytes]:
        return [self.block(at) for at in range(BLOCKS)]

    def step(self, loads=(), saves=(), at_once=False):
        """As vLLM calls it, with a forward pass that copies the loaded blocks of each layer away when it comes to it."""
        plan = Plan()
        plan.loads, plan.saves, plan.loads_at_once = list(loads), list(saves), at_once
        self.worker.before_step(plan)
        self.worker.load(plan)
        self.forward(plan)
        self.worker.save(plan)
        return self.worker.results()

    def forward(self, plan):
        blocks = [block for load in plan.loads for part in load.parts for block in part.block_ids] if plan.loads_at_once else []
        for layer in self.group.layers:
            if layer not in self.silent:
                self.worker.wait_for_layer(layer)
            for tensor in self.tensors(layer):
                for block in blocks:
                    away = self.torch.memory(bytes(tensor.row_bytes))
                    self.torch.engine.copy(away.ptr, tensor.row(block), tensor.row_bytes)
                    self.found.setdefault(block, []).append(away)

    def seen(self, block: int) -> bytes:
        """What the forward pass found."""
        self.torch.engine.synchronize()
        return b"".join(bytes(memory) for memory in self.found[block])

    def received(self):
        told = []
        eventually("the load", lambda: told.append(self.worker.results()) or told[-1][1])
        return told[-1]

    def close(self):
        self.worker.close()
        self.client.close()


def key(at: int) -> bytes:
    return bytes([at + 1]) * 32


def transfer(blocks, first: int = 0):
    keys = b"".join(key(first + at) for at in range(len(blocks)))
    return Transfer("r", [Blocks(0, keys, list(blocks))])


@pytest.fixture
def engine(cuda, host, monkeypatch, request):
    made = []

    def make(**given):
        made.append(Engine(cuda, host, monkeypatch, f"{request.node.name} {len(made)}", **given))
        return made[-1]

    yield make
    for it in made:
        it.close()


def test_each_layer_is_there_when_the_step_comes_to_it_and_was_on_its_way_before(engine, host):
    it, puts = engine(), lapis_kv.status(host.socket)["hbm"]["puts"]
    before = it.blocks()
    it.step(saves=[transfer([1, 2, 3])])
    it.worker.flush()
    eventually("slots on the daemon's GPU", lambda: lapis_kv.status(host.socket)["hbm"]["puts"] == puts + 3)
    stored = bytearray(3 * FULL.block_bytes)
    eventually("them in DRAM", lambda: it.client.get_into(it.pool, b"".join(map(key, range(3))), stored).hits == 3)
    assert stored == b"".join(before[1:4]), "all layers of a block, in their order"

    waited, was_over = it.worker.wait_for_layer, []

    def wait(layer):
        was_over.extend(load._got.is_piece_over(LAYERS.index(layer)) for load in it.worker._under_way)
        waited(layer)
        if layer == LAYERS[-1]:
            it.torch.call("cuStreamWriteValue32_v2", ctypes.c_void_p(it.torch.Stream().cuda_stream), *word, 0)

    # Loads are behind what the engine has asked for, which goes on when the last layer was waited for.
    gate = it.torch.memory(bytes(4))
    word = ctypes.c_uint64(gate.ptr), ctypes.c_uint32(1)
    it.torch.call("cuStreamWaitValue32_v2", ctypes.c_void_p(it.torch.engine.cuda_stream), *word, 0)
    it.worker.wait_for_layer = wait
    it.step(loads=[transfer([7, 8]), transfer([10], first=2)], at_once=True)
    assert was_over == [False] * 6, "two loads, three layers each: waited for before they were there"
    assert not it.worker._under_way and not it.worker.bad_blocks()
    assert [it.seen(block) for block in (7, 8, 10)] == before[1:4], "as the step found them"
    assert it.blocks() == [*before[:7], before[1], before[2], before[9], before[3], before[11]]
    counts = it.worker.stats.take()
    assert (counts["saves"], counts["save_blocks"], counts["load_blocks"], counts["load_failed_blocks"]) == (1, 3, 3, 0)
    assert counts["load_bytes"] == counts["save_bytes"] == 3 * FULL.block_bytes


def test_between_steps_a_request_is_named_when_all_of_it_is_there(engine):
    it = engine()
    before = it.blocks()
    it.step(saves=[transfer([1, 2, 3])])
    it.worker.flush()
    it.step(loads=[transfer([9, 8, 7])])
    assert it.received() == (set(), {"r"}, set()) and not it.worker.bad_blocks()
    assert it.blocks() == [*before[:7], before[3], before[2], before[1], *before[10:]]


def test_a_block_that_is_missing_is_told_as_ever_and_its_memory_left_alone(engine):
    for at_once, by_block in ((True, True), (False, True), (False, False)):
        it = engine(by_block=by_block)
        before = it.blocks()
        it.client.put_from(it.pool, key(0) + key(2), before[1] + before[3])
        told = it.step(loads=[transfer([5, 6, 7])], saves=[transfer([5, 6, 7])] if at_once else [], at_once=at_once)
        if not at_once:
            assert it.received() == (set(), {"r"}, set() if by_block else {"r"})
        assert told[2] == set() and it.worker.bad_blocks() == ({6} if by_block else set())
        assert it.blocks() == [*before[:5], before[1], before[6], before[3], *before[8:]]
        if at_once:
            it.worker.flush()
            assert not it.client.exists(it.pool, key(1))[0], "nothing is saved of what was computed on it"


def test_tensors_of_unlike_rows_and_with_gaps_are_loaded_too(engine):
    rows = {"l0": [(1024, 0), (ROW, 512)], "l2": [(2048, 2048)]}
    group = kv.Group(0, TOKENS, 1, LAYERS, 1024 + ROW + ROW + 2048, None, False)
    it = engine(group=group, rows=rows)
    before = it.blocks()
    it.client.put_from(it.pool, key(0) + key(1), before[1] + before[2])
    gaps = [bytes(tensor.memory)[tensor.row_bytes : tensor.row_bytes + tensor.gap] for tensor in it.tensors("l0")]
    it.step(loads=[transfer([11, 0])], at_once=True)
    assert not it.worker.bad_blocks() and [it.seen(11), it.seen(0)] == before[1:3]
    assert it.blocks() == [before[2], *before[1:11], before[1]]
    assert gaps == [bytes(tensor.memory)[tensor.row_bytes : tensor.row_bytes + tensor.gap] for tensor in it.tensors("l0")]
    assert save_way(Way.GPU, it.worker._planes[0].row_bytes, is_lent=False) is Way.STAGED


def test_blocks_that_are_apart_go_out_and_come_back(engine, host):
    # As in a layout that has the layers of a block side by side.
    it = engine(rows={layer: [(ROW, 2 * ROW)] for layer in LAYERS})
    before, puts = it.blocks(), lapis_kv.status(host.socket)["hbm"]["puts"]
    assert save_way(Way.GPU, it.worker._planes[0].row_bytes, it.group.is_lent) is Way.GPU
    it.step(saves=[transfer([1, 2])])
    it.worker.flush()
    eventually("slots on the daemon's GPU", lambda: lapis_kv.status(host.socket)["hbm"]["puts"] == puts + 2)
    it.step(loads=[transfer([11, 5])], at_once=True)
    assert not it.worker.bad_blocks() and [it.seen(11), it.seen(5)] == before[1:3]
    assert it.blocks() == [*before[:5], before[2], *before[6:11], before[1]]


def test_what_the_daemon_took_back_meanwhile_is_told_and_nothing_computed_on_it_is_saved(engine):
    it = engine()
    it.client.put_from(it.pool, key(0), it.block(1))
    plan = Plan()
    plan.loads, plan.saves, plan.loads_at_once = [transfer([5])], [transfer([5, 6])], True
    it.worker.load(plan)
    it.forward(plan)
    (load,) = it.worker._under_way
    real = load._got
    load._got = SimpleNamespace(wait_piece=real.wait_piece, still_valid=lambda: False)
    it.worker.save(plan)
    it.worker.flush()
    assert it.worker.bad_blocks() == {5} and not it.client.exists(it.pool, key(1))[0]


def test_a_load_waits_for_what_the_engine_did_with_its_blocks_before(engine):
    for at_once in (True, False):
        it = engine()
        before, none = it.blocks(), it.torch.memory(b"\xee" * ROW)
        it.client.put_from(it.pool, key(0), before[1])
        # The former user of the block is not through with it.
        for _ in range(4):
            for layer in LAYERS:
                it.torch.engine.copy(it.caches[layer].row(5), none.ptr, ROW)
        it.step(loads=[transfer([5])], at_once=at_once)
        if not at_once:
            it.received()
        assert not it.worker.bad_blocks() and it.block(5) == before[1]


def test_a_layer_that_no_step_waits_for_is_there_before_a_step_begins(engine):
    for silent in ({"l0"}, {"l1"}, {"l0", "l2"}, set(LAYERS)):
        it = engine()
        it.silent, before = silent, it.blocks()
        it.step(saves=[transfer([1, 2])])
        it.worker.flush()
        waited, order = it.worker.wait_for_layer, []
        it.worker.wait_for_layer = lambda layer: (order.append(layer), waited(layer))
        for blocks in ([5, 6], [7, 8]):
            it.found.clear()
            it.step(loads=[transfer(blocks)], at_once=True)
            assert [it.seen(block) for block in blocks] == before[1:3] and not it.worker.bad_blocks()
        assert order == 2 * [layer for layer in LAYERS if layer not in silent]
        assert it.blocks() == [*before[:5], *2 * before[1:3], *before[9:]]


def test_a_step_that_is_the_first_of_all_finds_its_blocks_too(engine):
    it = engine()
    before = it.blocks()
    it.client.put_from(it.pool, key(0), before[1])
    it.silent = {"l0"}
    it.step(loads=[transfer([5])], at_once=True)
    assert it.seen(5) == before[1] and not it.worker.bad_blocks()


def test_a_load_by_buffers_too_waits_for_what_the_engine_did_with_its_blocks_before(engine):
    it = engine()
    before, none, planes = it.blocks(), it.torch.memory(b"\xee" * ROW), it.worker._planes[0]
    it.client.put_from(it.pool, key(0) + key(1), before[1] + before[2])
    it.worker._link.serves_gpus = False

    def scatter(block_ids, buffers):
        # As torch copies: on the stream that is current.
        for layer, buffer in zip(LAYERS, buffers):
            for at, block in enumerate(block_ids):
                data = it.torch.memory(bytes(buffer[at]))
                it.torch.current_stream(it.torch.device).copy(it.caches[layer].row(block), data.ptr, ROW)

    planes.buffers = lambda count: [numpy.empty((count, ROW), numpy.uint8) for _ in LAYERS]
    planes._scatter = scatter
    for at_once in (False, True):
        for _ in range(4):
            for layer in LAYERS:
                it.torch.engine.copy(it.caches[layer].row(5), none.ptr, ROW)
        it.step(loads=[transfer([5, 6])], at_once=at_once)
        if not at_once:
            assert it.received() == (set(), {"r"}, set())
        assert not it.worker.bad_blocks() and [it.block(5), it.block(6)] == before[1:3]


def test_a_gpu_reaches_all_of_the_daemons_memory_before_the_first_load(engine):
    it = engine()
    assert it.client.open_gpu(0, deadline=0.0) == (DRAM_BYTES, DRAM_BYTES)


def test_a_start_waits_no_longer_for_a_gpu_than_it_may(engine, caplog):
    with caplog.at_level("WARNING", logger="vllm.lapis"):
        it = engine(open_seconds=0.01)
    assert f"0 of the daemon's {DRAM_BYTES >> 20} MiB are registered with GPU 0" in caplog.text
    # The rest comes behind, and a load waits for it as ever.
    it.client.put_from(it.pool, key(0), it.block(1))
    before = it.block(1)
    it.step(loads=[transfer([5])], at_once=True)
    assert not it.worker.bad_blocks() and it.seen(5) == before


# Last: the second GPU does not come back.
def test_a_gpu_that_fails_is_told_of_and_its_copies_are_not_asked_for_again(cuda, engine):
    it = engine(device=1)
    before = it.blocks()
    it.client.put_from(it.pool, key(0) + key(1), before[1] + before[2])
    it.step(loads=[transfer([5, 6])], at_once=True)
    assert not it.worker.bad_blocks() and [it.seen(5), it.seen(6)] == before[1:3]
    plan = Plan()
    plan.loads, plan.saves, plan.loads_at_once = [transfer([7, 8])], [transfer([7, 8, 9])], True
    it.worker.load(plan)
    cuda.lose.touch()
    for layer in LAYERS:
        it.worker.wait_for_layer(layer)
    it.worker.save(plan)
    it.worker.flush()
    assert it.worker.bad_blocks() == {7, 8} and not it.client.exists(it.pool, key(2))[0]
    planes = it.worker._planes[0]
    assert it.worker._way(planes) is Way.GPU
    it.worker.load(plan)
    assert it.worker.bad_blocks() == {7, 8} and not it.worker._under_way
    assert it.worker._way(planes) is Way.STAGED, "by the host's memory from now on"


def test_a_save_that_the_gpu_refuses_is_no_save_and_holds_up_nobody(cuda, engine, monkeypatch):
    it = engine()

    def refuses(*given, **named):
        error = lapis_kv.GpuError("no")
        error.is_transient = transient
        raise error

    for transient in (True, False):
        monkeypatch.setattr(it.worker._planes[0].gpu, "put", refuses)
        it.step(saves=[transfer([1, 2])])
        it.worker.flush()
        assert it.worker.stats.take()["save_refused_blocks"] == 2 and not it.worker._saving
        assert it.worker._gpu_fails is not transient
