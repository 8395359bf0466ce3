"""Numbers from records."""

from __future__ import annotations

import numpy as np
import pytest

from sgl_router.lab.simulate.job import Job
from sgl_router.lab.simulate.measure import (
    hit_rate_by,
    hit_rate_over_time,
    queue_over_time,
    rows_of,
    shares_by,
    spread,
    summarise,
    ttft_curve,
)
from sgl_router.lab.simulate.record import Record
from sgl_router.lab.simulate.simulation import Outcome, WorkerTotals


def record(number: int, at: float, start: float, first: float, *, cached: int = 0, predicted: int | None = 0) -> Record:
    job = Job(number, at, 1_000, 5, (), 512)
    return Record(
        job,
        router=0,
        worker=0,
        reason="no_match",
        dispatched_at=at,
        started_at=start,
        first_token_at=first,
        finished_at=first,
        predicted_tokens=predicted,
        cached_tokens=cached,
        endings=1,
    )


def outcome() -> Outcome:
    records = [
        record(0, 0.0, 0.0, 1.0),
        record(1, 0.0, 2.0, 3.0, cached=512, predicted=512),
        record(2, 4.0, 4.0, 9.0, cached=512, predicted=None),
        Record(Job(3, 5.0, 1_000, 5, (), 512), router=0, reason="too_long", endings=1),
    ]
    workers = [WorkerTotals(3.0, 0.0, 10), WorkerTotals(1.0, 0.0, 10)]
    return Outcome("p", records, workers, [])


def test_a_summary_counts_what_was_served() -> None:
    summary = summarise(outcome())
    assert (summary.requests, summary.refused) == (4, 1)
    assert (summary.ttft.mean, summary.ttft.p50, summary.ttft.longest) == (3.0, 3.0, 5.0)
    assert (summary.queued.longest, summary.held.longest) == (2.0, 0.0)
    assert summary.hit_rate == pytest.approx(1_024 / 3_000)
    assert summary.imbalance == 0.5
    assert summary.foreseen == 1.0
    assert (summary.reasons, summary.refusals) == ({"no_match": 3}, {"too_long": 1})


def test_the_queue_is_the_mean_number_waiting() -> None:
    times, waiting = queue_over_time(outcome(), points=4)
    assert times.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert waiting.tolist() == pytest.approx([1.0, 1.0, 0.0, 0.0])


def test_hits_over_time_leave_gaps_out() -> None:
    times, rates = hit_rate_over_time(outcome(), points=4)
    assert times.tolist() == [0.5, 3.5]
    assert rates.tolist() == [0.256, 0.512]


def test_the_curve_ends_with_everybody() -> None:
    times, shares = ttft_curve(outcome(), points=3)
    assert (times.tolist(), shares.tolist()) == ([1.0, 3.0, 5.0], [0.0, 0.5, 1.0])


def test_curves_are_of_any_order() -> None:
    rates = hit_rate_by(np.array([4.0, 0.0, 0.0]), np.array([512.0, 0.0, 512.0]), np.full(3, 1_000.0), points=4)
    assert [each.tolist() for each in rates] == [[0.5, 3.5], [0.256, 0.512]]
    assert shares_by(np.array([5.0, 1.0, 3.0]), points=3)[0].tolist() == [1.0, 3.0, 5.0]


def test_nothing_served_is_nothing_to_see() -> None:
    empty = Outcome("p", outcome().records[3:], [WorkerTotals(0.0, 0.0, 0)], [])
    summary = summarise(empty)
    assert (summary.refused, summary.hit_rate, summary.imbalance, summary.foreseen) == (1, 0.0, 0.0, None)
    for curve in (queue_over_time, hit_rate_over_time, ttft_curve):
        assert all(len(values) for values in curve(empty))
    assert rows_of(empty)[0]["worker"] is None
    assert rows_of(empty)[0]["started_at"] is None
    assert spread([]).mean == 0.0
