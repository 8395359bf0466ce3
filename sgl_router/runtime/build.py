"""The graph of objects of one process, put together once: nothing is started here, and nothing listens yet.

Three roles share it. A router in one process is `build_fleet`: the workers, their event streams and the decisions. Of
several processes the routing process is that too, without a tokenizer; a data process is `build_data`: tokenizers, a
copy of the workers, and a routing that asks the routing process. What a role does not have it is not given, or given as
a null object that says so (`NoIndex`): never as a stand-in that only looks like the real thing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sgl_router.config import Config
from sgl_router.descriptors import Descriptors
from sgl_router.discovery import Discovery
from sgl_router.kv_events import KvIndex
from sgl_router.load import ActiveLoad
from sgl_router.load.reports import LoadReport, LoadWatch
from sgl_router.observability import ForecastCollector, Metrics
from sgl_router.placement import DecisionReason
from sgl_router.policies import Policy
from sgl_router.routing import DecisionLog, LocalRouting
from sgl_router.routing.index_port import NoIndex
from sgl_router.routing.remote.client import RemoteRouting
from sgl_router.routing.remote.fallback import LeastLoadedFallback
from sgl_router.routing.remote.replica import WorkerReplica
from sgl_router.runtime.readiness import FleetReadiness
from sgl_router.runtime.tokenizer_parity import TokenCheck, token_check
from sgl_router.services import FleetServices, Model, Services
from sgl_router.upstream import UpstreamPool
from sgl_router.workers import Target, Worker, WorkerManager, WorkerRegistry, worker_api_key

__all__ = ["DataGraph", "FleetGraph", "build_data", "build_fleet", "make_index"]


@dataclass(frozen=True)
class FleetGraph:
    """Of the process that has the workers and decides."""

    services: FleetServices
    routing: LocalRouting
    watch: LoadWatch | None
    tokens: TokenCheck | None


@dataclass(frozen=True)
class DataGraph:
    """Of a process that carries requests and asks another one where to."""

    services: Services
    routing: RemoteRouting
    load: ActiveLoad
    tokens: TokenCheck | None


class _ForgetConnections:
    """A registry's listener: closes the connections to a removed worker."""

    def __init__(self, pool: UpstreamPool) -> None:
        self._pool = pool

    def worker_added(self, worker: Worker) -> None:
        pass

    def worker_removed(self, worker: Worker) -> None:
        self._pool.forget(worker.url)


def make_index(config: Config, descriptors: Descriptors) -> KvIndex:
    events = config.kv_events
    return KvIndex(
        receive_high_water_mark=events.receive_high_water_mark,
        max_message_bytes=events.max_message_bytes,
        turn_budget_secs=events.turn_budget_ms / 1e3,
        replay_idle_secs=events.replay_idle_secs,
        resync_secs=events.resync_secs,
        quiet_check_secs=events.quiet_check_secs,
        expect_ttl_secs=events.expect_ttl_secs,
        max_blocks=events.max_blocks,
        descriptors=descriptors,
    )


def build_fleet(
    config: Config,
    models: Mapping[str, Model],
    policies: Mapping[str, Policy],
    index: KvIndex,
    discovery: Discovery,
    descriptors: Descriptors,
) -> FleetGraph:
    """`models`: those that are rendered and tokenized here, none in a routing process; `policies`: of all."""
    key = worker_api_key(config)
    costed = {
        model_id: speed for model_id, policy in policies.items() if (speed := policy.prefill_tokens_per_sec) is not None
    }
    load = ActiveLoad(costed, stale_secs=config.load_reports.stale_after_secs)
    registry, pool = WorkerRegistry(), UpstreamPool(descriptors=descriptors)
    manager = WorkerManager(config, registry, discovery)
    index.on_reconnect = lambda worker: manager.recheck(worker.url)
    manager.on_confirmed = index.confirm
    metrics = Metrics(registry, index, manager.status)
    routing = LocalRouting(
        registry,
        index,
        load,
        policies,
        metrics,
        expecting=config.kv_events.expect_ttl_secs > 0,
        queues={one.id: one.queue for one in config.models if one.queue.enabled},
        decisions=DecisionLog(config.observability.decisions_kept, config.observability.decision_cost_sample),
    )
    watch: LoadWatch | None = None
    if costed and config.load_reports.enabled:
        watch = LoadWatch(
            _corrects(routing),
            wants=costed.__contains__,
            api_key=key,
            interval_secs=config.load_reports.interval_secs,
            descriptors=descriptors,
        )
    tokens: TokenCheck | None = None
    if config.health.check_tokens:
        # Of several processes the first data process asks: the routing process shows what that finds.
        tokens = token_check(dict(models), metrics, key)
    for listener in (load, index, _ForgetConnections(pool), watch, tokens):
        if listener is not None:
            registry.add_listener(listener)
    metrics.register(ForecastCollector(registry, routing.rooms, watch))
    services = FleetServices(
        config=config,
        models=dict(models),
        registry=registry,
        routing=routing,
        pool=pool,
        metrics=metrics,
        readiness=FleetReadiness(list(policies), registry, index, manager.status),
        worker_api_key=key,
        descriptors=descriptors,
        manager=manager,
        index=index,
        load=load,
    )
    return FleetGraph(services, routing, watch, tokens)


def _corrects(routing: LocalRouting) -> Callable[[Target, LoadReport, float], None]:
    """What a worker reports of its own load corrects the estimate of its backlog."""

    def reported(target: Target, report: LoadReport, at: float) -> None:
        if target.forecast is not None:
            target.forecast.reported(report, at, target.own_tokens(time.monotonic()))
            routing.changed(target.worker.model_id)

    return reported


def build_data(
    config: Config,
    models: Mapping[str, Model],
    descriptors: Descriptors,
    *,
    number: int,
    leases: str,
    rng: random.Random,
) -> DataGraph:
    """`number` of the data process; `leases`: the socket of the routing process."""
    key = worker_api_key(config)
    registry, load, pool = WorkerRegistry(), ActiveLoad(), UpstreamPool(descriptors=descriptors)
    metrics = Metrics(registry)
    policies = dict.fromkeys(models, LeastLoadedFallback(rng))
    routing = RemoteRouting(
        leases,
        WorkerReplica(registry, {model.id: model.config for model in models.values()}),
        load,
        LocalRouting(registry, NoIndex(), load, policies, metrics, expecting=False),
        process=number,
        wait_secs={model.id: model.queue.max_wait_secs for model in config.models if model.queue.enabled},
        fell_back=lambda model_id: metrics.decisions.labels(model_id, DecisionReason.ROUTING_UNAVAILABLE.value).inc(),
    )
    tokens: TokenCheck | None = None
    if config.health.check_tokens and number == 0:
        tokens = token_check(dict(models), metrics, key)
    for listener in (load, _ForgetConnections(pool), tokens):
        if listener is not None:
            registry.add_listener(listener)
    services = Services(
        config=config,
        models=dict(models),
        registry=registry,
        routing=routing,
        pool=pool,
        metrics=metrics,
        readiness=routing.unready,
        worker_api_key=key,
        descriptors=descriptors,
    )
    routing.on_started = lambda at: setattr(services, "started_at", at)
    return DataGraph(services, routing, load, tokens)
