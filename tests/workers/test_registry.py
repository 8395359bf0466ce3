from __future__ import annotations

import random
import time

import pytest
from structlog.testing import capture_logs

from sgl_router.workers import (
    CircuitBreaker,
    HealthState,
    Worker,
    WorkerInfo,
    WorkerMode,
    WorkerRegistry,
    worker_id,
)

A, B = "http://10.0.0.1:30000", "http://10.0.0.2:30000"


def healthy(url: str, model: str = "m", *, dp_size: int = 1, mode: WorkerMode = WorkerMode.PLAIN) -> Worker:
    info = WorkerInfo(served_model_name=model, dp_size=dp_size, mode=mode)
    return Worker(url, info, health=HealthState.HEALTHY, breaker=CircuitBreaker(1, 10))


class Recorder:
    def __init__(self, registry: WorkerRegistry) -> None:
        self.registry = registry
        self.seen: list[tuple[str, int, bool]] = []

    def worker_added(self, worker: Worker) -> None:
        self.seen.append(("added", worker.generation, self.registry.get(worker.url) is worker))

    def worker_removed(self, worker: Worker) -> None:
        self.seen.append(("removed", worker.generation, self.registry.get(worker.url) is worker))


class Broken:
    def worker_added(self, worker: Worker) -> None:
        raise RuntimeError("added")

    def worker_removed(self, worker: Worker) -> None:
        raise RuntimeError("removed")


def test_look_ups() -> None:
    registry = WorkerRegistry()
    one, two = healthy(A), healthy(B, "other")
    registry.add(one)
    registry.add(two)
    assert registry.get(A) is one and registry.by_id(one.id) is one
    assert registry.get("http://nowhere:1") is None and registry.by_id("w-000000000000") is None
    assert registry.all() == [one, two] and len(registry) == 2
    assert list(registry.for_model("m")) == [one] and list(registry.for_model("none")) == []
    assert registry.for_model("m") is registry.for_model("m"), "no work per request"


def test_a_worker_that_returns_is_a_new_incarnation() -> None:
    registry = WorkerRegistry()
    first = healthy(A)
    registry.add(first)
    first.targets[0].inflight = 5
    first.stats.count("ok")
    assert registry.remove(A) is first and first.removed
    second = healthy(A)
    registry.add(second)
    assert second.generation > first.generation and second.id == first.id
    assert second.targets[0].inflight == 0 and second.stats.requests == {} and second.breaker is not first.breaker
    assert registry.by_id(second.id) is second
    first.targets[0].inflight -= 5
    assert second.targets[0].inflight == 0, "what an old request releases goes to the old incarnation"


def test_one_incarnation_per_url() -> None:
    registry = WorkerRegistry()
    worker = healthy(A)
    registry.add(worker)
    with pytest.raises(ValueError, match="registered already"):
        registry.add(healthy(A))
    registry.remove(A)
    with pytest.raises(ValueError, match="was removed"):
        registry.add(worker)
    assert registry.remove(A) is None


def test_listeners_see_the_registry_as_it_is_afterwards() -> None:
    registry = WorkerRegistry()
    recorder = Recorder(registry)
    registry.add_listener(recorder)
    worker = healthy(A)
    registry.add(worker)
    registry.remove(A)
    registry.remove(A)
    assert recorder.seen == [("added", worker.generation, True), ("removed", worker.generation, False)]


def test_a_broken_listener_harms_neither_the_registry_nor_the_others() -> None:
    registry = WorkerRegistry()
    recorder = Recorder(registry)
    registry.add_listener(Broken())
    registry.add_listener(recorder)
    with capture_logs() as logs:
        registry.add(healthy(A))
        registry.remove(A)
    assert [kind for kind, _, _ in recorder.seen] == ["added", "removed"]
    assert [entry["change"] for entry in logs] == ["added", "removed"]


