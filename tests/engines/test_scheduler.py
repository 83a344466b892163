"""The scheduler's half alone, over a client that is a set of keys."""

from types import SimpleNamespace

import lapis_kv
from lapis_kv.vllm import groups as kv
from lapis_kv.vllm import scheduler as module
from lapis_kv.vllm.plan import Saved
from lapis_kv.vllm.scheduler import Scheduler

TOKENS = 16
FULL = kv.Group(0, TOKENS, 1, ("l0",), 100, None, False)
WINDOW = kv.Group(1, TOKENS, 1, ("l1",), 100, 2, False)


class Client:
    """`pools` are sets of keys; what a policy means is as the client's documentation says."""

    fails = False

    def purge(self, pool, deadline):
        if self.fails:
            raise lapis_kv.LateError("no answer")
        pool.clear()

    def fetch_prefix(self, pools, keys, *, deadline):
        if self.fails:
            raise lapis_kv.GoneError("gone")
        names = [keys[at : at + 32] for at in range(0, len(keys), 32)]
        assert len(names) <= module._KEYS_MAX
        lengths = range(len(names), 0, -1)
        return next((length for length in lengths if all(_accepts(*pool, names[:length]) for pool in pools)), 0)


def _accepts(stored, policy, names):
    window = getattr(policy, "window", None)
    return all(name in stored for name in (names if window is None else names[-window:]))


def hashes(count: int):
    return [at.to_bytes(4, "little") * 8 for at in range(count)]


def scheduler(monkeypatch, groups=(FULL,), world=1, load_async=True, **may):
    monkeypatch.setattr(kv, "policy", lambda group: SimpleNamespace(window=group.window))
    pools = {(group.index, shard): set() for group in groups for shard in range(world)}
    link = SimpleNamespace(client=Client(), made=pools)
    return Scheduler(link, list(groups), TOKENS, world, load_async, **may), pools


def request(name: str = "r", blocks: int = 8, tokens: int | None = None):
    return SimpleNamespace(
        request_id=name, block_hashes=hashes(blocks), num_tokens=blocks * TOKENS + 1 if tokens is None else tokens
    )


def output(new=(), cached=(), scheduled=None, preempted=None):
    return SimpleNamespace(
        scheduled_new_reqs=[SimpleNamespace(req_id=name, block_ids=ids, num_computed_tokens=done) for name, ids, done in new],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[name for name, *_ in cached], new_block_ids=[ids for _, ids, _, _ in cached],
            num_computed_tokens=[done for _, _, done, _ in cached],
            resumed_req_ids={name for name, _, _, resumed in cached if resumed},
        ),
        num_scheduled_tokens=scheduled or {}, total_num_scheduled_tokens=sum((scheduled or {}).values()),
        preempted_req_ids=preempted,
    )


def places(*ids):
    return SimpleNamespace(get_block_ids=lambda: tuple(ids))


def test_a_hit_is_what_every_rank_has_and_leaves_a_token_to_compute(monkeypatch):
    scheduler_, pools = scheduler(monkeypatch, world=2)
    asked = request(tokens=8 * TOKENS)
    pools[0, 0] |= set(hashes(8))
    assert scheduler_.matched(asked, 0) == (0, False)
    pools[0, 1] |= set(hashes(5))
    assert scheduler_.matched(asked, 0) == (5 * TOKENS, True)
    assert scheduler_.matched(asked, 3 * TOKENS) == (2 * TOKENS, True)
    assert scheduler_.matched(asked, 5 * TOKENS) == (0, False)
    pools[0, 1] |= set(hashes(8))
    assert scheduler_.matched(asked, 0) == (7 * TOKENS, True), "the last block is computed, for its logits"


def test_groups_with_a_window_need_its_blocks_alone(monkeypatch):
    scheduler_, pools = scheduler(monkeypatch, groups=(FULL, WINDOW))
    asked = request()
    pools[0, 0] |= set(hashes(8))
    pools[1, 0] |= set(hashes(8)[3:6])
    assert scheduler_.matched(asked, 0) == (6 * TOKENS, True)
    scheduler_.allocated(asked, places(list(range(10, 18)), [0, 0, 0, 0, 24, 25, 26, 27]), 6 * TOKENS)
    full, window = scheduler_.plan(output()).loads[0].parts
    assert (full.block_ids, window.block_ids) == (list(range(10, 16)), [24, 25])
    assert window.keys == b"".join(hashes(6)[4:])


