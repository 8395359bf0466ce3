"""What is proven of targets' speeds, and what is chance."""

from __future__ import annotations

import random
from math import log

import pytest

from sgl_router.load.prefill_speed import PrefillSpeed
from sgl_router.load.speed_comparison import compare

OVERHEAD = 0.015


def shown(
    *prompts: tuple[int, int], slowness: float = 1.0, at: float = 0.0, noise: float = 0.0, seed: int = 1
) -> PrefillSpeed:
    """Of a target that computed so many prompts of a size, each with the same overhead."""
    speed, rng = PrefillSpeed(), random.Random(seed)
    for count, size in prompts:
        together = -(-256 // size)
        for _ in range(count):
            secs = together * (OVERHEAD + size / 20_000) * slowness * rng.lognormvariate(0.0, noise)
            speed.learn(together * size, secs, at, prompts=together)
    return speed


def believed(*speeds: PrefillSpeed, now: float = 0.0) -> list[float]:
    compare(speeds, now)
    return [speed.believed for speed in speeds]


def test_a_target_alone_is_believed() -> None:
    assert believed(shown((20, 1_000))) == [pytest.approx(1_000 / 0.065)]


def test_until_somebody_has_shown_something_all_are_as_was_said() -> None:
    assert believed(PrefillSpeed(5_000.0), PrefillSpeed(5_000.0)) == [5_000.0] * 2
    # One observation moves its own estimate, and not yet what is reckoned with of one of them alone.
    one, other = believed(shown((2, 1_000)), PrefillSpeed())
    assert one == other


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
def test_equal_targets_that_measure_a_little_different_are_exactly_equal(count: int, noise: float) -> None:
    rng, proven = random.Random(1), 0
    for _ in range(100):
        speeds = [shown((rng.randint(3, 40), 1_000), noise=noise, seed=rng.getrandbits(32)) for _ in range(count)]
        proven += len(set(believed(*speeds))) > 1
    assert proven <= 3


@pytest.mark.parametrize("slowness", [1.6, 2.0, 10.0])
@pytest.mark.parametrize("peers", [1, 2, 7])
def test_a_slower_one_is_found_out(slowness: float, peers: int) -> None:
    fast = [shown((20, 1_000), noise=0.05) for _ in range(peers)]
    *others, slow = believed(*fast, shown((20, 1_000), slowness=slowness, noise=0.05))
    assert others == [others[0]] * peers
    assert others[0] / slow == pytest.approx(slowness, rel=0.15)


def test_two_observations_prove_nothing() -> None:
    assert len(set(believed(shown((20, 1_000)), shown((2, 1_000), slowness=50.0)))) == 1


def test_a_first_prompt_that_waited_for_a_compiler_proves_nothing() -> None:
    slow = PrefillSpeed()
    slow.learn(1_000, 8.0, 0.0)
    for _ in range(40):
        assert len(set(believed(shown((30, 1_000)), slow, shown((30, 1_000))))) == 1
        slow.learn(1_000, 0.065, 0.0)


def test_shorter_prompts_make_nobody_slower() -> None:
    long, short = shown((30, 8_000)), shown((30, 60))
    assert long.tokens_per_sec > 5 * short.tokens_per_sec
    assert len(set(believed(long, short))) == 1


def test_nor_do_those_that_are_shorter_within_what_counts_as_one_size() -> None:
    one, other = shown((30, 33)), shown((30, 62))
    assert list(one.by_size) == list(other.by_size) == [6]
    assert other.tokens_per_sec > 1.5 * one.tokens_per_sec
    assert len(set(believed(one, other))) == 1


def test_where_both_have_had_some_of_the_same_size_that_counts() -> None:
    one, other = believed(shown((20, 8_000), (12, 60)), shown((20, 60), (12, 8_000), slowness=2.0))
    assert one / other == pytest.approx(2.0, rel=0.2)


def test_a_difference_fades_while_nothing_is_heard_until_it_is_none() -> None:
    ratios = []
    for now in (0.0, 30.0, 60.0, 120.0):
        fast, slow = believed(shown((20, 1_000), at=now), shown((20, 1_000), slowness=2.0), now=now)
        ratios.append(log(fast / slow))
    assert ratios == [*sorted(ratios, reverse=True)]
    assert ratios[0] == pytest.approx(log(2.0), rel=0.1)
    assert ratios[-1] == 0.0


def test_a_small_difference_never_counts_and_a_growing_one_counts_gradually() -> None:
    steady = {count: shown((32, 1_000), slowness=count) for count in (1.0, 1.1, 1.3, 1.35, 1.4, 1.5, 2.0)}
    ratios = []
    for slowness, slow in steady.items():
        fast, other = believed(steady[1.0], slow)
        ratios.append(log(fast / other) / log(slowness) if slowness > 1.0 else 0.0)
    assert ratios[:2] == [0.0, 0.0]
    assert ratios == sorted(ratios)
    assert 0.0 < ratios[3] < 1.0
    assert ratios[-1] == pytest.approx(1.0)
