"""What a 200 must say before its worker is praised for it, and what it comes to where it says something else."""

from __future__ import annotations

import asyncio
import time

import pytest

from sgl_router.workers import BreakerState
from tests.component.scripted import Scripted, fleet_of, saying, whole

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def event(text: str) -> bytes:
    return f"data: {text}\n\n".encode()


ROLE = event('{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]}')
TOKEN = event('{"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": null}]}')
STOP = event('{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}')
ABORT = event('{"choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]}')
USAGE = event('{"choices": [], "usage": {"completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}}}')


def error(code: object) -> bytes:
    return event(f'{{"error": {{"object": "error", "message": "m", "type": "t", "param": null, "code": {code}}}}}')


def chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def streaming(*pieces: bytes) -> bytes:
    return STREAM + chunks(*pieces) + b"0\r\n\r\n"


ANSWERS = {
    "503 event": ("back_pressure", streaming(error(503), DONE)),
    "429 event": ("back_pressure", streaming(KEEP_ALIVE, error(429), DONE)),
    "500 event": ("error_event", streaming(error(500), DONE)),
    "event without a code": ("error_event", streaming(event('{"error": {"message": "m"}}'), DONE)),
    "400 event": ("client_error", streaming(error(400), DONE)),
    "error after a role": ("error_event", streaming(ROLE, error('"500"'), DONE)),
    "keep-alive": ("empty", streaming(KEEP_ALIVE * 3)),
    "empty data": ("empty", streaming(event(""))),
    "bare done": ("empty", streaming(DONE)),
    "empty stream": ("empty", streaming()),
    "abort": ("aborted", streaming(ROLE + ABORT, USAGE, DONE)),
    "empty body": ("empty", whole(b"")),
    "no json": ("empty", whole(b"<html>sign in</html>", "text/html")),
    "body with 503": ("back_pressure", whole(b'{"error": {"message": "m", "code": 503}}')),
    "body with 500": ("error_event", whole(b'{"object": "error", "message": "m", "code": 500}')),
    "aborted body": ("aborted", whole(b'{"choices": [{"message": {"content": ""}, "finish_reason": "abort"}]}')),
}
FAILURES = ("error_event", "empty")


def model(**extra: object) -> dict[str, object]:
    return {"policy": "kv_cost", "circuit_breaker": {"threshold": 1, "cool_down_secs": 0.01}, **extra}


async def one_worker(rig, worker: Scripted, **over: object):
    fleet = await rig(workers=0, urls=[worker.url], wait=False, model=model(), health={"interval_secs": 60}, **over)
    await fleet.until(lambda: len(fleet.services.registry) == 1 and not fleet.services.unready(), "the router is ready")
    return fleet, fleet.services.registry.all()[0]


@pytest.mark.parametrize("name", ANSWERS)
async def test_what_is_no_completion_praises_no_worker(rig, name: str) -> None:
    outcome, response = ANSWERS[name]
    async with fleet_of(saying(whole(b"{}", status="500 Oops"))) as [scripted]:
        fleet, worker = await one_worker(rig, scripted)
        assert (await fleet.ask("it breaks")).status == 500
        assert worker.breaker.state is BreakerState.OPEN
        await fleet.until(lambda: worker.breaker.would_allow(time.monotonic()), "the cool-down is over")
        scripted.script = saying(response)
        reply = await fleet.ask("a long prompt that would be worth learning from " * 20, stream=True)
        assert reply.status == 200
        sent = response.partition(b"\r\n\r\n")[2]
        assert reply.body == (sent if b"chunked" not in response else unchunked(sent))
        assert worker.stats.requests == {"worker_error": 1, outcome: 1}
        if outcome != "client_error":  # which is neither praise nor blame, but not here
            assert worker.breaker.state is (BreakerState.OPEN if outcome in FAILURES else BreakerState.HALF_OPEN)
        assert worker.targets[0].forecast.prompts.speed.observations == 0
        assert first_tokens(fleet) == 0
        assert fleet.idle_load()


def first_tokens(fleet) -> int:
    """Those that sgl_router_ttft_seconds has seen."""
    return sum(fleet.services.metrics.ttft.labels("mock-model").counts)


