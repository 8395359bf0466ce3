"""The last decisions, for whoever asks why."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgl_router.routing.local_lease import LocalLease

__all__ = ["DecisionLog"]


class DecisionLog:
    """The last `keep` leases. One request in `1 / sample` is asked to carry every candidate's cost."""

    def __init__(self, keep: int, sample: float) -> None:
        self._leases: deque[LocalLease] = deque(maxlen=keep)
        self._sample = sample if keep else 0.0
        self._credit = 0.0
        self.add = self._leases.append
        """Keep one more, and forget the oldest where there are too many."""

    def sampled(self) -> bool:
        """Whether this request is one of the sample. Evenly spaced, so that a small share is kept too."""
        self._credit += self._sample
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True

    def last(self, limit: int) -> Iterator[LocalLease]:
        """The newest first."""
        return islice(reversed(self._leases), limit)
