"""One request, and every way it can end."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiohttp import web

from sgl_router.lab.mock_worker import Fault, FaultKind
from sgl_router.lab.replay.call import Call, Result
from sgl_router.lab.replay.client import ChatClient, ServerProblem, base_url
from sgl_router.lab.simulate.trace import TraceRow

CALL = b'data: {"choices": [{"delta": {"content": "hi"}}]}\n\n'


def client(url: str, **settings: object) -> ChatClient:
    defaults = {"api_key": None, "timeout_secs": 10.0, "ignore_eos": True, "clock": time.perf_counter}
    made = ChatClient(url, **{**defaults, **settings})  # type: ignore[arg-type]
    made.model = "mock-model"
    return made


async def ask(asking: ChatClient, content: str = "hello there", tokens: int = 5) -> Call:
    call = Call(0, TraceRow(0.0, 10, tokens, (1,)), due_at=0.0)
    async with asking:
        await asking.ask(call, asking.body(content, tokens))
    return call


async def stream(request: web.Request, *parts: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for part in parts:
        await response.write(part)
    return response


async def test_a_mock_worker_answers(start_worker) -> None:
    worker = await start_worker(api_key="secret", answer_tokens=3)
    asking = client(worker.url, api_key="secret")
    call = await ask(asking)
    assert (call.result, call.status, call.error) == (Result.ANSWERED, 200, "")
    assert call.completion_tokens == 5, "ignore_eos is sent"
    assert call.prompt_tokens == worker.log.last.prompt_tokens and call.cached_tokens == 0
    assert call.sent_at < call.first_token_at <= call.last_text_at <= call.finished_at
    assert len(asking.gaps) == 4
    assert worker.log.last.body["max_tokens"] == 5
    assert (call.worker, call.reason, call.predicted_tokens) == (None, None, None), "no router, no decision"


async def test_ignore_eos_is_left_out_where_it_is_not_wanted(start_worker) -> None:
    worker = await start_worker(answer_tokens=3)
    call = await ask(client(worker.url, ignore_eos=False))
    assert call.result is Result.ANSWERED and call.completion_tokens == 3
    assert "ignore_eos" not in worker.log.last.body


@pytest.mark.parametrize(
    ("header", "reason", "predicted"),
    [
        ("reason=cache_hit; matched=3; total=4; page=16", "cache_hit", 48),
        ("reason=unmatchable; matched=0; total=0; page=16; unmatched=media", "unmatchable", None),
        ("reason=odd; matched=x; page=16", "odd", None),
    ],
)
async def test_the_router_s_decision_is_kept(start_server, header: str, reason: str, predicted: int | None) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        head = {"content-type": "text/event-stream", "x-sgl-router-worker": "w-1", "x-sgl-router-decision": header}
        response = web.StreamResponse(headers=head)
        await response.prepare(request)
        await response.write(CALL + b"data: [DONE]\n\n")
        return response

    call = await ask(client(await start_server(handler)))
    assert (call.worker, call.reason, call.predicted_tokens) == ("w-1", reason, predicted)


async def test_a_status_is_kept_with_what_was_said(start_worker) -> None:
    worker = await start_worker(api_key="secret")
    call = await ask(client(worker.url))
    assert (call.result, call.status) == (Result.STATUS, 401)
    assert call.error


async def test_nobody_there_is_transport(start_worker) -> None:
    worker = await start_worker()
    worker.refuse()
    call = await ask(client(worker.url))
    assert (call.result, call.status) == (Result.TRANSPORT, None)
    assert "Cannot connect" in call.error


async def test_a_connection_reset_before_the_answer_is_transport(start_worker) -> None:
    worker = await start_worker()
    worker.faults.add(Fault(kind=FaultKind.RESET))
    call = await ask(client(worker.url))
    assert (call.result, call.status) == (Result.TRANSPORT, None)


async def test_a_stream_that_breaks_off_is_broken(start_server) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await stream(request, CALL)
        assert request.transport is not None
        request.transport.abort()
        return response

    call = await ask(client(await start_server(handler)))
    assert (call.result, call.status) == (Result.BROKEN, 200)
    assert call.first_token_at <= call.finished_at


async def test_a_stream_without_done_is_broken(start_server) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await stream(request, CALL)

    call = await ask(client(await start_server(handler)))
    assert (call.result, call.error) == (Result.BROKEN, "the stream ended without [DONE]")


async def test_an_answer_that_is_no_stream_is_broken(start_server) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response({"choices": []})

    call = await ask(client(await start_server(handler)))
    assert (call.result, call.error) == (Result.BROKEN, "an answer of type application/json, no stream of events")


async def test_what_takes_too_long_is_a_timeout(start_server) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await stream(request, CALL)
        await asyncio.sleep(30)
        return response

    call = await ask(client(await start_server(handler), timeout_secs=0.2))
    assert (call.result, call.error) == (Result.TIMEOUT, "not answered within 0.2 s")


async def test_the_only_model_is_found(start_worker) -> None:
    worker = await start_worker(model_id="alone")
    async with client(worker.url) as asking:
        assert await asking.only_model() == "alone"


async def test_a_server_that_cannot_be_asked_is_a_problem(start_worker, start_server) -> None:
    worker = await start_worker()
    worker.refuse()
    async with client(worker.url) as asking:
        with pytest.raises(ServerProblem, match="cannot be asked for its models: Cannot connect"):
            await asking.only_model()
    async with client(await start_server(stream)) as asking:
        with pytest.raises(ServerProblem, match="status 404; name one with --model"):
            await asking.only_model()


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("http://host:1", "http://host:1"),
        ("https://host/v1/", "https://host"),
        ("http://host/api/v1", "http://host/api"),
        ("http://[::1]:30000/", "http://[::1]:30000"),
    ],
)
def test_addresses_with_and_without_v1(text: str, base: str) -> None:
    assert base_url(text) == base


@pytest.mark.parametrize("text", ["host:1", "ftp://host", "http://", "http://host:x", "http://host?x=1", ""])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        base_url(text)
