"""Every way of choosing that can be simulated, by name."""

from __future__ import annotations

from collections.abc import Callable

from sgl_router.config import ModelConfig, PolicyName
from sgl_router.policies import Policy, make_policy

from .backlog import DrainingBacklog
from .baselines import dynamo_like, min_uncached_half_queue
from .brain import Brain, Dispatcher, Door, Surroundings
from .late import LateShortestWork

__all__ = ["BASELINES", "make_brain", "policy_names"]

_AGEING = 0.5


def _dynamo(around: Surroundings) -> Brain:
    backlog = DrainingBacklog(around.clock, around.prefill_tokens_per_sec)
    return Brain(dynamo_like(around.rng, backlog.tokens), observer=backlog)


def _half_queue(around: Surroundings) -> Brain:
    backlog = DrainingBacklog(around.clock, around.prefill_tokens_per_sec)
    return Brain(min_uncached_half_queue(around.rng, backlog.tokens), observer=backlog)


def _late(around: Surroundings) -> Brain:
    backlog = DrainingBacklog(around.clock, around.prefill_tokens_per_sec)
    policy = min_uncached_half_queue(around.rng, backlog.tokens)

    def dispatcher(door: Door, _: Policy) -> Dispatcher:
        return LateShortestWork(door, policy, ageing=_AGEING * around.prefill_tokens_per_sec)

    return Brain(policy, dispatcher, backlog)


BASELINES: dict[str, Callable[[Surroundings], Brain]] = {
    "dynamo_like": _dynamo,
    "min_uncached_half_queue": _half_queue,
    "late_shortest_work": _late,
}
"""What only the simulator has."""


def policy_names() -> list[str]:
    """The product's policies, then the baselines."""
    return [name.value for name in PolicyName] + list(BASELINES)


def make_brain(name: str, around: Surroundings) -> Brain:
    """The product's policy of that name with the product's defaults, or a baseline. KeyError where there is none."""
    if name in BASELINES:
        return BASELINES[name](around)
    try:
        policy = PolicyName(name)
    except ValueError:
        raise KeyError(name) from None
    return Brain(make_policy(ModelConfig(id="sim", tokenizer_path="sim", policy=policy), around.rng))
