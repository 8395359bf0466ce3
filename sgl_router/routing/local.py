"""Deciding in the process that holds the index."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import structs

from sgl_router.placement import Placement, Unmatched
from sgl_router.policies import PolicyInput
from sgl_router.routing.conduct import Conduct
from sgl_router.routing.decision_log import DecisionLog
from sgl_router.routing.dispatcher import Dispatcher
from sgl_router.routing.local_lease import LegLease, LocalLease
from sgl_router.routing.views import explanation_view

if TYPE_CHECKING:
    from sgl_router.config import QueueConfig
    from sgl_router.kv_events import PromptMatch
    from sgl_router.load import ActiveLoad
    from sgl_router.observability import Metrics
    from sgl_router.placement import Leg
    from sgl_router.policies import Policy
    from sgl_router.routing.index_port import PrefixIndex
    from sgl_router.routing.request import RouteRequest
    from sgl_router.workers import Permit, Target, Worker, WorkerRegistry

__all__ = ["Later", "LocalRouting"]


class Later(NamedTuple):
    """A decision that takes turns of the loop: the prompt is long, or the request has to wait. `facts`: what has been
    looked up of it already."""

    facts: PolicyInput | None


class LocalRouting:
    """The registry's candidates, the index's match, the model's policy, in one turn of the loop where it can be.

    `queues`: the models whose requests wait here while every worker has enough to do; their policy is `kv_cost`.
    """

    def __init__(
        self,
        registry: WorkerRegistry,
        index: PrefixIndex,
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
        self.rooms = {model_id: self._room(model_id, settings) for model_id, settings in (queues or {}).items()}

    async def choose(
        self,
        request: RouteRequest,
        tried: set[Worker],
        *,
        facts: PolicyInput | None = None,
        on_queued: Callable[[], None] | None = None,
    ) -> LocalLease | None:
        """`facts`: what is known of the request, where it is not to be looked up; `on_queued` is called where it has to
        wait. Raises QueueFull and QueueTimeout where requests wait."""
        found = self.choose_now(request, tried, facts)
        return await self.choose_later(request, tried, found, on_queued) if isinstance(found, Later) else found

    def choose_now(
        self, request: RouteRequest, tried: set[Worker], facts: PolicyInput | None = None
    ) -> LocalLease | Later | None:
        """As `choose` where that takes no turn of the loop; else what `choose_later` goes on from."""
        policy = self._policies[request.model_id]
        if facts is None:
            facts = self._look_up_now(request, policy)
            if facts is None:
                return Later(None)
        now = self.clock()
        candidates = self._registry.candidates(request.model_id, now, without=tried)
        room = self.rooms.get(request.model_id) if self.rooms else None
        if room is not None and candidates and not tried and not room.free(candidates, now):
            return Later(facts)
        return self._place(request, policy, facts, candidates, tried, now)

    async def choose_later(
        self,
        request: RouteRequest,
        tried: set[Worker],
        later: Later,
        on_queued: Callable[[], None] | None = None,
    ) -> LocalLease | None:
        policy, facts = self._policies[request.model_id], later.facts
        if facts is None:
            facts = await self._look_up(request, policy)
        now = self.clock()
        candidates = self._registry.candidates(request.model_id, now, without=tried)
        room = self.rooms.get(request.model_id) if self.rooms else None
        if room is not None and candidates and not tried and not room.free(candidates, now):
            if on_queued is not None:
                on_queued()
            lease = await room.wait(request, facts)
            if lease is not None:
                lease.waited_secs = self.clock() - now
                return lease
            now = self.clock()
            candidates = self._registry.candidates(request.model_id, now)
        return self._place(request, policy, facts, candidates, tried, now)

    async def explain(self, request: RouteRequest) -> dict[str, Any]:
        """With every candidate's costs."""
        policy = self._policies[request.model_id]
        facts = await self._look_up(request, policy, dry=True)
        now = self.clock()
        candidates = self._registry.candidates(request.model_id, now)
        room = self.rooms.get(request.model_id)
        return explanation_view(
            policy.select(candidates, facts) if candidates else None,
            candidates,
            facts.match,
            self._registry.for_model(request.model_id),
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

    def _look_up_now(self, request: RouteRequest, policy: Policy) -> PolicyInput | None:
        """None: it takes some turns of the loop."""
        if not policy.needs_prompt:
            return PolicyInput(unmatched=Unmatched.NOT_ASKED)
        if request.prompt is None or request.namespace is None:
            return self._facts(request, None, self.decisions.sampled())
        match = self._index.match_now(request.model_id, request.prompt, request.namespace)
        return None if match is None else self._facts(request, match, self.decisions.sampled())

    async def _look_up(self, request: RouteRequest, policy: Policy, dry: bool = False) -> PolicyInput:
        if not policy.needs_prompt:
            return PolicyInput(unmatched=Unmatched.NOT_ASKED, explain=dry, dry=dry)
        match = None
        if request.prompt is not None and request.namespace is not None:
            match = await self._index.match(request.model_id, request.prompt, request.namespace)
        return self._facts(request, match, dry or self.decisions.sampled(), dry)

    def _facts(self, request: RouteRequest, match: PromptMatch | None, explain: bool, dry: bool = False) -> PolicyInput:
        return PolicyInput(
            match=match,
            prompt_tokens=None if request.prompt is None else len(request.prompt),
            unmatched=request.unmatched if match is None else None,
            session=request.session,
            explain=explain,
            dry=dry,
        )

    def _look_up_again(self, request: RouteRequest, facts: PolicyInput) -> PolicyInput:
        """What the index says now of a prompt that was looked up before; the old word where that cannot be had in this
        turn."""
        if facts.match is None or request.prompt is None or request.namespace is None:
            return facts
        match = self._index.match_now(request.model_id, request.prompt, request.namespace)
        return facts if match is None else structs.replace(facts, match=match)

    def _room(self, model_id: str, settings: QueueConfig) -> Dispatcher:
        costs = self._policies[model_id].costs
        if costs is None:
            raise TypeError(f"model {model_id!r}: a queue goes by costs, which its policy does not have")
        return Dispatcher(
            model_id,
            costs,
            settings,
            self._metrics,
            candidates=lambda: self._registry.candidates(model_id, self.clock()),
            look_up=self._look_up_again,
            admit=self._admit,
            clock=self.clock,
        )

    def _place(
        self,
        request: RouteRequest,
        policy: Policy,
        facts: PolicyInput,
        candidates: Sequence[Target],
        tried: set[Worker],
        now: float,
    ) -> LocalLease | None:
        while candidates:
            leg = policy.select(candidates, facts)
            permit = leg.target.worker.breaker.acquire(now)
            if permit is not None:
                return self._lease(request, policy, facts, leg, permit, now)
            # Half-open, and its one probe was taken between the filter and here.
            tried = tried | {leg.target.worker}
            candidates = self._registry.candidates(request.model_id, now, without=tried)
        return None

    def _admit(self, request: RouteRequest, leg: Leg, facts: PolicyInput) -> LocalLease | None:
        now = self.clock()
        permit = leg.target.worker.breaker.acquire(now)
        if permit is None:
            return None
        return self._lease(request, self._policies[request.model_id], facts, leg, permit, now)

    def _lease(
        self, request: RouteRequest, policy: Policy, facts: PolicyInput, leg: Leg, permit: Permit, now: float
    ) -> LocalLease:
        model_id, match = request.model_id, facts.match
        if policy.needs_prompt:
            metrics = self._metrics
            metrics.decisions.labels(model_id, leg.reason._value_).inc()
            metrics.overlap.labels(model_id).observe(leg.matched_blocks)
            if leg.prompt_tokens:
                metrics.prompt_tokens.labels(model_id).inc(leg.prompt_tokens)
                metrics.matched_tokens.labels(model_id).inc(leg.matched_tokens)
        guard = self._load.acquire(
            leg.target,
            prefill_tokens=leg.uncached_tokens,
            decode_blocks=leg.prompt_blocks,
            now=now,
            streamed=request.streamed,
        )
        expectation = self._index.expect(leg.target, match) if self._expecting and match is not None else None
        lease = LegLease(self.conduct(model_id), leg, permit, guard, expectation, request.fingerprint)
        if match is not None:
            lease.witnessed = self._index.sent(leg, match)
        held = self.hold(lease, model_id, request.request_id)
        self.decisions.add(held)
        return held

    def hold(self, lease: LegLease, model_id: str, request_id: str) -> LocalLease:
        """A request of one leg."""
        return LocalLease(self, Placement((lease.leg,)), (lease,), model_id, request_id)
