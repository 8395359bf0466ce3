"""The product's waiting line in a simulated router."""

from __future__ import annotations

import math
from functools import partial

from sgl_router.config import QueueConfig
from sgl_router.lab.simulate.brain import RouterHandle
from sgl_router.lab.simulate.clock import Timer
from sgl_router.lab.simulate.job import Job
from sgl_router.policies import Policy, PolicyInput
from sgl_router.routing.request_queue import RequestQueue, Waiting

__all__ = ["QUEUE_FULL", "WAITED_TOO_LONG", "HoldBack"]

QUEUE_FULL = "queue_full"
WAITED_TOO_LONG = "waited_too_long"

# As often as `routing.Dispatcher` looks whether queues have drained.
_LOOK_SECS = 0.005


class HoldBack:
    """As `routing.Dispatcher`, on the simulation's clock; a bound that is infinite is none."""

    def __init__(self, door: RouterHandle, policy: Policy, settings: QueueConfig) -> None:
        assert policy.costs is not None
        self._door = door
        self._policy = policy
        self._costs = policy.costs
        self._settings = settings
        self._line = RequestQueue(policy.costs, settings)
        self._jobs: dict[Waiting, Job] = {}
        self._looking: Timer | None = None

    def arrived(self, job: Job) -> None:
        door = self._door
        now, candidates, facts = door.clock.now, door.candidates, door.facts(job)
        if not self._jobs and self._line.has_room(candidates, now):
            door.send(job, self._policy.select(candidates, facts))
            return
        if self._line.full:
            door.refuse(job, QUEUE_FULL)
            return
        item = Waiting(facts, now)
        self._jobs[item] = job
        self._line.enter(item, candidates, now)
        if self._settings.max_wait_secs < math.inf:
            door.clock.later(self._settings.max_wait_secs, partial(self._overdue, item))
        self._look_later()

    def changed(self) -> None:
        door = self._door
        while (found := self._line.next(door.candidates, door.clock.now, self._refresh)) is not None:
            item, chosen, costs = found
            door.send(self._jobs.pop(item), self._costs.decide(chosen, costs, item.facts))

    def _refresh(self, item: Waiting) -> PolicyInput:
        return self._door.facts(self._jobs[item])

    def _look_later(self) -> None:
        """When the first queue may have drained far enough, if nothing else happens before."""
        bound, now = self._settings.release_below_ms / 1000, self._door.clock.now
        if not bound or self._looking is not None:
            return
        prompts = [target.forecast.prompts for target in self._door.candidates if target.forecast is not None]
        left = min((queue.tokens(now) / queue.speed.believed for queue in prompts), default=math.inf) - bound
        if left < math.inf:
            self._looking = self._door.clock.later(max(left, _LOOK_SECS), self._look)

    def _look(self) -> None:
        self._looking = None
        if self._jobs:
            self.changed()
        if self._jobs:
            self._look_later()

    def _overdue(self, item: Waiting) -> None:
        # Not by the clock: rounding may leave `now - since` just short of the bound, and nobody would look again.
        if self._line.leave(item):
            self._door.refuse(self._jobs.pop(item), WAITED_TOO_LONG)
