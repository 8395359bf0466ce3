"""The product's waiting line in a simulated router."""

from __future__ import annotations

from sgl_router.config import QueueConfig
from sgl_router.policies import Facts, KvCost, Policy
from sgl_router.routing.waiting_line import Waiting, WaitingLine

from .brain import Door
from .job import Job

__all__ = ["HoldBack"]


class HoldBack:
    """As `routing.QueuedRouting`, on the simulation's clock."""

    def __init__(self, door: Door, policy: Policy, settings: QueueConfig) -> None:
        assert isinstance(policy, KvCost)
        self._door = door
        self._policy = policy
        self._settings = settings
        self._line = WaitingLine(policy, settings)
        self._jobs: dict[Waiting, Job] = {}

    def arrived(self, job: Job) -> None:
        if self._line.full:
            self._door.refuse(job, "queue_full")
            return
        now = self._door.clock.now
        item = Waiting(self._door.facts(job), now)
        self._jobs[item] = job
        self._line.enter(item, self._door.candidates, now)
        self._door.clock.later(self._settings.max_wait_secs, self._overdue)
        self.changed()

    def changed(self) -> None:
        door = self._door
        while (found := self._line.next(door.candidates, door.clock.now, self._refresh)) is not None:
            item, chosen, costs = found
            door.send(self._jobs.pop(item), self._policy.decide(chosen, costs, item.facts))

    def _refresh(self, item: Waiting) -> Facts:
        return self._door.facts(self._jobs[item])

    def _overdue(self) -> None:
        for item in self._line.overdue(self._door.clock.now):
            self._line.leave(item)
            self._door.refuse(self._jobs.pop(item), "waited_too_long")