def test_long_prompts_are_looked_up_and_moved_in_calls_worths(monkeypatch):
    monkeypatch.setattr(module, "_KEYS_MAX", 3)
    scheduler_, pools = scheduler(monkeypatch, groups=(FULL, WINDOW))
    pools[0, 0] |= set(hashes(7))
    pools[1, 0] |= set(hashes(7))
    asked = request()
    assert scheduler_.matched(asked, 0) == (7 * TOKENS, True)
    scheduler_.allocated(asked, places(list(range(8)), list(range(8))), 7 * TOKENS)
    parts = [part for part in scheduler_.plan(output()).loads[0].parts if part.group == 0]
    assert [part.block_ids for part in parts] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [part.parent for part in parts] == [None, hashes(8)[2], hashes(8)[5]]


def test_saves_begin_at_the_first_block_and_go_on_where_they_ended(monkeypatch):
    scheduler_, _ = scheduler(monkeypatch)
    asked = request()
    scheduler_.on_new_request(asked)
    # Two blocks were the engine's own: what Lapis lost of them is stored again, and nothing hangs in the air.
    plan = scheduler_.plan(output(new=[("r", ([5, 6, 7, 8],), 2 * TOKENS)], scheduled={"r": TOKENS + 3}))
    (part,) = plan.saves[0].parts
    assert (part.block_ids, part.parent) == ([5, 6, 7], None)
    plan = scheduler_.plan(output(cached=[("r", ([9],), 3 * TOKENS + 3, False)], scheduled={"r": 2 * TOKENS}))
    (part,) = plan.saves[0].parts
    assert (part.block_ids, part.parent) == ([8, 9], hashes(8)[2])
    assert not scheduler_.plan(output(cached=[("r", None, 5 * TOKENS + 3, False)], scheduled={"r": 1})).saves
    assert scheduler_.finished(asked) and not scheduler_.finished(asked)


def test_what_is_computed_again_after_a_failed_load_or_a_preemption_is_saved_again(monkeypatch):
    scheduler_, _ = scheduler(monkeypatch)
    scheduler_.on_new_request(request())
    scheduler_.plan(output(new=[("r", ([5, 6, 7, 8],), 0)], scheduled={"r": 4 * TOKENS}))
    plan = scheduler_.plan(output(cached=[("r", None, 2 * TOKENS, False)], scheduled={"r": 2 * TOKENS}))
    assert plan.saves[0].parts[0].block_ids == [7, 8]
    plan = scheduler_.plan(output(cached=[("r", ([1, 2, 3, 4],), 0, True)], scheduled={"r": 4 * TOKENS}, preempted={"q"}))
    assert plan.saves[0].parts[0].block_ids == [1, 2, 3, 4] and plan.preempts


def test_workers_are_told_of_a_step_that_computes_nothing(monkeypatch):
    scheduler_, _ = scheduler(monkeypatch)
    assert scheduler_.plan(output()).idle
    assert not scheduler_.plan(output(new=[("r", ([1],), 0)], scheduled={"r": 5})).idle
    scheduler_._link.client = None
    assert scheduler_.plan(output()).idle


def test_without_a_daemon_nothing_is_found_and_nothing_planned(monkeypatch):
    scheduler_, _ = scheduler(monkeypatch)
    scheduler_._link.client = None
    asked = request()
    assert scheduler_.matched(asked, 0) == (0, False)
    assert not scheduler_.plan(output(new=[("r", ([1, 2],), 0)], scheduled={"r": 2 * TOKENS})).saves
    assert not scheduler_.finished(asked)


def test_a_daemon_that_comes_while_a_request_runs_gets_its_blocks_under_their_own_keys(monkeypatch):
    scheduler_, _ = scheduler(monkeypatch)
    client, scheduler_._link.client = scheduler_._link.client, None
    scheduler_.on_new_request(request())
    scheduler_.plan(output(new=[("r", ([5, 6, 7, 8],), 0)], scheduled={"r": 4 * TOKENS}))
    scheduler_._link.client = client
    (part,) = scheduler_.plan(output(cached=[("r", ([9],), 4 * TOKENS, False)], scheduled={"r": TOKENS})).saves[0].parts
    assert (part.block_ids, part.keys) == ([5, 6, 7, 8, 9], b"".join(hashes(5)))


