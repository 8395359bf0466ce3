"""The door for scripts that run a worker in another process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from sgl_router.lab.mock_worker import MockWorker

StartWorker = Callable[..., Awaitable[MockWorker]]
CHAT = {"messages": [{"role": "user", "content": "Tell me a story about a small boat. " * 10}], "max_tokens": 4}


async def call(
    http: aiohttp.ClientSession, worker: MockWorker, method: str, path: str, body: Any = None
) -> tuple[int, Any]:
    async with http.request(method, worker.url + path, json=body) as response:
        return response.status, await response.json()


async def chat(http: aiohttp.ClientSession, worker: MockWorker) -> int:
    return (await call(http, worker, "POST", "/v1/chat/completions", CHAT))[0]


async def test_faults_are_added_listed_and_cleared(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    status, added = await call(http, worker, "POST", "/mock/faults", {"kind": "status", "status": 429, "times": 5})
    assert (status, added["status"]) == (200, 429)
    assert await chat(http, worker) == 429
    _, listed = await call(http, worker, "GET", "/mock/faults")
    assert [fault["kind"] for fault in listed["faults"]] == ["status"]
    await call(http, worker, "DELETE", "/mock/faults")
    assert await chat(http, worker) == 200


@pytest.mark.parametrize("body", [{"kind": "explode"}, {}, {"kind": "hang", "colour": "red"}, []])
async def test_unknown_faults_are_refused(body: Any, start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    assert (await call(http, worker, "POST", "/mock/faults", body))[0] == 400


async def test_the_door_stays_open_while_everything_hangs(
    start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker()
    await call(http, worker, "POST", "/mock/faults", {"kind": "hang", "scope": "all"})
    hanging = asyncio.ensure_future(chat(http, worker))
    await worker.log.wait_for(lambda log: log.total == 1)
    await call(http, worker, "DELETE", "/mock/faults")
    assert await hanging == 200


async def test_event_faults(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(dp_size=2)
    assert (await call(http, worker, "POST", "/mock/events", {"dp_rank": 1, "drop": 2, "paused": True}))[0] == 200
    assert worker.publishers[1].faults.drop == 2
    assert worker.publishers[1].faults.paused
    assert worker.publishers[0].faults.drop == 0
    await call(http, worker, "POST", "/mock/events", {"dp_rank": 1, "paused": False})
    assert not worker.publishers[1].faults.paused
    for bad in ({"dp_rank": 2}, {"lose": 1}, {"drop": "x"}):
        assert (await call(http, worker, "POST", "/mock/events", bad))[0] == 400
    await call(http, worker, "DELETE", "/mock/faults")
    assert worker.publishers[1].faults.drop == 0


async def test_state_counts(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    await chat(http, worker)
    await worker.idle()
    _, state = await call(http, worker, "GET", "/mock/state")
    assert state["outcomes"]["completed"] == 1
    assert state["ranks"][0]["cached_tokens"] == worker.cache.device_tokens > 0
    assert state["ranks"][0]["next_sequence"] == worker.publishers[0].next_sequence
    assert state["incarnation"] == 1


async def test_refusing_for_a_while(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    await call(http, worker, "POST", "/mock/refuse", {"secs": 0.05})
    refused = False
    for _ in range(500):
        try:
            if await chat(http, worker) == 200 and refused:
                break
        except aiohttp.ClientError:
            refused = True
        await asyncio.sleep(0.005)
    assert refused
    assert await chat(http, worker) == 200


async def test_restarting(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    assert (await call(http, worker, "POST", "/mock/restart"))[0] == 200
    for _ in range(500):
        if worker.incarnation == 2 and worker.ready:
            break
        await asyncio.sleep(0.005)
    assert worker.incarnation == 2


async def test_the_door_asks_for_the_key(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(api_key="secret")
    assert (await call(http, worker, "GET", "/mock/state"))[0] == 401
