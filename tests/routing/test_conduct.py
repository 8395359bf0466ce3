"""What ends of requests say of workers, by way of leases: who gets requests afterwards, and whose circuit opens."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from sgl_router.config import ModelConfig, PolicyName, QueueConfig
from sgl_router.kv_events import KvIndex
from sgl_router.load import ActiveLoad
from sgl_router.observability import Metrics
from sgl_router.outcome import Outcome
from sgl_router.placement import Unmatched
from sgl_router.policies import make_policy
from sgl_router.prompt import Prompt
from sgl_router.routing import LocalRouting, RouteRequest
from sgl_router.routing.local_lease import LocalLease
from sgl_router.workers import BreakerState, CircuitBreaker, HealthState, Worker, WorkerInfo, WorkerRegistry

REFUSED, CLIENT, FAILED = Outcome.BACK_PRESSURE, Outcome.CLIENT_ERROR, Outcome.WORKER_ERROR
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


class Scene:
    """Four workers of one model, and a clock that only the test moves."""

    def __init__(
        self,
        policy: PolicyName = PolicyName.CACHE_AWARE_ZMQ,
        workers: int = 4,
        *,
        dp_size: int = 1,
        queue: bool = False,
    ) -> None:
        self.now = 0.0
        costed = {"m": 8_000.0} if policy is PolicyName.KV_COST else None
        self.registry, load, index = WorkerRegistry(), ActiveLoad(costed, clock=self.clock), KvIndex()
        self.registry.add_listener(load)
        config = ModelConfig(id="m", tokenizer_path="unused", policy=policy, queue=QueueConfig(enabled=queue))
        self.routing = LocalRouting(
            self.registry,
            index,
            load,
            {"m": make_policy(config, random.Random(1))},
            Metrics(self.registry, index),
            queues={"m": config.queue} if queue else None,
            clock=self.clock,
            rng=random.Random(2),
        )
        info = WorkerInfo(served_model_name="m", dp_size=dp_size)
        self.workers = [
            Worker(f"http://w{number}:1", info, breaker=CircuitBreaker(3, 30.0), health=HealthState.HEALTHY)
            for number in range(workers)
        ]
        for worker in self.workers:
            self.registry.add(worker)

    def clock(self) -> float:
        return self.now

    async def lease(self, *only: int, fingerprint: int | None = None, unmatched: Unmatched | None = None) -> LocalLease:
        """On one of the workers `only`, by number; on any where none is named."""
        others = {worker for number, worker in enumerate(self.workers) if only and number not in only}
        request = RouteRequest(model_id="m", fingerprint=fingerprint, unmatched=unmatched)
        lease = await self.routing.choose(request, others)
        assert lease is not None
        return lease

    async def send(self, outcome: Outcome, *only: int, status: int = 0, **ask: Any) -> None:
        lease = await self.lease(*only, **ask)
        status = status or {REFUSED: 503, CLIENT: 400, FAILED: 500}.get(outcome, 200)
        lease.first_byte(status)
        lease.end(outcome, status=status)

    async def taken(self, requests: int = 40) -> Counter[int]:
        """How many of so many concurrent requests each worker is given. They end without a word."""
        leases = [await self.lease() for _ in range(requests)]
        for lease in leases:
            lease.end(Outcome.CLIENT_GONE)
        return Counter(self.workers.index(lease.placement.prefill.target.worker) for lease in leases)


async def refused_share(policy: PolicyName, status: int, refusers: int, after_secs: float) -> tuple[int, int]:
    """Requests refused, and all: 50 a second for 6 s. Refusers answer `after_secs` after the request, others 1 s."""
    scene = Scene(policy)
    outcome = REFUSED if status in (200, 429, 503) else CLIENT
    due: list[tuple[float, int, LocalLease | None]] = [(number / 50, number, None) for number in range(300)]
    refused, number = 0, 300
    while due:
        scene.now, _, lease = heapq.heappop(due)
        if lease is None:
            lease = await scene.lease()
            number += 1
            refuses = scene.workers.index(lease.placement.prefill.target.worker) < refusers
            heapq.heappush(due, (scene.now + (after_secs if refuses else 1.0), number, lease))
        elif scene.workers.index(lease.placement.prefill.target.worker) < refusers:
            refused += 1
            if status != 200:  # else an event in a stream, which is no good byte
                lease.first_byte(status)
            lease.end(outcome, status=status)
        else:
            lease.first_byte(200)
            lease.end(Outcome.COMPLETED, status=200)
    return refused, 300


@pytest.mark.parametrize("policy", list(PolicyName))
@pytest.mark.parametrize(
    ("status", "refusers", "after_secs", "most"),
    [
        (503, 1, 0.0, 7),
        (429, 1, 0.0, 7),
        (200, 1, 0.0, 7),  # an error event inside a 200
        (503, 1, 0.05, 9),
        (503, 2, 0.0, 14),
        (401, 1, 0.0, 9),
        (404, 1, 0.05, 11),
        (404, 2, 0.0, 18),
        (400, 1, 0.0, 14),
    ],
)
async def test_a_worker_that_refuses_gets_one_probe_for_each_back_off(
    policy: PolicyName, status: int, refusers: int, after_secs: float, most: int
) -> None:
    """Before there were back-offs: 282 of 300 with cache_aware_zmq and kv_cost, 154 with power_of_two."""
    refused, sent = await refused_share(policy, status, refusers, after_secs)
    assert refused <= most
    assert sent == 300


@pytest.mark.parametrize("policy", list(PolicyName))
async def test_where_all_refuse_every_request_still_goes_to_a_worker(policy: PolicyName) -> None:
    scene = Scene(policy)
    for number in range(100):
        scene.now = number / 50
        lease = await scene.lease()
        lease.end(REFUSED, status=429, retry_after_secs=30.0)
    assert all(worker.stats.requests for worker in scene.workers), "not one of them alone"
    await scene.send(Outcome.COMPLETED)
    assert len(await scene.taken()) == 1, "the first to take one gets the next"


async def test_retry_after_of_a_refusal_is_heeded() -> None:
    scene = Scene()
    lease = await scene.lease(0)
    lease.end(REFUSED, status=503, retry_after_secs=20.0)
    scene.now = 19.9
    assert set(await scene.taken()) == {1, 2, 3}
    scene.now = 20.0
    assert (await scene.taken())[0] == 1, "one at a time"


async def test_a_backed_off_target_is_used_where_the_others_were_tried_or_are_open() -> None:
    scene = Scene(workers=3)
    await scene.send(REFUSED, 0)
    lease = await scene.lease(0)  # as if the others could not be connected to
    assert lease.placement.prefill.target.worker is scene.workers[0]
    lease.end(Outcome.CLIENT_GONE)
    for _ in range(3):
        await scene.send(Outcome.UNREACHABLE, 1)
        await scene.send(Outcome.UNREACHABLE, 2)
    assert set(await scene.taken()) == {0}


async def test_many_in_flight_at_the_first_refusal_are_one_back_off() -> None:
    scene = Scene()
    leases = [await scene.lease(0) for _ in range(100)]
    for lease in leases:
        lease.end(REFUSED, status=503)
    scene.now = 0.31
    assert 0 in await scene.taken()


async def test_a_refusal_of_one_rank_is_the_ranks_and_a_wrong_key_the_workers() -> None:
    scene = Scene(workers=2, dp_size=2)
    lease = await scene.lease(0)
    rank = lease.placement.prefill.target
    lease.end(REFUSED, status=503)
    left = {(target.worker, target.dp_rank) for target in scene.registry.candidates("m", scene.now)}
    assert len(left) == 3 and (rank.worker, rank.dp_rank) not in left
    for _ in range(3):
        await scene.send(CLIENT, 1, status=401)
    assert {target.worker for target in scene.registry.candidates("m", scene.now)} == {scene.workers[0]}


async def test_a_new_incarnation_inherits_no_back_off() -> None:
    scene = Scene(workers=2)
    for _ in range(3):
        await scene.send(REFUSED, 0)
        await scene.send(CLIENT, 0, status=401)
    old = scene.workers[0]
    scene.registry.remove(old.url)
    scene.workers[0] = Worker(old.url, old.info, health=HealthState.HEALTHY)
    scene.registry.add(scene.workers[0])
    assert 0 in await scene.taken()


async def test_a_clients_mistakes_are_forgiven_where_a_worker_that_makes_them_answers_others_well() -> None:
    scene = Scene()
    for _ in range(3):
        await scene.send(CLIENT, 0, status=401)
    assert 0 not in await scene.taken()
    for _ in range(2):
        await scene.send(CLIENT, 1, status=401)
    await scene.send(Outcome.COMPLETED, 1)
    assert set(await scene.taken()) == {0, 1, 2, 3}


async def test_mistakes_that_the_router_sees_too_are_held_against_no_worker() -> None:
    scene = Scene()
    for _ in range(20):
        await scene.send(CLIENT, 0, status=400, unmatched=Unmatched.INVALID_MESSAGES)
    assert 0 in await scene.taken()


@pytest.mark.parametrize("status", [429, 503])
async def test_the_queue_hands_nothing_to_a_backed_off_target_and_does_not_hang(status: int) -> None:
    scene = Scene(PolicyName.KV_COST, workers=2, queue=True)

    def choosing() -> asyncio.Task[LocalLease | None]:
        prompt = Prompt(np.zeros(160_000, dtype=np.uint32))
        ask = RouteRequest(model_id="m", prompt=prompt, unmatched=Unmatched.NAMESPACE)
        return asyncio.create_task(scene.routing.choose(ask, set()))

    def refuse(lease: LocalLease) -> None:
        lease.end(REFUSED, status=status, retry_after_secs=30.0)

    first = await choosing()
    assert first is not None
    refuse(first)
    busy = await choosing()
    assert busy is not None and busy.placement.prefill.target is not first.placement.prefill.target
    waiting = choosing()
    done, _ = await asyncio.wait((waiting,), timeout=0.05)
    assert not done and len(scene.routing.rooms["m"]) == 1, "the other has room, but is backed off"
    busy.first_byte(200)
    lease = await asyncio.wait_for(waiting, 120)
    assert lease is not None and lease.placement.prefill.target is busy.placement.prefill.target
    refuse(lease)
    for _ in range(4):  # all are backed off: each request goes through and brings its refusal back
        lease = await asyncio.wait_for(choosing(), 120)
        assert lease is not None
        refuse(lease)
    busy.end(Outcome.COMPLETED, status=200)


# --- breakers ---------------------------------------------------------------------------------------------------------


async def test_client_errors_between_failures_do_not_keep_a_circuit_closed() -> None:
    scene = Scene(workers=1)
    for number, outcome in enumerate((FAILED, CLIENT, FAILED, CLIENT, FAILED)):
        assert scene.workers[0].breaker.state is CLOSED
        await scene.send(outcome, fingerprint=number)
    assert scene.workers[0].breaker.state is OPEN


@pytest.mark.parametrize("status", [400, 401, 404, 422])
async def test_a_client_error_gives_the_half_open_place_back(status: int) -> None:
    scene = Scene(workers=1)
    for number in range(3):
        await scene.send(FAILED, fingerprint=number)
    scene.now = 30.0
    for _ in range(5):
        await scene.send(CLIENT, status=status)
        assert scene.workers[0].breaker.state is HALF_OPEN and scene.workers[0].breaker.would_allow(scene.now)
    await scene.send(Outcome.COMPLETED)
    assert scene.workers[0].breaker.state is CLOSED


@pytest.mark.parametrize("outcome", [FAILED, Outcome.ERROR_EVENT, Outcome.EMPTY, Outcome.INCOMPLETE, Outcome.TIMEOUT])
async def test_one_request_sent_again_and_again_opens_no_circuit(outcome: Outcome) -> None:
    scene = Scene()
    for step in range(60):
        scene.now = step / 4
        await scene.send(outcome, fingerprint=77)
    assert [worker.breaker.state for worker in scene.workers] == [CLOSED] * 4
    assert sum(worker.breaker.failures for worker in scene.workers) == 1
    assert len(await scene.taken()) == 4, "nor does it keep anyone from requests for long"


async def test_failures_to_connect_are_no_requests_fault() -> None:
    scene = Scene()
    for _ in range(3):
        await scene.send(Outcome.UNREACHABLE, 0, fingerprint=77)
    assert scene.workers[0].breaker.state is OPEN


async def test_a_worker_that_fails_at_what_succeeds_elsewhere_is_found_out() -> None:
    """Traffic of one and the same request, as of a monitor: the second failure sends it to another worker."""
    scene = Scene()
    broken = scene.workers[0]
    for _ in range(2):
        await scene.send(FAILED, 0, fingerprint=77)
    assert broken.breaker.failures == 1 and 0 not in await scene.taken()
    await scene.send(Outcome.COMPLETED, fingerprint=77)
    for _ in range(2):
        await scene.send(FAILED, 0, fingerprint=77)
    assert broken.breaker.state is OPEN


@pytest.mark.parametrize("unmatched", [Unmatched.TEMPLATE_ERROR, Unmatched.INVALID_MESSAGES])
@pytest.mark.parametrize("outcome", [FAILED, Outcome.ERROR_EVENT])
async def test_a_5xx_to_what_the_router_cannot_render_is_no_failure(unmatched: Unmatched, outcome: Outcome) -> None:
    scene = Scene(workers=1)
    for number in range(10):
        await scene.send(outcome, fingerprint=number, unmatched=unmatched)
    breaker = scene.workers[0].breaker
    assert (breaker.state, breaker.failures) == (CLOSED, 0)
    for number in range(3):  # but one that dies of it is gone all the same
        await scene.send(Outcome.INCOMPLETE, fingerprint=number, unmatched=unmatched)
    assert breaker.state is OPEN


async def test_of_a_request_that_was_not_rendered_the_end_can_say_that_it_could_not_be() -> None:
    scene = Scene(PolicyName.ROUND_ROBIN, workers=1)
    for number in range(5):
        lease = await scene.lease(fingerprint=number)
        lease.end(FAILED, status=500, unrenderable=True)
    assert scene.workers[0].breaker.failures == 0


async def test_a_half_open_circuit_is_not_held_open_by_a_proven_request_nor_closed_by_a_repeated_one() -> None:
    scene = Scene()
    for worker in (1, 2, 3):
        await scene.send(FAILED, worker, fingerprint=77)
    for number in range(3):
        await scene.send(FAILED, 0, fingerprint=number)
    scene.now = 30.0
    await scene.send(FAILED, 0, fingerprint=77)
    assert scene.workers[0].breaker.state is HALF_OPEN, "the request is known to fail everywhere"
    await scene.send(FAILED, 0, fingerprint=0)
    assert scene.workers[0].breaker.state is OPEN
