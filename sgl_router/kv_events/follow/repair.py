"""Repairs one stream: replays what was missed between what is applied and what is live, exactly once and in order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from enum import Enum

import structlog

from sgl_router.kv_events.follow.pump import EventPump, Feed
from sgl_router.kv_events.follow.replay import ReplayEnd
from sgl_router.kv_events.follow.wire import DecodeFailure, Frame, WireError

__all__ = ["RepairOutcome", "Repairer"]

log = structlog.get_logger(__name__)

_ATTEMPTS = 5
_INBOX_FRAMES = 512
_PROGRESS_FRAMES = 100
# The engine's replay socket drops silently once about a thousand messages wait in it, and it may be the last ones: then
# the end marker follows with nothing skipped. Only the end of a shorter replay proves that there is no more.
_PIPE_FRAMES = 900


class RepairOutcome(str, Enum):
    """How a repair ended: the metric label and the log field."""

    REPAIRED = "repaired"
    """Nothing is missing."""
    PARTIAL = "partial"
    """The worker's buffer no longer reached back far enough: what it still had is applied, the rest is forgotten."""
    FAILED = "failed"
    """The replay endpoint did not answer, or kept skipping frames."""


class Repairer:
    """Owns a feed while frames are replayed: live frames wait in their socket meanwhile. `fetch(start)` is a replay.

    Exactly once: a live frame that was replayed too carries a number already accounted for and the same bytes, so the
    stream drops it. In order: the feed applies its inbox before it reads the socket again.
    """

    def __init__(
        self,
        feed: Feed,
        pump: EventPump,
        fetch: Callable[[int], AsyncGenerator[Frame | ReplayEnd, None]],
        *,
        finished: Callable[[RepairOutcome], None],
    ) -> None:
        self._feed = feed
        self._pump = pump
        self._fetch = fetch
        self._finished = finished
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._closed = False
        self.finished_once = False
        """Whether some repair has ended, however it ended."""

    @property
    def running(self) -> bool:
        return self._task is not None

    def start(self) -> None:
        """Replay from what the stream expects next (from the start, where it has heard nothing)."""
        if self._task is not None:
            self._again = True  # what is missing now may have been published after the running replay was asked for
            return
        self._feed.paused = True
        self._feed.stream.repair()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="kv event repair")

    def close(self) -> None:
        self._closed = True  # before 3.12 asyncio.wait_for can swallow a cancellation
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        outcome = RepairOutcome.FAILED
        try:
            outcome = await self._replay()
            while self._again:
                self._again = False
                outcome = await self._replay()
        except Exception:
            log.exception("kv event repair failed")
        if self._closed:
            return
        self._task = None
        self._feed.stream.repaired(contiguous=outcome is not RepairOutcome.FAILED)
        self._feed.paused = False
        self.finished_once = True
        self._finished(outcome)
        self._pump.wake(self._feed)

    async def _replay(self) -> RepairOutcome:
        outcome = RepairOutcome.REPAIRED
        late = False
        stuck = 0
        closed_at: int | None = None
        while stuck < _ATTEMPTS:
            received = 0
            start = self._feed.stream.expected
            # After a break it is asked for one more: a process that was started meanwhile and has published less would
            # answer that nothing was missed. What /server_info says does not always tell it from the one before.
            proof = self._feed.stream.last_before_break()
            end = ReplayEnd.TIMEOUT
            first = True
            async with contextlib.aclosing(self._fetch((start or 0) if proof is None else proof)) as frames:
                async for item in frames:
                    if self._closed:
                        return RepairOutcome.FAILED
                    if not isinstance(item, Frame):
                        end = item
                        break
                    if item.seq == proof:
                        if self._feed.stream.may_have_sent(item):
                            proof = None
                            continue
                        end = ReplayEnd.COMPLETE
                        break
                    if first and (proof is not None or item.seq > (start or 0)):
                        if not late:
                            # Either the buffer no longer has what lies before (then this may be another process's,
                            # whatever its number), or the replay itself lost it: ask again.
                            # (The second time may begin later still: a busy engine's buffer moves on.)
                            late, end = True, ReplayEnd.HOLE
                            break
                        self._feed.stream.history_lost(item.seq)
                        outcome = RepairOutcome.PARTIAL
                    first = False
                    received += 1
                    self._feed.stream.counters.replayed += 1
                    self._feed.inbox.append(item)
                    if len(self._feed.inbox) >= _INBOX_FRAMES:
                        await self._drain()
            await self._drain()
            if proof is not None and not received and end is ReplayEnd.COMPLETE:
                log.warning("kv events come from another process than before", next_seq=start)
                self._feed.stream.restarted()
                continue
            stuck = 0 if received >= _PROGRESS_FRAMES else stuck + 1
            if end is ReplayEnd.COMPLETE and received < _PIPE_FRAMES:
                stream, held = self._feed.stream, self._feed.held
                if stream.expected is None:
                    stream.nothing_published()
                if held is not None and held.seq > (stream.expected or 0):
                    # The buffer ends before the frame that showed the gap: it keeps too little, or nothing.
                    stream.history_lost(held.seq)
                    outcome = RepairOutcome.PARTIAL
                return outcome
            expected = self._feed.stream.expected
            if end is ReplayEnd.CLOSED and expected is not None:
                # libzmq closes the connection of a peer whose message is much too large. Twice in the same place: it is
                # that frame, and asking for it again would bring nothing else.
                if closed_at == expected:
                    self._pump.refuse(self._feed, WireError(DecodeFailure.TOO_LARGE, f"frame {expected} in a replay"))
                closed_at = expected
                continue
            if end not in (ReplayEnd.HOLE, ReplayEnd.COMPLETE):
                log.warning("kv event replay broke off", end=end.value, next_seq=self._feed.stream.expected)
                return RepairOutcome.FAILED
        return RepairOutcome.FAILED

    async def _drain(self) -> None:
        """Until everything replayed so far is applied."""
        self._feed.drained.clear()
        self._pump.wake(self._feed)
        await self._feed.drained.wait()
