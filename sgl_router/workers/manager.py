"""Turns what discovery says into registered, probed workers."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import aiohttp
import structlog

from sgl_router.config.urls import normalise_url
from sgl_router.discovery.base import Discovery, DiscoveryEvent, ModeChanged, Removed
from sgl_router.upstream.control import control_session
from sgl_router.workers.backoff import Backoff
from sgl_router.workers.breaker import CircuitBreaker
from sgl_router.workers.info import WorkerInfo
from sgl_router.workers.monitor import ModelBinding, PendingWorker, SupervisorSettings, WorkerMonitor
from sgl_router.workers.registry import WorkerRegistry
from sgl_router.workers.worker import Worker

if TYPE_CHECKING:
    from sgl_router.config.schema import Config

__all__ = ["WorkerManager", "worker_api_key"]

log = structlog.get_logger(__name__)

_DISCOVERY_RETRY_SECS = (1.0, 30.0)


def worker_api_key(config: Config) -> str | None:
    """The key the workers were started with, from the environment variable that the configuration names."""
    name = config.discovery.worker_api_key_env
    return os.environ.get(name, "").strip() or None if name else None


class WorkerManager:
    """One supervisor per URL. `api_key` None means: as the configuration says."""

    def __init__(
        self,
        config: Config,
        registry: WorkerRegistry,
        discovery: Discovery,
        *,
        api_key: str | None = None,
        session_factory: Callable[[], aiohttp.ClientSession] = control_session,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        introspect_timeout_secs: float = 10.0,
        reintrospect_every: int = 12,
        retry_initial_secs: float = 0.2,
        retry_max_secs: float = 5.0,
    ) -> None:
        self.api_key = worker_api_key(config) if api_key is None else api_key
        self._models = {model.id: model for model in config.models}
        self._registry = registry
        self._discovery = discovery
        self._session_factory = session_factory
        self._clock = clock
        self._rng = random.Random() if rng is None else rng
        self._settings = SupervisorSettings(
            interval_secs=config.health.interval_secs,
            probe_timeout_secs=config.health.timeout_secs,
            failure_threshold=config.health.failure_threshold,
            success_threshold=config.health.success_threshold,
            introspect_timeout_secs=introspect_timeout_secs,
            reintrospect_every=reintrospect_every,
            retry_initial_secs=retry_initial_secs,
            retry_max_secs=retry_max_secs,
        )
        self.on_confirmed: Callable[[Worker], None] = lambda worker: None
        """Called whenever introspection has shown that a registered worker is still the same process."""
        self._supervisors: dict[str, WorkerMonitor] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to follow discovery. Returns at once: workers appear in the registry as they answer."""
        self._session = self._session_factory()
        self._task = asyncio.create_task(self._follow(self._session), name="worker manager")

    async def stop(self) -> None:
        """Unregister every worker and close every connection of the manager. Safe to call twice."""
        follower, self._task = self._task, None
        if follower is not None:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
        for url in list(self._supervisors):
            self._remove(url)
        await asyncio.gather(*self._ending, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    def recheck(self, url: str) -> None:
        """Introspect a worker now: `on_confirmed` follows, or its replacement in the registry."""
        supervisor = self._supervisors.get(url)
        if supervisor is not None:
            supervisor.recheck()

    def status(self) -> list[PendingWorker]:
        """The workers that should exist but are not registered yet, in the order they were announced."""
        return [pending for one in self._supervisors.values() if (pending := one.pending()) is not None]

    async def _follow(self, session: aiohttp.ClientSession) -> None:
        retry = Backoff(*_DISCOVERY_RETRY_SECS, self._rng)
        while True:
            try:
                async for event in self._discovery.events():
                    retry.reset()
                    self._apply(event, session)
            except Exception:
                log.exception("discovery failed, starting over")
            else:
                log.warning("discovery ended, starting over")
            await asyncio.sleep(retry.next())

    def _apply(self, event: DiscoveryEvent, session: aiohttp.ClientSession) -> None:
        try:
            url = normalise_url(event.url)
        except ValueError as error:
            log.error("discovery announced an unusable URL", reason=str(error))
            return
        if isinstance(event, Removed):
            if self._remove(url):
                log.info("worker removed", url=url)
            return
        known = self._supervisors.get(url)
        if isinstance(event, ModeChanged):
            if known is not None:
                known.hint_mode(event.mode)
            return
        if known is not None:
            if event.mode_hint is not None:
                known.hint_mode(event.mode_hint)
            return
        supervisor = WorkerMonitor(
            url,
            registry=self._registry,
            session=session,
            settings=self._settings,
            bind=self._bind,
            api_key=self.api_key,
            mode_hint=event.mode_hint,
            clock=self._clock,
            rng=self._rng,
            confirmed=lambda worker: self.on_confirmed(worker),
        )
        self._supervisors[url] = supervisor
        supervisor.start()

    def _remove(self, url: str) -> bool:
        supervisor = self._supervisors.pop(url, None)
        if supervisor is None:
            return False
        task = supervisor.stop()
        if task is not None:
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        return True

    def _bind(self, info: WorkerInfo) -> ModelBinding:
        """A worker belongs to the model whose id it serves; any other is kept under its own name, out of use."""
        name = info.served_model_name
        model = self._models.get(name)
        if model is not None:
            rules = model.circuit_breaker
            return ModelBinding(name, CircuitBreaker(rules.threshold, rules.cool_down_secs))
        return ModelBinding(name, CircuitBreaker(), unlike=sorted(self._models))
