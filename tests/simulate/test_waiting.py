"""The product's waiting line on the simulation's clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sgl_router.config import KvCostConfig, ModelConfig, QueueConfig
from sgl_router.lab.simulate.catalogue import QUEUED
from sgl_router.lab.simulate.job import jobs_of
from sgl_router.lab.simulate.simulation import FleetSettings, Outcome, simulate
from sgl_router.lab.simulate.trace import TraceRow

ALONE = FleetSettings(workers=1, prefill_tokens_per_sec=1_000.0, decode_ms_per_token=0.0, decode_ms_per_running=0.0)


def row(at_secs: float, prompt: int, *ids: int) -> TraceRow:
    return TraceRow(at_secs * 1e3, prompt, 1, ids)


def model(**queue: object) -> ModelConfig:
    settings = {"enabled": True, "release_below_ms": 0.0} | queue
    return ModelConfig(
        id="m",
        tokenizer_path="t",
        kv_cost=KvCostConfig(prefill_tokens_per_sec=1_000.0),
        queue=QueueConfig(**settings),  # type: ignore[arg-type]
    )


def run(rows: list[TraceRow], settings: FleetSettings = ALONE, **queue: object) -> Outcome:
    return simulate(QUEUED, jobs_of(rows, page_size=settings.page_size), settings, model=model(**queue))


LONG, SECOND, SHORT = row(0, 4096, *range(8)), row(0.1, 4096, *range(10, 18)), row(0.2, 512, 30)


def test_who_comes_to_an_idle_worker_goes_at_once() -> None:
    (one,) = run([LONG]).records
    assert (one.held, one.reason) == (0.0, "no_match")


def test_the_others_wait_here_and_the_short_one_passes() -> None:
    long, second, short = run([LONG, SECOND, SHORT]).records
    assert (long.held, short.dispatched_at) == (0.0, pytest.approx(4.096))
    assert second.dispatched_at == pytest.approx(4.608)
    assert second.ttft == pytest.approx(4.508 + 4.096)


def test_or_not_in_order_of_arrival() -> None:
    _, second, short = run([LONG, SECOND, SHORT], order="fcfs").records
    assert (second.dispatched_at, short.dispatched_at) == (pytest.approx(4.096), pytest.approx(8.192))


def test_a_worker_takes_more_shortly_before_it_is_idle() -> None:
    _, second = run([LONG, SECOND], release_below_ms=500.0).records
    assert 3.5 <= second.dispatched_at <= 4.096


def test_a_full_line_refuses_and_one_that_waits_too_long_is_given_up() -> None:
    long, second, short = run([LONG, SECOND, SHORT], max_waiting=1).records
    assert (long.worker, second.worker, short.worker, short.reason) == (0, 0, -1, "queue_full")
    # Half of the bound over, the one that came first goes first; for the other it is too late.
    long, second, short = run([LONG, SECOND, SHORT], max_wait_secs=4.2).records
    assert (second.dispatched_at, short.worker, short.reason) == (pytest.approx(4.096), -1, "waited_too_long")
    long, second, short = run([LONG, SECOND, SHORT], max_wait_secs=1.0).records
    assert {second.reason, short.reason} == {"waited_too_long"}
    assert long.finished_at == pytest.approx(4.096)


def test_the_bound_holds_whatever_rounding_makes_of_it() -> None:
    """In floats 0.7 + 0.1 - 0.7 is less than 0.1."""
    _, second = run([LONG, row(0.7, 512, 30)], max_wait_secs=0.1).records
    assert (second.worker, second.reason) == (-1, "waited_too_long")


def test_everyone_goes_or_is_refused_once() -> None:
    rows = [row(0.2 * number, 512 * (1 + number % 7), *range(10 * number, 10 * number + 7)) for number in range(60)]
    outcome = run(rows, replace(ALONE, workers=2, routers=2), max_wait_secs=6.0, max_waiting=8)
    assert [record.endings for record in outcome.records] == [1] * 60
    assert {record.reason for record in outcome.records} >= {"waited_too_long", "queue_full"}
    for router in outcome.routers:
        assert len(router.load) == 0
        assert router._policy.waiting == 0  # type: ignore[attr-defined]
        for target in router.candidates:
            assert target.forecast is not None
            assert len(target.forecast.prompts) == target.forecast.answers.count == 0
