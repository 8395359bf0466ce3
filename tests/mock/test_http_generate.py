"""The generating endpoints, buffered and streamed, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from sgl_router.lab.mock_worker import Dialect, MockWorker, Outcome

StartWorker = Callable[..., Awaitable[MockWorker]]
MESSAGES = [{"role": "user", "content": "Why is the sky blue, and why does the sun look red? " * 10}]
CHAT = {"model": "mock-model", "messages": MESSAGES}
URL = "/v1/chat/completions"


async def post(
    http: aiohttp.ClientSession, worker: MockWorker, path: str, body: Any, **headers: str
) -> tuple[int, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.post(worker.url + path, json=body, headers=named) as response:
        return response.status, await response.json()


async def stream(http: aiohttp.ClientSession, worker: MockWorker, path: str, body: Any) -> list[Any]:
    """The decoded events of a stream; the end marker is checked and left out."""
    async with http.post(worker.url + path, json={**body, "stream": True}) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        events = (await response.text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


async def test_a_chat_answer_has_the_engines_fields(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(answer_tokens=10)
    status, body = await post(http, worker, URL, {**CHAT, "rid": "my-request"})
    assert status == 200
    assert (body["id"], body["object"], body["model"]) == ("my-request", "chat.completion", "mock-model")
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["completion_tokens"] == 10
    assert usage["total_tokens"] == usage["prompt_tokens"] + 10
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_equal_prompts_get_equal_answers_and_hits(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(page_size=16)
    _, first = await post(http, worker, URL, CHAT)
    _, again = await post(http, worker, URL, CHAT)
    assert again["choices"] == first["choices"]
    prompt = first["usage"]["prompt_tokens"]
    assert again["usage"]["prompt_tokens_details"] == {"cached_tokens": (prompt - 1) // 16 * 16}


async def test_the_next_turn_hits_the_previous_answer(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(page_size=1)
    _, first = await post(http, worker, URL, CHAT)
    turn = [*MESSAGES, first["choices"][0]["message"], {"role": "user", "content": "Why?"}]
    _, second = await post(http, worker, URL, {**CHAT, "messages": turn})
    answered = first["usage"]["total_tokens"] - 1
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= answered


async def test_a_stream_has_role_text_finish_usage_and_end(
    start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker()
    _, whole = await post(http, worker, URL, {**CHAT, "max_tokens": 6})
    events = await stream(http, worker, URL, {**CHAT, "max_tokens": 6, "stream_options": {"include_usage": True}})
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 6
    assert events[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


async def test_usage_is_streamed_only_when_asked_for(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    assert all(event.get("usage") is None for event in await stream(http, worker, URL, CHAT))


async def test_no_cache_report_no_details(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(enable_cache_report=False)
    _, body = await post(http, worker, URL, CHAT)
    assert body["usage"]["prompt_tokens_details"] is None


async def test_cached_tokens_by_tier(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(host_cache_tokens=10_000)
    await post(http, worker, URL, CHAT)
    worker.cache.evict(10**6)
    asked = {**CHAT, "return_cached_tokens_details": True}
    _, body = await post(http, worker, URL, asked)
    hit = body["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert hit > 0
    assert body["sglext"]["cached_tokens_details"] == {"device": 0, "host": hit}
    events = await stream(http, worker, URL, asked)
    assert events[-1]["sglext"]["cached_tokens_details"] == {"device": hit, "host": 0}


async def test_prompt_ids_come_back_when_asked_for(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    _, body = await post(http, worker, URL, {**CHAT, "input_ids": [5, 6, 7], "return_prompt_token_ids": True})
    assert body["choices"][0]["prompt_token_ids"] == [5, 6, 7]
    assert body["usage"]["prompt_tokens"] == 3
    _, body = await post(http, worker, URL, CHAT, x_sglext_return_input_ids="1")
    assert len(body["sglext"]["input_ids"]) == body["usage"]["prompt_tokens"]


async def test_old_versions_ignore_input_ids_in_chat(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(dialect=Dialect.MEDIUM, version="0.5.12")
    _, body = await post(http, worker, URL, {**CHAT, "input_ids": [5, 6, 7]})
    assert body["usage"]["prompt_tokens"] > 3


async def test_media_parts_are_answered(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    status, _ = await post(http, worker, URL, {**CHAT, "messages": [{"role": "user", "content": parts}]})
    assert status == 200


async def test_completions(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    status, body = await post(http, worker, "/v1/completions", {"prompt": "Once upon a time", "max_tokens": 5})
    assert status == 200
    assert body["object"] == "text_completion"
    assert body["usage"]["completion_tokens"] == 5
    events = await stream(http, worker, "/v1/completions", {"prompt": "Once upon a time", "max_tokens": 5})
    assert "".join(event["choices"][0]["text"] for event in events) == body["choices"][0]["text"]
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    rows = [[5, 6, 7], [8, 9]]
    _, many = await post(http, worker, "/v1/completions", {"prompt": rows, "n": 2, "max_tokens": 3})
    assert many["usage"]["prompt_tokens"] == 5
    assert [choice["index"] for choice in many["choices"]] == [0, 1, 2, 3]
    assert many["choices"][0]["text"] != many["choices"][1]["text"]
    assert many["usage"]["completion_tokens"] == 12


async def test_native_generate(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(dp_size=2)
    ids = list(range(100, 150))
    sampling = {"max_new_tokens": 4}
    asked = {"input_ids": ids, "sampling_params": sampling, "routed_dp_rank": 1, "rid": "abc"}
    _, body = await post(http, worker, "/generate", asked)
    assert len(body["output_ids"]) == 4
    assert body["meta_info"]["id"] == "abc"
    assert body["meta_info"]["finish_reason"] == {"type": "length", "length": 4}
    assert body["meta_info"]["dp_rank"] == 1
    events = await stream(http, worker, "/generate", asked)
    assert events[-1]["text"] == body["text"]
    assert events[-1]["meta_info"]["cached_tokens"] == 48
    assert all(body["text"].startswith(event["text"]) for event in events)
    _, rows = await post(http, worker, "/generate", {"text": ["a b", "c d"], "sampling_params": sampling})
    assert len(rows) == 2


async def test_ignore_eos_fills_the_budget(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(answer_tokens=4)
    _, body = await post(http, worker, URL, {**CHAT, "max_completion_tokens": 50, "ignore_eos": True})
    assert body["usage"]["completion_tokens"] == 50
    _, body = await post(http, worker, URL, {**CHAT, "max_completion_tokens": 50})
    assert body["usage"]["completion_tokens"] == 4


async def test_ranks_are_followed_or_taken_in_turn(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(dp_size=3)
    await post(http, worker, URL, CHAT, X_Data_Parallel_Rank="2")
    await post(http, worker, URL, {**CHAT, "routed_dp_rank": 1})
    await post(http, worker, URL, {**CHAT, "data_parallel_rank": 1}, X_Data_Parallel_Rank="0")
    for _ in range(3):
        await post(http, worker, URL, CHAT)
    assert [record.dp_rank for record in worker.log.records] == [2, 1, 0, 0, 1, 2]
    assert all(cache.device_tokens for cache in worker.caches)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"messages": []}, "Messages cannot be empty"),
        ({"messages": "hi"}, "'messages'"),
        ({"messages": None}, "'messages'"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "role"),
        ({"stream": "yes"}, "'stream'"),
        ({"max_tokens": "many"}, "'max_tokens'"),
        ({"max_tokens": -1}, "max_new_tokens"),
        ({"max_tokens": True}, "'max_tokens'"),
        ({"n": 0}, "'n'"),
        ({"routed_dp_rank": 2}, "out of range [0, 2)"),
        ({"routed_dp_rank": -1}, "out of range"),
        ({"input_ids": ["a"]}, "'input_ids'"),
        ({"max_tokens": 10**6}, "maximum context length"),
        ({"input_ids": [1] * 600}, "longer than the model's context length"),
    ],
)
async def test_bad_bodies_are_named(
    change: dict[str, Any], says: str, start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(dp_size=2, context_length=512)
    status, body = await post(http, worker, URL, {**CHAT, "messages": MESSAGES[:1], **change})
    assert status == 400
    assert body["object"] == "error"
    assert body["code"] == 400
    assert says in body["message"]
    assert worker.log.last.outcome is Outcome.REFUSED


async def test_malformed_requests_are_refused(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    json_type = {"Content-Type": "application/json"}
    for data, headers in (
        (b"{", json_type),
        (b"[]", json_type),
        (b'"\xff"', json_type),
        (b"{}", {"Content-Type": "text/plain"}),
    ):
        async with http.post(worker.url + URL, data=data, headers=headers) as response:
            assert response.status == 400
            assert (await response.json())["type"] == "Bad Request"
    status, _ = await post(http, worker, URL, CHAT, X_Data_Parallel_Rank="one")
    assert status == 400
    async with http.post(worker.url + "/generate", data=b"{}") as response:
        assert response.status == 400
        assert "message" in (await response.json())["error"]


async def test_tenants_do_not_share(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    variants: list[dict[str, Any]] = [
        {},
        {"cache_salt": "a"},
        {"extra_key": "a"},
        {"lora_path": "a"},
        {"model": "mock-model:b"},
    ]
    for change in variants * 2:
        await post(http, worker, URL, {**CHAT, **change})
    hits = [record.cached_tokens for record in worker.log.records]
    assert not any(hits[:5])
    assert all(hits[5:])


async def test_a_full_queue_is_a_503_or_an_error_event(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(queue_limit=0)
    status, body = await post(http, worker, URL, CHAT)
    assert (status, body["message"], body["type"]) == (503, "The request queue is full.", "503")
    (event,) = await stream(http, worker, URL, CHAT)
    assert (event["error"]["code"], event["error"]["type"]) == (503, "SERVICE_UNAVAILABLE")


async def test_abort_request_matches_prefixes(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(speed=1.0, decode_ms_per_token=30)
    long = {**CHAT, "max_tokens": 1000, "ignore_eos": True}
    running = [asyncio.ensure_future(post(http, worker, URL, {**long, "rid": rid})) for rid in ("ab1", "ab2", "b")]
    await worker.log.wait_for(lambda log: log.total == 3 and all(record.rid for record in log.records))
    while worker.engines[0].model.load().running < 3:
        await asyncio.sleep(0.005)
    assert (await post_raw(http, worker, "/abort_request", {"rid": "nothing"})) == (200, b"")
    assert (await post_raw(http, worker, "/abort_request", {"rid": "ab"})) == (200, b"")
    for task in running[:2]:
        status, body = await task
        assert (status, body["choices"][0]["finish_reason"]) == (200, "abort")
    assert not running[2].done()
    await post_raw(http, worker, "/abort_request", {"abort_all": True})
    assert (await running[2])[1]["choices"][0]["finish_reason"] == "abort"
    assert worker.log.count(Outcome.ABORTED) == 3


async def post_raw(http: aiohttp.ClientSession, worker: MockWorker, path: str, body: Any) -> tuple[int, bytes]:
    async with http.post(worker.url + path, json=body) as response:
        return response.status, await response.read()


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_lost_client_aborts_its_request(
    streaming: bool, start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(speed=1.0, decode_ms_per_token=30)
    body = {**CHAT, "stream": streaming, "max_tokens": 1000, "ignore_eos": True}
    client = asyncio.ensure_future(http.post(worker.url + URL, json=body))
    await worker.log.wait_for(lambda log: log.total == 1 and log.last.rid is not None)
    if streaming:
        (await client).close()
    else:
        client.cancel()
    await worker.log.wait_for(lambda log: log.count(Outcome.ABORTED) == 1)
    await worker.idle()
    assert worker.cache.reserved_tokens == worker.cache.locked_tokens == 0


async def test_the_gate_holds_requests(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    worker.gate.close()
    requests = [asyncio.ensure_future(post(http, worker, URL, CHAT)) for _ in range(3)]
    await worker.gate.arrived(3)
    assert worker.engines[0].model.idle
    worker.gate.open()
    assert [status for status, _ in await asyncio.gather(*requests)] == [200, 200, 200]


async def test_the_stream_gate_holds_streams_after_their_first_event(
    start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker()
    worker.stream_gate.close()
    async with http.post(worker.url + URL, json={**CHAT, "stream": True}) as response:
        assert b"assistant" in await response.content.readuntil(b"\n\n")
        await worker.stream_gate.arrived()
        worker.stream_gate.open()
        assert (await response.content.read()).endswith(b"data: [DONE]\n\n")


async def test_logprobs_of_the_other_endpoints(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker()
    asked = {"model": "mock-model", "prompt": "The cache", "max_tokens": 5, "logprobs": 2}
    _, body = await post(http, worker, "/v1/completions", asked)
    (choice,) = body["choices"]
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    assert len(told["token_logprobs"]) == len(told["text_offset"]) == len(told["top_logprobs"]) == 5
    events = await stream(http, worker, "/v1/completions", asked)
    pieces = [event["choices"][0]["logprobs"] for event in events if event["choices"]]
    assert [offset for piece in pieces for offset in piece["text_offset"]] == told["text_offset"]
    native = {"text": "The cache", "sampling_params": {"max_new_tokens": 5}, "return_logprob": True}
    _, body = await post(http, worker, "/generate", native)
    assert [token for _, token, _ in body["meta_info"]["output_token_logprobs"]] == body["output_ids"]


async def test_a_document_cut_short_by_max_tokens_says_so(
    start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker()
    schema = {"type": "object", "properties": {"text": {"minLength": 50}}, "required": ["text"]}
    asked = {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    _, whole = await post(http, worker, URL, asked)
    _, cut = await post(http, worker, URL, {**asked, "max_tokens": 4})
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert cut["choices"][0]["finish_reason"] == "length"
    text = cut["choices"][0]["message"]["content"]
    assert text and whole["choices"][0]["message"]["content"].startswith(text)
    assert json.loads(whole["choices"][0]["message"]["content"]) == {"text": "a" * 50}