def unchunked(body: bytes) -> bytes:
    found = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        found, body = found + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return found


@pytest.mark.parametrize("response", [streaming(KEEP_ALIVE, ROLE, TOKEN, STOP, USAGE, DONE), streaming(TOKEN)])
async def test_a_token_does(rig, response: bytes) -> None:
    async with fleet_of(saying(whole(b"{}", status="500 Oops"))) as [scripted]:
        fleet, worker = await one_worker(rig, scripted)
        assert (await fleet.ask("it breaks")).status == 500
        await fleet.until(lambda: worker.breaker.would_allow(time.monotonic()), "the cool-down is over")
        scripted.script = saying(response)
        assert (await fleet.ask("a long prompt that is worth learning from " * 20, stream=True)).status == 200
        assert worker.stats.requests == {"worker_error": 1, "completed": 1}
        assert worker.breaker.state is BreakerState.CLOSED
        assert first_tokens(fleet) == 1


async def test_a_prompt_is_ahead_of_others_until_its_first_token(rig) -> None:
    step = asyncio.Event()

    async def script(worker: Scripted, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + chunks(KEEP_ALIVE))
        await step.wait()
        writer.write(chunks(TOKEN))
        step.clear()
        await step.wait()
        writer.write(chunks(STOP, DONE) + b"0\r\n\r\n")

    async with fleet_of(script) as [scripted]:
        fleet, worker = await one_worker(rig, scripted)
        target = worker.targets[0]
        body = {"model": "mock-model", "stream": True, "messages": [{"role": "user", "content": "x " * 200}]}
        async with fleet.session.post(fleet.url + "/v1/chat/completions", json=body) as reply:
            assert await reply.content.readuntil(b"\n\n") == KEEP_ALIVE
            assert target.prefill_tokens > 0
            step.set()
            assert await reply.content.readuntil(b"\n\n") == TOKEN
            await fleet.until(lambda: target.prefill_tokens == 0, "the prompt has been computed")
            step.set()
            await reply.read()
        await fleet.until(fleet.idle_load, "it is over")


async def test_comments_do_not_keep_a_request_that_gets_no_token(rig) -> None:
    async def script(worker: Scripted, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        while True:
            writer.write(chunks(KEEP_ALIVE))
            await writer.drain()
            await asyncio.sleep(0.02)

    async with fleet_of(script) as [scripted]:
        fleet, worker = await one_worker(
            rig, scripted, proxy={"request_timeout_secs": 0.4, "stream_idle_timeout_secs": 60}
        )
        reply = await fleet.ask("hello", stream=True)
        assert b'"code":"upstream_timeout"' in reply.body
        assert worker.stats.requests == {"timeout": 1}
        assert fleet.idle_load()


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
async def test_counts_are_those_of_the_last_usage(rig, end: bytes) -> None:
    after = event('{"choices": [], "metadata": {"cached_tokens": 7}, "sglext": "' + "y" * 9000 + '"}')
    usage = USAGE.replace(b'"cached_tokens": 0', b'"cached_tokens": 123456')
    pieces = [piece.replace(b"\n", end) for piece in (ROLE, TOKEN, STOP, usage, after, DONE)]
    async with fleet_of(saying(streaming(*pieces))) as [scripted]:
        fleet, _ = await one_worker(rig, scripted)
        assert (await fleet.ask("hello", stream=True)).status == 200
        [decision] = (await fleet.get("/internal/decisions")).json["decisions"]
        assert decision["cached_tokens"] == 123456


async def test_no_location_names_a_worker(rig) -> None:
    async with fleet_of(saying(GONE)) as [scripted]:
        scripted.script = saying(GONE.replace(b"WORKER", scripted.url.encode()))
        fleet, _ = await one_worker(rig, scripted)
        async with fleet.session.post(
            fleet.url + "/v1/chat/completions",
            json={"model": "mock-model", "messages": [{"role": "user", "content": "x"}]},
            allow_redirects=False,
        ) as reply:
            assert reply.status == 307
            assert scripted.url not in str(reply.headers)
            assert "location" not in reply.headers


GONE = whole(b"", status="307 Temporary Redirect", headers="Location: WORKER/v1/chat/completions/\r\n")
