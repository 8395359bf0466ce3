"""Every way of choosing, by its name, with the settings it is given."""

from __future__ import annotations

import random

import pytest

from sgl_router.config import KvCostConfig, ModelConfig, PolicyName, QueueConfig
from sgl_router.lab.simulate.brain import Immediate, PolicyAdapter, PolicyContext
from sgl_router.lab.simulate.catalogue import BASELINES, QUEUED, make_brain, policy_names, without_bounds
from sgl_router.lab.simulate.job import jobs_of
from sgl_router.lab.simulate.measure import rows_of, summarise
from sgl_router.lab.simulate.simulation import FleetSettings, Outcome, simulate
from sgl_router.lab.simulate.trace import TraceRow
from sgl_router.lab.simulate.workload import make_workload
from sgl_router.policies import CacheAwareZmq, KvCost

MODEL = ModelConfig(id="m", tokenizer_path="t", kv_cost=KvCostConfig(prefill_tokens_per_sec=123.0))


def brain(name: str, model: ModelConfig | None = None) -> PolicyAdapter:
    return make_brain(name, PolicyContext(random.Random(0), lambda: 0.0, {}, 8_000.0), model)


def test_the_products_policies_are_there_and_baselines_beside() -> None:
    assert set(policy_names()) == {name.value for name in PolicyName} | {QUEUED} | set(BASELINES)


def test_the_cost_policy_has_forecasts_the_others_none() -> None:
    made = brain("kv_cost")
    assert isinstance(made.policy, KvCost)
    assert made.forecasts == {"sim": 8_000.0}
    assert made.dispatcher is Immediate
    assert brain("cache_aware_zmq").forecasts is None
    assert isinstance(brain(QUEUED).policy, KvCost)
    assert brain(QUEUED).dispatcher is not Immediate


def test_a_models_settings_are_used_whatever_its_own_policy() -> None:
    assert brain("kv_cost", MODEL).forecasts == {"sim": 123.0}
    assert brain(QUEUED, MODEL).forecasts == {"sim": 123.0}
    assert isinstance(brain("cache_aware_zmq", MODEL).policy, CacheAwareZmq)


def test_a_queue_without_bounds_refuses_nobody() -> None:
    rows = strangers(60, 4_096, per_sec=100.0)
    short = ModelConfig(id="m", tokenizer_path="t", queue=QueueConfig(max_waiting=3, max_wait_secs=5.0))
    jobs = jobs_of(rows, page_size=512)
    fleet = FleetSettings(workers=1)
    refused = summarise(simulate(QUEUED, jobs, fleet, model=short)).refusals
    assert set(refused) == {"queue_full"}
    free = simulate(QUEUED, jobs, fleet, model=without_bounds(short))
    assert summarise(free).refusals == {}
    assert max(record.held for record in free.records) > 25
    assert without_bounds(MODEL).kv_cost == MODEL.kv_cost


@pytest.mark.parametrize("name", ["kv_cost+", "queue", "KV_COST", ""])
def test_there_is_nothing_by_other_names(name: str) -> None:
    with pytest.raises(KeyError):
        brain(name)


def run(policy: str, rows: list[TraceRow], cost: KvCostConfig | None = None, **fleet: float) -> Outcome:
    settings = FleetSettings(**({"workers": 4} | fleet))  # type: ignore[arg-type]
    model = ModelConfig(id="m", tokenizer_path="t", kv_cost=cost) if cost is not None else None
    return simulate(policy, jobs_of(rows, page_size=settings.page_size), settings, model=model)


def strangers(count: int, *lengths: int, per_sec: float) -> list[TraceRow]:
    """Prompts that have nothing in common, of these lengths in turn."""
    found = []
    for number in range(count):
        ids = tuple(range(99 * number, 99 * number + 16))
        found.append(TraceRow(1_000 * number / per_sec, lengths[number % len(lengths)], 1, ids))
    return found


def mean_ttft(outcome: Outcome) -> float:
    return sum(record.ttft for record in outcome.records) / len(outcome.records)


def test_settings_reach_the_policy_and_change_what_comes_of_it() -> None:
    rows = make_workload("chats", requests=300, per_sec=6.0, seed=3)
    usual = run("kv_cost", rows)
    assert rows_of(run("kv_cost", rows, KvCostConfig())) == rows_of(usual)
    blind = run("kv_cost", rows, KvCostConfig(temperature_ms=1e6))
    assert mean_ttft(usual) < mean_ttft(blind)


def test_every_worker_shows_its_speed_whatever_was_thought_at_first() -> None:
    rows = strangers(400, 2_048, per_sec=8.0)
    for thought in (500.0, 100_000.0):
        outcome = run("kv_cost", rows, KvCostConfig(prefill_tokens_per_sec=thought))
        for target in outcome.routers[0].candidates:
            assert target.forecast is not None
            assert target.forecast.prompts.speed.tokens_per_sec == pytest.approx(8_000, rel=0.1)


@pytest.mark.parametrize(("workload", "per_sec"), [("bimodal", 3.0), ("hot_prefix", 10.0), ("bursts", 8.0)])
def test_it_beats_the_threshold_where_requests_differ(workload: str, per_sec: float) -> None:
    rows = make_workload(workload, requests=400, per_sec=per_sec, seed=3)
    assert mean_ttft(run("kv_cost", rows)) < 0.7 * mean_ttft(run("cache_aware_zmq", rows))


def test_reports_tell_routers_of_each_others_load() -> None:
    rows = strangers(300, 2_048, 8_192, per_sec=11.0)
    deaf = run("kv_cost", rows, routers=4, workers=8)
    told = run("kv_cost", rows, routers=4, workers=8, load_report_interval=0.1)
    assert mean_ttft(told) < 0.9 * mean_ttft(deaf)
