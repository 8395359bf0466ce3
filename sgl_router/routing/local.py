"""Deciding in the process that holds the index."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import structs

from sgl_router.placement import Placement, Unmatched
from sgl_router.policies import Facts, KvCost

from .conduct import Conduct
from .decision_log import DecisionLog
from .local_lease import LegLease, LocalLease
from .views import explanation_view
from .waiting_room import WaitingRoom

if TYPE_CHECKING:
    from sgl_router.config import QueueConfig
    from sgl_router.kv_events import KvIndex
    from sgl_router.observability import Metrics
    from sgl_router.placement import Leg
    from sgl_router.policies import ActiveLoad, Policy
    from sgl_router.workers import Permit, Worker, WorkerRegistry

    from .ask import Ask

__all__ = ["LocalRouting"]


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
        self.clock = clock
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
        now = self.clock()
        candidates = self._registry.candidates(ask.model_id, now, without=tried)
        room = self.rooms.get(ask.model_id) if self.rooms else None
        if room is not None and candidates and not tried and not room.free(candidates, now):
            if ask.held is not None:
                ask.held()
            lease = await room.wait(ask, facts)
            if lease is not None:
                lease.waited_secs = self.clock() - now
                return lease
            now = self.clock()
            candidates = self._registry.candidates(ask.model_id, now)
        while candidates:
            leg = policy.select(candidates, facts)
            permit = leg.target.worker.breaker.acquire(now)
            if permit is not None:
                return self._lease(ask, policy, leg, permit, now)
            # Half-open, and its one probe was taken between the filter and here.
            tried = tried | {leg.target.worker}
            candidates = self._registry.candidates(ask.model_id, now, without=tried)
        return None

    async def explain(self, ask: Ask) -> dict[str, Any]:
        """With every candidate's costs."""
        policy = self._policies[ask.model_id]
        facts = await self._look_up(ask, policy, dry=True)
        now = self.clock()
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
            candidates=lambda: self._registry.candidates(model_id, self.clock()),
            look_up=self._look_up_again,
            admit=self._admit,
            clock=self.clock,
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

    def _admit(self, ask: Ask, leg: Leg) -> LocalLease | None:
        now = self.clock()
        permit = leg.target.worker.breaker.acquire(now)
        if permit is None:
            return None
        return self._lease(ask, self._policies[ask.model_id], leg, permit, now)

    def _lease(self, ask: Ask, policy: Policy, leg: Leg, permit: Permit, now: float) -> LocalLease:
        if policy.needs_prompt:
            metrics = self._metrics
            metrics.decisions.labels(ask.model_id, leg.reason._value_).inc()
            metrics.overlap.labels(ask.model_id).observe(leg.matched_blocks)
            if leg.prompt_tokens:
                metrics.prompt_tokens.labels(ask.model_id).inc(leg.prompt_tokens)
                metrics.matched_tokens.labels(ask.model_id).inc(leg.matched_tokens)
        guard = self._load.acquire(
            leg.target,
            prefill_tokens=leg.uncached_tokens,
            decode_blocks=leg.prompt_blocks,
            now=now,
            streamed=ask.streamed,
        )
        expectation = None
        if self._expecting and ask.prompt is not None and ask.namespace is not None:
            expectation = self._index.expect(leg.target, ask.prompt, ask.namespace)
        lease = LegLease(self.conduct(ask.model_id), leg, permit, guard, expectation, ask.fingerprint)
        if policy.needs_prompt and ask.prompt is not None and ask.namespace is not None:
            lease.witnessed = self._index.sent(leg, ask.prompt, ask.namespace)
        held = self.hold(lease, ask.model_id, ask.request_id)
        self.decisions.add(held)
        return held

    def hold(self, lease: LegLease, model_id: str, request_id: str) -> LocalLease:
        """A request of one leg."""
        return LocalLease(self, Placement((lease.leg,)), (lease,), model_id, request_id)
