"""What clients see, and what breakers and load guards do, when things go wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import aiohttp
import pytest

from sgl_router.workers import BreakerState


def events(body: bytes) -> list[object]:
    """The data of each server-sent event; `[DONE]` as it is."""
    found: list[object] = []
    for line in body.decode().splitlines():
        if line.startswith("data: "):
            found.append(line[6:] if line == "data: [DONE]" else json.loads(line[6:]))
    return found


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_an_unplugged_worker_gives_502_until_its_breaker_opens(rig) -> None:
    fleet = await rig(models=[model(threshold=3, cool_down_secs=60)], health={"interval_secs": 60})
    fleet.workers[0].refuse()
    for _ in range(3):
        answer = await fleet.ask()
        assert answer.status == 502
        assert answer.headers["x-router-error-code"] == "upstream_unreachable"
        assert answer.error["code"] == "upstream_unreachable"
    assert fleet.worker(0).breaker.state is BreakerState.OPEN
    answer = await fleet.ask()
    assert (answer.status, answer.error["code"]) == (503, "no_healthy_workers")
    assert str(fleet.workers[0].port) not in answer.body.decode()
    assert fleet.idle_load()


async def test_a_request_that_cannot_connect_goes_to_the_next_worker(rig) -> None:
    fleet = await rig(workers=2, health={"interval_secs": 60})
    fleet.workers[0].refuse()
    for _ in range(6):
        answer = await fleet.ask()
        assert answer.status == 200
        assert answer.worker == fleet.worker(1).id
    assert fleet.worker(0).stats.requests == {"unreachable": 3}
    assert fleet.worker(0).breaker.state is BreakerState.OPEN
    assert fleet.idle_load()


async def test_a_healed_worker_is_probed_once_and_closes_its_breaker(rig) -> None:
    fleet = await rig(models=[model(threshold=1, cool_down_secs=0.05)], health={"interval_secs": 60})
    fleet.workers[0].refuse()
    assert (await fleet.ask()).status == 502
    assert fleet.worker(0).breaker.state is BreakerState.OPEN
    await fleet.workers[0].accept()
    breaker = fleet.worker(0).breaker
    await fleet.until(lambda: breaker.would_allow(time.monotonic()), "the cool-down is over")
    assert (await fleet.ask()).status == 200
    assert fleet.worker(0).breaker.state is BreakerState.CLOSED


async def test_an_unhealthy_worker_is_not_asked(rig) -> None:
    fleet = await rig(workers=2, health={"interval_secs": 0.05, "timeout_secs": 0.5, "failure_threshold": 2})
    fleet.workers[0].refuse()
    await fleet.until(lambda: fleet.worker(0).health.value == "unhealthy", "the health check notices")
    for _ in range(4):
        assert (await fleet.ask()).worker == fleet.worker(1).id
    assert fleet.worker(0).stats.requests == {}
    await fleet.workers[0].accept()
    await fleet.until(lambda: fleet.worker(0) is not None and fleet.worker(0).health.value == "healthy", "it recovers")


async def test_a_connection_reset_before_the_answer_is_502(rig) -> None:
    fleet = await rig()
    fleet.workers[0].faults.reset(times=2)  # the second for the one retry on a fresh connection
    answer = await fleet.ask()
    assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
    assert fleet.worker(0).breaker.failures == 1
    assert fleet.idle_load()


async def test_a_kept_connection_that_the_worker_closed_is_replaced_once(rig) -> None:
    fleet = await rig()
    assert (await fleet.ask()).status == 200
    fleet.workers[0].reset_connections()
    assert (await fleet.ask()).status == 200
    assert fleet.worker(0).breaker.failures == 0


async def test_a_stream_that_dies_ends_with_an_error_event(rig) -> None:
    fleet = await rig()
    fleet.workers[0].faults.reset(after_chunks=3, times=1)
    answer = await fleet.ask(stream=True, max_tokens=20)
    assert answer.status == 200
    seen = events(answer.body)
    assert seen[-1]["error"]["code"] == "upstream_body_incomplete"
    assert "[DONE]" not in seen
    assert fleet.worker(0).breaker.failures == 1
    assert fleet.worker(0).stats.requests == {"incomplete": 1}
    assert fleet.idle_load()


async def test_streams_that_always_die_open_the_breaker(rig) -> None:
    fleet = await rig(models=[model(threshold=2)])
    fleet.workers[0].faults.reset(after_chunks=2)
    for content in ("one", "another"):
        await fleet.ask(content, stream=True, max_tokens=20)
    assert fleet.worker(0).breaker.state is BreakerState.OPEN


async def test_a_truncated_body_is_502(rig) -> None:
    fleet = await rig()
    fleet.workers[0].faults.truncate(times=1)
    answer = await fleet.ask()
    assert (answer.status, answer.error["code"]) == (502, "upstream_body_incomplete")
    assert fleet.worker(0).breaker.failures == 1


async def test_no_answer_in_time_is_504(rig) -> None:
    fleet = await rig(proxy={"request_timeout_secs": 0.15})
    fleet.workers[0].faults.hang(times=1)
    answer = await fleet.ask()
    assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
    assert fleet.worker(0).breaker.failures == 1
    assert fleet.idle_load()


async def test_a_silent_stream_is_ended(rig) -> None:
    fleet = await rig(proxy={"stream_idle_timeout_secs": 0.15})
    fleet.workers[0].faults.hang_stream(after_chunks=2, times=1)
    answer = await fleet.ask(stream=True, max_tokens=20)
    assert answer.status == 200
    assert events(answer.body)[-1]["error"]["code"] == "upstream_timeout"
    assert fleet.worker(0).stats.requests == {"timeout": 1}
    assert fleet.idle_load()


async def test_a_stale_request_is_504_before_its_headers(rig) -> None:
    fleet = await rig(active_load={"stale_request_timeout_secs": 0.2})
    fleet.workers[0].faults.hang(times=1)
    answer = await fleet.ask()
    assert (answer.status, answer.error["code"]) == (504, "stale_request_expired")
    assert 'sgl_router_stale_requests_total{outcome="answered_504"} 1.0' in (await fleet.get("/metrics")).body.decode()
    assert fleet.idle_load()


async def test_a_stale_stream_is_closed_with_an_event(rig) -> None:
    fleet = await rig(active_load={"stale_request_timeout_secs": 0.2})
    fleet.workers[0].faults.hang_stream(after_chunks=2, times=1)
    answer = await fleet.ask(stream=True, max_tokens=20)
    assert answer.status == 200
    assert events(answer.body)[-1]["error"]["code"] == "stale_request_expired"
    assert fleet.worker(0).stats.requests == {"expired": 1}
    assert fleet.idle_load()


@pytest.mark.parametrize(
    ("status", "failures", "outcome"),
    [(429, 0, "back_pressure"), (503, 0, "back_pressure"), (500, 1, "worker_error")],
)
async def test_a_workers_status_passes_through(rig, status: int, failures: int, outcome: str) -> None:
    fleet = await rig()
    retry_after = "7" if status == 429 else None
    fleet.workers[0].faults.status(status, times=1, retry_after=retry_after, message="engine says no")
    answer = await fleet.ask()
    assert answer.status == status
    assert b"engine says no" in answer.body
    assert answer.headers.get("retry-after") == ("7" if status == 429 else None)
    assert "x-router-error-code" not in answer.headers
    assert fleet.worker(0).breaker.failures == failures
    assert fleet.worker(0).stats.requests == {outcome: 1}


async def test_a_4xx_of_the_worker_passes_through_and_is_no_failure(rig) -> None:
    fleet = await rig()
    answer = await fleet.ask(max_tokens=-5)
    assert answer.status == 400
    assert answer.json["object"] == "error"
    assert fleet.worker(0).breaker.failures == 0
    assert fleet.worker(0).stats.requests == {"client_error": 1}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_closes_the_workers_connection_at_once(rig, stream: bool) -> None:
    fleet = await rig()
    worker = fleet.workers[0]
    (worker.stream_gate if stream else worker.gate).close()
    async with aiohttp.ClientSession() as session:
        task = asyncio.create_task(_ask_raw(session, fleet.url, stream))
        await (worker.stream_gate if stream else worker.gate).arrived(1)
        assert len(fleet.services.load) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await fleet.until(fleet.idle_load, "the load is released")
    assert fleet.worker(0).stats.requests == {"client_gone": 1}
    assert fleet.worker(0).breaker.failures == 0
    (worker.stream_gate if stream else worker.gate).open()
    await fleet.until(lambda: worker.log.last.outcome.value == "aborted", "the worker saw its client gone")


async def _ask_raw(session: aiohttp.ClientSession, url: str, stream: bool) -> None:
    body = {"model": "mock-model", "messages": [{"role": "user", "content": "x"}], "stream": stream, "max_tokens": 50}
    async with session.post(url + "/v1/chat/completions", json=body) as response:
        await response.read()


async def test_worker_errors_never_name_the_worker(rig) -> None:
    fleet = await rig(models=[model(threshold=9)], health={"interval_secs": 60})
    fleet.workers[0].refuse()
    answer = await fleet.ask()
    text = answer.body.decode() + str(answer.headers)
    assert str(fleet.workers[0].port) not in text
    assert "Traceback" not in text


async def test_a_worker_that_restarts_is_another_one(rig) -> None:
    fleet = await rig(health={"interval_secs": 0.05, "timeout_secs": 0.5})
    prompt = "a prefix worth remembering, long enough for some pages " * 4
    await fleet.ask(prompt)
    await fleet.settled()
    assert (await fleet.ask(prompt)).decision["reason"] == "cache_hit"
    before = fleet.worker(0)
    await fleet.workers[0].restart_in_place()
    await fleet.until(
        lambda: fleet.worker(0) is not None and fleet.worker(0).generation > before.generation, "re-registered"
    )
    await fleet.ready()
    assert (await fleet.ask(prompt)).decision["reason"] == "no_match"
    assert before.removed


async def test_a_worker_still_booting_is_waited_for(rig) -> None:
    port = unused_port()
    fleet = await rig(workers=0, urls=[f"http://127.0.0.1:{port}"], wait=False)
    answer = await fleet.get("/readyz")
    assert answer.status == 503
    assert "no worker registered" in answer.json["reasons"][0]
    assert (await fleet.ask()).error["code"] == "no_healthy_workers"
    from sgl_router.lab.mock_worker import MockWorker, MockWorkerConfig

    async with MockWorker(MockWorkerConfig(model_id="mock-model", port=port)):
        await fleet.until(lambda: not fleet.services.unready(), "the worker is found")
        assert (await fleet.ask()).status == 200


def model(**breaker: float) -> dict[str, object]:
    from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH

    return {"id": "mock-model", "tokenizer_path": EMBEDDED_TOKENIZER_PATH, "circuit_breaker": breaker}
