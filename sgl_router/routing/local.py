"""Deciding in the process that holds the index."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sgl_router.observability.outcome import Outcome
from sgl_router.policies import Facts, Unmatched
from sgl_router.workers import BreakerState

if TYPE_CHECKING:
    from sgl_router.kv_events import Expectation, KvIndex
    from sgl_router.observability import Metrics
    from sgl_router.policies import ActiveLoad, LoadGuard, Policy, RouteDecision
    from sgl_router.workers import Permit, Worker, WorkerRegistry

    from .ask import Ask

__all__ = ["LocalRouting"]


class LocalRouting:
    """The registry's candidates, the index's match, the model's policy, in one turn of the loop where it can be."""

    def __init__(
        self,
        registry: WorkerRegistry,
        index: KvIndex,
        load: ActiveLoad,
        policies: Mapping[str, Policy],
        metrics: Metrics,
        *,
        expecting: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._index = index
        self._load = load
        self._policies = policies
        self._metrics = metrics
        self._expecting = expecting
        self._clock = clock

    async def choose(self, ask: Ask, tried: set[Worker]) -> LocalLease | None:
        policy = self._policies[ask.model_id]
        facts = ask.facts
        if facts is None:
            facts = ask.facts = await self._look_up(ask, policy)
        now = self._clock()
        candidates = self._registry.candidates(ask.model_id, now)
        while True:
            if tried:
                candidates = [target for target in candidates if target.worker not in tried]
            if not candidates:
                return None
            decision = policy.select(candidates, facts)
            permit = decision.target.worker.breaker.acquire(now)
            if permit is not None:
                return self._lease(ask, policy, decision, permit, now)
            # Half-open, and its one probe was taken between the filter and here.
            tried = tried | {decision.target.worker}

    async def _look_up(self, ask: Ask, policy: Policy) -> Facts:
        if not policy.needs_prompt:
            return Facts(unmatched=Unmatched.NOT_ASKED)
        prompt = ask.prompt
        if prompt is None:
            return Facts(unmatched=ask.unmatched)
        if ask.namespace is None:
            return Facts(prompt_tokens=len(prompt), unmatched=ask.unmatched)
        match = await self._index.match(ask.model_id, prompt, ask.namespace)
        return Facts(match=match, prompt_tokens=len(prompt))

    def _lease(self, ask: Ask, policy: Policy, decision: RouteDecision, permit: Permit, now: float) -> LocalLease:
        if policy.needs_prompt:
            metrics = self._metrics
            metrics.decisions.labels(ask.model_id, decision.reason.value).inc()
            metrics.overlap.labels(ask.model_id).observe(decision.matched_blocks)
        tokens = decision.prompt_tokens or 0
        guard = self._load.acquire(
            decision.target,
            prefill_tokens=max(tokens - decision.matched_tokens, 0),
            decode_blocks=-(-tokens // max(decision.page_size, 1)),
            now=now,
        )
        expectation = None
        if self._expecting and ask.prompt is not None and ask.namespace is not None:
            expectation = self._index.expect(decision.target, ask.prompt, ask.namespace)
        return LocalLease(self, decision, permit, guard, expectation)


class LocalLease:
    """See `Lease`."""

    __slots__ = ("_expectation", "_guard", "_permit", "_routing", "decision")

    def __init__(
        self,
        routing: LocalRouting,
        decision: RouteDecision,
        permit: Permit,
        guard: LoadGuard,
        expectation: Expectation | None,
    ) -> None:
        self._routing: LocalRouting | None = routing
        self.decision = decision
        self._permit = permit
        self._guard = guard
        self._expectation = expectation

    @property
    def on_expire(self) -> Callable[[], None] | None:
        return self._guard.on_expire

    @on_expire.setter
    def on_expire(self, callback: Callable[[], None] | None) -> None:
        self._guard.on_expire = callback

    def first_byte(self, status: int) -> None:
        if self._routing is None:
            return
        self._guard.first_byte()
        if self._expectation is not None:
            self._expectation.first_byte()
        # A probe's good first byte closes the circuit: waiting for the end of a long stream would leave a healed
        # worker on one request. In the closed state success is told at the end, so that a worker that breaks every
        # stream half way still opens it.
        if status < 400 and self.decision.target.worker.breaker.state is BreakerState.HALF_OPEN:
            self._permit.success(self._routing._clock())

    def end(self, outcome: Outcome, cached_tokens: int | None = None) -> None:
        routing, self._routing = self._routing, None
        if routing is None:
            return
        self._guard.release()
        now, permit, decision = routing._clock(), self._permit, self.decision
        worker = decision.target.worker
        if outcome is Outcome.COMPLETED or outcome is Outcome.CLIENT_ERROR:
            permit.success(now)
        elif (
            outcome is Outcome.WORKER_ERROR
            or outcome is Outcome.UNREACHABLE
            or outcome is Outcome.INCOMPLETE
            or outcome is Outcome.TIMEOUT
        ):
            if not permit.settled:
                permit.failure(now)
            elif (again := worker.breaker.acquire(now)) is not None:  # praised at its first byte, then it broke off
                again.failure(now)
        else:
            permit.release(now)
        if self._expectation is not None and outcome is not Outcome.COMPLETED:
            self._expectation.end()
        worker.stats.count(outcome._value_)
        if cached_tokens is not None and outcome is Outcome.COMPLETED and decision.unmatched is None:
            routing._index.reported(decision.target, decision.matched_tokens, cached_tokens, decision.epoch)
