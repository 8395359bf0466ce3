from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sgl_router.upstream.control import control_session
from sgl_router.upstream.fault import WorkerFault
from sgl_router.workers import HealthState
from sgl_router.workers.health import HealthTracker, Probe

STARTING, HEALTHY, UNHEALTHY = HealthState.STARTING, HealthState.HEALTHY, HealthState.UNHEALTHY


@pytest.mark.parametrize(
    ("probes", "state"),
    [
        ("", STARTING),
        ("+", STARTING),
        ("++", HEALTHY),
        ("+-+", STARTING),
        ("++-", HEALTHY),
        ("++--", HEALTHY),
        ("++--+--", HEALTHY),  # only consecutive failures count
        ("++---", UNHEALTHY),
        ("---", UNHEALTHY),
        ("++---+", UNHEALTHY),
        ("++---+-+", UNHEALTHY),
        ("++---++", HEALTHY),
    ],
)
def test_thresholds(probes: str, state: HealthState) -> None:
    tracker = HealthTracker(failure_threshold=3, success_threshold=2)
    for probe in probes:
        tracker.observe(probe == "+")
    assert tracker.state is state


def test_trust_skips_the_success_threshold_only() -> None:
    tracker = HealthTracker(failure_threshold=2, success_threshold=5)
    assert tracker.trust() is HEALTHY
    assert [tracker.observe(False), tracker.observe(False)] == [HEALTHY, UNHEALTHY]


@pytest.fixture
async def probed(make_worker: Callable[[], Any]) -> AsyncIterator[tuple[Any, Probe]]:
    worker = make_worker()
    await worker.listen()
    async with control_session() as session:
        yield worker, Probe(session, worker.url, api_key="k3y", timeout_secs=0.5)


async def test_ready(probed: tuple[Any, Probe]) -> None:
    worker, probe = probed
    assert await probe.check() == (None, "", True)
    worker.answers["/ready"] = (503, "")
    assert await probe.check() == (WorkerFault.NOT_READY, "HTTP 503 from /ready", False)
    assert set(worker.authorization) == {"Bearer k3y"}


@pytest.mark.parametrize("path", ["/model_info", "/v1/models"])
async def test_servers_without_ready_are_asked_for_the_next_cheap_thing(probed: tuple[Any, Probe], path: str) -> None:
    worker, probe = probed
    del worker.answers["/ready"]
    worker.answers[path] = (200, {})
    for _ in range(3):
        assert await probe.check() == (None, "", False)
    assert worker.calls["/ready"] == 1, "what the server lacks is remembered"
    assert worker.calls[path] == 3
    probe.forget()
    await probe.check()
    assert worker.calls["/ready"] == 2


async def test_a_refused_key_is_a_fault(probed: tuple[Any, Probe]) -> None:
    worker, probe = probed
    del worker.answers["/ready"]
    worker.answers["/model_info"] = (401, {})
    assert (await probe.check()).fault is WorkerFault.UNAUTHORIZED


async def test_a_server_that_knows_nothing_is_dead_and_the_generating_endpoint_is_never_used(
    probed: tuple[Any, Probe],
) -> None:
    worker, probe = probed
    worker.answers = {"/health": (200, ""), "/health_generate": (200, "")}
    assert (await probe.check()).fault is WorkerFault.BAD_STATUS
    assert (await probe.check()).fault is WorkerFault.BAD_STATUS
    assert worker.calls["/health"] == worker.calls["/health_generate"] == 0


async def test_dropped_and_refused_connections_and_silence(probed: tuple[Any, Probe]) -> None:
    worker, probe = probed
    worker.drop.add("/ready")
    assert (await probe.check()).fault is WorkerFault.CONNECTION_LOST
    worker.drop.clear()
    worker.hang.add("/ready")
    assert (await probe.check()).fault is WorkerFault.TIMED_OUT
    await worker.refuse()
    assert (await probe.check()).fault is WorkerFault.CONNECT_FAILED
