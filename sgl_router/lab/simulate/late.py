"""The reference for late binding: a request stays in the router while every worker is busy."""

from __future__ import annotations

from sgl_router.lab.simulate.baselines import CostPolicy
from sgl_router.lab.simulate.brain import RouterHandle
from sgl_router.lab.simulate.job import Job
from sgl_router.policies import PolicyInput
from sgl_router.workers import Target

__all__ = ["LateShortestWork"]


class LateShortestWork:
    """As long as some worker has no prompt to compute, the cheapest (request, worker) pair is sent off: least cost,
    less `ageing` tokens per second waited, so that every request's turn comes. The cheapest pair's worker need not be
    the free one: its cache may be worth the wait."""

    def __init__(self, door: RouterHandle, policy: CostPolicy, *, ageing: float) -> None:
        self._door = door
        self._policy = policy
        self._ageing = ageing
        self._waiting: dict[Job, None] = {}

    def arrived(self, job: Job) -> None:
        self._waiting[job] = None
        self.changed()

    def changed(self) -> None:
        candidates = self._door.candidates
        while self._waiting and not all(target.prefill_tokens for target in candidates):
            job, target, facts = min(map(self._offer, self._waiting), key=lambda offer: offer[0])[1:]
            del self._waiting[job]
            self._door.send(job, self._policy.decide(target, candidates, facts))

    def _offer(self, job: Job) -> tuple[float, Job, Target, PolicyInput]:
        """The job's cheapest worker, and how dear that is."""
        facts = self._door.facts(job)
        costs = [self._policy.cost(target, facts) for target in self._door.candidates]
        least = min(costs)
        waited = self._door.clock.now - job.arrival
        return least - self._ageing * waited, job, self._door.candidates[costs.index(least)], facts
