"""The life of one router process: put together, serve, drain, stop."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from collections.abc import Awaitable, Callable

import structlog

from sgl_router import __version__, signals
from sgl_router.config import Config
from sgl_router.discovery import DiscoveryUnavailable, make_discovery
from sgl_router.http.routes import Routes
from sgl_router.http.server import HttpServer
from sgl_router.load import Janitor
from sgl_router.observability import flush_logs, watch_loop_lag
from sgl_router.policies import Policy
from sgl_router.routing import LocalRouting
from sgl_router.runtime.accounting import Accounting
from sgl_router.runtime.build import FleetGraph, build_fleet, make_index
from sgl_router.runtime.lifecycle import (
    Life,
    count_prompts,
    freeze_start_up,
    load_models,
    prepare_process,
)
from sgl_router.runtime.listen import StartupError, bind
from sgl_router.runtime.snapshot_keeper import SnapshotKeeper
from sgl_router.runtime.surface import explain_route, fleet_routes, listeners
from sgl_router.services import FleetServices, Model
from sgl_router.workers import Target

__all__ = ["Daemon", "StartupError"]

LoadModels = Callable[
    [Config, random.Random, Callable[[Target], int]], Awaitable[tuple[dict[str, Model], dict[str, Policy]]]
]
"""The models that are tokenized here, and the policies of all."""

log = structlog.get_logger(__name__)


class Daemon:
    """`start`, then `run` until a signal (or `stop` directly, where another program hosts the router).

    As the routing process of several: `inner` is a bound socket on which the others ask for operators' routes, the
    only ones it answers; `models` says with what tokenizers.
    """

    def __init__(
        self,
        config: Config,
        *,
        rng: random.Random | None = None,
        inner: socket.socket | None = None,
        models: LoadModels = load_models,
    ) -> None:
        self.config = config
        self._rng = random.Random() if rng is None else rng
        self._inner = inner
        self._load_models = models
        self._life = Life()
        self._graph: FleetGraph | None = None
        self._keeper: SnapshotKeeper | None = None
        self.port = 0
        self.admin_port = 0

    @property
    def services(self) -> FleetServices:
        assert self._graph is not None, "the daemon has not been started"
        return self._graph.services

    @property
    def routing(self) -> LocalRouting:
        assert self._graph is not None, "the daemon has not been started"
        return self._graph.routing

    @property
    def url(self) -> str:
        host = self.config.server.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self) -> None:
        """Load tokenizers, listen, begin to look for workers. Raises StartupError."""
        config = self.config
        descriptors = prepare_process(config)
        try:
            discovery = make_discovery(config.discovery)
        except DiscoveryUnavailable as error:
            raise StartupError(str(error)) from None
        sockets = self._bind()
        index = make_index(config, descriptors)
        index.prepare()
        try:
            models, policies = await self._load_models(config, self._rng, index.held_tokens)
            graph = build_fleet(config, models, policies, index, discovery, descriptors)
        except BaseException:
            for listener in sockets:
                listener.close()
            index.close()
            raise
        self._graph = graph
        life = self._life
        fleet = fleet_routes(graph.routing.decisions, index)
        inner = self._inner is not None
        if inner:
            served = [(sockets[0], Routes(fleet))]
        else:
            main, admin = sockets[0], sockets[1] if len(sockets) > 1 else None
            served = listeners(main, admin, [*fleet, explain_route()])
        await life.serve(HttpServer(graph.services, Accounting(graph.services, counted=not inner)), served)
        janitor = Janitor(graph.services.load, config.active_load.stale_request_timeout_secs)
        life.spawn(janitor.run, "janitor")
        life.spawn(lambda: watch_loop_lag(self.services.metrics.loop_lag.observe), "loop lag")
        life.spawn(lambda: count_prompts(self.services), "prompt counts")
        self._keeper = SnapshotKeeper(config.kv_events.snapshot, index)
        await self._keeper.load()
        if config.kv_events.snapshot.path is not None:
            life.spawn(self._keeper.run, "kv snapshots")
        await graph.services.manager.start()
        if self._inner is None:
            more = {"admin_port": self.admin_port} if self.admin_port else {}
            log.info(
                "router listening", url=self.url, version=__version__, models=sorted(models), pid=os.getpid(), **more
            )

    def _bind(self) -> list[socket.socket]:
        """The main socket, and the one for operators where that is apart. Raises StartupError."""
        if self._inner is not None:
            return [self._inner]
        server, admin = self.config.server, self.config.admin
        sockets = bind(server.host, server.port)
        self.port = sockets[0].getsockname()[1]
        if admin is not None:
            try:
                sockets += bind(admin.host, admin.port, section="admin")
            except StartupError:
                sockets[0].close()
                raise
            self.admin_port = sockets[1].getsockname()[1]
        return sockets

    async def run(self) -> int:
        """Serve until SIGTERM, SIGINT or SIGQUIT, drain, stop; the exit status. A second signal exits at once."""
        freeze_start_up()
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()

        def on_signal(number: signal.Signals) -> None:
            if asked.is_set():
                log.warning("second signal, exiting at once", signal=number.name)
                flush_logs()
                os._exit(128 + number)
            log.info("signal received, draining", signal=number.name)
            asked.set()

        for number in signals.LEAVING:
            loop.add_signal_handler(number, on_signal, number)
        await asked.wait()
        self.drain()
        await asyncio.sleep(self.config.server.shutdown_drain_secs)
        await self.stop(self.config.server.shutdown_grace_secs)
        return 0

    def drain(self) -> None:
        """Say that this router is about to go; requests are still served."""
        self.services.draining = True
        self.services.metrics.draining.set(1)

    async def stop(self, grace_secs: float = 0.0) -> None:
        """Accept nothing new, give requests in flight `grace_secs` to end, close everything. Idempotent."""
        if self._graph is None:
            return
        services, life = self._graph.services, self._life
        await life.finish_requests(services, grace_secs)
        await life.end_jobs()
        if self._keeper is not None:
            await self._keeper.close()
            self._keeper = None
        await life.end_server()
        await services.manager.stop()
        if self._graph.watch is not None:
            await self._graph.watch.stop()
        if self._graph.tokens is not None:
            await self._graph.tokens.stop()
        services.index.close()
        services.pool.close()
        for model in services.models.values():
            model.tokenizer.close()
        log.info("router stopped")
