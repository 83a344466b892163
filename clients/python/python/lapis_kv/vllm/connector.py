"""LapisConnector: vLLM's prefix cache goes on in Lapis.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "LapisConnector", "kv_role": "kv_both",
        "kv_connector_module_path": "lapis_kv.vllm.connector", "kv_load_failure_policy": "recompute"}'

`kv_connector_extra_config` may have:
- lapis.socket: path of the daemon's socket; else $LAPIS_SOCKET, else /run/lapis/lapis.sock
- lapis.load: "async" (default: between steps) or "sync" (within the step that needs the blocks; one rank, one group)
- lapis.load_seconds, lapis.save_seconds: deadlines of a transfer (5, 10)
- lapis.open_seconds: how long the start waits until a GPU reaches all of the daemon's memory (60)
- lapis.revision: a name of the weights, where neither a folder nor the hub's cache tells
- lapis.salt: keeps apart what must not be shared though all else is equal
- lapis.staged: copy by a buffer on a CPU too, as on a GPU; for tests

A `kv_producer` only saves, a `kv_consumer` only loads, `kv_both` does both.

Without a daemon the engine serves as if there were no cache, and says so once.
"""

import collections

from vllm.distributed.kv_events import BlockStored
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from vllm.platforms import current_platform
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

import lapis_kv

from . import groups as kv
from .identity import fields_of, hash_block_tokens, hash_bytes
from .link import Link, socket_of
from .options import options_of
from .plan import Plan
from .scheduler import Scheduler
from .worker import Stats, Worker

# Blocks that some ranks have saved and others have not yet: those that never will are forgotten.
_PARTLY_STORED_MAX = 1 << 16


class LapisStats(KVConnectorStats):
    """Sums of all workers since the engine last asked."""

    def reset(self):
        self.data = dict.fromkeys(Stats.NAMES, 0)

    def aggregate(self, other):
        for name in Stats.NAMES:
            self.data[name] = self.data.get(name, 0) + other.data.get(name, 0)
        return self

    def reduce(self):
        return {f"lapis {name.replace('_', ' ')}": count for name, count in self.data.items()}

    def is_empty(self):
        return not any(self.data.values())


class LapisPromMetrics(KVConnectorPromMetrics):
    """vllm:lapis_<name> counters, one a name of `Stats`."""

    def __init__(self, vllm_config, metric_types, labelnames, per_engine_labelvalues):
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters = {
            name: self._counter_cls(
                name=f"vllm:lapis_{name}", documentation=f"Lapis: {name.replace('_', ' ')}.", labelnames=labelnames
            )
            for name in Stats.NAMES
        }

    def observe(self, transfer_stats_data, engine_idx: int = 0):
        labels = self.per_engine_labelvalues[engine_idx]
        for name, counter in self._counters.items():
            counter.labels(*labels).inc(transfer_stats_data.get(name, 0))


