"""Faults as a client meets them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from sgl_router.lab.mock_worker import Fault, FaultKind, Faults, FaultScope, MockWorker, Outcome

StartWorker = Callable[..., Awaitable[MockWorker]]
CHAT = {"messages": [{"role": "user", "content": "Hello, how are you today?"}], "max_tokens": 8}
URL = "/v1/chat/completions"


async def chat(http: aiohttp.ClientSession, worker: MockWorker, **change: Any) -> tuple[int, bytes]:
    async with http.post(worker.url + URL, json={**CHAT, **change}) as response:
        return response.status, await response.read()


@pytest.mark.parametrize("status", [500, 429, 503])
async def test_error_statuses(status: int, start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    worker.faults.status(status, times=1, retry_after="7")
    async with http.post(worker.url + URL, json=CHAT) as response:
        assert response.status == status
        assert response.headers["Retry-After"] == "7"
        assert (await response.json())["code"] == status
    assert worker.log.last.outcome is Outcome.FAULTED
    assert (await chat(http, worker))[0] == 200


async def test_a_refusing_worker_accepts_again_on_the_same_port(
    start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker()
    await chat(http, worker)
    url = worker.url
    worker.refuse()
    with pytest.raises(aiohttp.ClientOSError):  # the pooled connection was reset
        await chat(http, worker)
    with pytest.raises(aiohttp.ClientConnectorError):
        await chat(http, worker)
    await worker.accept()
    await worker.accept()
    assert worker.url == url
    assert (await chat(http, worker))[0] == 200


async def test_a_hanging_worker_answers_when_cleared(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    worker.faults.hang(scope=FaultScope.ALL)
    hanging = [asyncio.ensure_future(chat(http, worker)), asyncio.ensure_future(http.get(worker.url + "/ready"))]
    await worker.log.wait_for(lambda log: log.total == 1)
    _, pending = await asyncio.wait(hanging, timeout=0.05)
    assert len(pending) == 2
    worker.faults.clear()
    answer, ready = await asyncio.gather(*hanging)
    assert isinstance(answer, tuple)
    assert answer[0] == 200
    assert not isinstance(ready, tuple)
    assert ready.status == 200


async def test_probes_can_fail_while_generation_works(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    worker.faults.status(500, scope=FaultScope.PROBE)
    async with http.get(worker.url + "/ready") as response:
        assert response.status == 500
    assert (await chat(http, worker))[0] == 200


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_reset_before_the_headers(
    streaming: bool, start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker()
    worker.faults.reset(times=1)
    with pytest.raises(aiohttp.ClientError):
        await chat(http, worker, stream=streaming)
    assert worker.log.last.outcome is Outcome.FAULTED
    assert (await chat(http, worker))[0] == 200


@pytest.mark.parametrize("fault", ["reset", "truncate"])
async def test_a_stream_that_dies_after_some_events(
    fault: str, start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker()
    getattr(worker.faults, fault)(after_chunks=3)
    async with http.post(worker.url + URL, json={**CHAT, "stream": True}) as response:
        assert response.status == 200
        received = b""
        with pytest.raises((aiohttp.ClientError, ConnectionResetError)):
            async for piece in response.content.iter_any():
                received += piece
    # A reset may discard what was still on its way.
    assert received.count(b"data: ") == 3 if fault == "truncate" else received.count(b"data: ") <= 3
    assert b"[DONE]" not in received
    assert worker.log.last.outcome is Outcome.FAULTED
    await worker.idle()


async def test_a_body_shorter_than_promised(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    worker.faults.truncate()
    async with http.post(worker.url + URL, json=CHAT) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_a_stream_that_falls_silent(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    worker.faults.hang_stream(after_chunks=2)
    async with http.post(worker.url + URL, json={**CHAT, "stream": True}) as response:
        for _ in range(2):
            await response.content.readuntil(b"\n\n")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(response.content.readany(), 0.05)
        worker.faults.clear()
        assert (await response.content.read()).endswith(b"[DONE]\n\n")


async def test_idle_connections_are_closed_early(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(keep_alive_secs=0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    writer.write(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    assert await asyncio.wait_for(reader.read(), 120) == b""
    writer.close()


async def test_a_slow_first_byte(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    worker.faults.slow_first_byte(0.05)
    begun = asyncio.get_running_loop().time()
    assert (await chat(http, worker))[0] == 200
    assert asyncio.get_running_loop().time() - begun >= 0.05


async def test_resetting_connections_spares_the_listener(
    start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker()
    worker.gate.close()
    lost = asyncio.ensure_future(chat(http, worker))
    await worker.gate.arrived()
    worker.reset_connections()
    with pytest.raises(aiohttp.ClientError):
        await lost
    worker.gate.open()
    assert (await chat(http, worker))[0] == 200


def test_faults_are_used_up_in_order() -> None:
    faults = Faults()
    faults.status(500, times=2)
    faults.reset(scope=FaultScope.ALL, times=1)
    faults.hang(scope=FaultScope.PROBE)
    taken = [faults.take(FaultScope.GENERATE) for _ in range(4)]
    assert [fault and fault.kind for fault in taken] == [
        FaultKind.STATUS,
        FaultKind.STATUS,
        FaultKind.RESET,
        None,
    ]
    assert faults.active() == [Fault(kind=FaultKind.HANG, scope=FaultScope.PROBE)]
    assert all(faults.take(FaultScope.PROBE) for _ in range(5))
    faults.clear()
    assert faults.take(FaultScope.PROBE) is None
