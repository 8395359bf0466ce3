"""What a data process does for itself while the routing process is away."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sgl_router.placement import DecisionReason, Leg
from sgl_router.policies import LoadPolicy, PolicyInput, least_loaded

if TYPE_CHECKING:
    from sgl_router.workers import Target

__all__ = ["UNAVAILABLE", "LeastLoadedFallback"]

UNAVAILABLE = "the routing process is restarting; requests fall back to the least-loaded worker"


class LeastLoadedFallback(LoadPolicy):
    """A policy: least load, as far as this process knows it."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def select(self, candidates: Sequence[Target], facts: PolicyInput) -> Leg:
        target = least_loaded(candidates, self._rng)
        loads = [candidate.inflight for candidate in candidates]
        return Leg(
            target,
            DecisionReason.ROUTING_UNAVAILABLE,
            candidates=len(candidates),
            min_load=min(loads),
            max_load=max(loads),
            page_size=target.worker.info.block_size,
            prompt_tokens=facts.prompt_tokens,
            unmatched=facts.unmatched,
        )
