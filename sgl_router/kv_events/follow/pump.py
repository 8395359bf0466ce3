"""Moves events from the sockets into the tree, a bounded slice per loop turn, every stream in its turn."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import structlog

from sgl_router.kv_events.follow.opening import PIECE_BLOCKS, SMALL_BYTES, Opening, pieces
from sgl_router.kv_events.follow.stream import EventStream, FrameOutcome, StreamState
from sgl_router.kv_events.follow.wire import END_SEQ, DecodeFailure, Event, Frame, WireError, decode_batch, decode_frame
from sgl_router.kv_events.index.tree import BlockTree

__all__ = ["EventPump", "Feed", "FeedJob", "FrameSource"]

log = structlog.get_logger(__name__)

SWEEP_BLOCKS = 512
_MOST_BUDGETS = 8
# What a frame may be refused for where its original need not be so: not its size, and not a fault of ours.
_GARBLED = frozenset(DecodeFailure) - {DecodeFailure.TOO_LARGE, DecodeFailure.INTERNAL}


class FrameSource(Protocol):
    """Where frames come from: a Subscriber, or a list in a test."""

    def receive(self) -> Sequence[bytes | memoryview] | None: ...


class FeedJob(Protocol):
    """Work on a feed's stream between two frames, in steps well below a turn's budget: no frame is taken meanwhile."""

    def step(self) -> bool:
        """Do a piece. True while more is left. Must not raise."""
        ...

    def dropped(self) -> None:
        """The feed is gone: there will be no further step."""
        ...


class Feed:
    """A source, the stream it feeds, and the events of its current frame that are not applied yet.

    `inbox` holds replayed frames and goes before the source; while `paused` the source is not read, its frames wait
    there. `repair` is called when frames are missing and could be replayed (the frame that showed it is in `held`), or
    when one could not be decoded (`doubt`: its number, and why not). A `job` runs once the current frame is applied,
    and before any other frame, replayed ones included.
    """

    __slots__ = (
        "doubt",
        "drained",
        "dropped",
        "held",
        "inbox",
        "job",
        "opening",
        "paused",
        "pending",
        "queued",
        "repair",
        "source",
        "stream",
    )

    def __init__(
        self, source: FrameSource, stream: EventStream, repair: Callable[[FrameOutcome], None] | None = None
    ) -> None:
        self.source = source
        self.stream = stream
        self.repair = repair
        self.opening: Opening | None = None
        self.pending: Iterator[Event] = iter(())
        self.inbox: deque[Frame] = deque()
        self.held: Frame | None = None
        self.doubt: tuple[int, WireError] | None = None
        self.job: FeedJob | None = None
        self.drained = asyncio.Event()
        self.paused = False
        self.queued = False
        self.dropped = False

    def discard(self) -> None:
        """Apply nothing more of the current frame."""
        self.opening = None
        self.pending = iter(())


class EventPump:
    """Round robin over feeds with something to do. A turn ends after `turn_budget_secs`, whatever is waiting, and the
    next one is queued behind everything else on the loop: no burst starves requests, no worker starves another. Where
    events are left waiting, the next turn may take as long as everything else took since, up to eight budgets: so
    requests do not starve the events either."""

    def __init__(
        self,
        tree: BlockTree,
        *,
        turn_budget_secs: float,
        max_message_bytes: int,
        clock: Callable[[], float] = time.perf_counter,
        on_failure: Callable[[EventStream, WireError], None] = lambda stream, error: None,
        on_lost: Callable[[EventStream, WireError], None] = lambda stream, error: None,
        on_frame: Callable[[EventStream, FrameOutcome, int], None] = lambda stream, outcome, missing: None,
        on_batch: Callable[[EventStream, float], None] = lambda stream, ts: None,
    ) -> None:
        self._tree = tree
        self._budget = turn_budget_secs
        self._max_bytes = max_message_bytes
        self._clock = clock
        self._on_failure = on_failure
        self._on_lost = on_lost
        self._on_frame = on_frame
        self._on_batch = on_batch
        self.chore: Callable[[bool], bool] = lambda busy: False
        """Called once a turn, told whether events are waiting: a bounded piece of upkeep. True while more is to do, and
        no event is applied before it is done."""
        self._ready: deque[Feed] = deque()
        self._scheduled = False
        # When the last turn ended, where it left events waiting.
        self._behind_since: float | None = None

    def wake(self, feed: Feed) -> None:
        """`feed` may have frames waiting."""
        if not feed.queued and not feed.dropped:
            feed.queued = True
            self._ready.append(feed)
        self.schedule()

    def schedule(self) -> None:
        """Make sure a turn runs soon (also to sweep retired slots)."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def drop(self, feed: Feed) -> None:
        """Never touch `feed` again, whoever may still wake it: its slot is about to belong to another stream."""
        feed.dropped = True
        feed.discard()
        feed.inbox.clear()
        feed.drained.set()
        if feed.queued:
            self._ready.remove(feed)
            feed.queued = False
        if feed.job is not None:
            feed.job.dropped()
            feed.job = None

    @property
    def backlog(self) -> int:
        """Streams with something waiting."""
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """Whether everything received has been applied and swept."""
        return not self._scheduled

    def run_once(self) -> bool:
        """One turn. True while work remains."""
        now = self._clock()
        # Behind, the pump may take as long as everything else did since: half the time, however long the turns are.
        others = now - self._behind_since if self._behind_since is not None else 0.0
        deadline = now + max(self._budget, min(others, _MOST_BUDGETS * self._budget))
        # Upkeep goes first, or events that come fast enough would leave it behind for good.
        behind = self.chore(True) if self._ready else False
        while behind and self._clock() < deadline:
            behind = self.chore(True)
        while self._ready and not behind:
            feed = self._ready.popleft()
            if self._advance(feed):
                self._ready.append(feed)
            else:
                feed.queued = False
            if self._clock() >= deadline:
                break
        # At least one slice a turn, more while time is left: slots must come back faster than they can be given up.
        remains = self._tree.sweep(SWEEP_BLOCKS)
        while remains and self._clock() < deadline:
            remains = self._tree.sweep(SWEEP_BLOCKS)
        busy = bool(self._ready)
        if not busy:
            behind = self.chore(False)
        self._behind_since = self._clock() if busy else None
        return busy or remains or behind

    def _turn(self) -> None:
        self._scheduled = False
        again = True
        try:
            again = self.run_once()
        finally:
            if again:
                self.schedule()

    def _advance(self, feed: Feed) -> bool:
        """Apply one piece, or receive and decode one frame. False when the source is drained."""
        stream = feed.stream
        try:
            event = next(feed.pending, None)
            if event is not None:
                stream.apply(event)
                return True
            if feed.opening is not None:
                self._open(feed, feed.opening)
                return True
            job, feed.job = feed.job, None
            if job is not None:
                if job.step():
                    feed.job = job
                return True
            if feed.inbox:
                self._take(feed, feed.inbox.popleft(), repairable=False)
                return True
            feed.drained.set()
            if feed.paused:
                return False
            if feed.doubt is not None:
                (seq, error), feed.doubt = feed.doubt, None
                if stream.expected == seq:  # asked for again, it did not come
                    stream.unread()
                    stream.lost(error)
                    self._on_lost(stream, error)
                return True
            if feed.held is not None:
                frame, feed.held = feed.held, None
                # Held for a repair that did not bring what is missing: now the gap, counted already, is final.
                self._take(feed, frame, repairable=False, counted=True)
                return True
            parts = feed.source.receive()
            if parts is None:
                return False
            repairable = feed.repair is not None
            try:
                frame = decode_frame(parts, self._max_bytes)
            except WireError as error:
                self._refuse(feed, None, error, repairable=repairable)
                return True
            self._take(feed, frame, repairable=repairable)
        except WireError as error:
            self._failed(feed, error)
        except Exception as error:
            # A defect here must cost one stream its trust, not leave it deaf with its old claims.
            log.exception("kv event frame failed")
            self._failed(feed, WireError(DecodeFailure.INTERNAL, repr(error)))
        return True

    def refuse(self, feed: Feed, error: WireError) -> None:
        """The frame that `feed` expects next cannot be had."""
        self._refuse(feed, None, error, repairable=False)

    def _failed(self, feed: Feed, error: WireError) -> None:
        feed.discard()
        try:
            feed.stream.failed(error)
            self._on_failure(feed.stream, error)
        except Exception:
            log.exception("kv event failure could not be recorded")

    def _take(self, feed: Feed, frame: Frame, *, repairable: bool, counted: bool = False) -> None:
        """Begin with a frame. It is decoded before it is accounted for, unless its number alone says what to do."""
        stream = feed.stream
        if frame.seq == END_SEQ:  # the publisher's last word: nothing it said holds any longer
            stream.restarted()
            self._on_frame(stream, FrameOutcome.RESTART, 0)
            return
        if stream.expected is not None and (
            (frame.seq > stream.expected and repairable) or (frame.seq < stream.expected and stream.seen(frame))
        ):
            self._observe(feed, frame, repairable=repairable, counted=counted)
            return
        try:
            size = len(frame.payload)
            if size <= SMALL_BYTES:  # most frames: checked at once
                batch = decode_batch(frame.payload)
                events = list(batch.events)
            elif size > self._max_bytes:
                raise WireError(DecodeFailure.TOO_LARGE, f"payload of {size} bytes")
            else:
                self._open(feed, Opening(frame, repairable=repairable, counted=counted))
                return
        except WireError as error:
            self._refuse(feed, frame, error, repairable=repairable)
            return
        if self._observe(feed, frame, repairable=repairable, counted=counted):
            stream.last_ts = batch.ts
            self._on_batch(stream, batch.ts)
            feed.pending = iter(events) if size <= PIECE_BLOCKS else pieces(events)  # a block takes a byte and more

    def _open(self, feed: Feed, opening: Opening) -> None:
        """Check a piece of a frame; account for it once it is all there."""
        try:
            if opening.step() and opening.step():
                feed.opening = opening
                return
        except WireError as error:
            feed.opening = None
            self._refuse(feed, opening.frame, error, repairable=opening.repairable)
            return
        feed.opening = None
        if self._observe(feed, opening.frame, repairable=opening.repairable, counted=opening.counted):
            feed.stream.last_ts = opening.ts
            self._on_batch(feed.stream, opening.ts)
            feed.pending = opening.events()

    def _observe(self, feed: Feed, frame: Frame, *, repairable: bool, counted: bool) -> bool:
        """Account for a frame. False where nothing of it is to be applied, or not yet."""
        stream = feed.stream
        known_missing = stream.counters.missing
        outcome = stream.observe(frame, repairable=repairable, counted=counted)
        if outcome is FrameOutcome.NEXT:
            return True
        self._on_frame(stream, outcome, stream.counters.missing - known_missing)
        if outcome is FrameOutcome.DUPLICATE:
            return False
        if repairable and feed.repair is not None:
            feed.held = frame
            feed.paused = True
            feed.repair(outcome)
            return False
        return True

    def _refuse(self, feed: Feed, frame: Frame | None, error: WireError, *, repairable: bool) -> None:
        """A frame (None: not even its number) cannot be used, and nothing of it was. Its original may be sound: it is
        asked for once, from the replay buffer."""
        stream = feed.stream
        expected = stream.expected
        if frame is not None and expected is not None and frame.seq < expected:
            stream.count(error)  # a repeat, garbled: what the number stands for is accounted for
        elif (
            repairable
            and feed.repair is not None
            and error.reason in _GARBLED
            and expected is not None
            and stream.state is not StreamState.UNTRUSTED
        ):
            stream.count(error)
            feed.doubt = (expected, error)
            feed.paused = True
            feed.repair(FrameOutcome.GAP)
        else:
            stream.unread(None if frame is None else frame.seq)
            stream.failed(error)
        self._on_failure(stream, error)
