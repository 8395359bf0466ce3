"""Choosing: what is known of a request and its candidates in, a leg out. Pure."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sgl_router.policies.base import CostModel, LoadPolicy, Policy, PolicyInput, least_loaded
from sgl_router.policies.cache_aware import CacheAwareZmq
from sgl_router.policies.cost import Costs
from sgl_router.policies.kv_cost import KvCost
from sgl_router.policies.load_only import PowerOfTwo, RandomChoice, RoundRobin

if TYPE_CHECKING:
    from sgl_router.config import ModelConfig
    from sgl_router.workers import Target

__all__ = [
    "CacheAwareZmq",
    "CostModel",
    "Costs",
    "KvCost",
    "LoadPolicy",
    "Policy",
    "PolicyInput",
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
        return KvCost(rng, model.kv_cost, clock=clock, held_tokens=held_tokens, bound_late=model.queue.enabled)
    return CacheAwareZmq(
        rng,
        cache_threshold=model.cache_aware.cache_threshold,
        balance_abs_threshold=model.cache_aware.balance_abs_threshold,
        balance_rel_threshold=model.cache_aware.balance_rel_threshold,
    )
