from __future__ import annotations

import random
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.load.prefill_speed import PrefillSpeed, Shown


def learned(*speeds: float, initial: float = 8_000.0) -> PrefillSpeed:
    speed = PrefillSpeed(initial)
    for each in speeds:
        speed.learn(1_000, 1_000 / each, 0.0)
    return speed


def test_until_something_is_seen_it_is_what_was_said() -> None:
    speed = PrefillSpeed(5_000.0)
    assert (speed.tokens_per_sec, speed.observations, speed.told) == (5_000.0, 0, False)


@pytest.mark.parametrize("true", [500.0, 2_000.0, 8_000.0, 40_000.0, 100_000.0])
def test_it_comes_to_the_true_speed(true: float) -> None:
    assert learned(*[true] * 32).tokens_per_sec == pytest.approx(true)


def test_what_slows_prompts_down_now_and_then_is_not_its_speed() -> None:
    rng = random.Random(1)
    speeds = [20_000.0 if rng.random() < 0.5 else rng.uniform(1_000, 20_000) for _ in range(200)]
    assert learned(*speeds).tokens_per_sec == pytest.approx(20_000.0, rel=0.05)


def test_nor_is_a_hit_that_nobody_foresaw() -> None:
    rng = random.Random(1)
    speeds = [1e6 if rng.random() < 0.1 else 10_000.0 for _ in range(200)]
    assert learned(*speeds).tokens_per_sec == pytest.approx(10_000.0)


@pytest.mark.parametrize("first", [1.0, 1e9])
def test_one_observation_alone_does_not_move_it_far(first: float) -> None:
    assert learned(first).tokens_per_sec == 8_000.0
    assert learned(*[5_000.0] * 40, first).tokens_per_sec == pytest.approx(5_000.0)


def test_nine_slow_prompts_or_two_fast_ones_convince() -> None:
    assert learned(*[500.0] * 9).tokens_per_sec == pytest.approx(500.0)
    assert learned(*[80_000.0] * 2).tokens_per_sec == pytest.approx(80_000.0)


@given(st.lists(st.floats(1.0, 1e9), max_size=80))
def test_it_is_always_one_of_the_last_observations(speeds: list[float]) -> None:
    speed = learned(*speeds)
    among = ([8_000.0] * 3 + speeds)[-32:]
    assert any(speed.tokens_per_sec == pytest.approx(each) for each in among)
    assert sum(each > speed.tokens_per_sec * (1 + 1e-9) for each in among) <= len(among) / 4 + 1


def test_three_observations_or_one_word_of_its_own_show_it() -> None:
    assert [learned(*[9_000.0] * count).shown for count in range(5)] == [False, False, False, True, True]
    speed = PrefillSpeed()
    speed.tell(10_000, 1.0, 0.0)
    assert speed.shown


def test_a_change_of_speed_is_followed() -> None:
    speed = learned(*[10_000.0] * 100)
    for _ in range(30):
        speed.learn(1_000, 0.2, 0.0)
    assert speed.tokens_per_sec == pytest.approx(5_000.0)


@pytest.mark.parametrize(("tokens", "secs"), [(255, 1.0), (1_000, 0.0), (1_000, -1.0), (0, 1.0)])
def test_what_teaches_nothing(tokens: int, secs: float) -> None:
    speed = PrefillSpeed()
    speed.learn(tokens, secs, 0.0)
    speed.tell(tokens, secs, 0.0)
    assert (speed.tokens_per_sec, speed.observations, speed.told) == (8_000.0, 0, False)


def test_what_the_target_says_itself_counts_alone() -> None:
    speed = learned(1_000.0, 1_000.0)
    speed.tell(10_000, 0.5, 0.0)
    assert (speed.tokens_per_sec, speed.told) == (20_000.0, True)
    speed.learn(1_000, 1.0, 0.0)
    assert speed.tokens_per_sec == 20_000.0
    speed.tell(10_000, 1.0, 0.0)
    assert speed.tokens_per_sec == pytest.approx(17_000.0)


def test_short_prompts_make_an_observation_together() -> None:
    speed = PrefillSpeed(8_000.0)
    for _ in range(9 * 4):
        speed.learn(64, 64 / 500, 0.0)
    assert (speed.observations, speed.tokens_per_sec) == (9, pytest.approx(500.0))


def test_short_reports_do_too_and_what_was_seen_is_no_part_of_them() -> None:
    speed = PrefillSpeed(8_000.0)
    speed.learn(200, 200 / 9_000, 0.0)
    for _ in range(3):
        speed.tell(100, 100 / 500, 0.0)
    assert (speed.told, speed.tokens_per_sec) == (True, pytest.approx(500.0))


def test_it_is_believed_until_it_is_compared() -> None:
    speed = learned(*[2_000.0] * 9)
    assert speed.believed == pytest.approx(2_000.0)
    speed.compared(5_000.0, 1.0)
    speed.learn(1_000, 0.1, 2.0)
    assert (speed.believed, speed.compared_at) == (5_000.0, 1.0)


def test_observations_are_kept_by_the_size_of_their_prompts() -> None:
    speed = PrefillSpeed()
    for _ in range(10):
        speed.learn(1_000, 0.1, 1.0)
    for _ in range(10):
        speed.learn(1_600, 0.2, 2.0, prompts=40)  # 40 tokens each
    assert {size: shown.count for size, shown in speed.by_size.items()} == {10: 10, 6: 10}
    long, short = speed.by_size[10], speed.by_size[6]
    assert (exp(long.per_token), exp(long.per_prompt)) == (pytest.approx(0.0001), pytest.approx(0.1))
    assert (exp(short.per_token), exp(short.per_prompt)) == (pytest.approx(0.2 / 1_600), pytest.approx(0.2 / 40))


def test_what_it_says_itself_is_of_the_size_of_the_prompts_seen_meanwhile_and_apart_from_what_was_seen() -> None:
    speed = PrefillSpeed()
    speed.learn(300, 0.1, 1.0)
    speed.tell(300, 0.02, 1.0)
    assert list(speed.by_size) == [9]
    assert speed.by_size[9].count == 1
    speed.learn(1_000, 0.3, 2.0, prompts=50)
    speed.tell(1_000, 0.1, 2.0)
    assert speed.by_size[5].count == 1
    unseen = PrefillSpeed()
    unseen.tell(5_000, 0.1, 1.0)  # others' prompts: their number is not known
    assert list(unseen.by_size) == [13]


def test_the_error_falls_with_the_observations_and_grows_with_their_scatter() -> None:
    rng = random.Random(1)
    errors = []
    for noise in (0.05, 0.5):
        for count in (3, 12, 32, 500):
            shown = Shown()
            for _ in range(count):
                shown.add(rng.gauss(-9.0, noise), 0.0, 1.0)
            errors.append(shown.error**0.5)
            assert shown.count == min(count, 32)
            assert abs(shown.per_token + 9.0) < 3 * errors[-1]
    steady, wild = errors[:4], errors[4:]
    assert steady[0] > steady[1] > steady[2] >= steady[3] * 0.9
    assert all(one < other for one, other in zip(steady, wild, strict=True))


def test_after_a_long_pause_it_begins_again() -> None:
    shown = Shown()
    for _ in range(30):
        shown.add(-7.0, -2.0, 1.0)
    shown.add(-9.0, -4.0, 122.0)
    assert (shown.count, shown.per_token, shown.per_prompt) == (1, -9.0, -4.0)
