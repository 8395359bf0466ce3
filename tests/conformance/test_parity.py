"""What both fronts have to do alike."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from sgl_router.errors import NoHealthyWorkers
from sgl_router.server.http.limits import HttpLimits
from tests.conformance.case import ECHO, HEALTH, STREAM, post
from tests.conformance.rig import Reply, Rig, read_reply, running, until

OWN = (b"x-request-id", b"date")
LARGE = 16 << 20


@contextlib.asynccontextmanager
async def both() -> AsyncIterator[list[Rig]]:
    async with running("native") as native, running("aiohttp") as other:
        yield [native, other]


def get(target: bytes) -> bytes:
    return post(b"", line=b"GET " + target + b" HTTP/1.1", length=False)


async def ask(rig: Rig, raw: bytes) -> Reply:
    reader, writer = await rig.open()
    writer.write(raw)
    reply = await asyncio.wait_for(read_reply(reader, head_only=raw.startswith(b"HEAD")), 120)
    assert reply is not None
    writer.close()
    return reply


@pytest.mark.parametrize(
    "raw",
    [
        post(),
        post(target=STREAM),
        post(b"", target=STREAM),
        post(b"hello", b"Connection: close"),
        post(line=b"POST " + ECHO + b" HTTP/1.0"),
        post(b"hello", b"Connection: keep-alive", line=b"POST " + ECHO + b" HTTP/1.0"),
        post(line=b"POST " + STREAM + b" HTTP/1.0"),
        post(b"", line=b"GET " + ECHO + b" HTTP/1.1", length=False),
        post(b"", line=b"HEAD " + ECHO + b" HTTP/1.1", length=False),
        post(b"", line=b"GET " + HEALTH + b" HTTP/1.1", length=False),
        post(target=b"/nothing"),
        post(b"x" * 5000),
        post(b"hello", b"Content-Encoding: gzip"),
    ],
    ids=lambda raw: raw[:60].decode("latin-1"),
)
async def test_answers_are_alike(raw: bytes) -> None:
    async with both() as rigs:
        native, other = [await ask(rig, raw) for rig in rigs]
        for reply in (native, other):
            for name in OWN:
                assert reply.headers.pop(name)
        assert native == other


async def test_handlers_see_the_same_request() -> None:
    raw = post(b"hello", b"X-A: b", b"x-a: \xfc", b"X-Request-Id: given-1", target=ECHO + b"?a=b")
    async with both() as rigs:
        replies = [await ask(rig, raw) for rig in rigs]
        native, other = (rig.seen[0] for rig in rigs)
        assert msgspec.structs.replace(native, account=None) == msgspec.structs.replace(other, account=None)
        assert native.headers[-2:] == [(b"x-a", b"\xfc"), (b"X-Request-Id", b"given-1")]
        assert [reply.headers[b"x-request-id"] for reply in replies] == [b"given-1"] * 2


async def test_counters_are_alike() -> None:
    async with both() as rigs:
        for rig in rigs:
            for raw in (
                post(),
                post(target=STREAM),
                post(b"x" * 5000),
                post(b"", line=b"PUT " + ECHO + b" HTTP/1.1", length=False),
                post(b"hello", b"Content-Encoding: br"),
                post(target=b"/nothing"),
                post(b"", line=b"GET " + HEALTH + b" HTTP/1.1", length=False),
            ):
                await ask(rig, raw)
        native, other = (
            sorted(line for line in rig.services.metrics.render().decode().splitlines() if _of_requests(line))
            for rig in rigs
        )
        assert native == other
        assert len(native) > 10


def _of_requests(line: str) -> bool:
    return line.startswith(("sgl_router_requests_total", "sgl_router_responses_total", "sgl_router_errors_total"))


async def serve_with(rig: Rig, serve: Any, raw: bytes) -> Reply:
    if rig.kind == "native":
        rig.front.routes[ECHO] = (ECHO.decode(), serve)
        return await ask(rig, raw)
    async with running("aiohttp", routes={ECHO.decode(): serve}) as made:
        return await ask(made, raw)


async def test_a_workers_headers_are_relayed_byte_for_byte(rig: Rig) -> None:
    async def serve(services: Any, inbound: Any, out: Any) -> None:
        relayed = [(b"x-a", "ü".encode()), (b"x-b", b"\xfc"), (b"x-c", b"")]
        await out.send(299, [(b"server", b"uvicorn"), (b"date", b"then"), *relayed], b"")

    reply = await serve_with(rig, serve, post())
    assert reply.status == 299
    assert reply.headers[b"server"] == b"uvicorn"
    assert reply.headers[b"date"] == b"then"
    assert reply.headers[b"x-a"] == "ü".encode()
    if rig.kind == "native":  # aiohttp writes UTF-8 only
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


async def test_a_closing_front_lets_requests_end(rig: Rig) -> None:
    rig.gate = asyncio.Event()
    reader, writer = await rig.open()
    writer.write(post())
    await until(lambda: bool(rig.seen), "the handler runs")
    rig.services.draining = rig.services.closing = True
    await rig.front.stop_listening()
    with pytest.raises(OSError):
        await rig.open()
    rig.gate.set()
    reply = await read_reply(reader)
    assert reply is not None
    assert (reply.status, reply.headers[b"connection"]) == (200, b"close")
    assert await reader.read() == b""
    await rig.front.close()
    await rig.front.close()


@contextlib.asynccontextmanager
async def impatient(kind: str, secs: float, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """Answers a request with more than sockets hold, to clients that are to take some of it every `secs`."""

    async def serve(services: Any, inbound: Any, out: Any) -> None:
        rig.seen.append(inbound)
        await out.send(200, [], b"y" * LARGE)

    monkeypatch.setattr("sgl_router.server.aiohttp_front.FLUSH_SECS", secs)
    limits = HttpLimits(sweep_secs=0.02, flush_secs=secs) if kind == "native" else None
    async with running(kind, limits=limits, routes={ECHO.decode(): serve}) as rig:
        yield rig


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with impatient(kind, 0.2, monkeypatch) as rig:
        _, writer = await rig.open()
        writer.write(post())
        await until(lambda: bool(rig.seen) and not rig.services.in_flight.count, "the request is over")
        writer.close()


async def test_a_client_that_takes_its_time_gets_all_of_its_answer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secs = 0.4
    async with impatient(kind, secs, monkeypatch) as rig:
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


async def test_each_response_of_a_draining_front_is_the_last_on_its_connection(rig: Rig) -> None:
    """Streams, refusals and what is no data route too; what is idle stays until the port is closed."""
    idle, _writer = await rig.open()
    requests = [post(), post(b"abc", target=STREAM), get(HEALTH), get(b"/no/such/route"), get(ECHO)]
    if rig.kind == "native":  # aiohttp answers this in HTTP/1.0, where each response is the last
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
    await rig.front.stop_listening()
    assert await idle.read() == b""


async def test_a_request_that_has_arrived_when_the_port_closes_is_served(rig: Rig) -> None:
    kept, writer = await rig.open()
    writer.write(post())
    assert await read_reply(kept) is not None
    rig.services.draining = rig.services.closing = True
    writer.write(post(b"just now"))
    await rig.front.stop_listening()
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

    async with running(rig.kind, routes={STREAM.decode(): stream}) as other:
        reader, writer = await other.open()
        writer.write(post(b"", target=STREAM))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"connection: close" not in head.lower()
        other.services.draining = other.services.closing = True
        await other.front.stop_listening()
        gate.set()
        assert (await reader.read()).endswith(b"last\r\n0\r\n\r\n")
