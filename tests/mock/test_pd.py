"""Prefill and decode workers: what a router must send, and what it gets when it does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from sgl_router.lab.mock_worker import MockWorker, Role

StartWorker = Callable[..., Awaitable[MockWorker]]
CHAT = {
    "messages": [{"role": "user", "content": "Explain how the following function works, step by step. " * 8}],
    "max_tokens": 12,
}
URL = "/v1/chat/completions"


async def post(
    http: aiohttp.ClientSession, worker: MockWorker, body: dict[str, Any], path: str = URL
) -> tuple[int, Any]:
    async with http.post(worker.url + path, json=body) as response:
        return response.status, await response.json()


def pair_body(prefill: MockWorker, room: int, **change: Any) -> dict[str, Any]:
    return {
        **CHAT,
        "bootstrap_host": "127.0.0.1",
        "bootstrap_port": prefill.bootstrap_port,
        "bootstrap_room": room,
        **change,
    }


async def both(
    http: aiohttp.ClientSession, prefill: MockWorker, decode: MockWorker, body: dict[str, Any], path: str = URL
) -> list[tuple[int, Any]]:
    return await asyncio.gather(post(http, prefill, body, path), post(http, decode, body, path))


async def test_a_pair_answers_as_one_worker_would(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    plain = await start_worker()
    prefill, decode = await start_worker(role=Role.PREFILL), await start_worker(role=Role.DECODE)
    _, alone = await post(http, plain, CHAT)
    (_, first), (_, whole) = await both(http, prefill, decode, pair_body(prefill, 7))
    assert first["usage"]["completion_tokens"] == 1
    assert first["choices"][0]["finish_reason"] == "length"
    assert whole["choices"] == alone["choices"]
    (_, first), (_, whole) = await both(http, prefill, decode, pair_body(prefill, 8))
    hit = first["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert hit > 0
    assert whole["usage"]["prompt_tokens_details"]["cached_tokens"] == hit
    assert not decode.cache.device_tokens


async def test_batches_have_a_room_per_prompt(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    prefill, decode = await start_worker(role=Role.PREFILL), await start_worker(role=Role.DECODE)
    asked = {"text": ["one two", "three four"], "sampling_params": {"max_new_tokens": 3}}
    for room in (20, [30, 31]):
        many = isinstance(room, list)
        body = {
            **asked,
            "bootstrap_room": room,
            "bootstrap_host": ["127.0.0.1"] * 2 if many else "127.0.0.1",
            "bootstrap_port": [prefill.bootstrap_port] * 2 if many else prefill.bootstrap_port,
        }
        (_, first), (_, whole) = await both(http, prefill, decode, body, "/generate")
        assert [len(row["output_ids"]) for row in first] == [1, 1]
        assert [len(row["output_ids"]) for row in whole] == [3, 3]


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
async def test_a_missing_room_is_refused(role: Role, start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(role=role)
    status, body = await post(http, worker, {**CHAT, "rid": "x"})
    assert status == 400
    assert body["message"] == ("Invalid request: Disaggregated request received without bootstrap room id. req.rid='x'")
    async with http.post(worker.url + URL, json={**CHAT, "stream": True}) as response:
        assert response.status == 200
        event = json.loads((await response.text()).split("\n\n")[0].removeprefix("data: "))
    assert event["error"]["code"] == 400


async def test_a_decode_worker_waits_for_its_prefill(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    prefill, decode = await start_worker(role=Role.PREFILL), await start_worker(role=Role.DECODE)
    body = pair_body(prefill, 5)
    waiting = asyncio.ensure_future(post(http, decode, body))
    assert not (await asyncio.wait([waiting], timeout=0.05))[0]
    await post(http, prefill, body)
    assert (await waiting)[0] == 200


async def test_an_unreachable_prefill_fails_the_handshake(
    start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    prefill, decode = await start_worker(role=Role.PREFILL), await start_worker(role=Role.DECODE)
    body = pair_body(prefill, 5)
    await prefill.stop()
    status, answer = await post(http, decode, body)
    assert status == 500
    assert "Decode handshake failed" in answer["message"]
    status, answer = await post(http, decode, {**CHAT, "bootstrap_room": 5})
    assert (status, answer["code"]) == (500, 500)


async def test_a_prefill_that_dies_fails_the_transfer(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    prefill, decode = await start_worker(role=Role.PREFILL), await start_worker(role=Role.DECODE)
    prefill.gate.close()
    legs = [asyncio.ensure_future(post(http, worker, pair_body(prefill, 5))) for worker in (prefill, decode)]
    await prefill.gate.arrived()
    await decode.log.wait_for(lambda log: log.total == 1 and log.last.rid is not None)
    assert prefill.bootstrap_server is not None
    while not prefill.bootstrap_server.waiting:
        await asyncio.sleep(0.005)
    await prefill.stop()
    status, answer = await legs[1]
    assert status == 500
    assert "Lost connection with prefill instance" in answer["message"]
    with pytest.raises(aiohttp.ClientError):
        await legs[0]


async def test_the_room_decides_the_prefill_rank(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    prefill = await start_worker(role=Role.PREFILL, dp_size=2)
    for room in (10, 11):
        assert (await post(http, prefill, pair_body(prefill, room)))[0] == 200
    assert [record.dp_rank for record in prefill.log.records] == [0, 1]
    assert (await post(http, prefill, pair_body(prefill, 12, routed_dp_rank=0)))[0] == 200
    status, body = await post(http, prefill, pair_body(prefill, 12, routed_dp_rank=1))
    assert status == 500
    assert "follow_bootstrap_room conflict" in body["message"]


async def test_the_bootstrap_port(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    prefill = await start_worker(role=Role.PREFILL, dp_size=2, page_size=8)
    base = f"http://127.0.0.1:{prefill.bootstrap_port}"
    async with http.get(base + "/health") as response:
        assert await response.text() == "OK"
    async with http.get(base + "/route?prefill_dp_rank=-1") as response:
        assert (await response.json())["dp_size"] == 2
    async with http.get(prefill.url + "/server_info") as response:
        info = await response.json()
    assert info["disaggregation_bootstrap_port"] == prefill.bootstrap_port
    port = prefill.bootstrap_port
    await prefill.restart_in_place()
    assert prefill.bootstrap_port == port
