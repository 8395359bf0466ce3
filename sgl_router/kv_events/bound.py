"""Keeps the index within a number of blocks: what was not matched for longest is forgotten first.

A clock over each stream's blocks in the order they were stored. A block that a prompt matched lately goes round once
more; the others are forgotten. A matched child implies a matched parent, so whole unmatched subtrees go, and within a
step the children go before their parents. What is forgotten is under-reported, never wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from .stream import EventStream

__all__ = ["MemoryBound"]

STEP_BLOCKS = 512


class MemoryBound:
    """`streams()`: every followed stream. Costs nothing while the index is under half of its bound."""

    def __init__(self, max_blocks: int, streams: Callable[[], Collection[EventStream]]) -> None:
        self.max_blocks = max_blocks
        self.forgotten = 0
        self._streams = streams
        # Matched lately: in this generation, and in the one before.
        self._young: set[int] = set()
        self._old: set[int] = set()
        self._watching = self._over = False
        self._turns = 0

    @property
    def blocks(self) -> int:
        """Blocks held by all streams together: one block on two workers counts twice, as it takes memory twice."""
        return sum(stream.blocks_held for stream in self._streams())

    @property
    def watching(self) -> bool:
        """Whether matches need to be told."""
        return self._watching

    def matched(self, keys: Iterable[int]) -> None:
        """These blocks were just matched."""
        self._young.update(keys)
        if len(self._young) > self.max_blocks // 8:
            self._old, self._young = self._young, set()

    def chore(self, busy: bool) -> bool:
        """`enforce` for every turn of the pump: while events come in it looks only now and then."""
        self._turns += 1
        if busy and not self._over and self._turns % 16:
            return False
        self._over = self.enforce()
        return self._over

    def enforce(self) -> bool:
        """Forget a bounded number of blocks if there are too many. True while there still are."""
        blocks = self.blocks
        self._watching = blocks > self.max_blocks // 2
        if not self._watching:
            self._young, self._old = set(), set()
        if blocks <= self.max_blocks:
            return False
        largest = max(self._streams(), key=lambda stream: stream.blocks_held)
        self.forgotten += largest.forget(
            min(STEP_BLOCKS, blocks - self.max_blocks), STEP_BLOCKS, self._is_recent
        )
        return self.blocks > self.max_blocks

    def _is_recent(self, key: int) -> bool:
        return key in self._young or key in self._old
