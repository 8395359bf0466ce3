"""The life of one router process: put together, serve, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import resource
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from sgl_router import __version__
from sgl_router.config import Config, ModelConfig
from sgl_router.discovery import DiscoveryUnavailable, make_discovery
from sgl_router.kv_events import KvIndex
from sgl_router.observability import Metrics, watch_loop_lag
from sgl_router.policies import ActiveLoad, Janitor, make_policy
from sgl_router.proxy import UpstreamPool
from sgl_router.routing import LocalRouting
from sgl_router.tokenization import ModelTokenizer, TokenizerLoadError
from sgl_router.workers import Worker, WorkerManager, WorkerRegistry, worker_api_key

from .front import make_runner
from .services import Model, Services
from .snapshot_keeper import SnapshotKeeper

__all__ = ["Daemon", "StartupError"]

log = structlog.get_logger(__name__)

_BACKLOG = 2_048


class StartupError(Exception):
    """The router cannot start; the text names the field at fault."""


class Daemon:
    """`start`, then `run` until a signal (or `stop` directly, where another program hosts the router)."""

    def __init__(self, config: Config, *, rng: random.Random | None = None) -> None:
        self.config = config
        self._rng = random.Random() if rng is None else rng
        self._runner: web.AppRunner | None = None
        self._site: web.SockSite | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._services: Services | None = None
        self._keeper: SnapshotKeeper | None = None
        self.port = 0

    @property
    def services(self) -> Services:
        assert self._services is not None, "the daemon has not been started"
        return self._services

    @property
    def url(self) -> str:
        host = self.config.server.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self) -> None:
        """Load tokenizers, listen, begin to look for workers. Raises StartupError."""
        config = self.config
        _raise_open_file_limit()
        # Long prompts are rendered in a thread: with the default of 5 ms the loop would wait that long for the GIL.
        sys.setswitchinterval(0.0005)
        try:
            discovery = make_discovery(config.discovery)
        except DiscoveryUnavailable as error:
            raise StartupError(str(error)) from None
        listener = self._listen()
        try:
            models = await self._load_models()
        except BaseException:
            listener.close()
            raise
        events = config.kv_events
        index = KvIndex(
            receive_high_water_mark=events.receive_high_water_mark,
            max_message_bytes=events.max_message_bytes,
            turn_budget_secs=events.turn_budget_ms / 1e3,
            replay_idle_secs=events.replay_idle_secs,
            resync_secs=events.resync_secs,
            expect_ttl_secs=events.expect_ttl_secs,
            max_blocks=events.max_blocks,
        )
        registry, load, pool = WorkerRegistry(), ActiveLoad(), UpstreamPool()
        registry.add_listener(load)
        registry.add_listener(index)
        registry.add_listener(_ForgetConnections(pool))
        manager = WorkerManager(config, registry, discovery)
        index.on_reconnect = lambda worker: manager.recheck(worker.url)
        manager.on_confirmed = index.confirm
        metrics = Metrics(registry, index)
        routing = LocalRouting(
            registry,
            index,
            load,
            {model.id: model.policy for model in models.values()},
            metrics,
            expecting=events.expect_ttl_secs > 0,
        )
        self._services = Services(
            config=config,
            models=models,
            registry=registry,
            manager=manager,
            index=index,
            load=load,
            routing=routing,
            pool=pool,
            metrics=metrics,
            worker_api_key=worker_api_key(config),
        )
        self._runner = make_runner(self._services)
        await self._runner.setup()
        self._site = web.SockSite(self._runner, listener, backlog=_BACKLOG)
        await self._site.start()
        janitor = Janitor(load, config.active_load.stale_request_timeout_secs)
        self._spawn(janitor.run, "janitor")
        self._spawn(lambda: watch_loop_lag(self.services.metrics.loop_lag.observe), "loop lag")
        self._keeper = SnapshotKeeper(events.snapshot, index)
        await self._keeper.load()
        if events.snapshot.path is not None:
            self._spawn(self._keeper.run, "kv snapshots")
        await manager.start()
        # What start-up made lives as long as the process: the collector need not walk it again.
        gc.collect()
        gc.freeze()
        log.info("router listening", url=self.url, version=__version__, models=sorted(models), pid=os.getpid())

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, drain, stop. Returns the exit status. A second signal exits at once."""
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()

        def on_signal(number: signal.Signals) -> None:
            if asked.is_set():
                log.warning("second signal, exiting at once", signal=number.name)
                os._exit(128 + number)
            log.info("signal received, draining", signal=number.name)
            asked.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        await asked.wait()
        self.services.draining = True
        self.services.metrics.draining.set(1)
        await asyncio.sleep(self.config.server.shutdown_drain_secs)
        await self.stop(self.config.server.shutdown_grace_secs)
        return 0

    async def stop(self, grace_secs: float = 0.0) -> None:
        """Accept nothing new, give requests in flight `grace_secs` to end, close everything. Idempotent."""
        if self._services is None:
            return
        services = self._services
        services.draining = services.closing = True
        if self._site is not None:
            await self._site.stop()
            self._site = None
        await services.in_flight.drained(grace_secs)
        if services.in_flight.count:
            log.warning("requests cut off at shutdown", count=services.in_flight.count)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._keeper is not None:
            await self._keeper.close()
            self._keeper = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await services.manager.stop()
        services.index.close()
        services.pool.close()
        for model in services.models.values():
            model.tokenizer.close()
        log.info("router stopped")

    def _listen(self) -> socket.socket:
        host, port = self.config.server.host, self.config.server.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0]
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)  # it listens once there is something to answer with
        except OSError as error:
            raise StartupError(f"server.host, server.port: cannot listen on {host}:{port}: {error.strerror}") from None
        self.port = listener.getsockname()[1]
        return listener

    async def _load_models(self) -> dict[str, Model]:
        loop = asyncio.get_running_loop()
        models = {}
        for position, config in enumerate(self.config.models):
            started = time.monotonic()
            try:
                tokenizer = await loop.run_in_executor(None, _load_tokenizer, config)
            except TokenizerLoadError as error:
                raise StartupError(f"models[{position}].tokenizer_path: {error}") from None
            models[config.id] = Model(config, tokenizer, make_policy(config, self._rng))
            log.info(
                "model loaded",
                model=config.id,
                policy=config.policy.value,
                tokenizer=tokenizer.backend,
                secs=round(time.monotonic() - started, 2),
            )
        return models

    def _spawn(self, job: Callable[[], Awaitable[None]], name: str) -> None:
        async def supervised() -> None:
            while True:
                try:
                    await job()
                except Exception:
                    log.exception("background job failed, starting over", job=name)
                    await asyncio.sleep(1.0)

        self._tasks.append(asyncio.create_task(supervised(), name=name))


class _ForgetConnections:
    """Closes the connections to a removed worker."""

    def __init__(self, pool: UpstreamPool) -> None:
        self._pool = pool

    def worker_added(self, worker: Worker) -> None:
        pass

    def worker_removed(self, worker: Worker) -> None:
        self._pool.forget(worker.url)


def _load_tokenizer(config: ModelConfig) -> ModelTokenizer:
    return ModelTokenizer.load(config.tokenizer_path, config.chat_template)


def _raise_open_file_limit() -> None:
    """Every stream is two sockets and every rank of a worker two more: take what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
