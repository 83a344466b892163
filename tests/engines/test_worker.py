"""The worker's half alone, over tensors of the test's and a client that is a dictionary."""

import collections
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheTensor, create_kv_cache_views
from vllm.v1.kv_cache_layout import KVCacheLayout

import lapis_kv
from lapis_kv.vllm import groups as kv
from lapis_kv.vllm.connector import LapisConnector
from lapis_kv.vllm.plan import Blocks, Plan, Saved, Transfer
from lapis_kv.vllm.planes import plane_of
from lapis_kv.vllm.worker import Worker

TOKENS, BLOCKS, ROW = 16, 12, 64
FULL = kv.Group(0, TOKENS, 1, ("l0", "l1"), 2 * ROW, None, False)
WINDOW = kv.Group(1, TOKENS, 1, ("w0",), ROW, 2, False, True)


class Client:
    def __init__(self):
        self.pools, self.goes_on = {}, threading.Event()
        self.goes_on.set()

    def get_into(self, pool, keys, rows, deadline):
        assert deadline >= 0
        names, each = _names(keys), len(rows) // (len(keys) // 32)
        stored = self.pools.setdefault(pool, {})
        hits = [name in stored for name in names]
        for at, name in enumerate(names):
            if hits[at]:
                for row, data in zip(rows[each * at : each * (at + 1)], stored[name]):
                    row.view(-1).copy_(data)
        return hits

    def put_from(self, pool, keys, rows, parent, deadline):
        assert self.goes_on.wait(20)
        names, each = _names(keys), len(rows) // (len(keys) // 32)
        stored, statuses = self.pools.setdefault(pool, {}), []
        for at, name in enumerate(names):
            statuses.append(lapis_kv.PutStatus.EXISTS if name in stored else lapis_kv.PutStatus.STORED)
            stored.setdefault(name, [row.reshape(-1).clone() for row in rows[each * at : each * (at + 1)]])
        new = statuses.count(lapis_kv.PutStatus.STORED)
        return SimpleNamespace(stored=new, refused=0, statuses=statuses)


def _names(keys):
    return [keys[at : at + 32] for at in range(0, len(keys), 32)]


def key(at: int) -> bytes:
    return bytes([at + 1]) * 32


class Engine:
    """A worker and the memory it works on."""

    def __init__(self, groups=(FULL,), by_block=True, staged=False, client=None, rank=0, layout=lambda rows: rows):
        self.client = client or Client()
        made = {(group.index, rank): f"g{group.index}s{rank}" for group in groups}
        self.link = SimpleNamespace(client=self.client, made=made, serves_gpus=False)
        self.worker = Worker(self.link, list(groups), rank, 5.0, 10.0, staged, by_block)
        seed = torch.Generator().manual_seed(3 + rank)
        self.caches = {
            layer: torch.randint(0, 256, (BLOCKS, ROW), dtype=torch.uint8, generator=seed)
            for group in groups
            for layer in group.layers
        }
        self.worker.register({layer: layout(cache) for layer, cache in self.caches.items()}, BLOCKS)

    def step(self, loads=(), saves=(), at_once=False, **told):
        """One step as vLLM calls it: what the worker says at its end."""
        plan = Plan()
        plan.loads, plan.saves, plan.loads_at_once = list(loads), list(saves), at_once
        for name, value in told.items():
            setattr(plan, name, value)
        with torch.inference_mode():
            self.worker.before_step(plan)
            self.worker.load(plan)
            self.worker.save(plan)
            return self.worker.results(plan.idle)

    def until(self, holds):
        """Empty steps until what one says is as wanted. Looking takes a processor from who does the work: it waits, too."""
        until = time.monotonic() + 60
        while not holds(told := self.step()):
            assert time.monotonic() < until, f"not within 60 s: {told}"
            time.sleep(0.005)
        return told


def transfer(blocks, group: int = 0, request: str = "r", first: int = 0):
    keys = b"".join(key(first + at) for at in range(len(blocks)))
    return Transfer(request, [Blocks(group, keys, list(blocks))])


@pytest.fixture
def engine():
    made = []

    def make(**given):
        made.append(Engine(**given))
        return made[-1]

    yield make
    for engine in made:
        engine.client.goes_on.set()
        engine.worker.close()


