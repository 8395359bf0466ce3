"""Which targets are faster than their peers, and which only look so."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, sqrt
from statistics import median

from sgl_router.load.prefill_speed import PrefillSpeed, Shown

__all__ = ["compare"]

# Observations with prompts of one size before they are compared with others'.
_ENOUGH = 3
# A difference (of logarithms) counts from so many standard errors on, and never below a tenth: what was computed, and
# beside what, differs by that much between equal workers.
_ERRORS = 3.5
_SMALLEST = 0.1
# What was last shown this long ago counts half.
_HALF_LIFE_SECS = 30.0


def compare(speeds: Sequence[PrefillSpeed], now: float) -> None:
    """Say of each target what speed to reckon with: that of all, but for what it has proven to be faster or slower.

    Equal workers never measure equal, and one that looks slower by chance would get no prompts to correct that. So:

    - targets are compared with prompts of one size (a factor of two), since short prompts are mostly overhead: a worker
      that had shorter ones is no slower. What is left of such a difference shows as fewer seconds for a prompt where
      there are more for a token, and counts as none.
    - a difference that is within its own uncertainty is none, and beyond twice that it counts in full;
    - it fades while nothing is heard, until the target is level with the others and is tried again. Those that were
      heard of lately say what is usual.

    Targets that are not proven different get the very same number: whoever adds up costs finds an exact tie.
    """
    known = sorted(speed.tokens_per_sec for speed in ([speed for speed in speeds if speed.shown] or speeds))
    usual = sqrt(known[(len(known) - 1) // 2] * known[len(known) // 2])
    for speed, slower in zip(speeds, _slower(speeds, now), strict=True):
        speed.compared(usual * exp(-slower) if slower else usual, now)


def _slower(speeds: Sequence[PrefillSpeed], now: float) -> list[float]:
    """By how much each target is proven slower than the median, as a logarithm; 0 where nothing is."""
    found = [_Difference() for _ in speeds]
    by_size: dict[int, list[tuple[_Difference, Shown]]] = {}
    for speed, difference in zip(speeds, found, strict=True):
        for size, shown in speed.by_size.items():
            if shown.count >= _ENOUGH:
                by_size.setdefault(size, []).append((difference, shown))
    for several in by_size.values():
        if len(several) < 2:
            continue
        newest = max([shown.at for _, shown in several])
        fresh = [shown for _, shown in several if newest - shown.at <= _HALF_LIFE_SECS]
        per_token = median([shown.per_token for shown in fresh])
        per_prompt = median([shown.per_prompt for shown in fresh])
        for difference, shown in several:
            fade = 0.5 ** (max(now - shown.at, 0.0) / _HALF_LIFE_SECS)
            off = _agreed(shown.per_token - per_token, shown.per_prompt - per_prompt)
            difference.add(off * fade, shown)
    return [difference.proven() for difference in found]


def _agreed(one: float, other: float) -> float:
    """The smaller of two differences, none where they contradict each other."""
    if one * other <= 0:
        return 0.0
    return one if abs(one) < abs(other) else other


class _Difference:
    """Of one target, over the sizes in which it can be compared."""

    __slots__ = ("_count", "_error", "_off")

    def __init__(self) -> None:
        self._count = 0
        self._off = 0.0
        self._error = 0.0

    def add(self, off: float, shown: Shown) -> None:
        count = shown.count
        self._count += count
        self._off += count * off
        self._error += count * count * shown.error

    def proven(self) -> float:
        if not self._count:
            return 0.0
        off = self._off / self._count
        least = sqrt(_SMALLEST**2 + (_ERRORS / self._count) ** 2 * self._error)
        beyond = abs(off) - least
        if beyond <= 0:
            return 0.0
        return off if beyond >= least else 2.0 * beyond * (1.0 if off > 0 else -1.0)
