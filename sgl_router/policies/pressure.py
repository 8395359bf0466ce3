"""How many requests wait behind a prompt that is computed."""

from __future__ import annotations

import math

__all__ = ["Pressure"]


class Pressure:
    """A queue length per target, smoothed over `smoothing_secs` so that one burst does not turn the fleet round. 0 when
    everything starts at once."""

    __slots__ = ("_at", "_smoothing", "limit", "value")

    def __init__(self, *, smoothing_secs: float, limit: float) -> None:
        self.limit = limit
        self.value = 0.0
        self._smoothing = smoothing_secs
        self._at: float | None = None

    def observe(self, level: float, now: float) -> float:
        """It is `level` now. Returns the smoothed pressure, at most `limit`."""
        level = min(level, self.limit)
        if self._at is None:
            self.value = level
        elif now > self._at:
            self.value += (level - self.value) * -math.expm1((self._at - now) / self._smoothing)
        self._at = now
        return self.value
