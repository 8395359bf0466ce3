"""What no policy can beat."""

from __future__ import annotations

import pytest

from sgl_router.lab.simulate.bounds import floor, pooled
from sgl_router.lab.simulate.job import jobs_of
from sgl_router.lab.simulate.simulation import FleetSettings
from sgl_router.lab.simulate.trace import TraceRow

FLEET = FleetSettings(workers=4, cache_tokens=4_096, prefill_tokens_per_sec=1_000.0)


def jobs(*rows: tuple[float, int, tuple[int, ...]]):
    return jobs_of([TraceRow(at * 1e3, tokens, 1, ids) for at, tokens, ids in rows], page_size=512)


def test_the_floor_has_no_queue_and_forgets_nothing() -> None:
    bound = floor(jobs((0, 1_000, (1, 2)), (0, 1_000, (1, 3)), (0, 1_000, (1, 4))), FLEET)
    assert (bound.ttft.mean, bound.ttft.longest) == (pytest.approx((1.0 + 2 * 0.488) / 3), 1.0)
    assert bound.hit_rate == pytest.approx(1_024 / 3_000)


def test_what_no_worker_can_take_is_left_out() -> None:
    asked = jobs((0, 1_000, (1, 2)), (9, 5_000, tuple(range(10, 20))))
    for bound in (floor(asked, FLEET), pooled(asked, FLEET)):
        assert (bound.requests, bound.refused) == (1, 0)


def test_the_pooled_worker_has_everything_of_the_fleet() -> None:
    prompts = [tuple(range(10 * number, 10 * number + 8)) for number in range(4)]
    again = [(2.0 * number + 10.0, 4_095, prompts[number % 4]) for number in range(4)]
    bound = pooled(jobs(*((2.0 * number, 4_095, prompts[number]) for number in range(4)), *again), FLEET)
    # Four prompts of eight pages fit into four caches of eight pages only where they are one.
    assert bound.ttft.longest == pytest.approx(4_095 / 4_000)
    assert bound.hit_rate > 0.3
