"""How much of what a worker says it had cached the index knew of: pure, one object per rank.

The other side of `agreement`: an index that misses blocks is not wrong, only cold, so no trust is at stake.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum

__all__ = ["Coverage", "CoverageChange"]

_WEIGHT = 0.125
_LEAST_SAMPLES = 16
_LOW_BELOW = 0.5
_FINE_ABOVE = 0.75
_MAX_NAMESPACES = 64


class CoverageChange(str, Enum):
    NONE = "none"
    FELL = "fell"
    ROSE = "rose"


class Coverage:
    """`score`: the moving share of answers with cached tokens of which the index knew, 0..1. `low`: it has fallen below
    a half, and not risen above three quarters since."""

    __slots__ = ("_namespaces", "_samples", "low", "score")

    def __init__(self) -> None:
        self.score = 1.0
        self.low = False
        self._samples = 0
        self._namespaces: OrderedDict[int, float] = OrderedDict()

    @property
    def partial(self) -> bool:
        """Whether some namespaces are known well: then what is missing are namespaces that the events do not tell."""
        return any(score >= _FINE_ABOVE for score in self._namespaces.values())

    def report(self, known: bool, namespace: int) -> CoverageChange:
        """Account for one answer that says it found at least a page in the worker's cache. `known`: the index knew of
        it then, or has learned of it since."""
        self._samples += 1
        if known and self.score == 1.0 and namespace in self._namespaces:
            return CoverageChange.NONE
        self.score += _WEIGHT * (known - self.score)
        before = self._namespaces.pop(namespace, 1.0 if known else 0.5)
        self._namespaces[namespace] = before + _WEIGHT * (known - before)
        if len(self._namespaces) > _MAX_NAMESPACES:
            self._namespaces.popitem(last=False)
        if self.low:
            if self.score > _FINE_ABOVE:
                self.low = False
                return CoverageChange.ROSE
        elif self._samples >= _LEAST_SAMPLES and self.score < _LOW_BELOW:
            self.low = True
            return CoverageChange.FELL
        return CoverageChange.NONE

    def untold(self) -> None:
        """That it fell is better told later, if it is so then."""
        self.low = False
