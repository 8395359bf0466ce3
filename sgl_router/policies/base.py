"""What a policy is given and what it answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from sgl_router.kv_events import PromptMatch
    from sgl_router.placement import Leg, Unmatched
    from sgl_router.policies.cost import Costs
    from sgl_router.policies.load_snapshot import LoadSnapshot
    from sgl_router.workers import Target

__all__ = ["CostModel", "LoadPolicy", "Policy", "PolicyInput", "least_loaded"]


class PolicyInput(msgspec.Struct, frozen=True):
    """What is known of a request. `match` is None where the prompt was not looked up, `unmatched` then says why."""

    match: PromptMatch | None = None
    prompt_tokens: int | None = None
    unmatched: Unmatched | None = None
    session: str | None = None
    """What the client calls the conversation this request belongs to."""
    explain: bool = False
    """Whether the decision should carry every candidate's cost, where the policy has costs."""
    dry: bool = False
    """Nothing will be sent: whoever decides must not remember this request."""


class Policy(Protocol):
    """Chooses one of `candidates` (never empty). Never raises, never blocks; keeps only its own small state. What it
    needs of others it says here: nobody asks for its name."""

    needs_prompt: bool
    """Whether `facts.match` is looked at: if not, the prompt is not even tokenized."""
    needs_session: bool
    """Whether `facts.session` is."""
    prefill_tokens_per_sec: float | None
    """For a policy that goes by estimates of each target's backlog: the speed that targets are taken to have until they
    have shown another. None: no estimates are kept."""
    costs: CostModel | None
    """What it goes by, where that is costs: only then can requests wait in the router for the cheapest pair."""

    def select(self, candidates: Sequence[Target], facts: PolicyInput) -> Leg: ...


class CostModel(Protocol):
    """A policy's costs, apart from its choice: for whoever weighs several requests against each other."""

    waiting: int
    """Requests that wait in the router for a target: whoever holds them says so."""

    def standing(self, candidates: Sequence[Target], now: float) -> LoadSnapshot: ...

    def costs_of(self, standing: LoadSnapshot, facts: PolicyInput) -> Costs: ...

    def cheapest(self, costs: Costs, among: Sequence[int] | None = None) -> int: ...

    def decide(self, position: int, costs: Costs, facts: PolicyInput) -> Leg: ...


class LoadPolicy:
    """Base of the policies that look at nothing but load, or at prefixes without costs."""

    needs_prompt = False
    needs_session = False
    prefill_tokens_per_sec: float | None = None
    costs: CostModel | None = None


def least_loaded(candidates: Sequence[Target], rng: random.Random) -> Target:
    """Fewest requests in flight; then fewest processed; then longest not chosen; then by lot.

    Never the first of the list: with equal counts that rule would send every first burst to one worker.
    """
    best = candidates[0]
    inflight, processed, last = best.inflight, best.processed, best.last_selected
    for target in candidates:
        load = target.inflight
        if load > inflight:
            continue
        if load == inflight:
            done = target.processed
            if done > processed or (done == processed and target.last_selected >= last):
                continue
        best, inflight, processed, last = target, load, target.processed, target.last_selected
    if last:
        return best  # selections are numbered: nobody else has this one's
    fresh = [target for target in candidates if not target.last_selected]
    return rng.choice([target for target in fresh if target.inflight == inflight and target.processed == processed])
