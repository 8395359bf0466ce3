"""What dispatched requests are about to make workers hold: known before the workers' own events say so.

A burst of requests with one new prefix would otherwise scatter, each finding it nowhere. An expectation is no truth:
it is never counted as held, and it ends when the worker's events arrive, the request fails, or its time is up.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence

from sgl_router.kv_events.index.tree import BlockTree

__all__ = ["Expectation", "Expectations"]

# Prompt blocks leave the engine right after their prefill; a first byte means that prefill is done.
AFTER_FIRST_BYTE_SECS = 0.3
# Their time is looked at this often: thousands of timers a second would cost more than they are worth.
_SWEEP_SECS = 0.1


class Expectation:
    """One dispatched prompt's blocks on one slot, `keys` front to back, from the prompt's block `first` on."""

    __slots__ = ("_book", "_tree", "keys", "marks", "slot")

    def __init__(self, book: Expectations, tree: BlockTree, slot: int, keys: Sequence[int], first: int) -> None:
        self._book: Expectations | None = book
        self._tree = tree
        self.slot = slot
        self.keys = keys
        self.marks = tree.expect(slot, keys, first)

    @property
    def over(self) -> bool:
        return self._book is None

    def first_byte(self) -> None:
        """The prompt is computed: its events are on their way, or the engine publishes none."""
        if self._book is not None:
            self._book.soon_over(self)

    def end(self) -> None:
        """Expect nothing more. Idempotent."""
        book, self._book = self._book, None
        if book is None:
            return
        self._tree.unexpect(self.slot, self.marks)
        book.forget(self)
        self.keys = self.marks = ()


class Expectations:
    """All of an index: which end when their last block is stored, and when their time is up."""

    def __init__(self, tree: BlockTree, ttl_secs: float) -> None:
        self._tree = tree
        self._ttl_secs = ttl_secs
        self._by_slot: dict[int, dict[Expectation, None]] = {}
        # By due time; what has ended meanwhile is dropped when its time comes.
        self._first: deque[tuple[float, Expectation]] = deque()
        self._computed: deque[tuple[float, Expectation]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        tree.stored = self._stored

    def make(self, slot: int, keys: Sequence[int], first: int) -> Expectation:
        made = Expectation(self, self._tree, slot, keys, first)
        self._by_slot.setdefault(slot, {})[made] = None
        self._tree.awaited.setdefault(keys[-1], []).append(made)
        self._first.append((time.monotonic() + self._ttl_secs, made))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SWEEP_SECS, self._sweep)
        return made

    def blocks(self, slot: int) -> int:
        """About how many distinct blocks the slot is expected to hold. By their landmarks: every scrape asks for each
        slot, and the prompts that wait for a busy fleet have millions of blocks."""
        of_slot = self._by_slot.get(slot, ())
        every = sum(len(one.keys) for one in of_slot)
        marks = [one.marks for one in of_slot]
        return round(every * len(set[int]().union(*marks)) / sum(map(len, marks))) if every else 0

    def give_up(self, slot: int) -> None:
        """The slot changes hands, or is forgotten."""
        for expectation in list(self._by_slot.get(slot, ())):
            expectation.end()

    def soon_over(self, expectation: Expectation) -> None:
        self._computed.append((time.monotonic() + AFTER_FIRST_BYTE_SECS, expectation))

    def forget(self, expectation: Expectation) -> None:
        of_slot = self._by_slot[expectation.slot]
        del of_slot[expectation]
        if not of_slot:
            del self._by_slot[expectation.slot]
        last = expectation.keys[-1]
        waiting = self._tree.awaited[last]
        waiting.remove(expectation)
        if not waiting:
            del self._tree.awaited[last]

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stored(self, slot: int, keys: Iterable[int]) -> None:
        """The slot holds these now, and some of them are the last of what somebody is expected to hold."""
        awaited = self._tree.awaited
        for key in keys:
            if key in awaited:
                for expectation in [one for one in awaited[key] if one.slot == slot]:
                    expectation.end()

    def _sweep(self) -> None:
        now = time.monotonic()
        for queue in (self._first, self._computed):
            while queue and (queue[0][0] <= now or queue[0][1].over):
                queue.popleft()[1].end()
        more = self._first or self._computed
        self._timer = asyncio.get_running_loop().call_later(_SWEEP_SECS, self._sweep) if more else None
