"""A data process: the whole path of a request but for the decision, which the routing process makes."""

from __future__ import annotations

import asyncio
import random
import socket

import structlog

from sgl_router.admin.forward import Forward
from sgl_router.config import Config
from sgl_router.http.server import HttpServer
from sgl_router.load import Janitor
from sgl_router.observability import watch_loop_lag
from sgl_router.routing.remote.fallback import UNAVAILABLE
from sgl_router.runtime.accounting import Accounting
from sgl_router.runtime.build import build_data
from sgl_router.runtime.control import Control
from sgl_router.runtime.lifecycle import (
    Life,
    count_prompts,
    freeze_start_up,
    load_models,
    prepare_process,
)
from sgl_router.runtime.metric_deltas import Outgoing
from sgl_router.runtime.paths import Paths
from sgl_router.runtime.surface import explain_route, forwarded_routes, listeners
from sgl_router.runtime.tokenizer_parity import TokenCheck

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
        models, _ = await load_models(config, self._rng, lambda target: 0)
        graph = build_data(config, models, descriptors, number=self._number, leases=self._paths.leases, rng=self._rng)
        self.services, self.routing, self._tokens = graph.services, graph.routing, graph.tokens
        metrics = graph.services.metrics
        self._outgoing = Outgoing(metrics)
        # The routing process must have a descriptor for each request that is forwarded.
        most = max(descriptors.requests // config.server.processes, 8)
        self._forward = Forward(self._paths.http, lambda: UNAVAILABLE, descriptors, most)
        life = self._life
        self._talk = asyncio.create_task(self.routing.run(), name="routing")
        if not await self.routing.joined(_JOIN_SECS):
            log.warning("routing process cannot be reached: starting without it")
        operators = [*forwarded_routes(self._forward.serve), explain_route()]
        served = listeners(self._listener, self._admin_listener, operators)
        await life.serve(HttpServer(self.services, Accounting(self.services)), served)
        life.spawn(Janitor(graph.load, config.active_load.stale_request_timeout_secs).run, "janitor")
        life.spawn(lambda: watch_loop_lag(metrics.loop_lag.observe), "loop lag")
        life.spawn(lambda: count_prompts(self.services), "prompt counts")
        life.spawn(self._send_counts, "counts")

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
