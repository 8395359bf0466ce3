"""The simulated workers: engines on the clock, telling routers of first tokens, ends and cache events."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from sgl_router.lab.mock_worker.ops import BlocksRemoved, BlocksStored, CacheOp
from sgl_router.lab.simulate.clock import SimClock, Timer
from sgl_router.lab.simulate.engine import Engine, Run
from sgl_router.lab.simulate.job import Job
from sgl_router.load.reports import LoadReport

__all__ = ["Changes", "Fleet", "FleetListener", "SimWorker"]

Changes = list[tuple[bool, tuple[int, ...]]]
"""Blocks stored (True) and removed, in order."""


class FleetListener(Protocol):
    """What routers hear from workers."""

    def cache_changed(self, worker: int, changes: Changes) -> None: ...

    def load_reported(self, worker: int, load: LoadReport) -> None: ...


class SimWorker:
    """Runs one engine: phase after phase, as long as there is work. Of requests that come to an idle engine at one
    instant the first starts alone: on a wire there is always a first."""

    def __init__(self, clock: SimClock, engine: Engine, published: Callable[[Changes], None]) -> None:
        self.engine = engine
        self._clock = clock
        self._published = published
        self._told: dict[Run, Callable[[Run], None]] = {}
        self._ending: Timer | None = None

    def submit(self, job: Job, told: Callable[[Run], None]) -> Run | None:
        """Hand a job over: `told` is called with its first token, and again with its last unless that was the same.
        None where it can never run here."""
        run = self.engine.submit(job, self._clock.now)
        if run is None:
            return None
        self._told[run] = told
        if self._ending is not None:
            due = self.engine.interrupt(self._clock.now)
            if due < self._ending.when:
                self._ending.cancel()
                self._ending = self._clock.at(due, self._end)
        else:
            self._begin()
        return run

    def _begin(self) -> None:
        due = self.engine.begin(self._clock.now)
        if due is not None:
            self._ending = self._clock.at(due, self._end)

    def _end(self) -> None:
        self._ending = None
        told = self.engine.end(self._clock.now)
        ops = self.engine.ops
        if ops:
            self._published(_changes(ops))
            ops.clear()
        # As in `mock.rank`: whoever is sent here because of what is told now comes after the next step has begun.
        self._begin()
        for run in told:
            listener = self._told[run]
            if run.finished_at is not None:
                del self._told[run]
            listener(run)


class Fleet:
    """All workers, and the routers that listen to them `event_delay` seconds late."""

    def __init__(
        self,
        clock: SimClock,
        engines: list[Engine],
        *,
        event_delay: float,
        load_report_interval: float | None = None,
        cache_tokens: int | None = None,
    ) -> None:
        self._clock = clock
        self._delay = event_delay
        self._interval = load_report_interval
        self._listeners: list[FleetListener] = []
        self.cache_tokens = cache_tokens
        self.workers = [
            SimWorker(clock, engine, partial(self._cache_changed, number)) for number, engine in enumerate(engines)
        ]

    def listen(self, listener: FleetListener) -> None:
        self._listeners.append(listener)

    def report_loads(self, going_on: Callable[[], bool]) -> None:
        """Send load reports from now on, until nothing goes on any more."""
        if self._interval is not None:
            self._clock.later(self._interval, partial(self._report, self._interval, going_on))

    def _report(self, interval: float, going_on: Callable[[], bool]) -> None:
        loads = [worker.engine.load() for worker in self.workers]
        self._tell(partial(self._loads_reported, loads))
        if going_on():
            self._clock.later(interval, partial(self._report, interval, going_on))

    def _loads_reported(self, loads: list[LoadReport]) -> None:
        for listener in self._listeners:
            for number, load in enumerate(loads):
                listener.load_reported(number, load)

    def _cache_changed(self, worker: int, changes: Changes) -> None:
        self._tell(partial(self._changes_heard, worker, changes))

    def _changes_heard(self, worker: int, changes: Changes) -> None:
        for listener in self._listeners:
            listener.cache_changed(worker, changes)

    def _tell(self, tell: Callable[[], None]) -> None:
        if self._delay:
            self._clock.later(self._delay, tell)
        else:
            tell()


def _changes(ops: list[CacheOp]) -> Changes:
    changes: Changes = []
    for op in ops:
        if isinstance(op, BlocksStored):
            changes.append((True, op.hashes))
        elif isinstance(op, BlocksRemoved):
            changes.append((False, op.hashes))
    return changes
