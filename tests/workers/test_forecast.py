from __future__ import annotations

import pytest

from sgl_router.load.backlog import BacklogEstimate
from sgl_router.load.reports import LoadReport


def report(running: int = 1, waiting: int = 0, **more: float) -> LoadReport:
    return LoadReport(running=running, waiting=waiting, **more)  # type: ignore[arg-type]


@pytest.fixture
def forecast() -> BacklogEstimate:
    return BacklogEstimate(1_000.0, 0.0, stale_secs=5.0)


def test_what_others_sent_comes_in_with_a_report_and_goes_stale(forecast: BacklogEstimate) -> None:
    forecast.reported(report(waiting=3, waiting_uncached_tokens=30_000, used_tokens=7_000), 10.0)
    assert forecast.prompts.tokens(10.0) == 30_000
    assert (forecast.others_tokens(10.0), forecast.others_tokens(15.0)) == (7_000, 7_000)
    assert forecast.prompts.tokens(15.1) == 0.0
    assert forecast.others_tokens(15.1) == 0


def test_an_older_report_is_dropped(forecast: BacklogEstimate) -> None:
    forecast.reported(report(used_tokens=2), 10.0)
    forecast.reported(report(waiting=9, waiting_uncached_tokens=9_000, used_tokens=1), 9.9)
    assert (forecast.others_tokens(10.0), forecast.prompts.tokens(10.0)) == (2, 0.0)
    forecast.reported(report(used_tokens=3), 10.0)
    assert forecast.others_tokens(10.0) == 3


def test_used_tokens_may_not_be_told(forecast: BacklogEstimate) -> None:
    assert forecast.others_tokens(0.0) == 0
    forecast.reported(report(), 1.0)
    assert forecast.others_tokens(1.0) == 0


def test_own_requests_in_a_report_are_not_others(forecast: BacklogEstimate) -> None:
    forecast.reported(report(used_tokens=7_000), 1.0, 5_000.0)
    assert forecast.others_tokens(1.0) == 2_000
    forecast.reported(report(used_tokens=7_000), 2.0, 9_000.0)
    assert forecast.others_tokens(2.0) == 0


def test_the_targets_own_count_is_its_speed(forecast: BacklogEstimate) -> None:
    forecast.reported(report(prefilled_tokens=100_000, prefill_busy_secs=10.0), 1.0)
    assert not forecast.prompts.speed.told
    forecast.reported(report(prefilled_tokens=150_000, prefill_busy_secs=11.0), 2.0)
    assert forecast.prompts.speed.tokens_per_sec == pytest.approx(50_000)


def test_a_restart_of_its_counters_or_a_gap_teaches_nothing(forecast: BacklogEstimate) -> None:
    forecast.reported(report(prefilled_tokens=100_000, prefill_busy_secs=10.0), 1.0)
    forecast.reported(report(prefilled_tokens=500, prefill_busy_secs=0.1), 2.0)
    forecast.reported(report(), 3.0)
    forecast.reported(report(prefilled_tokens=9_000, prefill_busy_secs=2.0), 4.0)
    assert not forecast.prompts.speed.told
    assert forecast.prompts.speed.tokens_per_sec == 1_000


def test_a_report_that_nothing_runs_ends_what_is_long_due(forecast: BacklogEstimate) -> None:
    forecast.prompts.add("lost", 100, streamed=True, now=0.0)
    forecast.reported(report(running=1), 3.0)
    assert len(forecast.prompts) == 1
    forecast.reported(report(running=0), 4.0)
    assert len(forecast.prompts) == 0
