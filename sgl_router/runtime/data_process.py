"""A data process: the whole path of a request but for the decision, which the routing process makes."""

from __future__ import annotations

import asyncio
import random
import socket

import structlog

from sgl_router.admin.forward import Forward
from sgl_router.config import Config
from sgl_router.discovery.static_urls import StaticUrls
from sgl_router.http.server import HttpServer
from sgl_router.kv_events import KvIndex
from sgl_router.load import ActiveLoad, Janitor
from sgl_router.observability import Metrics, watch_loop_lag
from sgl_router.placement import DecisionReason
from sgl_router.routing import LocalRouting
from sgl_router.routing.remote.client import RemoteRouting
from sgl_router.routing.remote.fallback import AWAY, LeastLoadedFallback
from sgl_router.routing.remote.replica import WorkerReplica
from sgl_router.runtime.accounting import Accounting
from sgl_router.runtime.control import Control
from sgl_router.runtime.lifecycle import (
    ForgetConnections,
    Life,
    count_prompts,
    freeze_start_up,
    load_models,
    prepare_process,
)
from sgl_router.runtime.metric_deltas import Outgoing
from sgl_router.runtime.paths import Paths
from sgl_router.runtime.surface import explain_route, forwarded_routes, listeners
from sgl_router.runtime.tokenizer_parity import TokenCheck, token_check
from sgl_router.services import Services
from sgl_router.upstream import UpstreamPool
from sgl_router.workers import WorkerManager, WorkerRegistry, worker_api_key

__all__ = ["DataProcess", "run_data"]

log = structlog.get_logger(__name__)

_COUNTS_SECS = 1.0
_JOIN_SECS = 15.0
_LAST_WORDS_SECS = 1.0


class DataProcess:
    """`start`, then `stop`."""

    def __init__(
        self,
        config: Config,
        number: int,
        listener: socket.socket,
        paths: Paths,
        admin_listener: socket.socket | None = None,
    ) -> None:
        self.config = config
        self._number = number
        self._listener = listener
        self._admin_listener = admin_listener
        self._paths = paths
        self._life = Life()
        self._talk: asyncio.Task[None] | None = None
        self._rng = random.Random()
        self._tokens: TokenCheck | None = None

    async def start(self) -> None:
        """Load tokenizers, join the routing process, listen. Raises StartupError."""
        config = self.config
        descriptors = prepare_process(config)
        models = await load_models(config, self._rng, lambda target: 0)
        registry, load, pool = WorkerRegistry(), ActiveLoad(), UpstreamPool(descriptors=descriptors)
        registry.add_listener(load)
        registry.add_listener(ForgetConnections(pool))
        index = KvIndex()  # stays empty, as the manager stays idle: the routing process has the ones at work
        metrics = Metrics(registry, index)
        self._metrics, self._outgoing = metrics, Outgoing(metrics)
        away = LeastLoadedFallback(self._rng)
        fallback = LocalRouting(registry, index, load, dict.fromkeys(models, away), metrics, expecting=False)
        self.routing = RemoteRouting(
            self._paths.leases,
            WorkerReplica(registry, {model.id: model.config for model in models.values()}),
            load,
            fallback,
            process=self._number,
            wait_secs={model.id: model.queue.max_wait_secs for model in config.models if model.queue.enabled},
            fell_back=lambda model_id: metrics.decisions.labels(
                model_id, DecisionReason.ROUTING_UNAVAILABLE.value
            ).inc(),
            started=self._routing_started,
        )
        if config.health.check_tokens and self._number == 0:
            self._tokens = token_check(models, metrics, worker_api_key(config))
            registry.add_listener(self._tokens)
        self.services = Services(
            config=config,
            models=models,
            registry=registry,
            manager=WorkerManager(config, registry, StaticUrls([])),
            index=index,
            load=load,
            routing=self.routing,
            pool=pool,
            metrics=metrics,
            worker_api_key=worker_api_key(config),
            descriptors=descriptors,
            readiness=self.routing.unready,
        )
        # The routing process must have a descriptor for each request that is forwarded.
        most = max(descriptors.requests // config.server.processes, 8)
        self._forward = Forward(self._paths.http, lambda: AWAY, descriptors, most)
        life = self._life
        self._talk = asyncio.create_task(self.routing.run(), name="routing")
        if not await self.routing.joined(_JOIN_SECS):
            log.warning("the routing process cannot be reached, starting without it")
        operators = [*forwarded_routes(self._forward.serve), explain_route()]
        served = listeners(self._listener, self._admin_listener, operators)
        await life.serve(HttpServer(self.services, Accounting(self.services)), served)
        life.spawn(Janitor(load, config.active_load.stale_request_timeout_secs).run, "janitor")
        life.spawn(lambda: watch_loop_lag(metrics.loop_lag.observe), "loop lag")
        life.spawn(lambda: count_prompts(self.services), "prompt counts")
        life.spawn(self._send_counts, "counts")

    def _routing_started(self, at: float) -> None:
        self.services.started_at = at

    def drain(self) -> None:
        self.services.draining = True

    async def stop(self, grace_secs: float = 0.0) -> None:
        """Accept nothing new, give requests in flight `grace_secs` to end, tell the last counts, close everything."""
        services, life = self.services, self._life
        await life.finish_requests(services, grace_secs)
        await life.end_jobs()
        await life.end_server()
        self._forward.close()
        self._send_news()
        if self._talk is not None:
            self._talk.cancel()
            await asyncio.wait((self._talk,), timeout=_LAST_WORDS_SECS)
        if self._tokens is not None:
            await self._tokens.stop()
        services.index.close()
        services.pool.close()
        for model in services.models.values():
            model.tokenizer.close()
        log.info("data process stopped")

    async def _send_counts(self) -> None:
        while True:
            await asyncio.sleep(_COUNTS_SECS)
            self.routing.send_heard()
            self._send_news()

    def _send_news(self) -> None:
        if self.routing.away:
            return  # they add up until there is somebody to tell
        news = self._outgoing.take()
        if news:
            self.routing.send_counts(news)


async def run_data(
    config: Config,
    number: int,
    listener: socket.socket,
    paths: Paths,
    control: Control,
    admin_listener: socket.socket | None = None,
) -> int:
    """Until the supervisor says so."""
    await control.start()
    process = DataProcess(config, number, listener, paths, admin_listener)
    await process.start()
    freeze_start_up()
    control.ready()
    await control.drain()
    process.drain()
    await asyncio.sleep(config.server.shutdown_drain_secs)
    await process.stop(config.server.shutdown_grace_secs)
    return 0
