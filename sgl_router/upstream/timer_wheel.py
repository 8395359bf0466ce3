"""One coarse timer for all deadlines of an event loop."""

from __future__ import annotations

import asyncio
from typing import Protocol

__all__ = ["SLOTS_PER_SEC", "Expiring", "TimerWheel", "wheel_of"]

SLOTS_PER_SEC = 32
# What is due later than this is looked at and put back on the way, so that there are never many slots.
HORIZON_SECS = 8.0


class Expiring(Protocol):
    def look(self, now: float) -> None:
        """The time is up, or a look is due on the way to it. May `put` itself again."""


class TimerWheel:
    """Holds things by the slot of time in which they are to be looked at: 1/32 s late at most, never early.

    A request costs two set operations instead of a timer of the loop; the loop's one timer runs while a slot exists.
    """

    __slots__ = ("_next", "_timer", "loop", "slots")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.slots: dict[int, set[Expiring]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0

    def put(self, item: Expiring, at: float, now: float) -> int:
        """Have `item` looked at no later than 1/32 s after `at`. Returns its slot: discarded there, it is out."""
        if at > now + HORIZON_SECS:
            at = now + HORIZON_SECS
        slot = int(at * SLOTS_PER_SEC) + 1
        try:
            self.slots[slot].add(item)
        except KeyError:
            self.slots[slot] = {item}
            if self._timer is None or slot < self._next:
                self._schedule(slot)
        return slot

    def _schedule(self, slot: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = slot
        self._timer = self.loop.call_at(slot / SLOTS_PER_SEC, self._turn)

    def _turn(self) -> None:
        self._timer = None
        now = self.loop.time()
        due = int(now * SLOTS_PER_SEC)
        for slot in sorted(slot for slot in self.slots if slot <= due):
            for item in self.slots.pop(slot):
                item.look(now)
        if self.slots:
            self._schedule(min(self.slots))


_latest: TimerWheel | None = None


def wheel_of(loop: asyncio.AbstractEventLoop) -> TimerWheel:
    """The wheel of this loop. A process has one loop; where there are several, more wheels than loops do no harm."""
    global _latest
    wheel = _latest
    if wheel is None or wheel.loop is not loop:
        wheel = _latest = TimerWheel(loop)
    return wheel
