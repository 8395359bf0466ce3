"""Follows the load of every worker that somebody wants to know of."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import aiohttp
import structlog
from msgspec import structs

from sgl_router.descriptors import EVENT_SOCKET, Descriptors, spare
from sgl_router.load.reports.channel import LoadChannel
from sgl_router.load.reports.outcome import LoadOutcome, LoadSource
from sgl_router.load.reports.poller import LoadPoller, PollSettings, load_session
from sgl_router.load.reports.report import LoadReport
from sgl_router.upstream.zmq_subscriber import SPARE_DESCRIPTORS, make_context
from sgl_router.workers.server_info import parse_version
from sgl_router.workers.worker import Target, Worker

if TYPE_CHECKING:
    import zmq

__all__ = ["LoadListener", "LoadWatch"]

log = structlog.get_logger(__name__)

_COUNTS_COMPLETIONS = (0, 5, 21)
"""Before, an engine took the time from launch to launch for that of a prefill: with overlapped scheduling the second
step of a burst seems to take next to none, and the worker to be fifty times as fast as it is."""

LoadListener = Callable[[Target, LoadReport, float], None]
"""Called with the target, its report, and the moment (of `clock`) at which it was true. On the loop; must not block."""


class LoadWatch:
    """A listener of the registry. Sockets and connections are opened with the first worker that is wanted.

    A worker that advertises a load channel is listened to, and asked only while a rank of it has been silent for
    `silent_secs`; any other is asked every `interval_secs`. Nothing is reported of a worker after its removal.

    Where no worker has told its load for `failing_secs`, though questions were asked, one warning says so, and one line
    when one does: those that have no endpoint to ask, or left, are not counted.
    """

    def __init__(
        self,
        listener: LoadListener,
        *,
        wants: Callable[[str], bool],
        api_key: str | None = None,
        interval_secs: float = 1.0,
        timeout_secs: float = 5.0,
        silent_secs: float = 3.0,
        failing_secs: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        descriptors: Descriptors | None = None,
    ) -> None:
        self._descriptors = descriptors or Descriptors()
        self.counts: Counter[tuple[LoadSource, LoadOutcome]] = Counter()
        self._listener = listener
        self._wants = wants
        self._api_key = api_key
        self._settings = PollSettings(interval_secs, timeout_secs)
        self._silent_secs = silent_secs
        self._failing_secs = failing_secs
        self._failing = False
        self._clock = clock
        self._rng = random.Random() if rng is None else rng
        self._watched: dict[Worker, _Watched] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._stopped = False

    def __len__(self) -> int:
        """Workers that are followed."""
        return len(self._watched)

    def worker_added(self, worker: Worker) -> None:
        """Follow it, if its model's policy wants reports."""
        if self._stopped or not self._wants(worker.model_id):
            return
        watched = self._watched[worker] = _Watched(worker, self._clock())
        source = worker.info.kv_source
        if (
            source is not None
            and source.load_port_base is not None
            and spare(SPARE_DESCRIPTORS)
            and self._descriptors.claim(EVENT_SOCKET * worker.dp_size)  # else it is asked instead
        ):
            if self._context is None:
                self._context = make_context()
            for target in worker.targets:
                endpoint = source.load_endpoint(target.dp_rank)
                assert endpoint is not None
                watched.channels.append(
                    LoadChannel(
                        self._context,
                        endpoint,
                        source.load_topic or "",
                        report=partial(self._heard, watched, target),
                        count=lambda outcome: self._count(LoadSource.CHANNEL, outcome),
                    )
                )
        if self._session is None:
            self._session = load_session()
        watched.poller = LoadPoller(
            self._session,
            worker.url,
            self._settings,
            api_key=self._api_key,
            clock=self._clock,
            rng=self._rng,
            due_in=lambda: self._due_in(watched),
            report=lambda rank, report, at: self._polled(watched, rank, report, at),
            count=lambda outcome: self._asked(watched, outcome),
        )

    def worker_removed(self, worker: Worker) -> None:
        watched = self._watched.pop(worker, None)
        if watched is not None:
            self._end(watched)
        if not self._watched:
            self._failing = False

    async def stop(self) -> None:
        """Follow nobody any more, and close every connection. Safe to call twice."""
        self._stopped = True
        for worker in list(self._watched):
            self.worker_removed(worker)
        await asyncio.gather(*self._ending, return_exceptions=True)
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        context, self._context = self._context, None
        if context is not None:
            context.destroy(linger=0)

    def _end(self, watched: _Watched) -> None:
        for channel in watched.channels:
            channel.close()
            self._descriptors.give_back(EVENT_SOCKET)
        if watched.poller is not None:
            watched.poller.close()
            self._ending.add(watched.poller.task)
            watched.poller.task.add_done_callback(self._ending.discard)

    def _heard(self, watched: _Watched, target: Target, report: LoadReport) -> None:
        now = self._clock()
        watched.heard[target.dp_rank] = now
        self._told(watched, now)
        if watched.silent and not watched.silence(now, self._silent_secs):
            watched.silent = False
            log.info("load channel publishes again", url=watched.worker.url)
        self._tell(target, report, now)

    def _polled(self, watched: _Watched, rank: int, report: LoadReport, at: float) -> None:
        if rank >= len(watched.worker.targets):
            return
        # What a rank published by itself is at least as new as what its HTTP process knows.
        if not watched.channels or self._clock() - watched.heard[rank] >= self._silent_secs:
            self._tell(watched.worker.targets[rank], report, at)

    def _tell(self, target: Target, report: LoadReport, at: float) -> None:
        watched = self._watched.get(target.worker)
        if watched is None:
            return
        if watched.counts_launches and report.prefilled_tokens is not None:
            report = structs.replace(report, prefilled_tokens=None, prefill_busy_secs=None)
        try:
            self._listener(target, report, at)
        except Exception:
            log.exception("load listener failed", worker=target.worker.id)

    def _due_in(self, watched: _Watched) -> float:
        """Seconds until a question is needed."""
        if not watched.channels:
            return 0.0
        now = self._clock()
        if not watched.silence(now, self._silent_secs):
            return min(watched.heard) + self._silent_secs - now
        if not watched.silent:
            watched.silent = True
            self._count(LoadSource.CHANNEL, LoadOutcome.TIMEOUT)
            log.info("load channel is silent, polling /v1/loads instead", url=watched.worker.url)
        return 0.0

    def _asked(self, watched: _Watched, outcome: LoadOutcome) -> None:
        self._count(LoadSource.POLL, outcome)
        if outcome is LoadOutcome.OK:
            self._told(watched, self._clock())
        elif outcome is LoadOutcome.UNSUPPORTED:
            watched.tells = False
        else:
            self._look(outcome)

    def _told(self, watched: _Watched, now: float) -> None:
        watched.told = now
        if self._failing:
            self._failing = False
            log.info("workers report their load again", url=watched.worker.url)

    def _look(self, outcome: LoadOutcome) -> None:
        """After a question that failed: whether that is the fleet's."""
        asked = [one for one in self._watched.values() if one.tells]
        now = self._clock()
        if self._failing or not asked or any(now - one.told < self._failing_secs for one in asked):
            return
        self._failing = True
        log.warning(
            "no worker reports its load",
            workers=len(asked),
            secs=round(min(now - one.told for one in asked)),
            outcome=outcome.value,
            effect="kv_cost goes by the router's own account of them alone",
            check="the lines 'worker did not report its load', and discovery.worker_api_key_env",
        )

    def _count(self, source: LoadSource, outcome: LoadOutcome) -> None:
        self.counts[source, outcome] += 1


class _Watched:
    """One incarnation of a worker, and how it is followed."""

    __slots__ = ("channels", "counts_launches", "heard", "poller", "silent", "tells", "told", "worker")

    def __init__(self, worker: Worker, now: float) -> None:
        self.worker = worker
        self.channels: list[LoadChannel] = []
        self.poller: LoadPoller | None = None
        self.heard = [now] * worker.dp_size
        self.told = now
        """The last moment at which it did, or was new."""
        self.tells = True
        """False for a worker that has no endpoint to ask."""
        self.silent = False
        version = parse_version(worker.info.version)
        self.counts_launches = version is not None and version < _COUNTS_COMPLETIONS

    def silence(self, now: float, limit: float) -> bool:
        """Whether a rank has not spoken for longer than it may."""
        return now - min(self.heard) >= limit