# How vLLM hands [blocks, heads, tokens, content] over, by what comes first within a block; and a tensor that is divided finer.
LAYOUTS = {
    "bytes": lambda rows: rows,
    "heads first": lambda rows: rows.view(torch.bfloat16).view(BLOCKS, 2, 4, 4),
    "tokens first": lambda rows: rows.view(torch.bfloat16).view(BLOCKS, 4, 2, 4).permute(0, 2, 1, 3),
    "one head": lambda rows: rows.view(BLOCKS, 16, 1, 4).permute(0, 2, 1, 3),
    "parts of blocks": lambda rows: rows.view(BLOCKS * 4, 2, 2, 4).permute(0, 2, 1, 3),
}


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_go_out_and_come_back_into_other_places(engine, staged, layout):
    it = engine(staged=staged, layout=LAYOUTS[layout])
    it.step(saves=[transfer([1, 2, 3])])
    it.worker.flush()
    before = {layer: cache.clone() for layer, cache in it.caches.items()}
    it.step(loads=[transfer([7, 8, 9])])
    assert it.until(lambda told: told[1]) == (set(), {"r"}, set()) and not it.worker.bad_blocks()
    for layer, cache in it.caches.items():
        assert torch.equal(cache[7:10], before[layer][1:4]) and torch.equal(cache[:7], before[layer][:7])


