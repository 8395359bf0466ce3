"""Keeps the index within a number of blocks: what was not matched for longest is forgotten first.

A clock over each stream's blocks in the order they were stored. A block that a prompt matched lately goes round once
more; the others are forgotten. A matched child implies a matched parent, so whole unmatched subtrees go, and within a
step the children go before their parents. What is forgotten is under-reported, never wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from sgl_router.kv_events.follow.stream import EventStream

__all__ = ["MemoryBound"]

STEP_BLOCKS = 512
_LOOKED_AT_IN_A_TURN = 64


class MemoryBound:
    """`streams()`: every followed stream; one that is `pinned` is left as it is for now. Costs nothing while the index
    is under half of its bound. `retired()`: blocks that are no longer claimed, and still take memory until `sweep(n)`
    has freed them, n at a time."""

    def __init__(
        self,
        max_blocks: int,
        streams: Callable[[], Collection[EventStream]],
        *,
        pinned: Callable[[EventStream], bool] = lambda stream: False,
        retired: Callable[[], int] = lambda: 0,
        sweep: Callable[[int], object] = lambda budget: None,
    ) -> None:
        self.max_blocks = max_blocks
        self.forgotten = 0
        self._streams = streams
        self._pinned = pinned
        self._retired = retired
        self._sweep = sweep
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
        """`enforce` for the pump, which applies nothing while this is True: so the index is over its bound by what one
        turn applies at most. With many streams it looks only now and then while events come in."""
        self._turns += 1
        if busy and not self._over and self._turns % (1 + len(self._streams()) // _LOOKED_AT_IN_A_TURN):
            return False
        self._over = self.enforce()
        return self._over

    def enforce(self) -> bool:
        """Forget a bounded number of blocks if there are too many. True while there still are, and something can be
        done about it."""
        blocks = self.blocks
        self._watching = blocks > self.max_blocks // 2
        if not self._watching:
            self._young, self._old = set(), set()
        excess = blocks + self._retired() - self.max_blocks
        if excess <= 0:
            return False
        if self._retired():
            self._sweep(STEP_BLOCKS)
            return excess > STEP_BLOCKS
        largest = max(
            (stream for stream in self._streams() if not self._pinned(stream)),
            key=lambda stream: stream.blocks_held,
            default=None,
        )
        if largest is None or not largest.blocks_held:
            return False
        self.forgotten += largest.forget(min(STEP_BLOCKS, excess), STEP_BLOCKS, self._is_recent)
        return self.blocks > self.max_blocks

    def _is_recent(self, key: int) -> bool:
        return key in self._young or key in self._old
