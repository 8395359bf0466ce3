"""Where requests of one model wait for a target that can take more."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sgl_router.errors import QueueFull, QueueTimeout
from sgl_router.outcome import Outcome
from sgl_router.routing.request_queue import RequestQueue, Waiting

if TYPE_CHECKING:
    from sgl_router.config import QueueConfig
    from sgl_router.observability import Metrics
    from sgl_router.placement import Leg
    from sgl_router.policies import CostModel, PolicyInput
    from sgl_router.routing.local_lease import LocalLease
    from sgl_router.routing.request import RouteRequest
    from sgl_router.workers import Target

__all__ = ["Dispatcher"]

# Queues drain between the events that tell: how often they are looked at while somebody waits.
_LOOK_SECS = 0.005
# Weighing who goes next takes a good part of a millisecond: where many may go at once, the loop has others to serve.
_TURN_SECS = 0.002
_MAX_RETRY_AFTER = 60
_INTERVAL_WEIGHT = 0.05


class Dispatcher:
    """Costs nothing while nobody waits. `candidates`, `look_up` and `admit` are the routing's: who may be chosen now,
    what the index says of a prompt now, and the lease for a decision (None where the target does not take it)."""

    def __init__(
        self,
        model_id: str,
        policy: CostModel,
        settings: QueueConfig,
        metrics: Metrics,
        *,
        candidates: Callable[[], Sequence[Target]],
        look_up: Callable[[RouteRequest, PolicyInput], PolicyInput],
        admit: Callable[[RouteRequest, Leg, PolicyInput], LocalLease | None],
        clock: Callable[[], float],
    ) -> None:
        self._model_id = model_id
        self._policy = policy
        self._settings = settings
        self._metrics = metrics
        for outcome in ("dispatched", "full", "timeout", "left"):
            metrics.queue_outcomes.show(model_id, outcome)
        self._candidates = candidates
        self._look_up = look_up
        self._admit = admit
        self._clock = clock
        self._line = RequestQueue(policy, settings)
        self._entered: dict[Waiting, tuple[RouteRequest, asyncio.Future[LocalLease | None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._soon = False
        self._last_left = 0.0
        self._interval = 0.0  # seconds between two who leave the line, smoothed

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._line)

    def free(self, candidates: Sequence[Target], now: float) -> bool:
        """Whether a request may go at once: nobody waits and some target has room."""
        return not len(self._line) and self._line.has_room(candidates, now)

    async def wait(self, request: RouteRequest, facts: PolicyInput) -> LocalLease | None:
        """Until it is this request's turn. None where the target it was given could not take it: choose again.

        Raises QueueFull, QueueTimeout. Cancelled, it leaves nothing behind.
        """
        now = self._clock()
        if self._line.full:
            self._count("full")
            raise QueueFull(
                f"{len(self._line)} requests are already waiting for a worker of model {self._model_id!r}",
                self._retry_after(),
            )
        item = Waiting(facts, now, request.priority)
        future: asyncio.Future[LocalLease | None] = asyncio.get_running_loop().create_future()
        self._line.enter(item, self._candidates(), now)
        self._entered[item] = (request, future)
        self._arm()
        try:
            return await future
        except BaseException:  # cancelled, or refused
            if self._leave(item):
                self._count("left")
            elif future.done() and not future.cancelled() and future.exception() is None:
                lease = future.result()
                if lease is not None:
                    lease.end(Outcome.CLIENT_GONE)
            raise

    def changed(self) -> None:
        """A prompt has been computed, a request has ended, a target told its load: there may be room."""
        if len(self._line) and not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._look)

    # --- inside -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Let go who can go, give up on who has waited too long: on these whatever goes wrong with the others."""
        self._soon = False
        now = self._clock()
        try:
            self._let_go(now)
        finally:
            self._give_up(now)

    def _let_go(self, now: float) -> None:
        while (found := self._line.next(self._candidates(), now, self._refresh)) is not None:
            item, chosen, costs = found
            request, future = self._entered.pop(item)
            if future.done():  # cancelled in this very turn
                self._count("left")
                continue
            try:
                lease = self._admit(request, self._policy.decide(chosen, costs, item.facts), item.facts)
            except Exception as error:  # nobody else would ever tell this one
                future.set_exception(error)
                continue
            self._metrics.queue_wait.labels(self._model_id).observe(now - item.since)
            self._count("dispatched")
            self._interval += _INTERVAL_WEIGHT * (min(now - self._last_left, 1.0) - self._interval)
            self._last_left = now
            future.set_result(lease)
            if self._clock() - now > _TURN_SECS:
                self.changed()
                break

    def _give_up(self, now: float) -> None:
        for item in self._line.overdue(now):
            _, future = self._entered[item]
            self._leave(item)
            self._count("timeout")
            if not future.done():
                waited = f"{self._settings.max_wait_secs:g} s"
                future.set_exception(
                    QueueTimeout(
                        f"no worker of model {self._model_id!r} could take the request within {waited}",
                        self._retry_after(),
                    )
                )

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_SECS, self._tick)

    def _tick(self) -> None:
        self._timer = None
        try:
            self._look()
        finally:
            if len(self._line):
                self._arm()

    def _refresh(self, item: Waiting) -> PolicyInput:
        return self._look_up(self._entered[item][0], item.facts)

    def _leave(self, item: Waiting) -> bool:
        self._entered.pop(item, None)
        return self._line.leave(item)

    def _retry_after(self) -> int:
        """Seconds in which those in line now will be gone, at the rate at which they went lately."""
        return min(max(math.ceil(len(self._line) * self._interval), 1), _MAX_RETRY_AFTER)

    def _count(self, outcome: str) -> None:
        self._metrics.queue_outcomes.labels(self._model_id, outcome).inc()
