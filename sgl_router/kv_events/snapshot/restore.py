"""Warm starts: a snapshot's ranks are taken over by the streams they belong to, or by nobody.

Invariant: nothing is claimed until continuity is proven. A rank's blocks are true of one process at one frame; they
count again once the same process is seen to go on at that very frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING

import structlog

from sgl_router.kv_events.snapshot.records import PackedBlocks, RankSnapshot, Snapshot, unpack

if TYPE_CHECKING:
    from sgl_router.kv_events.follow.pump import EventPump, Feed
    from sgl_router.kv_events.follow.stream import EventStream
    from sgl_router.workers import Target

__all__ = ["SnapshotOutcome", "WarmStart"]

log = structlog.get_logger(__name__)

_KEEP_SECS = 300.0

_Key = tuple[str, int]


class SnapshotOutcome(str, Enum):
    """What became of a rank at a warm start: the metric label and the log field."""

    WARM = "warm"
    """Continuity proven: what the snapshot says is held, and everything since was witnessed."""
    GAP = "gap"
    """What was published since the snapshot is not to be had: its blocks were dropped, the stream began anew."""
    UNCOVERED = "uncovered"
    """A worker's rank that the snapshot does not contain."""
    ABANDONED = "abandoned"
    """A rank of the snapshot that nobody may take over: no such worker came, or it is another process or setup."""


class WarmStart:
    """Holds the snapshot's ranks until their workers register, at most `keep_secs`."""

    def __init__(self, pump: EventPump, *, keep_secs: float = _KEEP_SECS) -> None:
        self.outcomes = dict.fromkeys(SnapshotOutcome, 0)
        self._pump = pump
        self._keep_secs = keep_secs
        self._waiting: dict[_Key, RankSnapshot] = {}
        self._grafted: dict[_Key, RankSnapshot] = {}
        self._seen: set[_Key] = set()
        self._timer: asyncio.TimerHandle | None = None

    def adopt(self, snapshot: Snapshot) -> None:
        """Ranks to be taken over from now on."""
        self._waiting = {rank.key: rank for rank in snapshot.ranks}
        self._seen = set(self._waiting)
        self._timer = asyncio.get_running_loop().call_later(self._keep_secs, self._expire)

    def offer(self, target: Target, feed: Feed) -> None:
        """A worker's rank is about to be followed: give it what the snapshot has for it, if it is still true of it."""
        if self._timer is None:
            return
        key = (target.worker.url, target.dp_rank)
        entry = self._waiting.pop(key, None)
        if entry is None:
            if key not in self._seen:
                self._seen.add(key)
                self._count(SnapshotOutcome.UNCOVERED, key)
            return
        differs = _differences(entry, target)
        if differs:
            self._count(SnapshotOutcome.ABANDONED, key, differs=differs)
            return
        self._grafted[key] = entry
        stream = feed.stream
        stream.graft(
            entry.head.cursor, complete=entry.head.complete, settled=lambda kept: self._settled(key, stream, kept)
        )
        feed.job = _Graft(stream, entry.pieces)
        self._pump.wake(feed)

    def withdraw(self, target: Target, feed: Feed) -> None:
        """The rank is no longer followed. Where nothing was settled, its next incarnation may try."""
        key = (target.worker.url, target.dp_rank)
        if feed.stream.grafted and key in self._grafted:
            self._waiting[key] = self._grafted.pop(key)
            if self._timer is None:
                self._expire()

    def unsettled(self) -> list[RankSnapshot]:
        """Ranks whose blocks are neither in use nor given up: a new snapshot passes them on."""
        return [*self._waiting.values(), *self._grafted.values()]

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiting.clear()
        self._grafted.clear()

    def _settled(self, key: _Key, stream: EventStream, kept: bool) -> None:
        self._grafted.pop(key, None)
        outcome = SnapshotOutcome.WARM if kept else SnapshotOutcome.GAP
        self._count(outcome, key, blocks=stream.blocks_held if kept else 0, next_seq=stream.expected)

    def _expire(self) -> None:
        self._timer = None
        waiting, self._waiting = self._waiting, {}
        self._seen.clear()
        for key in waiting:
            self._count(SnapshotOutcome.ABANDONED, key, differs=["no such worker"])

    def _count(self, outcome: SnapshotOutcome, key: _Key, **details: object) -> None:
        self.outcomes[outcome] += 1
        log.info(f"kv snapshot rank {outcome.value}", url=key[0], dp_rank=key[1], **details)


class _Graft:
    """A feed's job: hands the blocks to the stream, a piece per step, before any frame."""

    def __init__(self, stream: EventStream, pieces: list[PackedBlocks]) -> None:
        self._stream = stream
        self._rest: Iterator[PackedBlocks] = iter(pieces)

    def step(self) -> bool:
        piece = next(self._rest, None)
        return piece is not None and self._stream.graft_more(unpack(piece))

    def dropped(self) -> None:
        pass


def _differences(entry: RankSnapshot, target: Target) -> list[str]:
    """What is not as it was. Never empty where the process does not say when it was started."""
    head, worker = entry.head, target.worker
    pairs = {
        "started_at": (head.started_at, worker.info.started_at),
        "model_id": (head.model_id, worker.model_id),
        "page_size": (head.page_size, worker.info.block_size),
        "bigram": (head.bigram, worker.info.bigram),
    }
    return [name for name, (then, now) in pairs.items() if then != now]
