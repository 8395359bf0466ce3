"""Why a worker is out of the question, as operators are told."""

from __future__ import annotations

import pytest

from sgl_router.routing.views import explanation_view
from sgl_router.workers import HealthState, Worker, WorkerInfo, WorkerMode


def stranger(mode: WorkerMode = WorkerMode.PLAIN, health: HealthState = HealthState.HEALTHY) -> Worker:
    return Worker("http://w:1", WorkerInfo(served_model_name="m", block_size=16, dp_size=1), mode=mode, health=health)


def tripped() -> Worker:
    worker = stranger()
    for _ in range(worker.breaker.threshold):
        permit = worker.breaker.acquire(0.0)
        assert permit is not None
        permit.failure(0.0)
    return worker


@pytest.mark.parametrize(
    ("worker", "why"),
    [
        (stranger(WorkerMode.PREFILL), "prefill worker"),
        (stranger(WorkerMode.DECODE, HealthState.UNHEALTHY), "decode worker"),
        (stranger(health=HealthState.UNHEALTHY), "unhealthy"),
        (stranger(health=HealthState.STARTING), "starting"),
        (tripped(), "circuit open"),
    ],
)
def test_who_is_excluded_is_told_why(worker: Worker, why: str) -> None:
    view = explanation_view(None, [], None, [worker], would_wait=False, waiting=0)
    assert view["excluded"] == [{"worker": worker.id, "why": why}]


def test_a_candidate_is_not_excluded() -> None:
    worker = stranger()
    view = explanation_view(None, list(worker.targets), None, [worker], would_wait=True, waiting=2)
    assert view["excluded"] == []
    assert (view["would_wait"], view["waiting"]) == (True, 2)
    assert [entry["worker"] for entry in view["candidates"]] == [worker.id]
