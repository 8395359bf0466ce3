from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.policies.pressure import Pressure


def test_it_begins_with_what_is_seen_first() -> None:
    pressure = Pressure(smoothing_secs=5.0, limit=16.0)
    assert pressure.value == 0.0
    assert pressure.observe(3.0, 100.0) == 3.0


def test_it_follows_by_the_same_share_in_the_same_time_however_often_one_looks() -> None:
    often, seldom = (Pressure(smoothing_secs=5.0, limit=16.0) for _ in range(2))
    for pressure in (often, seldom):
        pressure.observe(0.0, 0.0)
    for step in range(1, 51):
        often.observe(8.0, step / 10)
    assert often.value == pytest.approx(seldom.observe(8.0, 5.0))
    assert often.value == pytest.approx(8.0 * (1 - math.exp(-1)))


def test_looking_twice_at_once_changes_nothing() -> None:
    pressure = Pressure(smoothing_secs=1.0, limit=16.0)
    pressure.observe(2.0, 1.0)
    assert pressure.observe(9.0, 1.0) == 2.0
    assert pressure.observe(9.0, 0.5) == 2.0  # nor does a clock that is late


def test_a_flapping_level_is_levelled_out() -> None:
    pressure = Pressure(smoothing_secs=5.0, limit=16.0)
    seen = [pressure.observe(10.0 * (step % 2), step * 0.1) for step in range(1_000)]
    assert max(seen[500:]) - min(seen[500:]) < 0.25
    assert sum(seen[500:]) / 500 == pytest.approx(5.0, abs=0.2)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 100)), min_size=1, max_size=50), st.floats(0, 100))
def test_it_stays_between_what_was_seen_and_below_its_limit(steps: list[tuple[float, float]], limit: float) -> None:
    pressure, now = Pressure(smoothing_secs=3.0, limit=limit), 0.0
    for level, passed in steps:
        now += passed
        value = pressure.observe(level, now)
        assert min(limit, *(level for level, _ in steps)) - 1e-9 <= value <= limit + 1e-9


@given(st.lists(st.floats(0, 20), min_size=2, max_size=30))
def test_it_does_not_overshoot(levels: list[float]) -> None:
    """Each step goes towards the level, and not past it."""
    pressure = Pressure(smoothing_secs=2.0, limit=16.0)
    value = pressure.observe(levels[0], 0.0)
    for step, level in enumerate(levels[1:], 1):
        before, value = value, pressure.observe(level, float(step))
        target = min(level, 16.0)
        assert min(before, target) - 1e-9 <= value <= max(before, target) + 1e-9
