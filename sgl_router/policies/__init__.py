"""Choosing: policies over facts, and the load they look at."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from .active_load import ActiveLoad, LoadGuard
from .base import DecisionReason, Facts, Policy, RouteDecision, Unmatched, least_loaded
from .cache_aware import CacheAwareZmq
from .janitor import Janitor
from .load import PowerOfTwo, RandomChoice, RoundRobin

if TYPE_CHECKING:
    from sgl_router.config import ModelConfig

__all__ = [
    "ActiveLoad",
    "CacheAwareZmq",
    "DecisionReason",
    "Facts",
    "Janitor",
    "LoadGuard",
    "Policy",
    "PowerOfTwo",
    "RandomChoice",
    "RoundRobin",
    "RouteDecision",
    "Unmatched",
    "least_loaded",
    "make_policy",
]


def make_policy(model: ModelConfig, rng: random.Random) -> Policy:
    """The policy a model is configured with."""
    from sgl_router.config import PolicyName

    if model.policy is PolicyName.ROUND_ROBIN:
        return RoundRobin(rng)
    if model.policy is PolicyName.RANDOM:
        return RandomChoice(rng)
    if model.policy is PolicyName.POWER_OF_TWO:
        return PowerOfTwo(rng)
    return CacheAwareZmq(
        rng,
        cache_threshold=model.cache_aware.cache_threshold,
        balance_abs_threshold=model.cache_aware.balance_abs_threshold,
        balance_rel_threshold=model.cache_aware.balance_rel_threshold,
    )
