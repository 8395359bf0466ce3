from __future__ import annotations

from typing import Any

from sgl_router.config import CircuitBreakerConfig, ModelConfig
from sgl_router.routing.remote.messages import WorkerState
from sgl_router.routing.remote.replica import WorkerReplica
from sgl_router.workers import HealthState, WorkerMode, WorkerRegistry


def state(generation: int, url: str = "http://a:1", **changed: Any) -> WorkerState:
    fields: dict[str, Any] = {
        "model_id": "m",
        "mode": WorkerMode.PLAIN,
        "dp_size": 1,
        "block_size": 16,
        "started_at": 1.0,
        "health": HealthState.HEALTHY,
    }
    return WorkerState(generation, url, **{**fields, **changed})


def mirror() -> WorkerReplica:
    breaker = CircuitBreakerConfig(threshold=7, cool_down_secs=3.0)
    return WorkerReplica(WorkerRegistry(), {"m": ModelConfig(id="m", tokenizer_path="t", circuit_breaker=breaker)})


def test_a_worker_is_what_was_told() -> None:
    one = mirror()
    one.update(state(5, dp_size=3, mode=WorkerMode.DECODE, health=HealthState.STARTING))
    worker = one.worker(5)
    assert worker is not None
    assert worker is one.registry.get("http://a:1")
    assert one.generation(worker) == 5
    assert (len(worker.targets), worker.mode, worker.health) == (3, WorkerMode.DECODE, HealthState.STARTING)
    assert (worker.breaker.threshold, worker.breaker.cool_down_secs) == (7, 3.0)
    one.update(state(5, dp_size=3, mode=WorkerMode.DECODE))
    assert one.worker(5) is worker
    assert worker.health is HealthState.HEALTHY


def test_another_generation_is_another_worker() -> None:
    one = mirror()
    one.update(state(5))
    old = one.worker(5)
    assert old is not None
    one.update(state(6))
    assert old.removed
    assert one.worker(5) is None
    assert one.generation(old) is None
    assert one.worker(6) is one.registry.get("http://a:1") is not None
    one.gone(5)
    assert len(one.registry) == 1
    one.gone(6)
    assert len(one.registry) == 0


def test_a_new_routing_process_keeps_who_is_the_same() -> None:
    one = mirror()
    one.replace([state(5), state(6, "http://b:1"), state(7, "http://c:1")])
    a, b, c = (one.worker(generation) for generation in (5, 6, 7))
    assert a is not None and b is not None and c is not None
    one.replace([state(1), state(2, "http://b:1", started_at=2.0)])
    assert one.worker(1) is a
    assert not a.removed
    assert b.removed, "another process listens there now"
    assert one.worker(2) is not b
    assert c.removed
    assert [one.generation(worker) for worker in (a, b, c)] == [1, None, None]
