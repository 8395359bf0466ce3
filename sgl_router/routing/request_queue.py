"""Requests that wait in the router while every target has enough to compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sortedcontainers import SortedKeyList

if TYPE_CHECKING:
    from sgl_router.config import QueueConfig
    from sgl_router.policies import CostModel, Costs, PolicyInput
    from sgl_router.workers import Target

__all__ = ["RequestQueue", "Waiting"]

# How many of those first in line are weighed against each other, with what the index says now.
_WEIGHED = 8
# A target with more prompts than this is not sent another one from the line.
_AHEAD = 4


class Waiting:
    """One request in line. `since`: when it came, seconds; `priority`: higher goes first."""

    __slots__ = ("facts", "priority", "rank", "since", "work_ms")

    def __init__(self, facts: PolicyInput, since: float, priority: int = 0) -> None:
        self.facts = facts
        self.since = since
        self.priority = priority
        self.work_ms = 0.0
        self.rank: tuple[float, float] = (0.0, 0.0)


class RequestQueue:
    """Who goes next, and where to. Pure: time and the index's word come in.

    Classes by priority; in a class the least work first, less `ageing` milliseconds for each millisecond waited: a
    request is passed only by such as come later by no more than what they are shorter, over `ageing`. Every second
    turn is that of whoever has waited for half of `max_wait_secs`, whatever the class.
    """

    def __init__(self, policy: CostModel, settings: QueueConfig) -> None:
        self._policy = policy
        self._settings = settings
        self._waiting: dict[Waiting, None] = {}  # in order of arrival
        self._favoured = False  # whether the last to go was one who had waited long
        self._order: SortedKeyList[Waiting, tuple[float, float]] = SortedKeyList(key=_rank)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        return len(self._waiting) >= self._settings.max_waiting

    def has_room(self, candidates: Sequence[Target], now: float) -> bool:
        """Whether some target will soon have nothing left to compute."""
        bound = self._settings.release_below_ms / 1000
        return any(_has_room(target, bound, now) for target in candidates)

    def enter(self, item: Waiting, candidates: Sequence[Target], now: float) -> None:
        """Join the line; the caller has seen that it is not `full`."""
        self._place(item, self._policy.costs_of(self._policy.standing(candidates, now), item.facts))
        self._waiting[item] = None
        self._order.add(item)
        self._policy.waiting = len(self._waiting)

    def leave(self, item: Waiting) -> bool:
        """Out of the line, wherever it stood. False where it is not in it (any more)."""
        if item not in self._waiting:
            return False
        del self._waiting[item]
        self._order.remove(item)
        self._policy.waiting = len(self._waiting)
        return True

    def overdue(self, now: float) -> list[Waiting]:
        """Those who have waited for `max_wait_secs`: they are in line until they leave."""
        late = []
        for item in self._waiting:
            if now - item.since < self._settings.max_wait_secs:
                break
            late.append(item)
        return late

    def next(
        self, candidates: Sequence[Target], now: float, refresh: Callable[[Waiting], PolicyInput]
    ) -> tuple[Waiting, int, Costs] | None:
        """Take the best pair of a request and a target out of the line, if a target has room: the request, its target's
        position among the candidates, its costs at all of them. `refresh` says what the index knows of a request now.
        """
        if not self._waiting:
            return None
        bound = self._settings.release_below_ms / 1000
        room = [_has_room(target, bound, now) for target in candidates]
        if not any(room):
            return None
        standing = self._policy.standing(candidates, now)
        scale = 1.0 + standing.others
        # A cache may be worth waiting for the busy target that has it; but not in a crowd, or an idle target that
        # nobody likes would empty the line onto the others.
        open_to = [
            position
            for position, target in enumerate(candidates)
            if room[position] or (target.forecast and len(target.forecast.prompts) <= _AHEAD)
        ]
        best: tuple[float, Waiting, Costs] | None = None
        for item in self._first(now):
            item.facts = refresh(item)
            costs = self._policy.costs_of(standing, item.facts)
            self._order.remove(item)
            self._place(item, costs)
            self._order.add(item)
            totals = costs.totals
            least = min([totals[position] for position in open_to]) / scale
            score = least - self._settings.ageing * (now - item.since) * 1000
            if best is None or score < best[0]:
                best = (score, item, costs)
        if best is None:
            return None
        _, item, costs = best
        self.leave(item)
        return item, self._policy.cheapest(costs, open_to), costs

    def _first(self, now: float) -> list[Waiting]:
        """Who may go now: of one class."""
        oldest = next(iter(self._waiting))
        late = now - oldest.since >= self._settings.max_wait_secs / 2
        self._favoured = late and not self._favoured
        if self._favoured:
            return [oldest]
        if self._settings.order == "fcfs":
            return [self._order[0]]
        first = list(self._order.islice(0, _WEIGHED))
        return [item for item in first if item.priority == first[0].priority]

    def _place(self, item: Waiting, costs: Costs) -> None:
        item.work_ms = min(costs.work_ms, default=0.0)
        when = item.since * 1000
        if self._settings.order == "shortest_work_first":
            when = item.work_ms + self._settings.ageing * when
        item.rank = (-item.priority, when)


def _has_room(target: Target, bound_secs: float, now: float) -> bool:
    if target.forecast is None:
        return True
    prompts = target.forecast.prompts
    ahead = prompts.tokens(now)  # first: it is this look that takes those to be computed that do not tell
    return not len(prompts) or (bound_secs > 0 and ahead <= bound_secs * prompts.speed.believed)


def _rank(item: Waiting) -> tuple[float, float]:
    return item.rank
