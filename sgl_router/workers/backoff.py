"""Growing pauses between attempts that never end, and which of them are worth a log line. Pure."""

from __future__ import annotations

import random

__all__ = ["Backoff", "worth_logging"]

_JITTER = 0.2  # a fleet that restarts together must not retry together


class Backoff:
    """Doubles from `initial_secs` up to `max_secs`, each pause varied by a fifth."""

    def __init__(self, initial_secs: float, max_secs: float, rng: random.Random) -> None:
        self._initial = initial_secs
        self._max = max_secs
        self._rng = rng
        self._next = initial_secs

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        pause = min(self._next, self._max)
        self._next = min(self._next * 2, self._max)
        return pause * self._rng.uniform(1 - _JITTER, 1 + _JITTER)

    def reset(self) -> None:
        self._next = self._initial


def worth_logging(attempt: int) -> bool:
    """The first failure, then ever more seldom: attempts 1, 2, 4, ... 256, 512, 768, ..."""
    return attempt & (attempt - 1) == 0 or attempt % 256 == 0
