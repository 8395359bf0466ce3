"""What the end of a request tells the breaker of its worker."""

from __future__ import annotations

import random
from typing import Any

from sgl_router.config import ModelConfig, PolicyName
from sgl_router.kv_events import KvIndex
from sgl_router.load import ActiveLoad
from sgl_router.observability import Metrics
from sgl_router.outcome import Outcome
from sgl_router.policies import make_policy
from sgl_router.routing import LocalRouting, RouteRequest
from sgl_router.routing.local_lease import LocalLease
from sgl_router.workers import BreakerState, CircuitBreaker, HealthState, Worker, WorkerInfo, WorkerRegistry


class Scene:
    """One worker that is given up after one failure, for 10 s."""

    def __init__(self) -> None:
        self.now = 0.0
        self.breaker = CircuitBreaker(1, 10.0)
        registry, load, index = WorkerRegistry(), ActiveLoad(clock=self.clock), KvIndex()
        registry.add_listener(load)
        config = ModelConfig(id="m", tokenizer_path="unused", policy=PolicyName.ROUND_ROBIN)
        policies = {"m": make_policy(config, random.Random(1))}
        metrics = Metrics(registry, index)
        self.routing = LocalRouting(registry, index, load, policies, metrics, clock=self.clock)
        info = WorkerInfo(served_model_name="m")
        registry.add(Worker("http://a:1", info, breaker=self.breaker, health=HealthState.HEALTHY))

    def clock(self) -> float:
        return self.now

    async def lease(self, at: float) -> LocalLease:
        self.now = at
        lease = await self.routing.choose(RouteRequest(model_id="m"), set())
        assert lease is not None
        return lease

    def end(self, lease: Any, outcome: Outcome, at: float) -> None:
        self.now = at
        lease.end(outcome)


async def test_a_probe_that_breaks_off_after_its_first_byte_is_a_failure() -> None:
    scene = Scene()
    scene.end(await scene.lease(0.0), Outcome.UNREACHABLE, 0.0)
    probe = await scene.lease(10.0)
    probe.first_byte(200)
    assert scene.breaker.state is BreakerState.CLOSED
    scene.end(probe, Outcome.INCOMPLETE, 12.0)
    assert scene.breaker.state is BreakerState.OPEN
    assert not scene.breaker.would_allow(21.9) and scene.breaker.would_allow(22.0)


async def test_a_request_from_before_that_breaks_off_late_takes_no_probe_and_prolongs_nothing() -> None:
    scene = Scene()
    late = await scene.lease(0.0)
    scene.end(await scene.lease(0.0), Outcome.UNREACHABLE, 0.0)
    probe = await scene.lease(10.0)
    late.first_byte(200)  # while the probe is under way
    scene.end(probe, Outcome.UNREACHABLE, 11.0)
    scene.end(late, Outcome.INCOMPLETE, 21.0)
    assert scene.breaker.state is BreakerState.OPEN
    assert scene.breaker.would_allow(21.0), "the cool-down counts from the probe's failure"