class LapisConnector(KVConnectorBase_V1, SupportsHMA):
    worker_class = Worker

    def __init__(self, vllm_config, role, kv_cache_config):
        super().__init__(vllm_config, role, kv_cache_config)
        transfer, parallel = self._kv_transfer_config, vllm_config.parallel_config
        options = options_of(transfer.kv_connector_extra_config)
        for name in ("pipeline_parallel_size", "prefill_context_parallel_size", "decode_context_parallel_size"):
            if getattr(parallel, name, 1) > 1:
                raise ValueError(f"LapisConnector does not support {name} {getattr(parallel, name)} yet: set it to 1")
        hash_tokens = hash_block_tokens(vllm_config, kv_cache_config)
        sleeps = bool(getattr(vllm_config.model_config, "enable_sleep_mode", False))
        self._groups = kv.groups_of(kv_cache_config, hash_tokens, sleeps)
        world = parallel.world_size
        namespace = lapis_kv.Namespace(**fields_of(vllm_config, kv_cache_config, options))
        is_scheduler = role == KVConnectorRole.SCHEDULER
        own = None if is_scheduler else parallel.rank

        def open_pools(client):
            wanted = {
                (group.index, shard)
                for group in self._groups
                for shard in (kv.shards(group, world) if own is None else [0 if group.replicated else own])
            }
            by_index = {group.index: group for group in self._groups}
            return {key: kv.open_pool(client, namespace, by_index[key[0]], key[1]) for key in sorted(wanted)}

        name = f"vllm {role.name.lower()} {'' if own is None else own}".strip()
        gpus = not is_scheduler and current_platform.is_cuda()
        self._link = Link(socket_of(options.socket), name, open_pools, warns=is_scheduler, gpus=gpus)
        # The engine counts all groups, also those that are never looked up.
        by_block = len(kv_cache_config.kv_cache_groups) == 1
        # A load that fails within its step cannot be taken back with several groups or steps planned ahead; nor with several
        # ranks, where those that loaded would save what they computed with the others' wrong blocks.
        load_async = options.load == "async" or not by_block or world > 1 or bool(vllm_config.scheduler_config.async_scheduling)
        self._world, self._hash_bytes = world, hash_bytes(vllm_config)
        self._scheduler = self._worker = None
        self._events, self._partly_stored = [], collections.OrderedDict()
        events = getattr(vllm_config, "kv_events_config", None)
        self._wants_events = events is not None and bool(events.enable_kv_cache_events)
        if is_scheduler:
            self._scheduler = Scheduler(
                self._link, self._groups, hash_tokens, world, load_async, may_load=transfer.is_kv_consumer,
                may_save=transfer.is_kv_producer,
            )
        else:
            self._worker = self.worker_class(
                self._link, self._groups, own, options.load_seconds, options.save_seconds, options.staged, by_block,
                options.open_seconds,
            )

    # A save that was dropped is a miss later, and no request's business.
    @property
    def requires_kv_delivery(self) -> bool:
        return False

    # ---- Scheduler ----

    def on_new_request(self, request):
        self._scheduler.on_new_request(request)

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        return self._scheduler.matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        self._scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output):
        return self._scheduler.plan(scheduler_output)

    def update_connector_output(self, connector_output):
        saved = connector_output.kv_connector_worker_meta
        self._scheduler.heard(connector_output.finished_recving, saved)
        if saved is None:
            return
        groups = {group.index: group for group in self._groups}
        for block, (ranks, new) in saved.counts.items():
            before = self._partly_stored.pop(block, (0, 0))
            ranks, new = ranks + before[0], new + before[1]
            group = groups[block[0]]
            if ranks < len(kv.shards(group, self._world)):
                self._partly_stored[block] = (ranks, new)
            elif new:
                self._events.append(self._event(group, block[1]))
        while len(self._partly_stored) > _PARTLY_STORED_MAX:
            self._partly_stored.popitem(last=False)

    def _event(self, group, key: bytes) -> BlockStored:
        return BlockStored(
            block_hashes=[maybe_convert_block_hash(key[: self._hash_bytes])], parent_block_hash=None, token_ids=[],
            block_size=group.tokens, lora_id=None, medium="CPU", lora_name=None, group_idx=group.index,
        )

    def take_events(self):
        events, self._events = self._events, []
        return events

    def request_finished(self, request, block_ids):
        return self._scheduler.finished(request), None

    def request_finished_all_groups(self, request, block_ids):
        return self._scheduler.finished(request), None

    def reset_cache(self):
        return self._scheduler.reset()

    # ---- Worker ----

    def register_kv_caches(self, kv_caches):
        self._worker.register(kv_caches, self._kv_cache_config.num_blocks)

    def handle_preemptions(self, kv_connector_metadata):
        # Called at every step, before its blocks are overwritten.
        self._worker.before_step(kv_connector_metadata)

    def start_load_kv(self, forward_context, **kwargs):
        self._worker.load(self._plan())

    def wait_for_layer_load(self, layer_name):
        self._worker.wait_for_layer(layer_name)

    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs):
        pass

    def wait_for_save(self):
        self._worker.save(self._plan())

    def get_transfer_results(self, finished_req_ids):
        sent, received, failed = self._worker.results(self._plan().idle)
        return KVConnectorTransferResults(finished_sending=sent, finished_recving=received, failed_recving=failed)

    def get_finished(self, finished_req_ids):
        sent, received, _ = self._worker.results(self._plan().idle)
        return sent or None, received or None

    def get_block_ids_with_load_errors(self):
        return self._worker.bad_blocks()

    def get_kv_connector_stats(self):
        if self._worker is None:
            return None
        stats = LapisStats(data=self._worker.stats.take())
        return None if stats.is_empty() else stats

    def build_connector_worker_meta(self):
        return self._worker.saved(self._wants_events)

    def _plan(self) -> Plan:
        plan = self._get_connector_metadata()
        assert isinstance(plan, Plan)
        return plan

    # ---- Both ----

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config) -> bool:
        # A graph of a whole step has no place to wait for a layer.
        return extra_config.get("lapis.load") == "sync"

    @classmethod
    def build_kv_connector_stats(cls, data=None):
        return LapisStats(data=data or dict.fromkeys(Stats.NAMES, 0))

    @classmethod
    def build_prom_metrics(cls, vllm_config, metric_types, labelnames, per_engine_labelvalues):
        return LapisPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self):
        if self._worker is not None:
            self._worker.close()
        self._link.close()
