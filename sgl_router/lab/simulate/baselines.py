"""Reference policies that the product does not have: what others do, and what a first sketch does."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from sgl_router.placement import DecisionReason, Leg
from sgl_router.policies import LoadPolicy, PolicyInput, least_loaded
from sgl_router.workers import Target

__all__ = ["CostPolicy", "dynamo_like", "min_uncached_half_queue"]

Cost = Callable[[Target, int, int], float]
"""(target, prompt tokens, leading tokens it holds) -> what sending it there costs; the least wins."""


class CostPolicy(LoadPolicy):
    """The cheapest candidate; among equals the least loaded. `expecting`: what is on its way to a worker counts as
    held there."""

    needs_prompt = True

    def __init__(self, rng: random.Random, cost: Cost, *, expecting: bool) -> None:
        self._rng = rng
        self._cost = cost
        self._expecting = expecting

    def cost(self, target: Target, facts: PolicyInput) -> float:
        return self._cost(target, facts.prompt_tokens or 0, self.held(target, facts))

    def held(self, target: Target, facts: PolicyInput) -> int:
        """Leading tokens of the prompt that the target has."""
        prefix = facts.match.by_target.get(target) if facts.match is not None else None
        if prefix is None:
            return 0
        return prefix.expected_tokens if self._expecting else prefix.tokens

    def select(self, candidates: Sequence[Target], facts: PolicyInput) -> Leg:
        costs = [self.cost(target, facts) for target in candidates]
        least = min(costs)
        best = [target for target, cost in zip(candidates, costs, strict=True) if cost == least]
        return self.decide(best[0] if len(best) == 1 else least_loaded(best, self._rng), candidates, facts)

    def decide(self, target: Target, candidates: Sequence[Target], facts: PolicyInput) -> Leg:
        match = facts.match
        prefix = match.by_target.get(target) if match is not None else None
        loads = [candidate.inflight for candidate in candidates]
        if match is None:
            reason = DecisionReason.UNMATCHABLE
        elif prefix is None:
            reason = DecisionReason.NO_MATCH
        else:
            reason = DecisionReason.CACHE_HIT if prefix.blocks else DecisionReason.EXPECTED_HIT
        return Leg(
            target,
            reason,
            candidates=len(candidates),
            min_load=min(loads),
            max_load=max(loads),
            matched_blocks=prefix.blocks if prefix else 0,
            total_blocks=match.blocks_of(target) if match is not None else 0,
            page_size=target.worker.info.block_size,
            prompt_tokens=facts.prompt_tokens,
            unmatched=facts.unmatched,
            expected_blocks=prefix.expected_blocks if prefix else 0,
        )


def dynamo_like(rng: random.Random, backlog: Callable[[Target], float]) -> CostPolicy:
    """Prefill blocks queued and new, plus decode blocks resident and new, one block as dear as another.

    Kinder than the original's defaults: the queue drains while a prompt is computed, not all at its first token, and
    blocks that the worker holds need no new room.
    """

    def cost(target: Target, prompt: int, held: int) -> float:
        page = max(target.worker.info.block_size, 1)
        new = (prompt - held) / page
        return backlog(target) / page + new + target.decode_blocks + new

    return CostPolicy(rng, cost, expecting=False)


def min_uncached_half_queue(rng: random.Random, backlog: Callable[[Target], float]) -> CostPolicy:
    """Uncached tokens, plus half of the prefill tokens ahead."""

    def cost(target: Target, prompt: int, held: int) -> float:
        return prompt - held + 0.5 * backlog(target)

    return CostPolicy(rng, cost, expecting=True)
