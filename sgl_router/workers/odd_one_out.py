"""Whose fault a 4xx is: the request's, or that of a worker with another key or model than its peers. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

__all__ = ["Member", "OddOneOut"]

# Statuses about who is asked rather than about what is asked, and how many in a row make them the worker's.
_ABOUT_THE_WORKER = frozenset((401, 403, 404, 405, 407, 410, 421))
_FEW = 3
_MANY = 8
_REMEMBER_SECS = 60.0


class Member(Protocol):
    """A worker, as far as this goes."""

    client_errors: int
    """4xx in a row since its last good response."""


class OddOneOut:
    """The 4xx of one model's workers, compared.

    A run of 4xx is the worker's fault where some peer has no run of its own at the moment, and the run is longer than
    clients' mistakes explain: twice the longest run that a good response ended lately, at whichever worker. So a
    client that sends nothing but mistakes is told from a worker that refuses everything: between the former's, the
    same worker answers others well.
    """

    def __init__(self) -> None:
        self._longest = 0
        self._longest_at = float("-inf")

    def needed(self, status: int, now: float) -> int:
        """How long a run that ends with `status` must be to count against the worker."""
        explained = 2 * self._longest if now - self._longest_at <= _REMEMBER_SECS else 0
        return max(_FEW if status in _ABOUT_THE_WORKER else _MANY, explained)

    def failed(self, worker: Member, peers: Iterable[Member], status: int, now: float) -> bool:
        """One more 4xx. Whether it counts against the worker."""
        worker.client_errors += 1
        if worker.client_errors < self.needed(status, now):
            return False
        return any(not peer.client_errors for peer in peers if peer is not worker)

    def succeeded(self, worker: Member, now: float) -> bool:
        """A good response. Whether it ended a run longer than any before: what was held against others on the strength
        of shorter runs is to be forgiven."""
        run, worker.client_errors = worker.client_errors, 0
        if not run or (run <= self._longest and now - self._longest_at <= _REMEMBER_SECS):
            return False
        self._longest, self._longest_at = run, now
        return True
