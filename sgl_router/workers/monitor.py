"""Looks after one configured URL for as long as it is configured."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import Callable
from typing import NamedTuple

import aiohttp
import structlog

from sgl_router.discovery.base import WorkerMode
from sgl_router.upstream.fault import WorkerFault
from sgl_router.workers.backed_off_lines import BackedOffLines
from sgl_router.workers.backoff import Backoff, worth_logging
from sgl_router.workers.breaker import BreakerState, CircuitBreaker
from sgl_router.workers.health import HealthTracker, Probe, ProbeResult
from sgl_router.workers.info import WorkerInfo
from sgl_router.workers.introspect import IntrospectionError, introspect
from sgl_router.workers.registry import WorkerRegistry
from sgl_router.workers.worker import HealthState, Worker, worker_id

__all__ = ["ModelBinding", "PendingWorker", "SupervisorSettings", "WorkerMonitor"]

log = structlog.get_logger(__name__)

_INTERVAL_JITTER = 0.1
_MAX_STARTING_PAUSE_SECS = 1.0
_REMEMBERED_STARTS = 16
# How long a worker that has stopped to answer probes counts as busy, where no other is left.
_BUSY_SECS = 60.0


class ModelBinding(NamedTuple):
    """Which model a worker belongs to, and the breaker it gets. `unlike`: the models that are configured, where this
    is none of them."""

    model_id: str
    breaker: CircuitBreaker
    unlike: list[str] | None = None


@dataclasses.dataclass(frozen=True)
class SupervisorSettings:
    """Times in seconds; thresholds in probes."""

    interval_secs: float
    probe_timeout_secs: float
    failure_threshold: int
    success_threshold: int
    introspect_timeout_secs: float
    reintrospect_every: int
    retry_initial_secs: float
    retry_max_secs: float


@dataclasses.dataclass(frozen=True)
class PendingWorker:
    """A configured worker that has not said yet what it is. `url` is for operators only; `last_error` names none."""

    id: str
    url: str
    attempts: int
    fault: WorkerFault | None
    last_error: str | None
    since: float


class WorkerMonitor:
    """Introspects until it succeeds, registers, probes, and swaps in a new incarnation when the server is another one.

    Owns at most one registered Worker, and after `stop` none: nothing that is still under way touches the registry.
    """

    def __init__(
        self,
        url: str,
        *,
        registry: WorkerRegistry,
        session: aiohttp.ClientSession,
        settings: SupervisorSettings,
        bind: Callable[[WorkerInfo], ModelBinding],
        api_key: str | None,
        mode_hint: WorkerMode | None,
        clock: Callable[[], float],
        rng: random.Random,
        confirmed: Callable[[Worker], None] = lambda worker: None,
    ) -> None:
        self.url = url
        self.id = worker_id(url)
        self.worker: Worker | None = None
        self._registry = registry
        self._session = session
        self._settings = settings
        self._bind = bind
        self._api_key = api_key
        self._mode_hint = mode_hint
        self._rng = rng
        self._clock = clock
        self._since = self._alive_at = clock()
        self._attempts = 0
        self._last_error: IntrospectionError | None = None
        self._retry = Backoff(settings.retry_initial_secs, settings.retry_max_secs, rng)
        self._probe = Probe(session, url, api_key=api_key, timeout_secs=settings.probe_timeout_secs)
        self._tracker = self._new_tracker()
        self._suspect = False  # something failed: the next server to answer must prove that it is the same one
        self._probes_since_check = 0
        self._failed_probes = 0
        self._failed_checks = 0
        self._excused_probes = 0
        self._starts: list[float | str] = []
        self._several_servers = False
        self._stopping = False
        self._confirmed = confirmed
        self._look_now = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # --- from outside -------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"supervise {self.id}")

    def stop(self) -> asyncio.Task[None] | None:
        """Unregister at once; the returned task is being cancelled."""
        self._stopping = True
        self._unregister()
        if self._task is not None:
            self._task.cancel()
        return self._task

    def recheck(self) -> None:
        """Something suggests another server: introspect without waiting for the next probe."""
        self._suspect = True
        self._look_now.set()

    def pending(self) -> PendingWorker | None:
        """None once the worker is registered."""
        if self.worker is not None:
            return None
        error = self._last_error
        return PendingWorker(
            id=self.id,
            url=self.url,
            attempts=self._attempts,
            fault=error.fault if error else None,
            last_error=str(error) if error else None,
            since=self._since,
        )

    def hint_mode(self, mode: WorkerMode | None) -> None:
        """A worker that does not report its own mode becomes a new incarnation in the hinted one."""
        self._mode_hint = mode
        worker = self.worker
        if worker is not None and self._mode_of(worker.info) is not worker.mode:
            log.info("worker mode changed", worker=self.id, url=self.url, mode=self._mode_of(worker.info).value)
            self._register(worker.info, worker.health)

    # --- the loop -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while not self._stopping:
            try:
                info = await self._introspect_until_it_answers()
                if self._stopping:
                    return
                self._tracker = self._new_tracker()
                self._suspect = False
                self._register(info, HealthState.STARTING)
                while not self._stopping:
                    await self._look_once()
                    await self._until_next_look()
            except Exception:
                # A defect here must not leave a configured worker unattended.
                log.exception("worker supervision failed, starting over", worker=self.id, url=self.url)
                self._unregister()
                await asyncio.sleep(self._retry.next())

    async def _introspect_until_it_answers(self) -> WorkerInfo:
        while True:
            try:
                info = await self._introspect()
            except IntrospectionError as error:
                self._attempts += 1
                news = self._last_error is None or self._last_error.fault is not error.fault
                self._last_error = error
                if news or worth_logging(self._attempts):
                    log.warning(
                        "worker not available yet",
                        worker=self.id,
                        url=self.url,
                        fault=error.fault.value,
                        reason=str(error),
                        attempts=self._attempts,
                    )
            else:
                self._retry.reset()
                return info
            await asyncio.sleep(self._retry.next())

    async def _look_once(self) -> None:
        result = await self._probe.check()
        worker = self.worker
        if self._stopping or worker is None:
            return
        heard, worker.heard = worker.heard, False
        if heard:
            self._alive_at = self._clock()
        if result.fault is not None:
            # No answer in time says that the worker is busy or dead; a good byte since the last probe, which of them.
            # A connection that is refused, or an answer that is no 200, needs no second opinion.
            if heard and result.fault is WorkerFault.TIMED_OUT:
                self._probe_excused(result)
            else:
                self._probe_failed(result)
            return
        self._alive_at = self._clock()
        self._failed_probes = self._excused_probes = 0
        self._probes_since_check += 1
        if self._suspect or self._probes_since_check >= self._settings.reintrospect_every:
            same = await self._still_the_same(result.ready)
            if self._stopping or not same:
                return
        if worker.health is HealthState.STARTING and result.ready:
            self._set_health(self._tracker.trust())
        else:
            self._set_health(self._tracker.observe(True))

    def _probe_excused(self, result: ProbeResult) -> None:
        self._failed_probes = 0
        self._excused_probes += 1
        if worth_logging(self._excused_probes):
            log.info(
                "health probe had no answer, but responses go on: the worker is busy",
                worker=self.id,
                url=self.url,
                reason=result.detail,
                probes=self._excused_probes,
            )
        self._set_health(self._tracker.observe(True))

    def _probe_failed(self, result: ProbeResult) -> None:
        worker = self.worker
        if worker is None or result.fault is WorkerFault.ROUTER_SHORT:
            return  # of a shortage of the router's own the log has the reason; nothing was learned of the worker
        if result.fault is WorkerFault.NOT_READY and worker.health is HealthState.STARTING:
            return  # warming up for as long as it takes
        self._suspect = True
        self._failed_probes += 1
        stalled = result.fault is WorkerFault.TIMED_OUT
        worker.busy_until = self._alive_at + _BUSY_SECS if stalled else float("-inf")
        if worth_logging(self._failed_probes) and result.fault is not None:
            log.info(
                "health probe failed",
                worker=self.id,
                url=self.url,
                fault=result.fault.value,
                reason=result.detail,
                failures=self._failed_probes,
            )
        self._set_health(self._tracker.observe(False), result)

    async def _still_the_same(self, ready: bool) -> bool:
        """Whether the probe's success counts for the registered incarnation.

        False where another incarnation took its place, or where a worker that is out of service cannot show that it
        is still the one whose cache contents are known.
        """
        try:
            info = await self._introspect()
        except IntrospectionError as error:
            self._probes_since_check = 0
            self._failed_checks += 1
            if worth_logging(self._failed_checks):
                log.warning(
                    "worker is alive but cannot be introspected",
                    worker=self.id,
                    url=self.url,
                    fault=error.fault.value,
                    reason=str(error),
                    attempts=self._failed_checks,
                )
            return self.worker is not None and self.worker.health is HealthState.HEALTHY
        if self._stopping or self.worker is None:
            return False
        self._probes_since_check = 0
        self._failed_checks = 0
        self._suspect = False
        known = self.worker.info
        info = self._one_server_only(info, known)
        if info == known:
            self.worker.info = info
            self._confirmed(self.worker)
            return True
        changed = [
            field.name
            for field in dataclasses.fields(WorkerInfo)
            if field.compare and getattr(info, field.name) != getattr(known, field.name)
        ]
        log.warning("worker restarted or changed", worker=self.id, url=self.url, changed=changed)
        self._probe.forget()
        self._tracker = self._new_tracker()
        self._register(info, self._tracker.trust() if ready else self._tracker.observe(True))
        return False

    def _one_server_only(self, info: WorkerInfo, known: WorkerInfo) -> WorkerInfo:
        """Processes that take turns on one address are not restarts: what they cache cannot be attributed."""
        started = info.started_at
        if not self._several_servers and started != known.started_at and started in self._starts:
            self._several_servers = True
            log.error(
                "several servers answer on one worker URL: routed without KV events; list each server by itself",
                worker=self.id,
                url=self.url,
            )
        if self._several_servers:
            return dataclasses.replace(info, started_at=None, kv_source=None)
        return info

    # --- steps --------------------------------------------------------------------------------------------------

    async def _introspect(self) -> WorkerInfo:
        timeout = self._settings.introspect_timeout_secs
        return await introspect(self._session, self.url, self._api_key, timeout_secs=timeout)

    def _register(self, info: WorkerInfo, health: HealthState) -> None:
        self._unregister()
        model_id, breaker, unlike = self._bind(info)
        mode = self._mode_of(info)
        worker = Worker(self.url, info, model_id=model_id, mode=mode, breaker=breaker, health=health)
        if info.started_at is not None:
            self._starts = [*self._starts[1 - _REMEMBERED_STARTS :], info.started_at]
        self._probes_since_check = 0
        self._attempts = 0
        self._last_error = None
        self._alive_at = self._clock()
        log.info(
            "worker registered",
            worker=worker.id,
            url=self.url,
            generation=worker.generation,
            model=model_id,
            mode=mode.value,
            dp_size=worker.dp_size,
            block_size=info.block_size,
            kv_events=info.kv_source.endpoint(0) if info.kv_source else None,
            version=info.version,
            health=health.value,
        )
        breaker.moved = lambda state: self._circuit(worker, state)
        worker.moved = BackedOffLines(worker, self._clock)
        if unlike is not None:
            log.warning(
                "worker serves a model that is not configured, no request will reach it:"
                " set models[].id or the worker's --served-model-name so that they agree",
                worker=self.id,
                url=self.url,
                served=model_id,
                configured=unlike,
            )
        for note in info.notes:
            log.warning("worker set-up", worker=self.id, url=self.url, note=note)
        if self._mode_hint is not None and self._mode_hint is not mode:
            log.warning(
                "worker reports another mode than discovery expects",
                worker=self.id,
                url=self.url,
                reported=mode.value,
                expected=self._mode_hint.value,
            )
        self.worker = worker
        self._registry.add(worker)

    def _circuit(self, worker: Worker, state: BreakerState) -> None:
        about = {"worker": worker.id, "url": self.url}
        if state is BreakerState.OPEN:
            secs = worker.breaker.cool_down_secs
            log.warning(
                "circuit opened: requests keep failing, this worker gets none for now", cool_down_secs=secs, **about
            )
        elif state is BreakerState.CLOSED:
            log.info("circuit closed: a request succeeded again", **about)

    def _unregister(self) -> None:
        worker, self.worker = self.worker, None
        if worker is not None and self._registry.get(self.url) is worker:
            self._registry.remove(self.url)

    def _set_health(self, state: HealthState, cause: ProbeResult | None = None) -> None:
        worker = self.worker
        if worker is None or worker.health is state:
            return
        worker.health = state
        if state is HealthState.UNHEALTHY and cause is not None and cause.fault is not None:
            log.warning("worker unhealthy", worker=self.id, url=self.url, fault=cause.fault.value, reason=cause.detail)
        else:
            log.info("worker " + state.value, worker=self.id, url=self.url)

    def _mode_of(self, info: WorkerInfo) -> WorkerMode:
        return info.mode if info.mode_reported or self._mode_hint is None else self._mode_hint

    def _new_tracker(self) -> HealthTracker:
        return HealthTracker(self._settings.failure_threshold, self._settings.success_threshold)

    async def _until_next_look(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._look_now.wait(), self._pause())
        self._look_now.clear()

    def _pause(self) -> float:
        pause = self._settings.interval_secs * self._rng.uniform(1 - _INTERVAL_JITTER, 1 + _INTERVAL_JITTER)
        starting = self.worker is not None and self.worker.health is HealthState.STARTING
        return min(pause, _MAX_STARTING_PAUSE_SECS) if starting else pause
