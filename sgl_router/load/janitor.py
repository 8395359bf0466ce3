"""Ends requests that outlived their welcome, so that a lost one cannot hold its load for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from sgl_router.load.active_load import ActiveLoad

__all__ = ["Janitor"]

log = structlog.get_logger(__name__)


class Janitor:
    """Looks at the oldest request a few times per `max_age_secs`, and at least once a second."""

    def __init__(self, load: ActiveLoad, max_age_secs: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._load = load
        self._max_age = max_age_secs
        self._clock = clock

    async def run(self) -> None:
        """Until cancelled."""
        period = min(1.0, self._max_age / 10)
        while True:
            await asyncio.sleep(period)
            expired = self._load.expire(self._clock(), self._max_age)
            if expired:
                log.warning("stale requests expired", count=expired, older_than_secs=self._max_age)
