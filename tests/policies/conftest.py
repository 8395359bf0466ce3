"""A fleet of targets without sockets."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from sgl_router.kv_events import MatchedPrefix, PromptMatch
from sgl_router.policies import PolicyInput
from sgl_router.workers import Target, Worker, WorkerInfo

Fleet = Callable[..., list[Target]]


@pytest.fixture
def rng() -> random.Random:
    return random.Random(1)


@pytest.fixture
def fleet() -> Fleet:
    def make(*loads: int, page: int = 16) -> list[Target]:
        targets = []
        for number, load in enumerate(loads):
            worker = Worker(f"http://w{number}:1", WorkerInfo(served_model_name="m", block_size=page))
            (target,) = worker.targets
            target.inflight = load
            targets.append(target)
        return targets

    return make


@pytest.fixture
def facts_for() -> Callable[..., PolicyInput]:
    """PolicyInput of a prompt of `tokens` tokens of which `held` maps targets to leading blocks."""

    def make(targets: list[Target], held: dict[int, int], tokens: int = 161) -> PolicyInput:
        by_target, totals = {}, {}
        for number, target in enumerate(targets):
            page = target.worker.info.block_size
            totals[target] = (tokens - 1) // page
            if held.get(number):
                blocks = held[number]
                by_target[target] = MatchedPrefix(blocks, blocks, blocks, blocks, page)
        return PolicyInput(match=PromptMatch.stated(by_target, totals), prompt_tokens=tokens)

    return make