def test_candidates_are_healthy_willing_and_of_the_mode() -> None:
    registry = WorkerRegistry()
    good, wide = healthy(A), healthy(B, dp_size=2)
    sick, starting = healthy("http://10.0.0.3:1"), healthy("http://10.0.0.4:1")
    sick.health, starting.health = HealthState.UNHEALTHY, HealthState.STARTING
    tripped = healthy("http://10.0.0.5:1")
    permit = tripped.breaker.acquire(100.0)
    assert permit is not None
    permit.failure(100.0)
    prefill = healthy("http://10.0.0.6:1", mode=WorkerMode.PREFILL)
    stranger = healthy("http://10.0.0.7:1", "other")
    for worker in (good, wide, sick, starting, tripped, prefill, stranger):
        registry.add(worker)

    assert registry.candidates("m", 105.0) == [*good.targets, *wide.targets]
    assert registry.candidates("m", 110.0) == [*good.targets, *wide.targets, *tripped.targets], "cooled down"
    assert tripped.breaker.state.value == "open", "filtering commits to no probe"
    assert registry.candidates("m", 105.0, WorkerMode.PREFILL) == [*prefill.targets]
    assert registry.candidates("unknown", 105.0) == []


def test_candidates_of_a_large_fleet_are_cheap() -> None:
    registry = WorkerRegistry()
    for number in range(512):
        registry.add(healthy(f"http://10.1.{number // 256}.{number % 256}:30000"))

    def best_of(runs: int) -> float:
        best = float("inf")
        for _ in range(runs):
            began = time.perf_counter()
            registry.candidates("m", 1.0)
            best = min(best, time.perf_counter() - began)
        return best

    assert len(registry.candidates("m", 1.0)) == 512
    assert best_of(50) < 0.001  # measured about 0.03 ms


def test_ids_are_stable_and_say_nothing() -> None:
    assert worker_id(A) == worker_id(A) != worker_id(B)
    assert "10.0.0" not in worker_id(A) and worker_id(A).startswith("w-") and len(worker_id(A)) == 14


def test_targets_are_the_ranks_of_their_worker() -> None:
    worker = healthy(A, dp_size=3)
    assert [target.dp_rank for target in worker.targets] == [0, 1, 2]
    assert {target.worker for target in worker.targets} == {worker}
    assert not hasattr(worker.targets[0], "__dict__"), "a misspelt attribute must not be silently added"


def test_who_is_backed_off_is_a_candidate_only_where_no_one_else_is() -> None:
    registry = WorkerRegistry()
    one, two = healthy(A, dp_size=2), healthy(B)
    registry.add(one)
    registry.add(two)
    rng = random.Random(1)
    one.targets[1].refusals.refused(one.targets[1].refusals.sent(0.0), 0.0, rng, 10.0)
    assert set(registry.candidates("m", 5.0)) == {one.targets[0], two.targets[0]}
    one.refusals.refused(one.refusals.sent(0.0), 0.0, rng, 20.0)
    assert registry.candidates("m", 5.0) == [two.targets[0]]
    assert registry.candidates("m", 10.0) == [two.targets[0]], "all of the worker"
    assert registry.candidates("m", 5.0, without={two}) == list(one.targets)
    assert set(registry.candidates("m", 20.0)) == {*one.targets, *two.targets}, "for a probe of each"
    one.refusals.accepted(one.refusals.sent(20.0))
    one.targets[1].refusals.accepted(one.targets[1].refusals.sent(20.0))
    assert one.backed_off == 0 and len(registry.candidates("m", 20.0)) == 3


def test_a_busy_worker_is_a_candidate_where_no_healthy_one_is() -> None:
    registry = WorkerRegistry()
    one, two = healthy(A), healthy(B)
    registry.add(one)
    registry.add(two)
    one.health = HealthState.UNHEALTHY
    one.busy_until = 60.0
    assert registry.candidates("m", 0.0) == list(two.targets)
    two.health = HealthState.UNHEALTHY
    assert registry.candidates("m", 0.0) == list(one.targets)
    assert registry.candidates("m", 60.0) == [], "not for ever"
    assert registry.candidates("m", 0.0, without={one}) == []
    permit = one.breaker.acquire(0.0)
    assert permit is not None
    permit.failure(0.0)
    assert registry.candidates("m", 0.0) == [], "nor past its breaker"
