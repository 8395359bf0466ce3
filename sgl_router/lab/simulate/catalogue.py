"""Every way of choosing that can be simulated, by name."""

from __future__ import annotations

import math
from collections.abc import Callable

from msgspec import structs

from sgl_router.config import ModelConfig, PolicyName
from sgl_router.lab.simulate.backlog import DrainingBacklog
from sgl_router.lab.simulate.baselines import dynamo_like, min_uncached_half_queue
from sgl_router.lab.simulate.brain import PolicyAdapter, PolicyContext, Release, RouterHandle
from sgl_router.lab.simulate.late import LateShortestWork
from sgl_router.lab.simulate.waiting import HoldBack
from sgl_router.policies import Policy, make_policy

__all__ = ["BASELINES", "DEFAULTS", "QUEUED", "make_brain", "policy_names", "without_bounds"]

_AGEING = 0.5
DEFAULTS = ModelConfig(id="sim", tokenizer_path="sim")
"""The settings of a model that has none of its own."""


def _dynamo(around: PolicyContext) -> PolicyAdapter:
    backlog = DrainingBacklog(around.clock, around.prefill_tokens_per_sec)
    return PolicyAdapter(dynamo_like(around.rng, backlog.tokens), observer=backlog)


def _half_queue(around: PolicyContext) -> PolicyAdapter:
    backlog = DrainingBacklog(around.clock, around.prefill_tokens_per_sec)
    return PolicyAdapter(min_uncached_half_queue(around.rng, backlog.tokens), observer=backlog)


def _late(around: PolicyContext) -> PolicyAdapter:
    backlog = DrainingBacklog(around.clock, around.prefill_tokens_per_sec)
    policy = min_uncached_half_queue(around.rng, backlog.tokens)

    def dispatcher(door: RouterHandle, _: Policy) -> Release:
        return LateShortestWork(door, policy, ageing=_AGEING * around.prefill_tokens_per_sec)

    return PolicyAdapter(policy, dispatcher, backlog)


BASELINES: dict[str, Callable[[PolicyContext], PolicyAdapter]] = {
    "dynamo_like": _dynamo,
    "min_uncached_half_queue": _half_queue,
    "late_shortest_work": _late,
}
"""What only the simulator has."""

QUEUED = "kv_cost+queue"
"""`kv_cost` with requests held back in the router."""


def policy_names() -> list[str]:
    """The product's policies, then the baselines."""
    return [name.value for name in PolicyName] + [QUEUED, *BASELINES]


def without_bounds(model: ModelConfig | None) -> ModelConfig:
    """The same settings, with a queue in which any number may wait for any time."""
    model = model or DEFAULTS
    return structs.replace(model, queue=structs.replace(model.queue, max_waiting=1 << 62, max_wait_secs=math.inf))


def make_brain(name: str, around: PolicyContext, model: ModelConfig | None = None) -> PolicyAdapter:
    """The product's policy of that name with the model's settings (default: the product's), or a baseline. KeyError
    where there is none."""
    if name in BASELINES:
        return BASELINES[name](around)
    queue = name == QUEUED
    try:
        policy = PolicyName.KV_COST if queue else PolicyName(name)
    except ValueError:
        raise KeyError(name) from None
    settings = structs.replace(model or DEFAULTS, policy=policy)
    held = around.held_tokens
    made = make_policy(settings, around.rng, clock=around.clock, held_tokens=lambda target: held.get(target, 0))
    if policy is not PolicyName.KV_COST:
        return PolicyAdapter(made)
    forecasts = {DEFAULTS.id: settings.kv_cost.prefill_tokens_per_sec}
    if queue:
        return PolicyAdapter(made, lambda door, policy: HoldBack(door, policy, settings.queue), forecasts=forecasts)
    return PolicyAdapter(made, forecasts=forecasts)
