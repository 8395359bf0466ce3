"""Deciding in the process that holds the index."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import structs

from sgl_router.observability.outcome import Outcome
from sgl_router.policies import Facts, KvCost, Unmatched
from sgl_router.workers import BreakerState

from .conduct import UNRENDERABLE, Conduct, End
from .decision_log import DecisionLog
from .views import explanation_view
from .waiting_room import WaitingRoom

if TYPE_CHECKING:
    from sgl_router.config import QueueConfig
    from sgl_router.kv_events import Expectation, KvIndex, Sent
    from sgl_router.observability import Metrics
    from sgl_router.policies import ActiveLoad, LoadGuard, Policy, RouteDecision
    from sgl_router.workers import Permit, Worker, WorkerRegistry

    from .ask import Ask

__all__ = ["LocalLease", "LocalRouting"]


class LocalRouting:
    """The registry's candidates, the index's match, the model's policy, in one turn of the loop where it can be.

    `queues`: the models whose requests wait here while every worker has enough to do; their policy is `kv_cost`.
    """

    def __init__(
        self,
        registry: WorkerRegistry,
        index: KvIndex,
        load: ActiveLoad,
        policies: Mapping[str, Policy],
        metrics: Metrics,
        *,
        expecting: bool = True,
        queues: Mapping[str, QueueConfig] | None = None,
        decisions: DecisionLog | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._registry = registry
        self._index = index
        self._load = load
        self._policies = policies
        self._metrics = metrics
        self._expecting = expecting
        self._clock = clock
        self._rng = random.Random() if rng is None else rng
        self._conduct: dict[str, Conduct] = {}
        self.decisions = decisions or DecisionLog(keep=0, sample=0.0)
        self.rooms = {
            model_id: self._room(model_id, settings) for model_id, settings in (queues or {}).items()
        }

    async def choose(self, ask: Ask, tried: set[Worker]) -> LocalLease | None:
        """Raises QueueFull and QueueTimeout where requests wait."""
        policy = self._policies[ask.model_id]
        facts = ask.facts
        if facts is None:
            facts = ask.facts = await self._look_up(ask, policy)
        now = self._clock()
        candidates = self._registry.candidates(ask.model_id, now, without=tried)
        room = self.rooms.get(ask.model_id) if self.rooms else None
        if room is not None and candidates and not tried and not room.free(candidates, now):
            if ask.held is not None:
                ask.held()
            lease = await room.wait(ask, facts)
            if lease is not None:
                lease.waited_secs = self._clock() - now
                return lease
            now = self._clock()
            candidates = self._registry.candidates(ask.model_id, now)
        while candidates:
            decision = policy.select(candidates, facts)
            permit = decision.target.worker.breaker.acquire(now)
            if permit is not None:
                return self._lease(ask, policy, decision, permit, now)
            # Half-open, and its one probe was taken between the filter and here.
            tried = tried | {decision.target.worker}
            candidates = self._registry.candidates(ask.model_id, now, without=tried)
        return None

    async def explain(self, ask: Ask) -> dict[str, Any]:
        """With every candidate's costs."""
        policy = self._policies[ask.model_id]
        facts = await self._look_up(ask, policy, dry=True)
        now = self._clock()
        candidates = self._registry.candidates(ask.model_id, now)
        room = self.rooms.get(ask.model_id)
        return explanation_view(
            policy.select(candidates, facts) if candidates else None,
            candidates,
            facts.match,
            self._registry.for_model(ask.model_id),
            would_wait=room is not None and bool(candidates) and not room.free(candidates, now),
            waiting=len(room) if room is not None else 0,
        )

    def changed(self, model_id: str) -> None:
        """A target may have room now."""
        if self.rooms:
            room = self.rooms.get(model_id)
            if room is not None:
                room.changed()

    def conduct(self, model_id: str) -> Conduct:
        """What the model's workers have shown of themselves."""
        found = self._conduct.get(model_id)
        if found is None:
            found = Conduct(lambda: self._registry.for_model(model_id), self._rng)
            self._conduct[model_id] = found
        return found

    async def _look_up(self, ask: Ask, policy: Policy, dry: bool = False) -> Facts:
        if not policy.needs_prompt:
            return Facts(unmatched=Unmatched.NOT_ASKED, explain=dry, dry=dry)
        prompt, explain = ask.prompt, dry or self.decisions.sampled()
        if prompt is None:
            return Facts(unmatched=ask.unmatched, session=ask.session, explain=explain, dry=dry)
        if ask.namespace is None:
            return Facts(
                prompt_tokens=len(prompt), unmatched=ask.unmatched, session=ask.session, explain=explain, dry=dry
            )
        match = await self._index.match(ask.model_id, prompt, ask.namespace)
        return Facts(match=match, prompt_tokens=len(prompt), session=ask.session, explain=explain, dry=dry)

    def _room(self, model_id: str, settings: QueueConfig) -> WaitingRoom:
        policy = self._policies[model_id]
        if not isinstance(policy, KvCost):
            raise TypeError(f"model {model_id!r}: a queue goes by costs, which {type(policy).__name__} does not have")
        return WaitingRoom(
            model_id,
            policy,
            settings,
            self._metrics,
            candidates=lambda: self._registry.candidates(model_id, self._clock()),
            look_up=self._look_up_again,
            admit=self._admit,
            clock=self._clock,
        )

    def _look_up_again(self, ask: Ask) -> Facts:
        """What the index says of a prompt that has been looked up before; the old word where that cannot be had in
        this turn."""
        facts = ask.facts
        assert facts is not None
        if facts.match is None or ask.prompt is None or ask.namespace is None:
            return facts
        matching = self._index.match(ask.model_id, ask.prompt, ask.namespace)
        try:
            matching.send(None)
        except StopIteration as found:
            facts = ask.facts = structs.replace(facts, match=found.value)
        else:
            matching.close()
        return facts

    def _admit(self, ask: Ask, decision: RouteDecision) -> LocalLease | None:
        now = self._clock()
        permit = decision.target.worker.breaker.acquire(now)
        if permit is None:
            return None
        return self._lease(ask, self._policies[ask.model_id], decision, permit, now)

    def _lease(self, ask: Ask, policy: Policy, decision: RouteDecision, permit: Permit, now: float) -> LocalLease:
        if policy.needs_prompt:
            metrics = self._metrics
            metrics.decisions.labels(ask.model_id, decision.reason._value_).inc()
            metrics.overlap.labels(ask.model_id).observe(decision.matched_blocks)
            if decision.prompt_tokens:
                metrics.prompt_tokens.labels(ask.model_id).inc(decision.prompt_tokens)
                metrics.matched_tokens.labels(ask.model_id).inc(decision.matched_blocks * decision.page_size)
        guard = self._load.acquire(
            decision.target,
            prefill_tokens=decision.uncached_tokens,
            decode_blocks=-(-(decision.prompt_tokens or 0) // max(decision.page_size, 1)),
            now=now,
            streamed=ask.streamed,
        )
        expectation = None
        if self._expecting and ask.prompt is not None and ask.namespace is not None:
            expectation = self._index.expect(decision.target, ask.prompt, ask.namespace)
        lease = LocalLease(self, decision, permit, guard, expectation, ask.model_id, ask.request_id, ask.fingerprint)
        if policy.needs_prompt and ask.prompt is not None and ask.namespace is not None:
            lease.witnessed = self._index.sent(decision, ask.prompt, ask.namespace)
        self.decisions.add(lease)
        return lease


class LocalLease:
    """See `Lease`. It says what came of it, as far as it has come: `first_byte_secs` is from the decision on."""

    __slots__ = (
        "_conduct",
        "_eras",
        "_expectation",
        "_fingerprint",
        "_good",
        "_guard",
        "_permit",
        "_routing",
        "cached_tokens",
        "decision",
        "first_byte_secs",
        "model_id",
        "outcome",
        "request_id",
        "waited_secs",
        "witnessed",
    )

    def __init__(
        self,
        routing: LocalRouting,
        decision: RouteDecision,
        permit: Permit,
        guard: LoadGuard,
        expectation: Expectation | None,
        model_id: str,
        request_id: str,
        fingerprint: int | None = None,
    ) -> None:
        self._routing: LocalRouting | None = routing
        self._conduct = routing._conduct.get(model_id) or routing.conduct(model_id)
        self._eras = self._conduct.sent(decision.target, guard.started)
        self._good = False
        self._fingerprint = fingerprint
        self.decision = decision
        self._permit = permit
        self._guard = guard
        self._expectation = expectation
        self.model_id = model_id
        self.request_id = request_id
        self.witnessed: Sent | None = None
        self.waited_secs = 0.0
        self.first_byte_secs: float | None = None
        self.cached_tokens: int | None = None
        self.outcome: Outcome | None = None

    @property
    def decided_at(self) -> float:
        """Monotonic seconds."""
        return self._guard.started

    @property
    def on_expire(self) -> Callable[[], None] | None:
        return self._guard.on_expire

    @on_expire.setter
    def on_expire(self, callback: Callable[[], None] | None) -> None:
        self._guard.on_expire = callback

    def first_byte(self, status: int) -> None:
        routing = self._routing
        if routing is None:
            return
        now = routing._clock()
        self.first_byte_secs = now - self._guard.started
        self._guard.first_byte(computed=status < 400)
        if self._expectation is not None:
            self._expectation.first_byte()
        # A probe's good first byte closes the circuit: waiting for the end of a long stream would leave a healed
        # worker on one request. In the closed state success is told at the end, so that a worker that breaks every
        # stream half way still opens it.
        if status < 400:
            self._begins_well(now)
            if self.decision.target.worker.breaker.state is BreakerState.HALF_OPEN:
                self._permit.success(now)
        if routing.rooms:
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
        self._guard.release(output_tokens)
        now, decision = routing._clock(), self.decision
        if outcome is Outcome.COMPLETED:
            self._begins_well(now)
            self._conduct.completed(self._permit, self._fingerprint, now)
        else:
            unrenderable = unrenderable or decision.unmatched in UNRENDERABLE
            end = End(outcome, status, retry_after_secs, unrenderable, self._fingerprint)
            self._conduct.ended(decision.target, self._eras, self._permit, end, now)
        # What the log of decisions keeps must not keep the prompt's keys.
        expectation, self._expectation = self._expectation, None
        if expectation is not None and outcome is not Outcome.COMPLETED:
            expectation.end()
        decision.target.worker.stats.count(outcome._value_)
        witnessed, self.witnessed = self.witnessed, None
        if witnessed is not None and outcome is Outcome.COMPLETED:
            witnessed.completed(cached_tokens)
        if routing.rooms:
            routing.changed(self.model_id)

    def _begins_well(self, now: float) -> None:
        if not self._good:
            self._good = True
            self._conduct.good_byte(self.decision.target, self._eras, now)
