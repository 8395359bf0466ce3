"""Fills an index that misses blocks its worker has, from what the worker's replay buffer still holds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

import structlog

from sgl_router.kv_events.follow.pump import Feed
from sgl_router.kv_events.follow.repair import Repairer
from sgl_router.kv_events.follow.replay import ReplayEnd
from sgl_router.kv_events.follow.stream import StreamState
from sgl_router.kv_events.follow.wire import Frame

__all__ = ["Refill"]

log = structlog.get_logger(__name__)


class Refill:
    """Of one rank. Where the buffer goes back to the stream's beginning the stream starts over from there; else only
    what came last is replayed: nothing that is known is given up for less. `fetch(start)` is a replay."""

    def __init__(
        self, feed: Feed, repairer: Repairer, fetch: Callable[[int], AsyncGenerator[Frame | ReplayEnd, None]]
    ) -> None:
        self._feed = feed
        self._repairer = repairer
        self._fetch = fetch
        self._task: asyncio.Task[None] | None = None

    def start(self) -> bool:
        """False where the stream is being repaired already."""
        if self._task is not None or self._repairer.running:
            return False
        self._task = asyncio.get_running_loop().create_task(self._run(), name="kv event refill")
        return True

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        first: Frame | ReplayEnd = ReplayEnd.MALFORMED
        try:
            async with contextlib.aclosing(self._fetch(0)) as frames:
                async for item in frames:
                    first = item
                    break
        except Exception:
            log.exception("kv event refill failed")
        self._task = None
        stream = self._feed.stream
        if self._feed.dropped or self._repairer.running or stream.state is not StreamState.LIVE:
            return
        if isinstance(first, Frame) and first.seq == 0:
            self._feed.pending = iter(())
            stream.resync()
        self._repairer.start()
