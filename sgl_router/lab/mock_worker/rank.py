"""One dp rank running in real time: the engine model driven by the event loop, its events published."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from sgl_router.lab.mock_worker.load_publisher import LoadPublisher
from sgl_router.lab.mock_worker.ops import CacheOp
from sgl_router.lab.mock_worker.publisher import EventPublisher
from sgl_router.lab.mock_worker.radix import RadixCache
from sgl_router.lab.mock_worker.scheduler import EngineModel, EngineRequest, Progress

Sink = Callable[[Progress], None]
Clock = Callable[[], float]


class RankEngine:
    """Delivers each request's progress to its sink and publishes cache events when the engine would."""

    def __init__(
        self,
        rank: int,
        model: EngineModel,
        ops: list[CacheOp],
        publisher: EventPublisher | None,
        clock: Clock,
        load_publisher: LoadPublisher | None = None,
    ) -> None:
        self.rank = rank
        self.model = model
        self.publisher = publisher
        self._ops = ops
        self._clock = clock
        self._load_publisher = load_publisher
        self._sinks: dict[EngineRequest, Sink] = {}
        self._work = asyncio.Event()
        self._rest = asyncio.Event()
        self._publish_ops()
        self._tasks = [asyncio.ensure_future(self._run())]
        if load_publisher is not None:
            self._tasks.append(asyncio.ensure_future(load_publisher.beat(model)))

    @property
    def cache(self) -> RadixCache:
        """The rank's prefix cache."""
        return self.model.cache

    def submit(self, request: EngineRequest, sink: Sink) -> bool:
        """Queue a request; False when the engine has no room for it in its queue."""
        if not self.model.submit(request, self._clock()):
            return False
        self._sinks[request] = sink
        self._publish_load()
        self._rest.clear()
        self._work.set()
        return True

    def abort(self, matches: Callable[[EngineRequest], bool]) -> None:
        """Abort matching requests; each sink is told in its time."""
        for progress in self.model.abort(matches, self._clock()):
            self._deliver(progress)
        self._publish_load()
        self._work.set()

    def flush(self) -> bool:
        """Clear the cache and publish that; False, and nothing done, while requests run or wait."""
        if not self.model.idle:
            return False
        self.cache.clear()
        self._publish_ops()
        return True

    async def idle(self) -> None:
        """Wait until nothing runs or waits and every cache event has been published."""
        await self._rest.wait()

    async def close(self) -> None:
        """Stop running; unfinished requests are never delivered."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        ends_at: float | None = None
        while True:
            # From the end that was meant, however late the timer was: lateness must not add up over an answer's steps.
            ends_at = self.model.begin_step(self._clock() if ends_at is None else ends_at)
            self._publish_load()
            if ends_at is None:
                self._publish_ops()
                self._work.clear()
                self._rest.set()
                await self._work.wait()
                self._rest.clear()
                continue
            await asyncio.sleep(max(0.0, ends_at - self._clock()))
            result = self.model.end_step(ends_at)
            if result.flush_events:
                self._publish_ops()
            for progress in result.progress:
                self._deliver(progress)

    def _deliver(self, progress: Progress) -> None:
        sink = self._sinks.get(progress.request)
        if progress.finish is not None:
            self._sinks.pop(progress.request, None)
        if sink is not None:
            sink(progress)

    def _publish_load(self) -> None:
        if self._load_publisher is not None:
            self._load_publisher.publish(self.model)

    def _publish_ops(self) -> None:
        if self.publisher is not None and self._ops:
            self.publisher.publish(self._ops)
        self._ops.clear()
