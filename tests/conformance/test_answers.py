"""What the server does with requests and responses, whoever handles them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sgl_router.errors import NoHealthyWorkers
from sgl_router.http.limits import HttpLimits
from sgl_router.http.routes import Route
from tests.conformance.case import ECHO, HEALTH, STREAM, post
from tests.conformance.rig import Reply, Rig, read_reply, running, until

OWN = (b"x-request-id", b"date")
LARGE = 16 << 20


def get(target: bytes) -> bytes:
    return post(b"", line=b"GET " + target + b" HTTP/1.1", length=False)


async def ask(rig: Rig, raw: bytes) -> Reply:
    reader, writer = await rig.open()
    writer.write(raw)
    reply = await asyncio.wait_for(read_reply(reader, head_only=raw.startswith(b"HEAD")), 120)
    assert reply is not None
    writer.close()
    return reply


async def test_handlers_see_the_request_as_it_was_sent(rig: Rig) -> None:
    target = ECHO + b"?a=b"
    reply = await ask(rig, post(b"hello", b"X-A: b", b"x-a: \xfc", b"X-Request-Id: given-1", target=target))
    (seen,) = rig.seen
    assert (seen.method, seen.path, seen.target, seen.query) == ("POST", ECHO.decode(), target, b"a=b")
    assert seen.headers[-2:] == [(b"x-a", b"\xfc"), (b"X-Request-Id", b"given-1")]
    assert reply.headers[b"x-request-id"] == b"given-1"


async def test_requests_are_counted_by_route_method_and_status(rig: Rig) -> None:
    for raw in (
        post(),
        post(target=STREAM),
        post(b"x" * 5000),
        post(b"", line=b"PUT " + ECHO + b" HTTP/1.1", length=False),
        post(b"hello", b"Content-Encoding: br"),
        post(target=b"/nothing"),
        get(HEALTH),
    ):
        await ask(rig, raw)
    lines = [line for line in rig.services.metrics.render().decode().splitlines() if _of_requests(line)]
    assert sorted(line for line in lines if not line.endswith(" 0.0")) == COUNTED


COUNTED = [
    'sgl_router_errors_total{code="bad_request"} 1.0',
    'sgl_router_errors_total{code="body_too_large"} 1.0',
    'sgl_router_errors_total{code="method_not_allowed"} 1.0',
    'sgl_router_errors_total{code="route_not_found"} 1.0',
    'sgl_router_requests_total{method="GET",route="/healthz"} 1.0',
    'sgl_router_requests_total{method="POST",route="/v1/chat/completions"} 3.0',
    'sgl_router_requests_total{method="POST",route="/v1/tokenize"} 1.0',
    'sgl_router_requests_total{method="POST",route="unmatched"} 1.0',
    'sgl_router_requests_total{method="PUT",route="/v1/chat/completions"} 1.0',
    'sgl_router_responses_total{method="GET",route="/healthz",status_code="200"} 1.0',
    'sgl_router_responses_total{method="POST",route="/v1/chat/completions",status_code="200"} 1.0',
    'sgl_router_responses_total{method="POST",route="/v1/chat/completions",status_code="400"} 1.0',
    'sgl_router_responses_total{method="POST",route="/v1/chat/completions",status_code="413"} 1.0',
    'sgl_router_responses_total{method="POST",route="/v1/tokenize",status_code="200"} 1.0',
    'sgl_router_responses_total{method="POST",route="unmatched",status_code="404"} 1.0',
    'sgl_router_responses_total{method="PUT",route="/v1/chat/completions",status_code="405"} 1.0',
]


def _of_requests(line: str) -> bool:
    return line.startswith(("sgl_router_requests_total", "sgl_router_responses_total", "sgl_router_errors_total"))


async def serve_with(rig: Rig, serve: Any, raw: bytes) -> Reply:
    rig.routes.exact[ECHO] = Route(ECHO.decode(), POST=serve)
    return await ask(rig, raw)


async def test_a_workers_headers_are_relayed_byte_for_byte(rig: Rig) -> None:
    async def serve(services: Any, inbound: Any, out: Any) -> None:
        relayed = [(b"x-a", "ü".encode()), (b"x-b", b"\xfc"), (b"x-c", b"")]
        await out.send(299, [(b"server", b"uvicorn"), (b"date", b"then"), *relayed], b"")

    reply = await serve_with(rig, serve, post())
    assert reply.status == 299
    assert reply.headers[b"server"] == b"uvicorn"
    assert reply.headers[b"date"] == b"then"
    assert reply.headers[b"x-a"] == "ü".encode()
    assert reply.headers[b"x-b"] == b"\xfc"


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("streamed", [False, True])
async def test_some_statuses_have_no_body(rig: Rig, status: int, streamed: bool) -> None:
    async def serve(services: Any, inbound: Any, out: Any) -> None:
        if streamed:
            await out.start(status, [])
            await out.end()
        else:
            await out.send(status, [], b"")

    reply = await serve_with(rig, serve, post())
    assert reply.status == status
    assert b"transfer-encoding" not in reply.headers
    assert b"content-length" not in reply.headers


async def test_errors_of_a_handler_are_answered_in_the_envelope(rig: Rig) -> None:
    async def serve(services: Any, inbound: Any, out: Any) -> None:
        raise NoHealthyWorkers("nobody") if inbound.body == b"own" else KeyError("x")

    reply = await serve_with(rig, serve, post(b"own"))
    assert (reply.status, reply.json["error"]["message"], reply.headers[b"retry-after"]) == (503, "nobody", b"1")
    reply = await serve_with(rig, serve, post(b"unforeseen"))
    assert (reply.status, reply.json["error"]["code"]) == (500, "internal_error")


async def test_a_client_that_closes_its_half_is_gone(rig: Rig) -> None:
    rig.gate = asyncio.Event()
    reader, writer = await rig.open()
    writer.write(post())
    await until(lambda: bool(rig.seen), "the handler runs")
    writer.write_eof()
    await until(lambda: rig.cancelled == 1, "the handler is cancelled")
    assert await reader.read() == b""
    assert rig.services.in_flight.count == 0


async def test_an_answer_given_before_the_client_closed_its_half_arrives(rig: Rig) -> None:
    reader, writer = await rig.open()
    writer.write(post(b"x" * 4096))
    await until(lambda: bool(rig.seen) and rig.services.in_flight.count == 0, "it is answered")
    writer.write_eof()
    reply = await read_reply(reader)
    assert reply is not None
    assert reply.body == b"x" * 4096


async def test_a_closing_server_lets_requests_end(rig: Rig) -> None:
    rig.gate = asyncio.Event()
    reader, writer = await rig.open()
    writer.write(post())
    await until(lambda: bool(rig.seen), "the handler runs")
    rig.services.draining = rig.services.closing = True
    await rig.server.stop_listening()
    with pytest.raises(OSError):
        await rig.open()
    rig.gate.set()
    reply = await read_reply(reader)
    assert reply is not None
    assert (reply.status, reply.headers[b"connection"]) == (200, b"close")
    assert await reader.read() == b""
    await rig.server.close()
    await rig.server.close()


@contextlib.asynccontextmanager
async def impatient(secs: float) -> AsyncIterator[Rig]:
    """Answers a request with more than sockets hold, to clients that are to take some of it every `secs`."""

    async def serve(services: Any, inbound: Any, out: Any) -> None:
        rig.seen.append(inbound)
        await out.send(200, [], b"y" * LARGE)

    limits = HttpLimits(sweep_secs=0.02, flush_secs=secs)
    async with running(limits=limits, routes={ECHO.decode(): serve}) as rig:
        yield rig


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off() -> None:
    async with impatient(0.2) as rig:
        _, writer = await rig.open()
        writer.write(post())
        await until(lambda: bool(rig.seen) and not rig.services.in_flight.count, "the request is over")
        writer.close()


async def test_a_client_that_takes_its_time_gets_all_of_its_answer() -> None:
    secs = 0.4
    async with impatient(secs) as rig:
        reader, writer = await rig.open()
        writer.write(post())
        await reader.readuntil(b"\r\n\r\n")
        taken = 0
        for _ in range(16):
            await asyncio.sleep(secs / 8)
            taken += len(await reader.readexactly(LARGE // 16))
        assert taken == LARGE
        await until(lambda: not rig.services.in_flight.count, "the request is over")
        writer.close()


async def test_each_response_of_a_draining_server_is_the_last_on_its_connection(rig: Rig) -> None:
    """Streams, refusals and what is no data route too; what is idle stays until the port is closed."""
    idle, _writer = await rig.open()
    requests = [post(), post(b"abc", target=STREAM), get(HEALTH), get(b"/no/such/route"), get(ECHO)]
    requests.append(b"no request\r\n\r\n")
    for number, sent in enumerate(requests):
        early, early_writer = await rig.open()
        early_writer.write(post())
        assert (await read_reply(early)).headers.get(b"connection") is None  # type: ignore[union-attr]
        rig.services.draining = True
        early_writer.write(sent)
        reply = await read_reply(early)
        assert reply is not None, number
        assert reply.headers[b"connection"] == b"close", number
        assert await early.read() == b""
        fresh, fresh_writer = await rig.open()  # the port is open still
        fresh_writer.write(sent)
        reply = await read_reply(fresh)
        assert reply is not None
        assert reply.headers[b"connection"] == b"close"
        rig.services.draining = False
    assert not idle.at_eof()
    rig.services.draining = rig.services.closing = True
    await rig.server.stop_listening()
    assert await idle.read() == b""


async def test_a_request_that_has_arrived_when_the_port_closes_is_served(rig: Rig) -> None:
    kept, writer = await rig.open()
    writer.write(post())
    assert await read_reply(kept) is not None
    rig.services.draining = rig.services.closing = True
    writer.write(post(b"just now"))
    await rig.server.stop_listening()
    reply = await read_reply(kept)
    assert reply is not None
    assert (reply.body, reply.headers[b"connection"]) == (b"just now", b"close")
    assert await kept.read() == b""


async def test_what_was_sent_ahead_is_served_before_the_connection_ends(rig: Rig) -> None:
    rig.gate = asyncio.Event()
    reader, writer = await rig.open()
    writer.write(post(b"one") + post(b"two") + post(b"three"))
    await until(lambda: bool(rig.seen), "the handler runs")
    rig.services.draining = True
    rig.gate.set()
    bodies = []
    while (reply := await read_reply(reader)) is not None:
        bodies.append((reply.body, reply.headers.get(b"connection")))
    assert [body for body, _ in bodies] == [b"one", b"two", b"three"]
    assert [closes for _, closes in bodies] == [None, None, b"close"]


async def test_a_response_that_began_before_the_drain_ends_its_connection_after_it(rig: Rig) -> None:
    """Its head said nothing of a close: it is closed with the port, after its end."""
    gate = asyncio.Event()

    async def stream(services: Any, inbound: Any, out: Any) -> None:
        await out.start(200, [(b"content-type", b"text/event-stream")])
        await out.write(b"first")
        await gate.wait()
        await out.write(b"last")
        await out.end()

    async with running(routes={STREAM.decode(): stream}) as other:
        reader, writer = await other.open()
        writer.write(post(b"", target=STREAM))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"connection: close" not in head.lower()
        other.services.draining = other.services.closing = True
        await other.server.stop_listening()
        gate.set()
        assert (await reader.read()).endswith(b"last\r\n0\r\n\r\n")
