"""What the process that decides holds for one request: a lease on each leg's target, and their common end.

Guarantees: `end` ends every leg's lease, exactly once, whatever one of them raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sgl_router.outcome import Outcome
from sgl_router.routing.conduct import UNRENDERABLE, Conduct, End
from sgl_router.workers import BreakerState

if TYPE_CHECKING:
    from sgl_router.kv_events import Expectation, Sent
    from sgl_router.load import LoadGuard
    from sgl_router.placement import Leg, Placement
    from sgl_router.routing.local import LocalRouting
    from sgl_router.workers import Permit

__all__ = ["LegLease", "LocalLease"]


class LegLease:
    """One leg's share of its target's load, its breaker permit, and what is expected to be in its cache."""

    __slots__ = ("_conduct", "_eras", "_expectation", "_fingerprint", "_good", "_permit", "guard", "leg", "witnessed")

    def __init__(
        self,
        conduct: Conduct,
        leg: Leg,
        permit: Permit,
        guard: LoadGuard,
        expectation: Expectation | None = None,
        fingerprint: int | None = None,
    ) -> None:
        self._conduct = conduct
        self._eras = conduct.sent(leg.target, guard.started)
        self._good = False
        self._fingerprint = fingerprint
        self._permit = permit
        self._expectation = expectation
        self.leg = leg
        self.guard = guard
        self.witnessed: Sent | None = None

    def first_byte(self, status: int, now: float) -> None:
        self.guard.first_byte(computed=status < 400)
        if self._expectation is not None:
            self._expectation.first_byte()
        # A probe's good first byte closes the circuit: waiting for the end of a long stream would leave a healed
        # worker on one request. In the closed state success is told at the end, so that a worker that breaks every
        # stream half way still opens it.
        if status < 400:
            self._begins_well(now)
            if self.leg.target.worker.breaker.state is BreakerState.HALF_OPEN:
                self._permit.success(now)

    def end(
        self,
        outcome: Outcome,
        cached_tokens: int | None,
        output_tokens: int | None,
        status: int,
        retry_after_secs: float | None,
        unrenderable: bool,
        now: float,
    ) -> None:
        leg, worker = self.leg, self.leg.target.worker
        self.guard.release(output_tokens)
        if outcome is Outcome.COMPLETED:
            self._begins_well(now)
            self._conduct.completed(self._permit, self._fingerprint, now)
        else:
            unrenderable = unrenderable or leg.unmatched in UNRENDERABLE
            end = End(outcome, status, retry_after_secs, unrenderable, self._fingerprint)
            self._conduct.ended(leg.target, self._eras, self._permit, end, now)
        # What the log of decisions keeps must not keep the prompt's keys.
        expectation, self._expectation = self._expectation, None
        if expectation is not None and outcome is not Outcome.COMPLETED:
            expectation.end()
        worker.stats.count(outcome._value_)
        witnessed, self.witnessed = self.witnessed, None
        if witnessed is not None and outcome is Outcome.COMPLETED:
            witnessed.completed(cached_tokens)

    def _begins_well(self, now: float) -> None:
        if not self._good:
            self._good = True
            self._conduct.good_byte(self.leg.target, self._eras, now)


class LocalLease:
    """See `Lease`. It says what came of it, as far as it has come: `first_byte_secs` is from the decision on."""

    __slots__ = (
        "_legs",
        "_routing",
        "cached_tokens",
        "decided_at",
        "first_byte_secs",
        "model_id",
        "outcome",
        "placement",
        "request_id",
        "waited_secs",
    )

    def __init__(
        self, routing: LocalRouting, placement: Placement, legs: tuple[LegLease, ...], model_id: str, request_id: str
    ) -> None:
        self._routing: LocalRouting | None = routing
        self._legs = legs
        self.placement = placement
        self.model_id = model_id
        self.request_id = request_id
        self.decided_at = legs[0].guard.started
        """Monotonic seconds."""
        self.waited_secs = 0.0
        self.first_byte_secs: float | None = None
        self.cached_tokens: int | None = None
        self.outcome: Outcome | None = None

    @property
    def on_expire(self) -> Callable[[], None] | None:
        return self._legs[-1].guard.on_expire if self._legs else None

    @on_expire.setter
    def on_expire(self, callback: Callable[[], None] | None) -> None:
        """The legs are as old as each other, and the last one lasts longest: it asks for all."""
        if self._legs:
            self._legs[-1].guard.on_expire = callback

    def first_byte(self, status: int) -> None:
        routing = self._routing
        if routing is None:
            return
        now = routing.clock()
        self.first_byte_secs = now - self.decided_at
        for lease in self._legs:
            lease.first_byte(status, now)
        routing.changed(self.model_id)

    def end(
        self,
        outcome: Outcome,
        cached_tokens: int | None = None,
        output_tokens: int | None = None,
        *,
        status: int = 0,
        retry_after_secs: float | None = None,
        unrenderable: bool = False,
    ) -> None:
        routing, self._routing = self._routing, None
        if routing is None:
            return
        self.outcome, self.cached_tokens = outcome, cached_tokens
        now = routing.clock()
        legs, self._legs = self._legs, ()
        failure: Exception | None = None
        for lease in legs:
            try:
                lease.end(outcome, cached_tokens, output_tokens, status, retry_after_secs, unrenderable, now)
            except Exception as error:
                failure = error
        routing.changed(self.model_id)
        if failure is not None:
            raise failure
