"""Asking one worker for its load, again and again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import NamedTuple

import aiohttp
import structlog

from sgl_router.load.reports.answers import parse_get_load, parse_v1_loads
from sgl_router.load.reports.outcome import LoadOutcome
from sgl_router.load.reports.report import LoadReport, LoadReportError, RankLoad
from sgl_router.upstream.control import FetchError, fetch
from sgl_router.upstream.fault import WorkerFault
from sgl_router.workers.backoff import Backoff, worth_logging

__all__ = ["LoadPoller", "PollSettings", "load_session"]

log = structlog.get_logger(__name__)

_MAX_BODY_BYTES = 1 << 20
_JITTER = 0.1
_LONGEST_PAUSE_SECS = 10.0
_NOT_THERE = (404, 405, 501)


class _Endpoint(NamedTuple):
    path: str
    parse: Callable[[bytes], list[RankLoad]]


# The first one the worker has is kept. "core" spares it the sections that are not read.
_ENDPOINTS = (_Endpoint("/v1/loads?include=core", parse_v1_loads), _Endpoint("/get_load", parse_get_load))


class PollSettings(NamedTuple):
    interval_secs: float
    timeout_secs: float


def load_session() -> aiohttp.ClientSession:
    """No proxies from the environment, no cookies. Connections are kept: a new one per question would cost more than
    the question."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )


class LoadPoller:
    """Asks from its making on until closed, or until the worker turns out to have no endpoint to ask.

    The next question waits for the answer to the last one, or its timeout. `due_in` says how long no question is
    needed; `report(rank, report, at)` gets the moment the report was true, on `clock`.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        settings: PollSettings,
        *,
        api_key: str | None,
        clock: Callable[[], float],
        rng: random.Random,
        due_in: Callable[[], float],
        report: Callable[[int, LoadReport, float], None],
        count: Callable[[LoadOutcome], None],
    ) -> None:
        self._session = session
        self._url = url
        self._settings = settings
        self._api_key = api_key
        self._clock = clock
        self._rng = rng
        self._due_in = due_in
        self._report = report
        self._count = count
        self._endpoint = 0
        self._failures = 0
        interval = settings.interval_secs
        self._retry = Backoff(interval, max(interval, _LONGEST_PAUSE_SECS), rng)
        self.task = asyncio.create_task(self._run(), name=f"load of {url}")

    def close(self) -> None:
        """Nothing is reported any more; `task` is being cancelled."""
        self.task.cancel()

    async def _run(self) -> None:
        await asyncio.sleep(self._rng.uniform(0, self._settings.interval_secs))
        while self._endpoint < len(_ENDPOINTS):
            pause = self._due_in()
            if pause <= 0:
                try:
                    pause = await self._ask(_ENDPOINTS[self._endpoint])
                except Exception:
                    log.exception("polling a worker for its load failed", url=self._url)
                    pause = self._retry.next()
            await asyncio.sleep(pause)
        self._count(LoadOutcome.UNSUPPORTED)
        log.info("worker does not report its load", url=self._url, asked=[one.path for one in _ENDPOINTS])

    async def _ask(self, endpoint: _Endpoint) -> float:
        """One question; how long to wait before the next."""
        try:
            reply = await fetch(
                self._session,
                self._url,
                endpoint.path,
                api_key=self._api_key,
                timeout_secs=self._settings.timeout_secs,
                max_bytes=_MAX_BODY_BYTES,
            )
        except FetchError as error:
            late = error.fault is WorkerFault.TIMED_OUT
            return self._failed(LoadOutcome.TIMEOUT if late else LoadOutcome.BAD, str(error))
        at = self._clock()
        if reply.status in _NOT_THERE:
            self._endpoint += 1
            return 0.0
        if reply.status != 200:
            return self._failed(LoadOutcome.BAD, f"HTTP {reply.status} from {endpoint.path}")
        try:
            loads = endpoint.parse(reply.body)
        except LoadReportError as error:
            return self._failed(LoadOutcome.BAD, str(error))
        self._count(LoadOutcome.OK)
        self._failures = 0
        self._retry.reset()
        for load in loads:
            self._report(load.dp_rank, load.report, at - load.age_secs)
        return self._settings.interval_secs * self._rng.uniform(1 - _JITTER, 1 + _JITTER)

    def _failed(self, outcome: LoadOutcome, reason: str) -> float:
        self._count(outcome)
        self._failures += 1
        if worth_logging(self._failures):
            log.info(
                "worker did not report its load",
                url=self._url,
                outcome=outcome.value,
                reason=reason,
                failures=self._failures,
            )
        return self._retry.next()
