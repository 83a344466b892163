"""LapisConnector as vLLM makes it, without an engine: what it refuses and what it chooses by the engine's configuration."""

from types import SimpleNamespace

import pytest
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole, supports_hma
from vllm.v1.kv_cache_interface import FullAttentionSpec

from lapis_kv.vllm.connector import LapisConnector
from test_identity import attention, engine


def connector(folder, role=KVConnectorRole.SCHEDULER, extra=None, groups: int = 1, cacheable: int = 1, ranks: int = 1, **more):
    config, caches = engine(folder)
    given = {"kv_role": "kv_both", "async_scheduling": False, "pp": 1, "dcp": 1, "events": None, **more}
    at = SimpleNamespace(**given)
    config.kv_transfer_config = SimpleNamespace(
        kv_connector_extra_config={"lapis.socket": str(folder / "nobody"), **(extra or {})},
        is_kv_producer=at.kv_role != "kv_consumer", is_kv_consumer=at.kv_role != "kv_producer",
    )
    config.parallel_config = SimpleNamespace(
        tensor_parallel_size=ranks, pipeline_parallel_size=at.pp, decode_context_parallel_size=at.dcp,
        world_size=ranks * at.pp, rank=0,
    )
    config.scheduler_config = SimpleNamespace(async_scheduling=at.async_scheduling)
    config.kv_events_config = at.events
    group = SimpleNamespace(kv_cache_spec=attention(FullAttentionSpec, 16), layer_names=["l0", "l1"])
    caches.kv_cache_groups = [group] * groups
    caches.prefix_cacheable_group_ids = tuple(range(cacheable))
    made = LapisConnector(config, role, caches)
    made.shutdown()
    return made


def test_loads_are_within_a_step_only_where_a_failed_one_can_be_taken_back(tmp_path):
    def is_async(**given):
        nothing = SimpleNamespace(
            scheduled_new_reqs=[], scheduled_cached_reqs=SimpleNamespace(req_ids=[]), total_num_scheduled_tokens=0
        )
        return not connector(tmp_path, extra={"lapis.load": "sync"}, **given)._scheduler.plan(nothing).loads_at_once

    assert not is_async()
    # Ranks that loaded would save what they computed with the wrong blocks of those that did not.
    assert is_async(ranks=2)
    assert is_async(async_scheduling=True) and is_async(groups=2, cacheable=2)
    # The engine counts groups that are never looked up, too.
    assert is_async(groups=2, cacheable=1)


def test_failed_loads_are_told_by_block_only_to_engines_of_one_group(tmp_path):
    worker = KVConnectorRole.WORKER
    assert connector(tmp_path, worker)._worker._by_block
    assert not connector(tmp_path, worker, groups=2, cacheable=1)._worker._by_block


def test_what_is_not_supported_is_refused_by_name(tmp_path):
    for given, match in [
        ({"pp": 2}, "pipeline_parallel_size 2"), ({"dcp": 2}, "decode_context_parallel_size 2"),
        ({"extra": {"lapis.lod": "sync"}}, "lapis.lod"), ({"extra": {"lapis.load": "soon"}}, "async, sync"),
    ]:
        with pytest.raises(ValueError, match=match):
            connector(tmp_path, **given)


def test_it_is_a_best_effort_cache_of_any_groups(tmp_path):
    made = connector(tmp_path)
    assert supports_hma(made) and not made.requires_kv_delivery
    assert not connector(tmp_path, kv_role="kv_producer")._scheduler._may_load
    assert not connector(tmp_path, kv_role="kv_consumer")._scheduler._may_save


def test_events_are_made_only_for_who_has_them_on(tmp_path):
    for on in (False, True):
        assert connector(tmp_path, events=SimpleNamespace(enable_kv_cache_events=on))._wants_events is on
