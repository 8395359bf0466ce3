"""Whose fault a failure is: the worker's, or that of one request that is sent again and again. Pure."""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum

__all__ = ["Blame", "Suspects"]

_REMEMBER_SECS = 60.0
_MOST = 256
# Failing at this many workers, a request needs no more trying out.
_PROOF = 3


class Blame(str, Enum):
    WORKER = "worker"
    """Nothing is held against the request."""
    REPEATED = "repeated"
    """The same request failed at the same worker before: no news of the worker, and another one would show more."""
    REQUEST = "request"
    """The same request failed at other workers, and succeeded at none."""


class _Suspect:
    __slots__ = ("at", "fine", "workers")

    def __init__(self, worker: int, at: float) -> None:
        self.workers = [worker]
        self.at = at
        self.fine = False


class Suspects:
    """Requests of one model that failed within the last minute, 256 at most, by a fingerprint of their bytes. Workers
    are known by their generation."""

    def __init__(self) -> None:
        self._failed: OrderedDict[int, _Suspect] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failed)

    def failed(self, fingerprint: int, worker: int, now: float) -> Blame:
        """The request failed at the worker."""
        known = self._failed.get(fingerprint)
        if known is None or now - known.at > _REMEMBER_SECS:
            self._failed[fingerprint] = _Suspect(worker, now)
            self._failed.move_to_end(fingerprint)
            if len(self._failed) > _MOST:
                self._failed.popitem(last=False)
            return Blame.WORKER
        known.at = now
        self._failed.move_to_end(fingerprint)
        if known.fine:
            return Blame.WORKER
        if len(known.workers) >= _PROOF:
            return Blame.REQUEST
        if worker in known.workers:
            return Blame.REPEATED
        known.workers.append(worker)
        return Blame.REQUEST

    def succeeded(self, fingerprint: int) -> None:
        """The request succeeded somewhere: its failures were the workers'."""
        known = self._failed.get(fingerprint)
        if known is not None:
            known.fine = True
