"""Detects trailing gaps. A lost frame normally shows as a gap in the next one; when a stream goes quiet there is no
next one, so ask the replay endpoint.

A quiet live stream is asked about once. Its claims stay matched meanwhile: the answer is nearly always that it has all
there is. A replay from `expected` cannot tell a new process that has published less; a broken connection does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable
from enum import Enum
from typing import TYPE_CHECKING

import structlog

from sgl_router.kv_events.follow.pump import Feed
from sgl_router.kv_events.follow.repair import Repairer, RepairOutcome
from sgl_router.kv_events.follow.replay import ReplayEnd
from sgl_router.kv_events.follow.stream import DistrustReason, StreamState
from sgl_router.kv_events.follow.wire import Frame

if TYPE_CHECKING:
    from sgl_router.workers import Target

__all__ = ["QuietOutcome", "QuietWatch", "TailGapCheck", "Watched"]

log = structlog.get_logger(__name__)

_MAX_PAUSE_SECS = 300.0
# All streams are looked at this often: a timer per frame would cost more than it is worth.
_LOOK_SECS = (0.05, 1.0)
# Fewer than the replays at once: a repair never waits for endpoints that do not answer a question.
_ASKED_AT_ONCE = 4
_ASKED_PER_LOOK = 64
# For live frames that the answer has overtaken.
_GRACE_SECS = 0.5


class QuietOutcome(str, Enum):
    """What came of asking: the metric label."""

    VERIFIED = "verified"
    """The worker has published nothing that was not applied."""
    OVERTAKEN = "overtaken"
    """New frames were on their way, or the stream changed: it is asked again once it is quiet again."""
    LOST = "lost"
    """Frames were published that never came: a repair brings them."""
    UNANSWERED = "unanswered"
    """The replay endpoint did not answer, or with something that is no replay."""


class QuietWatch:
    """When one stream is due to be asked about: after `quiet_secs` without a new frame, until it is verified."""

    def __init__(self, quiet_secs: float) -> None:
        self._quiet_secs = quiet_secs
        self._frames: int | None = None
        self._since = 0.0
        self._verified = False
        self._pause = 0.0
        self._not_before = 0.0

    def due(self, now: float, frames: int, *, idle: bool) -> bool:
        """Look at the stream: how many frames it has taken so far, and whether it is live with nothing waiting."""
        if frames != self._frames:
            self._frames, self._since, self._verified = frames, now, False
        elif not idle:
            self._since = now
        return idle and not self._verified and now >= max(self._since + self._quiet_secs, self._not_before)

    def stirred(self) -> None:
        """Something happened to the stream: whatever was known of its end is no longer."""
        self._frames = None

    def verified(self, frames: int) -> None:
        """Asked when it had taken `frames`, it had them all."""
        self.answers()
        self._verified = self._frames == frames

    def answers(self) -> None:
        """The endpoint answers."""
        self._pause = self._not_before = 0.0

    def unanswered(self, now: float) -> None:
        """Ask later, the later the more often: new frames do not make an endpoint answer."""
        self._pause = min(2 * (self._pause or self._quiet_secs), _MAX_PAUSE_SECS)
        self._not_before = now + self._pause


class Watched:
    """One followed rank that can be asked about."""

    def __init__(
        self,
        check: TailGapCheck,
        target: Target,
        feed: Feed,
        repairer: Repairer,
        fetch: Callable[[int], AsyncGenerator[Frame | ReplayEnd, None]],
    ) -> None:
        self._check = check
        self._target = target
        self._feed = feed
        self._repairer = repairer
        self._fetch = fetch
        self._watch = QuietWatch(check.quiet_secs)
        self._task: asyncio.Task[None] | None = None
        self._lost = False
        self._closed = False

    def due(self, now: float) -> bool:
        return self._task is None and self._watch.due(now, self._feed.stream.counters.frames, idle=self._idle)

    def ask(self, delay: float) -> None:
        """Ask once, `delay` seconds from now."""
        self._task = asyncio.get_running_loop().create_task(self._run(delay), name="kv event quiet check")

    def stirred(self) -> None:
        """The stream's state changed."""
        self._watch.stirred()

    def repaired(self, outcome: RepairOutcome) -> None:
        """A repair is over. One that was to bring what is known to be lost, and failed, leaves nothing to claim."""
        lost, self._lost = self._lost, False
        if outcome is not RepairOutcome.FAILED:
            self._watch.answers()
        elif lost and self._feed.stream.state is StreamState.LIVE:
            self._feed.stream.distrust(DistrustReason.GAP)

    def close(self) -> None:
        self._closed = True  # before 3.12 asyncio.wait_for can swallow a cancellation
        self._check.forget(self)
        if self._task is not None:
            self._task.cancel()
            self._task = None

    @property
    def _idle(self) -> bool:
        feed = self._feed
        return feed.stream.state is StreamState.LIVE and not feed.queued and not feed.paused

    async def _run(self, delay: float) -> None:
        outcome: QuietOutcome | None = QuietOutcome.UNANSWERED
        try:
            await asyncio.sleep(delay)
            outcome = await self._asked()
        except Exception:
            log.exception("kv event quiet check failed")
        if self._closed:
            return
        self._task = None
        if outcome is not None:
            self._settle(outcome)

    async def _asked(self) -> QuietOutcome | None:
        """None where it is no longer quiet when its turn comes."""
        stream = self._feed.stream
        async with self._check.slots:
            start, frames = stream.expected, stream.counters.frames
            if start is None or not self._idle or self._closed:
                return None
            answer = await self._first(start)
        if isinstance(answer, Frame):
            await asyncio.sleep(_GRACE_SECS)
        elif answer is not ReplayEnd.COMPLETE:
            return QuietOutcome.UNANSWERED
        self._watch.answers()
        if stream.expected != start or not self._idle:
            return QuietOutcome.OVERTAKEN
        if isinstance(answer, Frame):
            return QuietOutcome.LOST
        self._watch.verified(frames)
        return QuietOutcome.VERIFIED

    async def _first(self, start: int) -> Frame | ReplayEnd:
        """The first of the answer is enough: what more there is a repair asks for."""
        async with contextlib.aclosing(self._fetch(start)) as answer:
            async for item in answer:
                return item
        return ReplayEnd.MALFORMED

    def _settle(self, outcome: QuietOutcome) -> None:
        self._check.outcomes[outcome] += 1
        stream = self._feed.stream
        about = {"worker": self._target.worker.id, "dp_rank": self._target.dp_rank, "next_seq": stream.expected}
        if outcome is QuietOutcome.OVERTAKEN:
            self._watch.stirred()
        elif outcome is QuietOutcome.UNANSWERED:
            self._watch.unanswered(asyncio.get_running_loop().time())
            log.debug("kv event quiet check unanswered", **about)
        elif outcome is QuietOutcome.LOST:
            log.warning("kv event frames were lost before the stream went quiet", **about)
            self._lost = True
            self._repairer.start()


