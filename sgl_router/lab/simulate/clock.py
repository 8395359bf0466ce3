"""Simulated time: callbacks in the order they are due, those due together in the order they were asked for."""

from __future__ import annotations

import heapq
from collections.abc import Callable

__all__ = ["SimClock", "Timer"]


class Timer:
    """One callback to come."""

    __slots__ = ("call", "when")

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class SimClock:
    """`now` moves only in `run`."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Timer]] = []
        self._asked = 0

    def __call__(self) -> float:
        return self.now

    def at(self, when: float, call: Callable[[], None]) -> Timer:
        """Call back at `when`, or now if that has passed."""
        timer = Timer(max(when, self.now), call)
        self._asked += 1
        heapq.heappush(self._heap, (timer.when, self._asked, timer))
        return timer

    def later(self, secs: float, call: Callable[[], None]) -> Timer:
        return self.at(self.now + secs, call)

    def run(self) -> None:
        """Until nothing is due any more."""
        heap = self._heap
        while heap:
            when, _, timer = heapq.heappop(heap)
            call, timer.call = timer.call, None
            if call is not None:
                self.now = when
                call()