def test_a_block_that_is_not_in_one_piece_is_refused(engine):
    data = torch.zeros(2 * BLOCKS * ROW, dtype=torch.uint8)
    layers_within = data.view(BLOCKS, 2, 4, ROW // 4)[:, 0]
    assert plane_of(layers_within, BLOCKS) is not None and plane_of(layers_within, BLOCKS).stride_bytes == 2 * ROW
    for refused, blocks in (
        (data.view(4, 2 * BLOCKS, ROW // 4).permute(1, 0, 2), 2 * BLOCKS), (data.view(BLOCKS, 8, ROW // 4)[:, ::2], BLOCKS),
        (data.view(2 * BLOCKS, 2, ROW // 2)[:, 0], BLOCKS), (torch.zeros(1).expand(BLOCKS, ROW), BLOCKS),
        (data, BLOCKS),
    ):
        assert plane_of(refused, blocks) is None, refused.stride()
        with pytest.raises(ValueError, match="in pieces"):
            engine().worker.register({layer: refused for layer in FULL.layers}, blocks)


def test_all_layouts_of_vllm_that_keep_a_block_of_a_layer_in_one_piece_are_taken():
    """As vLLM makes its views: by default a backend that has no layout of its own takes LBNHC."""
    spec = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=8, dtype=torch.bfloat16)
    page, taken = spec.page_size_bytes, set()
    for layout in KVCacheLayout:
        for kernel in (None, 4):
            outer = layout.is_block_outermost
            if kernel and (outer or not layout.is_block_compact):
                continue
            strides = (page, 2 * page) if outer else (page * BLOCKS, page)
            if not layout.is_block_compact:
                strides = (page // 2, 2 * page) if outer else (page * BLOCKS, page // 2)
            place = KVCacheTensor(2 * page * BLOCKS, ["l0", "l1"], *strides)
            raw = torch.arange(2 * page * BLOCKS).to(torch.int8)
            views = create_kv_cache_views(raw, spec, BLOCKS, layout, place, kernel)
            planes = [plane_of(view, BLOCKS) for view in views]
            if None in planes:
                continue
            taken.add(layout.name)
            for at, plane in enumerate(planes):
                assert (plane.row_bytes, plane.stride_bytes) == (page, strides[1])
                for block, row in enumerate(plane.rows()):
                    start = at * strides[0] + block * strides[1]
                    assert torch.equal(row.view(torch.int8), raw[start : start + page])
    assert taken == {"LBHNC", "LBNHC", "BLHNC", "BLNHC"}


def test_a_finished_request_is_named_once_its_saves_are_over_and_only_if_it_is_awaited(engine):
    it = engine()
    it.client.goes_on.clear()
    it.step(saves=[transfer([1, 2]), transfer([3], request="other", first=5)])
    assert it.step(awaited={"r"}) == (set(), set(), set())
    assert it.step() == (set(), set(), set()), "still saving"
    it.client.goes_on.set()
    assert it.until(lambda told: told[0])[0] == {"r"}
    it.worker.flush()
    assert it.step() == (set(), set(), set()), "nobody waits for the other"
    assert it.step(awaited={"never saved here"})[0] == {"never saved here"}


def test_a_step_that_computes_nothing_waits_for_what_is_under_way_and_for_nothing_else(engine, monkeypatch):
    it, waits = engine(), []
    wait_for = threading.Condition.wait_for

    def waited(condition, holds, seconds=None):
        if condition is not it.worker._lock:
            return wait_for(condition, holds, seconds)
        waits.append(seconds)
        it.client.goes_on.set()
        started = time.monotonic()
        # As long as it takes: what ends must end the wait.
        assert wait_for(condition, holds, 60) and time.monotonic() - started < 50, "nobody ended the wait"
        return True

    def get_into(*given, **named):
        assert it.client.goes_on.wait(20)
        return Client.get_into(it.client, *given, **named)

    monkeypatch.setattr(threading.Condition, "wait_for", waited)
    it.client.get_into = get_into
    it.client.goes_on.clear()
    it.step(saves=[transfer([1, 2])])
    it.step(idle=True)
    assert not waits, "blocks of requests that go on are not waited for"
    it.step(awaited={"r"})
    assert not waits, "a step that computes waits for nothing"
    assert it.step(idle=True)[0] == {"r"} and waits == [0.002]
    assert it.step(idle=True) == (set(), set(), set()) and len(waits) == 1, "nothing is under way"
    it.client.goes_on.clear()
    it.step(loads=[transfer([5, 6])], idle=True)
    assert len(waits) == 2 and torch.equal(it.caches["l0"][5:7], it.caches["l0"][1:3])
    assert it.step(idle=True) == (set(), set(), set()) and len(waits) == 2, "it was told by the step before"


def test_what_failed_is_said_by_block_or_by_request_as_the_engine_takes_it(engine):
    for by_block, groups in ((True, (FULL,)), (False, (FULL,)), (False, (FULL, WINDOW))):
        it = engine(by_block=by_block, groups=groups)
        it.step(saves=[transfer([1, 2])])
        it.worker.flush()
        it.step(loads=[transfer([5, 6, 7])])
        received = it.until(lambda told: told[1])
        assert received == (set(), {"r"}, set() if by_block else {"r"})
        assert it.worker.bad_blocks() == ({7} if by_block else set())


def test_a_step_that_computed_on_blocks_that_were_not_loaded_saves_nothing(engine):
    it = engine()
    it.step(loads=[transfer([5])], saves=[transfer([5, 6])], at_once=True)
    it.worker.flush()
    assert it.worker.bad_blocks() == {5} and not it.client.pools.get("g0s0")
    it.step(saves=[transfer([5, 6])])
    it.worker.flush()
    assert len(it.client.pools["g0s0"]) == 2


def test_saves_are_over_before_their_blocks_are_given_to_others(engine):
    it = engine(groups=(FULL, WINDOW), by_block=False)
    for told in ({"preempts": True}, {"resets": 1}):
        it.client.goes_on.clear()
        it.step(saves=[transfer([1])])
        threading.Timer(0.05, it.client.goes_on.set).start()
        it.step(**told)
        assert it.client.goes_on.is_set(), told
    # Of a window they may be at any step.
    it.client.goes_on.clear()
    threading.Timer(0.05, it.client.goes_on.set).start()
    it.step(saves=[transfer([0, 2], group=1)])
    assert it.client.goes_on.is_set() and list(it.client.pools["g1s0"]) == [key(1)], "0 is no block"


def test_a_reset_is_acknowledged_once_by_all(engine):
    it = engine()
    assert it.worker.saved(wants_blocks=False) is None
    it.step(resets=2)
    assert it.worker.saved(wants_blocks=False) == Saved({}, 2) and it.worker.saved(wants_blocks=False) is None
    assert Saved({}, 2).aggregate(Saved({}, 1)).resets == 1


def test_an_event_follows_once_every_rank_has_a_block_that_some_had_not(engine):
    ranks = [engine(client=Client(), rank=rank) for rank in range(2)]
    connector = LapisConnector.__new__(LapisConnector)
    connector._groups, connector._world, connector._hash_bytes = [FULL], 2, 16
    connector._events, connector._partly_stored = [], collections.OrderedDict()
    connector._scheduler = SimpleNamespace(heard=lambda received, saved: None)

    def say(*told):
        meta = told[0]
        for other in told[1:]:
            meta = meta.aggregate(other)
        connector.update_connector_output(SimpleNamespace(finished_recving=None, kv_connector_worker_meta=meta))
        return [event.block_hashes for event in connector.take_events()]

    def saved(rank, *blocks):
        ranks[rank].step(saves=[transfer(blocks)])
        ranks[rank].worker.flush()
        return ranks[rank].worker.saved(wants_blocks=True)

    # The second rank has the first block already.
    saved(1, 1)
    assert say(saved(0, 1, 2)) == []
    assert say(saved(1, 1, 2)) == [[int.from_bytes(key(at)[8:16])] for at in range(2)], "as vLLM names them"
    assert say(saved(0, 1), saved(1, 1)) == [], "nothing new"
