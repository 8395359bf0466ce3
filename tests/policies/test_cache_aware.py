from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.kv_events import MatchedPrefix, PromptMatch
from sgl_router.placement import DecisionReason, Unmatched
from sgl_router.policies import CacheAwareZmq, PolicyInput


@pytest.fixture
def policy(rng) -> CacheAwareZmq:
    return CacheAwareZmq(rng, cache_threshold=0.5, balance_abs_threshold=4, balance_rel_threshold=1.5)


def test_the_deepest_match_wins(policy, fleet, facts_for) -> None:
    targets = fleet(3, 0, 2)
    decision = policy.select(targets, facts_for(targets, {0: 9, 2: 6}))
    assert decision.target is targets[0]
    assert decision.reason is DecisionReason.CACHE_HIT
    assert (decision.matched_blocks, decision.total_blocks, decision.page_size) == (9, 10, 16)
    assert decision.matched_tokens == 144
    assert decision.match_rate == pytest.approx(0.9)


def test_the_least_loaded_of_equally_deep_matches(policy, fleet, facts_for) -> None:
    targets = fleet(3, 1, 0)
    assert policy.select(targets, facts_for(targets, {0: 9, 1: 9, 2: 8})).target is targets[1]


@pytest.mark.parametrize(("blocks", "reason"), [(5, DecisionReason.BELOW_THRESHOLD), (6, DecisionReason.CACHE_HIT)])
def test_the_threshold_must_be_passed_not_met(policy, fleet, facts_for, blocks, reason) -> None:
    targets = fleet(1, 0)
    decision = policy.select(targets, facts_for(targets, {0: blocks}))
    assert decision.reason is reason
    assert decision.target is targets[0 if reason is DecisionReason.CACHE_HIT else 1]
    assert decision.matched_blocks == (blocks if reason is DecisionReason.CACHE_HIT else 0)


def test_nobody_holds_the_first_block(policy, fleet, facts_for) -> None:
    targets = fleet(2, 1)
    decision = policy.select(targets, facts_for(targets, {}))
    assert (decision.target, decision.reason) == (targets[1], DecisionReason.NO_MATCH)
    assert decision.total_blocks == 10


def test_what_cannot_be_rendered_goes_by_load_and_says_so(policy, fleet) -> None:
    targets = fleet(2, 1)
    decision = policy.select(targets, PolicyInput(unmatched=Unmatched.MEDIA))
    assert (decision.target, decision.reason) == (targets[1], DecisionReason.UNMATCHABLE)
    assert decision.unmatched is Unmatched.MEDIA


@pytest.mark.parametrize(
    ("loads", "imbalanced"),
    [((5, 0), True), ((4, 0), False), ((15, 10), False), ((16, 10), True), ((14, 9), True), ((12, 8), False)],
)
def test_imbalance_needs_both_thresholds(policy, fleet, facts_for, loads, imbalanced) -> None:
    targets = fleet(*loads)
    decision = policy.select(targets, facts_for(targets, {0: 10}))
    assert (decision.reason is DecisionReason.IMBALANCED) == imbalanced
    assert decision.target is targets[1 if imbalanced else 0]
    assert (decision.max_load, decision.min_load) == loads


@pytest.fixture
def wide(rng) -> CacheAwareZmq:
    """Near the least load is up to four requests above it."""
    return CacheAwareZmq(rng, cache_threshold=0.5, balance_abs_threshold=32, balance_rel_threshold=1.5)


@pytest.mark.parametrize(
    ("loads", "held", "chosen"),
    [
        ((40, 4, 1, 0), {0: 10, 1: 2, 2: 1}, 1),  # the deepest near the least load, however shallow
        ((40, 5, 1, 0), {0: 10, 1: 2, 2: 1}, 2),  # 5 is beyond
        ((40, 3, 1, 0), {0: 10, 1: 2, 2: 2}, 2),  # as deep: the less loaded
        ((40, 3, 1, 0), {0: 10}, 3),  # nobody near holds anything: least load
    ],
)
def test_imbalance_keeps_affinity_near_the_least_load(wide, fleet, facts_for, loads, held, chosen) -> None:
    targets = fleet(*loads)
    decision = wide.select(targets, facts_for(targets, held))
    assert decision.reason is DecisionReason.IMBALANCED
    assert decision.target is targets[chosen]
    assert decision.matched_blocks == held.get(chosen, 0)


