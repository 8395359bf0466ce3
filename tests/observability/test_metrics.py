from __future__ import annotations

from enum import Enum
from types import SimpleNamespace

import pytest

from sgl_router.errors import ErrorCode
from sgl_router.kv_events import DecodeFailure, KvIndex
from sgl_router.kv_events.follow.repair import RepairOutcome
from sgl_router.observability import Metrics, metrics
from sgl_router.observability.metrics import _BLOCKS, _LAG, _SECONDS
from sgl_router.workers import WorkerRegistry


def render(made: Metrics) -> list[str]:
    return made.render().decode().splitlines()


def test_every_family_of_requests_is_announced_in_order() -> None:
    names = [line.split()[2:] for line in render(Metrics(WorkerRegistry(), KvIndex())) if line.startswith("# TYPE")]
    assert names[:22] == [
        ["sgl_router_requests_total", "counter"],
        ["sgl_router_responses_total", "counter"],
        ["sgl_router_errors_total", "counter"],
        ["sgl_router_request_duration_seconds", "histogram"],
        ["sgl_router_ttft_seconds", "histogram"],
        ["sgl_router_decision_seconds", "histogram"],
        ["sgl_router_overlap_blocks", "histogram"],
        ["sgl_router_prompt_tokens_total", "counter"],
        ["sgl_router_matched_tokens_total", "counter"],
        ["sgl_router_cache_aware_decisions_total", "counter"],
        ["sgl_router_stale_requests_total", "counter"],
        ["sgl_router_prompt_cache_prompts_total", "counter"],
        ["sgl_router_prompt_cache_reused_tokens_total", "counter"],
        ["sgl_router_prompt_cache_evictions_total", "counter"],
        ["sgl_router_queue_wait_seconds", "histogram"],
        ["sgl_router_queue_outcomes_total", "counter"],
        ["sgl_router_event_loop_lag_seconds", "histogram"],
        ["sgl_router_records_lost_total", "counter"],
        ["sgl_router_worker_token_checks_total", "counter"],
        ["sgl_router_worker_tokens_differ", "gauge"],
        ["sgl_router_process_restarts_total", "counter"],
        ["sgl_router_draining", "gauge"],
    ]
    assert ["sgl_router_workers", "gauge"] in names[22:]


def test_buckets_are_the_ones_dashboards_know() -> None:
    made = Metrics(WorkerRegistry(), KvIndex())
    for family, count in ((made.duration, len(_SECONDS)), (made.decision_time, len(_SECONDS) + 3),
                          (made.ttft, len(_SECONDS)), (made.overlap, len(_BLOCKS))):  # fmt: skip
        family.labels("m").observe(1)
        (sample,) = {len(metric.samples) for metric in [family.family()]}
        assert sample == count + 3  # and +Inf, _count, _sum
    made.loop_lag.observe(0.001)
    lines = render(made)
    assert 'sgl_router_event_loop_lag_seconds_bucket{le="0.001"} 1.0' in lines
    assert sum(line.startswith("sgl_router_event_loop_lag_seconds_bucket") for line in lines) == len(_LAG) + 1
    assert 'sgl_router_decision_seconds_bucket{le="0.00025",model_id="m"} 0.0' in lines


def test_a_models_children_are_those_of_the_families() -> None:
    made = Metrics(WorkerRegistry(), KvIndex())
    found = made.of_model("m")
    assert made.of_model("m") is found
    assert found == (made.duration.labels("m"), made.decision_time.labels("m"), made.ttft.labels("m"))


@pytest.mark.parametrize(
    ("series", "values"),
    [
        ("sgl_router_errors_total{code=", ErrorCode),
        ("sgl_router_kv_event_decode_failures_total{reason=", DecodeFailure),
        ("sgl_router_kv_event_repairs_total{outcome=", RepairOutcome),
    ],
)
def test_faults_have_their_series_before_they_happen(series: str, values: type[Enum]) -> None:
    lines = render(Metrics(WorkerRegistry(), KvIndex()))
    assert [line for line in lines if line.startswith(series)] == [f'{series}"{one.value}"}} 0.0' for one in values]


def test_lines_lost_on_the_way_out_are_counted_when_scraped(monkeypatch) -> None:
    lost = SimpleNamespace(left=3)

    def take() -> int:
        taken, lost.left = lost.left, 0
        return taken

    monkeypatch.setattr(metrics, "take_lost_lines", take)
    made = Metrics(WorkerRegistry(), KvIndex())
    made.records_lost.inc()
    assert "sgl_router_records_lost_total 4.0" in render(made)
    assert "sgl_router_records_lost_total 4.0" in render(made)
