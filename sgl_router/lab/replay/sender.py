"""Open loop: requests leave when the trace says so, whatever became of those before them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence

from sgl_router.lab.replay.call import Call, Result
from sgl_router.lab.replay.client import ChatClient
from sgl_router.lab.replay.prompts import PromptMaker

__all__ = ["Sender"]

# Bodies made ahead of time, so that a burst does not wait for its prompts to be written.
_AHEAD = 64
_AHEAD_BYTES = 64 << 20
# Closer to a departure than this nothing else is begun.
_QUIET_SECS = 0.02


class Sender:
    """Sends `calls`, in order of their time. `sent` holds those whose time has come."""

    def __init__(self, client: ChatClient, maker: PromptMaker, calls: Sequence[Call], *, max_in_flight: int) -> None:
        self.sent: list[Call] = []
        self.ended = 0
        self._client = client
        self._maker = maker
        self._most = max_in_flight
        self._coming = deque(calls)
        self._ready: deque[tuple[Call, bytes]] = deque()
        self._ready_bytes = 0
        self._in_flight: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    async def run(self, clock: Callable[[], float]) -> None:
        """Until every answer has ended. Cancelled, it gives up what is in flight (`Result.UNFINISHED`)."""
        try:
            while self._coming or self._ready:
                await self._make_ahead(clock)
                call, body = self._ready.popleft()
                self._ready_bytes -= len(body)
                await asyncio.sleep(max(call.due_at - clock(), 0.0))
                self._send(call, body)
            while self._in_flight:
                await asyncio.wait(self._in_flight)
            if self._failure is not None:
                raise self._failure
        finally:
            for task in self._in_flight:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*self._in_flight, return_exceptions=True)

    async def _make_ahead(self, clock: Callable[[], float]) -> None:
        while self._coming and len(self._ready) < _AHEAD and self._ready_bytes < _AHEAD_BYTES:
            if self._ready and self._ready[0][0].due_at - clock() < _QUIET_SECS:
                return
            call = self._coming.popleft()
            content = self._maker.text(call.row, call.number)
            body = self._client.body(content, max(call.row.output_length, 1))
            self._ready.append((call, body))
            self._ready_bytes += len(body)
            await asyncio.sleep(0)

    def _send(self, call: Call, body: bytes) -> None:
        self.sent.append(call)
        if len(self._in_flight) >= self._most:
            call.result = Result.DROPPED
            self.ended += 1
            return
        task = asyncio.ensure_future(self._client.ask(call, body))
        self._in_flight.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self.ended += 1
        if not task.cancelled():
            self._failure = self._failure or task.exception()
