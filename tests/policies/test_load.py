from __future__ import annotations

from collections import Counter

import pytest

from sgl_router.load import ActiveLoad
from sgl_router.placement import DecisionReason, Unmatched
from sgl_router.policies import PolicyInput, PowerOfTwo, RandomChoice, RoundRobin

FACTS = PolicyInput(unmatched=Unmatched.NOT_ASKED)


@pytest.mark.parametrize("policy", [RoundRobin, RandomChoice, PowerOfTwo])
def test_one_candidate_is_always_chosen(policy, fleet, rng) -> None:
    (only,) = fleet(7)
    decision = policy(rng).select([only], FACTS)
    assert decision.target is only
    assert (decision.min_load, decision.max_load, decision.candidates) == (7, 7, 1)
    assert decision.unmatched is Unmatched.NOT_ASKED


def test_round_robin_visits_everyone_in_turn_while_the_fleet_changes(fleet, rng) -> None:
    targets = fleet(0, 0, 0)
    policy, load = RoundRobin(rng), ActiveLoad()

    def turn(candidates: list[object]) -> object:
        target = policy.select(candidates, FACTS).target  # type: ignore[arg-type]
        load.acquire(target, prefill_tokens=0, decode_blocks=0, now=0.0).release()
        return target

    first = [turn(targets) for _ in range(3)]
    assert len(set(first)) == 3
    assert [turn(targets) for _ in range(3)] == first
    without = [target for target in targets if target is not first[1]]
    assert [turn(without), turn(without)] == [first[0], first[2]]
    assert turn(targets) is first[1]


def test_random_is_uniform(fleet, rng) -> None:
    targets = fleet(0, 50, 100)
    policy = RandomChoice(rng)
    drawn = Counter(id(policy.select(targets, FACTS).target) for _ in range(900))
    assert min(drawn.values()) > 220


def test_power_of_two_takes_the_less_loaded_of_two_distinct(fleet, rng) -> None:
    targets = fleet(0, 1, 2)
    policy = PowerOfTwo(rng)
    decisions = [policy.select(targets, FACTS) for _ in range(600)]
    drawn = Counter(decision.target.inflight for decision in decisions)
    assert drawn[2] == 0  # the most loaded loses against any other
    assert drawn[0] > drawn[1] > 100
    assert {decision.reason for decision in decisions} == {DecisionReason.POWER_OF_TWO}
