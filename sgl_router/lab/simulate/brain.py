"""How a way of choosing is plugged into a simulated router."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sgl_router.lab.simulate.clock import SimClock
    from sgl_router.lab.simulate.job import Job
    from sgl_router.lab.simulate.router import Sent
    from sgl_router.load.reports import LoadReport
    from sgl_router.placement import Leg
    from sgl_router.policies import Policy, PolicyInput
    from sgl_router.workers import Target

__all__ = ["Immediate", "Observer", "PolicyAdapter", "PolicyContext", "Release", "RouterHandle"]


class Observer(Protocol):
    """For a policy that learns. Every call comes with the time at which the router gets to know."""

    def dispatched(self, sent: Sent, now: float) -> None: ...

    def first_byte(self, sent: Sent, now: float) -> None:
        """The prompt is computed: `now - sent.at` against `sent.uncached_tokens` tells a worker's speed and queue."""

    def ended(self, sent: Sent, cached_tokens: int, now: float) -> None:
        """`cached_tokens`: as the worker reports it with its answer."""

    def load_reported(self, target: Target, load: LoadReport, now: float) -> None:
        """As /v1/loads or the load channel would say, other routers' requests included."""


class RouterHandle(Protocol):
    """What a dispatcher can do: a router, seen from inside."""

    clock: SimClock

    @property
    def candidates(self) -> Sequence[Target]: ...

    def facts(self, job: Job) -> PolicyInput:
        """What the index says of a prompt now."""

    def send(self, job: Job, leg: Leg) -> None: ...

    def refuse(self, job: Job, reason: str) -> None:
        """The client gets an error instead of an answer."""


class Release(Protocol):
    """When requests leave the router. Every job that arrives must be sent or refused, once."""

    def arrived(self, job: Job) -> None: ...

    def changed(self) -> None:
        """A worker computed a prompt, ended a request or reported its load: there may be room."""


class Immediate:
    """At once, wherever the policy says: nothing waits in the router."""

    def __init__(self, door: RouterHandle, policy: Policy) -> None:
        self._door = door
        self._policy = policy

    def arrived(self, job: Job) -> None:
        self._door.send(job, self._policy.select(self._door.candidates, self._door.facts(job)))

    def changed(self) -> None:
        pass


@dataclass(frozen=True)
class PolicyContext:
    """What a way of choosing is made with, once per router."""

    rng: random.Random
    clock: Callable[[], float]
    held_tokens: dict[Target, int]
    """What every worker has cached, as the router's index counts it."""
    prefill_tokens_per_sec: float
    """Of one worker: what the reference baselines take for granted and a policy of the product has to learn."""


@dataclass
class PolicyAdapter:
    """A policy, and where they are needed a dispatcher of its own and ears."""

    policy: Policy
    dispatcher: Callable[[RouterHandle, Policy], Release] = Immediate
    observer: Observer | None = None
    forecasts: Mapping[str, float] | None = None
    """As `policies.ActiveLoad` takes them."""