class TailGapCheck:
    """All watched ranks of an index, looked at about once a second. `quiet_secs` 0: none ever is."""

    def __init__(self, quiet_secs: float, *, rng: random.Random | None = None) -> None:
        self.quiet_secs = quiet_secs
        self.outcomes = dict.fromkeys(QuietOutcome, 0)
        self.slots = asyncio.Semaphore(_ASKED_AT_ONCE)
        self._rng = rng or random.Random()
        self._look_secs = min(max(quiet_secs / 2, _LOOK_SECS[0]), _LOOK_SECS[1])
        self._watched: dict[Watched, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def follow(
        self,
        target: Target,
        feed: Feed,
        repairer: Repairer,
        fetch: Callable[[int], AsyncGenerator[Frame | ReplayEnd, None]],
    ) -> Watched:
        """Watch a rank until it is closed. `fetch(start)` is a replay."""
        watched = Watched(self, target, feed, repairer, fetch)
        if self.quiet_secs:
            self._watched[watched] = None
            if self._timer is None:
                self._look_later()
        return watched

    def forget(self, watched: Watched) -> None:
        self._watched.pop(watched, None)
        if not self._watched and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._look_secs, self._look)

    def _look(self) -> None:
        self._look_later()
        now = asyncio.get_running_loop().time()
        due = [watched for watched in self._watched if watched.due(now)]
        if len(due) > _ASKED_PER_LOOK:
            due = self._rng.sample(due, _ASKED_PER_LOOK)
        for watched in due:  # not in the same instant, where a whole fleet falls quiet at once
            watched.ask(self._rng.uniform(0.0, self._look_secs))
