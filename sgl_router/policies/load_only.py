"""Policies that look at load alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sgl_router.placement import DecisionReason, Leg
from sgl_router.policies.base import LoadPolicy, PolicyInput, least_loaded

if TYPE_CHECKING:
    from sgl_router.workers import Target

__all__ = ["PowerOfTwo", "RandomChoice", "RoundRobin"]


def _decide(target: Target, reason: DecisionReason, candidates: Sequence[Target], facts: PolicyInput) -> Leg:
    loads = [candidate.inflight for candidate in candidates]
    return Leg(
        target,
        reason,
        candidates=len(candidates),
        min_load=min(loads),
        max_load=max(loads),
        prompt_tokens=facts.prompt_tokens,
        unmatched=facts.unmatched,
    )


class RoundRobin(LoadPolicy):
    """The candidate chosen longest ago, so that a fleet that changes neither skips nor repeats a worker."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def select(self, candidates: Sequence[Target], facts: PolicyInput) -> Leg:
        oldest = min(candidate.last_selected for candidate in candidates)
        target = self._rng.choice([candidate for candidate in candidates if candidate.last_selected == oldest])
        return _decide(target, DecisionReason.ROUND_ROBIN, candidates, facts)


class RandomChoice(LoadPolicy):
    """Uniform over the candidates."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def select(self, candidates: Sequence[Target], facts: PolicyInput) -> Leg:
        return _decide(self._rng.choice(candidates), DecisionReason.RANDOM, candidates, facts)


class PowerOfTwo(LoadPolicy):
    """The less loaded of two distinct candidates drawn at random."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def select(self, candidates: Sequence[Target], facts: PolicyInput) -> Leg:
        drawn = candidates if len(candidates) < 2 else self._rng.sample(candidates, 2)
        return _decide(least_loaded(drawn, self._rng), DecisionReason.POWER_OF_TWO, candidates, facts)