def test_a_request_that_ends_while_it_is_loaded_is_not_given_back_twice(monkeypatch):
    scheduler_, pools = scheduler(monkeypatch)
    asked = request()
    scheduler_.on_new_request(asked)
    scheduler_.plan(output(new=[("r", ([5, 6, 7, 8],), 0)], scheduled={"r": 4 * TOKENS}))
    # Preempted, found again, loaded, and aborted before the load is over: the engine keeps its blocks for the load's sake.
    pools[0, 0] |= set(hashes(8))
    assert scheduler_.matched(asked, 0) == (8 * TOKENS, True)
    scheduler_.allocated(asked, places(list(range(8))), 8 * TOKENS)
    scheduler_.plan(output(preempted={"r"}))
    assert not scheduler_.finished(asked)
    assert not scheduler_.plan(output()).awaited
    # Once it is over the saves of a request are waited for again.
    scheduler_.heard({"r"}, None)
    scheduler_.on_new_request(asked)
    scheduler_.plan(output(new=[("r", ([5, 6, 7, 8],), 0)], scheduled={"r": 4 * TOKENS}))
    assert scheduler_.finished(asked) and scheduler_.plan(output()).awaited == {"r"} and not scheduler_.plan(output()).awaited


def test_after_a_reset_nothing_is_found_until_saves_of_before_are_over_and_forgotten_too(monkeypatch):
    scheduler_, pools = scheduler(monkeypatch)
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    pools[0, 0] |= set(hashes(8))
    assert scheduler_.reset()
    assert scheduler_.matched(request(), 0) == (0, False)
    scheduler_.on_new_request(request())
    plan = scheduler_.plan(output(new=[("r", ([5, 6],), 0)], scheduled={"r": 2 * TOKENS}))
    assert plan.resets == 1 and not plan.saves and pools[0, 0], "a worker may still be saving"
    scheduler_.heard(None, Saved({}, 1))
    scheduler_._link.client.fails = True
    scheduler_.plan(output())
    scheduler_._link.client.fails = False
    scheduler_.plan(output())
    assert scheduler_.matched(request(), 0) == (0, False), "it did not work, and is not tried at every step"
    now[0] += module._PURGE_PAUSE_SECONDS
    plan = scheduler_.plan(output(cached=[("r", None, 2 * TOKENS, False)], scheduled={"r": 1}))
    assert not pools[0, 0] and plan.saves[0].parts[0].block_ids == [5, 6]
    pools[0, 0] |= set(hashes(2))
    assert scheduler_.matched(request(), 0) == (2 * TOKENS, True)


def test_a_look_up_that_fails_is_a_miss(monkeypatch):
    scheduler_, pools = scheduler(monkeypatch)
    pools[0, 0] |= set(hashes(8))
    scheduler_._link.client.fails = True
    assert scheduler_.matched(request(), 0) == (0, False)


def test_what_is_found_and_never_comes_is_computed_in_the_end(monkeypatch):
    scheduler_, pools = scheduler(monkeypatch)
    asked, other = request(), request("other")
    pools[0, 0] |= set(hashes(8))
    for _ in range(3):
        # Asked twice before there is room for it: that is one load.
        assert scheduler_.matched(asked, 0) == scheduler_.matched(asked, 0) == (8 * TOKENS, True)
        scheduler_.allocated(asked, places(range(8)), 8 * TOKENS)
        assert scheduler_.plan(output()).loads
        scheduler_.heard({"r"}, None)
    assert scheduler_.matched(asked, 0) == (0, False)
    assert scheduler_.matched(asked, 2 * TOKENS) == (6 * TOKENS, True), "a part came"
    assert scheduler_.matched(other, 0) == (8 * TOKENS, True)


def test_a_producer_only_saves_and_a_consumer_only_loads(monkeypatch):
    step = {"new": [("r", ([5, 6],), 0)], "scheduled": {"r": 2 * TOKENS}}
    producer, pools = scheduler(monkeypatch, may_load=False)
    pools[0, 0] |= set(hashes(8))
    assert producer.matched(request(), 0) == (0, False)
    producer.on_new_request(request())
    assert producer.plan(output(**step)).saves
    consumer, pools = scheduler(monkeypatch, may_save=False)
    pools[0, 0] |= set(hashes(8))
    assert consumer.matched(request(), 0) == (8 * TOKENS, True)
    assert not consumer.plan(output(**step)).saves and not consumer.finished(request())
