"""The reference costs, by hand."""

from __future__ import annotations

import random

from sgl_router.kv_events import MatchedPrefix, PromptMatch
from sgl_router.lab.simulate.baselines import dynamo_like, min_uncached_half_queue
from sgl_router.placement import DecisionReason, Unmatched
from sgl_router.policies import PolicyInput
from sgl_router.workers import Target, Worker, WorkerInfo


def targets(count: int = 3) -> list[Target]:
    info = WorkerInfo(served_model_name="m", block_size=100)
    return [Worker(f"http://w{number}:1", info).targets[0] for number in range(count)]


def matched(prompt: int, held: dict[Target, tuple[int, int]]) -> PolicyInput:
    found = {
        target: MatchedPrefix(blocks, blocks, blocks, max(blocks, expected), 100)
        for target, (blocks, expected) in held.items()
    }
    return PolicyInput(match=PromptMatch.stated(found, dict.fromkeys(found, prompt // 100)), prompt_tokens=prompt)


def test_dynamo_like_adds_prefill_and_decode_blocks() -> None:
    one, two, three = fleet = targets()
    backlog = {one: 1_000.0, two: 0.0, three: 0.0}
    policy = dynamo_like(random.Random(0), backlog.__getitem__)
    asked = matched(2_000, {one: (15, 0), two: (0, 15)})
    # Queue 10 + new 5 + decode 5 blocks; nothing expected counts: 20 + 20 elsewhere.
    assert [policy.cost(target, asked) for target in fleet] == [20.0, 40.0, 40.0]
    assert policy.select(fleet, asked).target is one
    one.decode_blocks = 21
    three.decode_blocks = 2
    assert policy.select(fleet, asked).target is two


def test_half_the_queue_weighs_against_what_is_held_or_coming() -> None:
    one, two, three = fleet = targets()
    backlog = {one: 1_000.0, two: 0.0, three: 0.0}
    policy = min_uncached_half_queue(random.Random(0), backlog.__getitem__)
    asked = matched(2_000, {one: (15, 0), two: (0, 12)})
    assert [policy.cost(target, asked) for target in fleet] == [1_000.0, 800.0, 2_000.0]
    decision = policy.select(fleet, asked)
    assert (decision.target, decision.reason) == (two, DecisionReason.EXPECTED_HIT)
    assert (decision.matched_tokens, decision.expected_blocks, decision.page_size) == (0, 12, 100)
    backlog[one] = 500.0
    decision = policy.select(fleet, asked)
    assert (decision.target, decision.reason, decision.matched_tokens) == (one, DecisionReason.CACHE_HIT, 1_500)


def test_equal_costs_go_to_the_least_loaded() -> None:
    fleet = targets()
    fleet[0].inflight = fleet[2].inflight = 1
    policy = min_uncached_half_queue(random.Random(0), lambda target: 0.0)
    assert policy.select(fleet, matched(2_000, {})).target is fleet[1]
    decision = policy.select(fleet, PolicyInput(prompt_tokens=10, unmatched=Unmatched.MEDIA))
    assert (decision.target, decision.reason) == (fleet[1], DecisionReason.UNMATCHABLE)
