"""Do two runs of one workload send each request to the same worker, and where not, why?"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = ["Cause", "Disagreement", "Parting", "Placement", "compare_placements"]

Row = Mapping[str, Any]
"""One request, as `simulate --json --per-request` or `replay --json --per-request` has it."""


class Cause(str, Enum):
    """What two decisions about one request saw differently, as far as their rows tell."""

    LOAD = "load"
    """Other numbers of requests were in flight at the workers."""
    STATE = "state"
    """The same load, and yet another reason or other cached tokens at the chosen worker: caches, events on their way or
    what the policy has learned were not the same."""
    TIE = "tie"
    """The same load, reason and cached tokens: settled by who was chosen last, or by lot."""


@dataclass(frozen=True)
class Disagreement:
    """One request that went elsewhere. `here` is the worker under the other run's number; loads are in flight."""

    number: int
    here: int
    there: int
    reasons: tuple[str, str]
    predicted: tuple[int | None, int | None]
    loads: tuple[tuple[int, ...], tuple[int, ...]]
    cause: Cause


@dataclass(frozen=True)
class Parting:
    """Where two runs, one and the same up to there but for the workers' names, go apart; what differs later may follow
    from that. `loads` are in flight, under the names up to there; `nearest_end_secs`: how close to the decision, in
    either run, some answer ended or another request left."""

    number: int
    after: int
    reasons: tuple[str, str]
    loads: tuple[tuple[int, ...], tuple[int, ...]]
    nearest_end_secs: float


@dataclass(frozen=True)
class Placement:
    """`names` gives for each worker of this run the worker of the other that it agrees with best: where the first
    choices are made by lot, equal runs differ by such a permutation."""

    compared: int
    agreeing: int
    names: dict[int, int]
    disagreements: list[Disagreement]
    parting: Parting | None = None

    @property
    def share(self) -> float:
        return self.agreeing / self.compared if self.compared else 0.0


def compare_placements(here: Sequence[Row], there: Sequence[Row]) -> Placement:
    """Requests are told by `number`; those that either run sent nowhere are left out."""
    others = {row["number"]: row for row in there if row["worker"] is not None}
    pairs = [(row, others[row["number"]]) for row in here if row["worker"] is not None and row["number"] in others]
    names = _best_names(Counter((mine["worker"], other["worker"]) for mine, other in pairs))
    loads_here, loads_there = _InFlight(here, names), _InFlight(there, {})
    found = []
    for mine, other in pairs:
        if names[mine["worker"]] != other["worker"]:
            loads = loads_here.at(mine), loads_there.at(other)
            predicted = mine["predicted_tokens"], other["predicted_tokens"]
            found.append(
                Disagreement(
                    number=mine["number"],
                    here=names[mine["worker"]],
                    there=other["worker"],
                    reasons=(mine["reason"] or "", other["reason"] or ""),
                    predicted=predicted,
                    loads=loads,
                    cause=_cause(mine, other, predicted, loads),
                )
            )
    return Placement(len(pairs), len(pairs) - len(found), names, found, _parting(pairs, here, there))


def _parting(pairs: Sequence[tuple[Row, Row]], here: Sequence[Row], there: Sequence[Row]) -> Parting | None:
    names: dict[int, int] = {}
    for after, (mine, other) in enumerate(pairs):
        if names.get(mine["worker"], other["worker"]) == other["worker"] and (
            mine["worker"] in names or other["worker"] not in names.values()
        ):
            names[mine["worker"]] = other["worker"]
            continue
        return Parting(
            number=mine["number"],
            after=after,
            reasons=(mine["reason"] or "", other["reason"] or ""),
            loads=(_InFlight(here, names).at(mine), _InFlight(there, {}).at(other)),
            nearest_end_secs=min(_nearest(here, mine), _nearest(there, other)),
        )
    return None


def _nearest(rows: Sequence[Row], row: Row) -> float:
    times = [other[name] for other in rows if other is not row for name in ("dispatched_at", "finished_at")]
    return min((abs(time - row["dispatched_at"]) for time in times if time is not None), default=math.inf)


def _cause(
    mine: Row, other: Row, predicted: tuple[int | None, int | None], loads: tuple[tuple[int, ...], tuple[int, ...]]
) -> Cause:
    width = max(map(len, loads))
    padded = [load + (0,) * (width - len(load)) for load in loads]
    if padded[0] != padded[1]:
        return Cause.LOAD
    return Cause.TIE if predicted[0] == predicted[1] and mine["reason"] == other["reason"] else Cause.STATE


class _InFlight:
    """How many requests each worker had when another was sent."""

    def __init__(self, rows: Sequence[Row], names: Mapping[int, int]) -> None:
        self._spans: dict[int, tuple[list[float], list[float]]] = {}
        for row in rows:
            if row["worker"] is not None and row["dispatched_at"] is not None and row["finished_at"] is not None:
                worker = names.get(row["worker"], row["worker"])
                begun, ended = self._spans.setdefault(worker, ([], []))
                begun.append(row["dispatched_at"])
                ended.append(row["finished_at"])
        for begun, ended in self._spans.values():
            begun.sort()
            ended.sort()

    def at(self, row: Row) -> tuple[int, ...]:
        when = row["dispatched_at"]
        workers = range(max(self._spans, default=-1) + 1)
        return tuple(self._count(worker, when) for worker in workers)

    def _count(self, worker: int, when: float) -> int:
        begun, ended = self._spans.get(worker, ([], []))
        return bisect_left(begun, when) - bisect_right(ended, when)


def _best_names(seen: Counter[tuple[int, int]]) -> dict[int, int]:
    """The one-to-one renaming with most agreement, by greed and then by swaps while one helps."""
    mine = sorted({pair[0] for pair in seen})
    free = sorted({pair[1] for pair in seen})
    names: dict[int, int] = {}
    for (worker, other), _ in seen.most_common():
        if worker not in names and other in free:
            names[worker] = other
            free.remove(other)
    beyond = max((pair[1] for pair in seen), default=-1) + 1
    for worker in mine:
        if worker not in names:
            names[worker] = free.pop(0) if free else beyond
            beyond += names[worker] == beyond
    while swap := _better_swap(names, seen):
        first, second = swap
        names[first], names[second] = names[second], names[first]
    return names


def _better_swap(names: dict[int, int], seen: Counter[tuple[int, int]]) -> tuple[int, int] | None:
    for first in names:
        for second in names:
            now = seen[first, names[first]] + seen[second, names[second]]
            if seen[first, names[second]] + seen[second, names[first]] > now:
                return first, second
    return None
