"""Workers that refuse, requests that are at fault themselves, and a worker too busy to answer probes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sgl_router.lab.mock_worker.faults import FaultScope
from sgl_router.workers import BreakerState

NULL_TOOLS = {"chat_template_kwargs": {"tools": None}}


async def test_what_a_worker_refuses_reaches_the_client_as_it_is_and_the_next_goes_elsewhere(rig: Any) -> None:
    fleet = await rig(workers=2)
    for worker in fleet.workers:
        worker.faults.status(503, times=1, retry_after="40", message="queue full")
    for _ in range(2):
        answer = await fleet.ask()
        assert (answer.status, answer.headers["retry-after"]) == (503, "40")
        assert b"queue full" in answer.body and "x-router-error-code" not in answer.headers
    workers = [fleet.worker(number) for number in range(2)]
    assert [worker.stats.requests for worker in workers] == [{"back_pressure": 1}] * 2
    assert (await fleet.ask()).status == 200, "backed off, but no other is left"
    [free] = [worker for worker in workers if not worker.backed_off]
    [held] = [worker for worker in workers if worker.backed_off]
    for _ in range(6):
        assert (await fleet.ask()).worker == free.id
    listed = (await fleet.get("/workers")).json["workers"]
    shown = {entry["id"]: entry["ranks"][0]["backed_off_secs"] for entry in listed}
    assert shown[free.id] is None and 0 < shown[held.id] <= 40
    metrics = (await fleet.get("/metrics")).body.decode()
    assert f'sgl_router_worker_backed_off{{dp_rank="0",worker_url="{held.url}"}} 1.0' in metrics
    assert f'sgl_router_worker_backed_off{{dp_rank="0",worker_url="{free.url}"}} 0.0' in metrics
    body = {"model": "mock-model", "messages": [{"role": "user", "content": "x"}]}
    told = (await fleet.post("/internal/explain", json=body)).json
    assert told["excluded"] == [{"worker": held.id, "why": "backed off"}]


@pytest.mark.parametrize("status", [401, 404])
async def test_a_worker_with_another_key_or_model_is_found_out(rig: Any, status: int) -> None:
    fleet = await rig(workers=3)
    fleet.workers[0].faults.status(status, message="not here")
    answers = [await fleet.ask(f"request {number}") for number in range(30)]
    refused = [answer for answer in answers if answer.status == status]
    assert 3 <= len(refused) <= 8, "three, and one for each back-off"
    assert fleet.worker(0).breaker.failures == 0


async def test_where_every_worker_answers_401_it_is_the_clients_key(rig: Any) -> None:
    fleet = await rig(workers=2)
    for worker in fleet.workers:
        worker.faults.status(401)
    for number in range(20):
        assert (await fleet.ask(f"request {number}")).status == 401
    assert [fleet.worker(number).breaker.state for number in range(2)] == [BreakerState.CLOSED] * 2
    assert sum(fleet.worker(number).backed_off for number in range(2)) <= 1, "no other is left then"


@pytest.mark.parametrize("policy", ["cache_aware_zmq", "kv_cost", "round_robin"])
async def test_a_field_that_no_template_takes_opens_no_circuit(rig: Any, policy: str) -> None:
    fleet = await rig(model={"policy": policy})
    fleet.workers[0].faults.status(500, times=6)
    for number in range(6):
        assert (await fleet.ask(f"request {number}", **NULL_TOOLS)).status == 500
    breaker = fleet.worker(0).breaker
    assert (breaker.state, breaker.failures) == (BreakerState.CLOSED, 0)
    assert (await fleet.ask()).status == 200


async def test_different_requests_that_fail_open_the_circuit_and_one_that_is_repeated_does_not(rig: Any) -> None:
    fleet = await rig()
    fleet.workers[0].faults.status(500)
    for _ in range(6):
        assert (await fleet.ask("the same")).status == 500
    assert fleet.worker(0).breaker.failures == 1
    for number in range(2):
        await fleet.ask(f"another, number {number}")
    assert fleet.worker(0).breaker.state is BreakerState.OPEN


@pytest.mark.parametrize("policy", ["cache_aware_zmq", "random"])
@pytest.mark.parametrize(
    ("ids", "param"),
    [([4_000_000_000], "input_ids[0]"), ([1, -1], "input_ids[1]"), ([True], "input_ids[0]"), ("1", "input_ids")],
)
async def test_ids_that_are_none_of_the_models_reach_no_worker(rig: Any, policy: str, ids: Any, param: str) -> None:
    fleet = await rig(model={"policy": policy})
    messages = [{"role": "user", "content": "x"}]
    body = {"model": "mock-model", "messages": messages, "input_ids": ids}
    for path in ("/v1/chat/completions", "/internal/explain", "/v1/tokenize"):
        answer = await fleet.post(path, json=body)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "bad_request", param)
        assert param in answer.error["message"]
    assert fleet.worker(0).stats.requests == {}
    answer = await fleet.post("/v1/detokenize", json={"model": "mock-model", "tokens": ids})
    assert answer.status == 400 and answer.error["param"].startswith("tokens")
    assert (await fleet.ask(input_ids=[1, 2, 3])).status == 200


async def test_a_worker_whose_streams_flow_stays_in_service_and_a_busy_one_is_used_before_503(rig: Any) -> None:
    health = {"interval_secs": 0.05, "timeout_secs": 0.2, "failure_threshold": 2}
    fleet = await rig(worker={"speed": 1.0}, health=health)
    worker = fleet.worker(0)
    supervisor = fleet.services.manager._supervisors[worker.url]
    stream = asyncio.create_task(fleet.ask("tell", stream=True, max_tokens=4_000, ignore_eos=True))
    await fleet.until(lambda: worker.heard, "the stream has begun")
    fleet.workers[0].faults.hang(scope=FaultScope.PROBE)
    await fleet.until(lambda: supervisor._excused_probes >= 4, "probes stall")
    assert worker.health.value == "healthy"
    assert (await fleet.ask(max_tokens=1)).status == 200
    stream.cancel()
    await asyncio.gather(stream, return_exceptions=True)
    await fleet.until(lambda: worker.health.value == "unhealthy", "neither probes nor bytes")
    assert (await fleet.get("/readyz")).status == 200
    assert (await fleet.ask(max_tokens=1)).status == 200
    fleet.workers[0].refuse()
    await fleet.until(lambda: not worker.serves(supervisor._clock()), "dead, not busy")
    answer = await fleet.ask()
    assert (answer.status, answer.error["code"]) == (503, "no_healthy_workers")