@pytest.mark.parametrize(("load", "chosen"), [(1, 0), (2, 1)])
def test_a_small_threshold_still_has_a_window_of_one(policy, fleet, facts_for, load, chosen) -> None:
    targets = fleet(load, 0, 9)
    decision = policy.select(targets, facts_for(targets, {0: 1}))
    assert (decision.reason, decision.target) == (DecisionReason.IMBALANCED, targets[chosen])


def test_imbalance_counts_what_is_expected(wide, fleet) -> None:
    targets = fleet(40, 3, 0)
    prefix = MatchedPrefix(0, 0, 0, 5, 16)
    match = PromptMatch.stated({targets[1]: prefix}, dict.fromkeys(targets, 10))
    decision = wide.select(targets, PolicyInput(match=match, prompt_tokens=161))
    assert (decision.reason, decision.target) == (DecisionReason.IMBALANCED, targets[1])
    assert (decision.matched_blocks, decision.expected_blocks) == (0, 5)


def test_imbalance_without_a_prompt_goes_by_load(wide, fleet) -> None:
    targets = fleet(40, 3, 0)
    decision = wide.select(targets, PolicyInput(unmatched=Unmatched.MEDIA))
    assert (decision.reason, decision.target) == (DecisionReason.IMBALANCED, targets[2])


def test_what_is_held_and_what_is_expected_are_told_apart(policy, fleet) -> None:
    targets = fleet(0, 0)
    prefixes = {targets[0]: MatchedPrefix(5, 5, 5, 9, 16), targets[1]: MatchedPrefix(6, 2, 6, 6, 16)}
    facts = PolicyInput(match=PromptMatch.stated(prefixes, dict.fromkeys(targets, 10)), prompt_tokens=161)
    decision = policy.select(targets, facts)
    assert (decision.target, decision.reason) == (targets[0], DecisionReason.EXPECTED_HIT)
    assert (decision.matched_blocks, decision.expected_blocks) == (5, 9)
    decision = policy.select(targets[1:], facts)
    assert (decision.target, decision.reason) == (targets[1], DecisionReason.CACHE_HIT)


def test_page_sizes_compare_in_tokens(policy, fleet, facts_for) -> None:
    small, large = fleet(0, page=16)[0], fleet(0, page=64)[0]
    targets = [small, large]
    decision = policy.select(targets, facts_for(targets, {0: 7, 1: 2}, tokens=161))
    assert decision.target is large
    assert (decision.matched_blocks, decision.total_blocks, decision.page_size) == (2, 2, 64)


def test_a_match_on_a_worker_that_is_no_candidate_is_ignored(policy, fleet, facts_for) -> None:
    targets = fleet(0, 0)
    facts = facts_for(targets, {0: 10})
    decision = policy.select(targets[1:], facts)
    assert (decision.target, decision.reason) == (targets[1], DecisionReason.NO_MATCH)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 10)), min_size=1, max_size=8), st.integers(0, 400))
def test_it_always_decides_among_the_candidates(rows: list[tuple[int, int]], tokens: int) -> None:
    import random

    from sgl_router.workers import Worker, WorkerInfo

    targets = [Worker("http://w:1", WorkerInfo(served_model_name="m", block_size=16)).targets[0] for _ in rows]
    held = {}
    for target, (load, blocks) in zip(targets, rows, strict=True):
        target.inflight = load
        if blocks:
            held[target] = MatchedPrefix(blocks, blocks, blocks, blocks, 16)
    totals = dict.fromkeys(targets, 10)
    policy = CacheAwareZmq(random.Random(0), cache_threshold=0.3, balance_abs_threshold=8, balance_rel_threshold=1.2)
    decision = policy.select(targets, PolicyInput(match=PromptMatch.stated(held, totals), prompt_tokens=tokens))
    assert decision.target in targets
    if decision.reason is DecisionReason.CACHE_HIT:
        assert decision.matched_blocks == max(blocks for _, blocks in rows)
    else:
        low = min(load for load, _ in rows)
        near = [blocks for load, blocks in rows if load <= low + 1]
        if decision.reason is DecisionReason.IMBALANCED and any(near):
            assert decision.target.inflight <= low + 1
            assert decision.matched_blocks == max(near)
        else:
            assert decision.target.inflight == low
