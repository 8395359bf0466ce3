"""What a worker says about itself, by version."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from sgl_router.lab.mock_worker import Dialect, MockWorker, Role

StartWorker = Callable[..., Awaitable[MockWorker]]
CHAT = {"messages": [{"role": "user", "content": "What is the capital of Italy? " * 20}], "max_tokens": 4}


async def get(http: aiohttp.ClientSession, worker: MockWorker, path: str) -> tuple[int, Any]:
    async with http.get(worker.url + path) as response:
        body = await response.read()
        return response.status, json.loads(body) if response.content_type == "application/json" else body


async def post(http: aiohttp.ClientSession, worker: MockWorker, path: str, body: Any) -> tuple[int, Any]:
    async with http.post(worker.url + path, json=body) as response:
        answer = await response.read()
        return response.status, json.loads(answer) if response.content_type == "application/json" else answer


async def test_server_info_describes_the_worker(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(dp_size=2, page_size=8, cache_tokens=4096, model_id="m", topic="kv")
    for path in ("/server_info", "/get_server_info"):
        status, info = await get(http, worker, path)
        assert status == 200
        assert info["served_model_name"] == "m"
        assert (info["page_size"], info["dp_size"], info["max_total_num_tokens"]) == (8, 2, 4096)
        assert info["disaggregation_mode"] == "null"
        assert info["speculative_algorithm"] is None
        assert len(info["internal_states"]) == 2
        assert info["kv_events"] == {
            "publisher": "zmq",
            "endpoint_host": "*",
            "endpoint_port_base": worker.kv_port,
            "topic": "kv",
            "block_size": 8,
            "dp_size": 2,
            "replay_endpoint_port_base": worker.replay_port,
        }


@pytest.mark.parametrize(
    ("dialect", "version", "block", "replay_in_block"),
    [
        (Dialect.LEGACY, "0.5.6", False, False),
        (Dialect.MEDIUM, "0.5.12", False, False),
        (Dialect.MEDIUM, "0.5.16", True, False),
        (Dialect.MAP, "0.5.21", True, False),
        (Dialect.MAP_LORA, "0.5.22", True, True),
    ],
)
async def test_the_kv_events_block_came_with_time(
    dialect: Dialect,
    version: str,
    block: bool,
    replay_in_block: bool,
    start_worker: StartWorker,
    http: aiohttp.ClientSession,
) -> None:
    worker = await start_worker(dialect=dialect, version=version)
    _, info = await get(http, worker, "/server_info")
    raw = json.loads(info["kv_events_config"])
    assert raw["endpoint"] == f"tcp://*:{worker.kv_port}"
    assert raw["replay_endpoint"] == f"tcp://*:{worker.replay_port}"
    assert ("kv_events" in info) is block
    assert ("replay_endpoint_port_base" in info.get("kv_events", {})) is replay_in_block
    assert info["version"] == version


async def test_a_worker_without_events_says_null(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(kv_events=False)
    _, info = await get(http, worker, "/server_info")
    assert info["kv_events"] is None
    assert info["kv_events_config"] is None
    assert (await post(http, worker, "/v1/chat/completions", CHAT))[0] == 200


async def test_model_info_and_models(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(model_id="m", role=Role.PREFILL)
    for path in ("/model_info", "/get_model_info"):
        _, info = await get(http, worker, path)
        assert (info["served_model_name"], info["disaggregation_mode"]) == ("m", "prefill")
    _, models = await get(http, worker, "/v1/models")
    assert [model["id"] for model in models["data"]] == ["m"]


async def test_liveness(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(page_size=1)
    for path in ("/ready", "/health", "/health_generate"):
        assert (await get(http, worker, path))[0] == 200
    assert worker.cache.device_tokens == 1  # the health check's own token
    assert (await get(http, worker, "/metrics"))[0] == 404


async def test_endpoints_exist_by_version(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    old = await start_worker(dialect=Dialect.LEGACY, version="0.5.6")
    new = await start_worker()
    for path, in_old, in_new in (("/ready", 404, 200), ("/v1/loads", 404, 200), ("/get_load", 200, 404)):
        assert (await get(http, old, path))[0] == in_old
        assert (await get(http, new, path))[0] == in_new


async def test_a_vllm_worker_has_its_own_surface(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(dialect=Dialect.VLLM)
    assert (await get(http, worker, "/server_info"))[0] == 404
    assert (await get(http, worker, "/version")) == (200, {"version": "0.32.0"})
    assert (await get(http, worker, "/load")) == (200, {"server_load": 0})
    assert (await post(http, worker, "/v1/chat/completions", CHAT))[0] == 200


async def test_loads_show_what_runs_and_waits(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(dp_size=2)
    _, body = await get(http, worker, "/v1/loads")
    assert [load["dp_rank"] for load in body["loads"]] == [0, 1]
    assert {load["num_running_reqs"] for load in body["loads"]} == {0}
    _, body = await get(http, worker, "/v1/loads?dp_rank=1")
    assert [load["dp_rank"] for load in body["loads"]] == [1]
    for bad in ("2", "x"):
        assert (await get(http, worker, f"/v1/loads?dp_rank={bad}"))[0] == 400


async def test_queued_prompts_are_told_by_version(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    """/get_load counts them among the tokens; /v1/loads apart from 0.5.13 on, and not before."""
    slow = {"speed": 1.0, "decode_ms_per_token": 60_000, "max_running": 1}
    new = await start_worker(**slow)
    old = await start_worker(**slow, dialect=Dialect.LEGACY, version="0.5.8")
    for worker in (new, old):
        async with http.post(worker.url + "/v1/chat/completions", json={**CHAT, "stream": True}) as running:
            await running.content.readany()
            queued = asyncio.ensure_future(post(http, worker, "/v1/chat/completions", CHAT))
            while not worker.engines[0].model.queued_tokens:
                await asyncio.sleep(0.002)
            tokens = worker.engines[0].model.queued_tokens
            load = (await get(http, worker, "/v1/loads"))[1]["loads"][0]
            if worker is new:
                assert load["num_total_tokens"] == load["num_used_tokens"] + tokens
                assert load["num_waiting_uncached_tokens"] <= tokens
            else:
                assert "num_total_tokens" not in load
                [told] = (await get(http, worker, "/get_load"))[1]
                assert (told["num_reqs"], told["num_waiting_reqs"]) == (2, 1)
                assert told["num_tokens"] == load["num_used_tokens"] + tokens
            queued.cancel()


async def test_flush_clears_an_idle_worker(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    await post(http, worker, "/v1/chat/completions", CHAT)
    assert worker.cache.device_tokens
    for method in (http.get, http.post):
        async with method(worker.url + "/flush_cache") as response:
            assert response.status == 200
            assert (await response.text()).startswith("Cache flushed.")
    assert not worker.cache.device_tokens


async def test_a_busy_worker_is_not_flushed(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(speed=1.0, decode_ms_per_token=30)
    async with http.post(worker.url + "/v1/chat/completions", json={**CHAT, "stream": True}) as _:
        assert (await get(http, worker, "/flush_cache"))[0] == 400
        _, loads = await get(http, worker, "/v1/loads")
        assert loads["loads"][0]["num_running_reqs"] == 1


async def test_tokenize_and_detokenize(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(context_length=1000)
    for path in ("/tokenize", "/v1/tokenize"):
        status, body = await post(http, worker, path, {"prompt": "Hello there"})
        assert status == 200
        assert body["count"] == len(body["tokens"])
        assert body["max_model_len"] == 1000
    _, rows = await post(http, worker, "/v1/tokenize", {"prompt": ["Hello", "there, you"]})
    assert rows["count"] == [len(row) for row in rows["tokens"]]
    _, text = await post(http, worker, "/v1/detokenize", {"tokens": body["tokens"]})
    assert text == {"text": "Hello there"}
    _, text = await post(http, worker, "/v1/detokenize", {"tokens": rows["tokens"]})
    assert text == {"text": ["Hello", "there, you"]}
    assert (await post(http, worker, "/v1/detokenize", {"tokens": []}))[1] == {"text": ""}
    for path, bad in (
        ("/v1/tokenize", {"prompt": 5}),
        ("/v1/detokenize", {"tokens": ["a"]}),
        ("/v1/detokenize", {}),
    ):
        status, body = await post(http, worker, path, bad)
        assert (status, body["object"]) == (400, "error")


async def test_tokenized_messages_are_what_chat_uses(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    _, tokens = await post(http, worker, "/v1/tokenize", {"messages": CHAT["messages"]})
    _, answer = await post(
        http, worker, "/v1/chat/completions", {**CHAT, "return_prompt_token_ids": True, "stream": False}
    )
    assert answer["choices"][0]["prompt_token_ids"] == tokens["tokens"]


async def test_the_key_is_asked_for_where_the_engine_asks(
    start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(api_key="secret")
    for path, status in (("/ready", 200), ("/health", 200), ("/metrics", 404), ("/server_info", 401)):
        assert (await get(http, worker, path))[0] == status
    assert (await post(http, worker, "/v1/chat/completions", CHAT)) == (401, {"error": "Unauthorized"})
    for headers, status in (
        ({"Authorization": "Bearer secret"}, 200),
        ({"Authorization": "bearer secret"}, 200),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic secret"}, 401),
        ({"x-api-key": "secret"}, 401),
    ):
        async with http.get(worker.url + "/server_info", headers=headers) as response:
            assert response.status == status
            if status == 200:
                assert (await response.json())["api_key"] == "secret"
