"""The load reports that one rank publishes by itself."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sgl_router.load.reports.outcome import LoadOutcome
from sgl_router.load.reports.report import LoadReport, LoadReportError
from sgl_router.load.reports.wire import decode_frame
from sgl_router.upstream.zmq_subscriber import Subscriber

if TYPE_CHECKING:
    import zmq

__all__ = ["LoadChannel"]

# The engine queues 8 frames at most for a slow reader; a record is below 100 bytes.
_HIGH_WATER_MARK = 64
_MAX_FRAME_BYTES = 16_384
_FRAMES_A_TURN = 64


class LoadChannel:
    """Connects when made and again after each break, until closed.

    A load is a gauge: of frames that arrived together only the newest is reported. Numbers are not compared: one
    connection delivers in order, and after a restart they begin again.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        topic: str,
        *,
        report: Callable[[LoadReport], None],
        count: Callable[[LoadOutcome], None],
    ) -> None:
        self._report = report
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._subscriber = Subscriber(
            context,
            endpoint,
            topic,
            receive_high_water_mark=_HIGH_WATER_MARK,
            max_message_bytes=_MAX_FRAME_BYTES,
            readable=self._readable,
            connection=lambda subscriber, connected: None,
            unanswered_secs=math.inf,  # LoadWatch says what a silent channel means
        )

    def close(self) -> None:
        """Nothing is reported any more. Idempotent."""
        self._subscriber.close()

    def _readable(self, subscriber: Subscriber) -> None:
        newest = None
        for _ in range(_FRAMES_A_TURN):
            parts = subscriber.receive()
            if parts is None:
                break
            newest = self._decoded(parts) or newest
        else:
            # Readiness is told by edge: what is left in the socket must be asked for again.
            self._loop.call_soon(self._readable, subscriber)
        if newest is not None:
            self._report(newest)

    def _decoded(self, parts: Sequence[bytes | memoryview]) -> LoadReport | None:
        try:
            report = decode_frame(parts)
        except LoadReportError:
            self._count(LoadOutcome.BAD)
            return None
        self._count(LoadOutcome.UNSUPPORTED if report is None else LoadOutcome.OK)
        return report
