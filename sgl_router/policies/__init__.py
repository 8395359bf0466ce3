"""Choosing: policies over facts, and the load they look at."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .active_load import ActiveLoad, LoadGuard
from .base import CostModel, Facts, LoadPolicy, Policy, least_loaded
from .cache_aware import CacheAwareZmq
from .cost import Costs
from .janitor import Janitor
from .kv_cost import KvCost
from .load import PowerOfTwo, RandomChoice, RoundRobin

if TYPE_CHECKING:
    from sgl_router.config import ModelConfig
    from sgl_router.workers import Target

__all__ = [
    "ActiveLoad",
    "CacheAwareZmq",
    "CostModel",
    "Costs",
    "Facts",
    "Janitor",
    "KvCost",
    "LoadGuard",
    "LoadPolicy",
    "Policy",
    "PowerOfTwo",
    "RandomChoice",
    "RoundRobin",
    "least_loaded",
    "make_policy",
]


def make_policy(
    model: ModelConfig,
    rng: random.Random,
    *,
    clock: Callable[[], float] = time.monotonic,
    held_tokens: Callable[[Target], int] = lambda target: 0,
) -> Policy:
    """The policy a model is configured with. `held_tokens`: what a target has cached."""
    from sgl_router.config import PolicyName

    if model.policy is PolicyName.ROUND_ROBIN:
        return RoundRobin(rng)
    if model.policy is PolicyName.RANDOM:
        return RandomChoice(rng)
    if model.policy is PolicyName.POWER_OF_TWO:
        return PowerOfTwo(rng)
    if model.policy is PolicyName.KV_COST:
        return KvCost(
            rng, model.kv_cost, clock=clock, held_tokens=held_tokens, bound_late=model.queue.enabled
        )
    return CacheAwareZmq(
        rng,
        cache_threshold=model.cache_aware.cache_threshold,
        balance_abs_threshold=model.cache_aware.balance_abs_threshold,
        balance_rel_threshold=model.cache_aware.balance_rel_threshold,
    )
