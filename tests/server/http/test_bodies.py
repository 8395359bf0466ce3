"""What bodies cost all together: the budget of all connections, slow uploads, tiny chunks, clients that send it all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sgl_router.http.limits import HttpLimits
from sgl_router.http.memory import BodyBudget
from tests.conformance.case import CHUNKED, ECHO, HOST, post
from tests.conformance.rig import Rig, read_reply, running, until

MIB = 1 << 20
HEAD = b"POST " + ECHO + b" HTTP/1.1\r\n" + HOST + b"\r\n"


def announced(size: int, *fields: bytes) -> bytes:
    return b"".join([HEAD, *[field + b"\r\n" for field in fields], b"Content-Length: %d\r\n\r\n" % size])


@contextlib.asynccontextmanager
async def bounded(limit: int = 4 * MIB, **settings: Any) -> AsyncIterator[Rig]:
    async with running(max_body_bytes=MIB, **settings) as rig:
        rig.server.bodies = BodyBudget(limit, MIB)
        yield rig


async def test_uploads_that_do_not_end_take_no_more_than_the_budget() -> None:
    async with bounded() as rig:
        clients = [await rig.open() for _ in range(10)]
        for _, writer in clients[:3]:
            writer.write(announced(MIB) + b"x" * 1000)
        await until(lambda: rig.server.bodies.held == 3 * MIB, "three are announced")
        for reader, writer in clients[3:]:
            writer.write(announced(MIB) + b"x" * 1000)
            reply = await read_reply(reader)
            assert reply is not None
            assert (reply.status, reply.headers[b"retry-after"]) == (503, b"1")
            assert (reply.json["error"]["code"], reply.headers[b"connection"]) == ("overloaded", b"close")
        # An eighth is left to small bodies, which go on.
        reader, writer = await rig.open()
        writer.write(post(b"hello"))
        reply = await read_reply(reader)
        assert reply is not None
        assert (reply.status, rig.server.bodies.held) == (200, 3 * MIB)
        for _, writer in clients[:3]:
            writer.close()
        await until(lambda: rig.server.bodies.held == 0, "what they held is given back")
        assert not rig.services.in_flight.count


async def test_chunks_count_as_they_arrive() -> None:
    async with bounded(2 * MIB) as rig:
        (first_reader, first), (second_reader, second) = await rig.open(), await rig.open()
        for writer in (first, second):
            writer.write(HEAD + CHUNKED + b"\r\n\r\n80000\r\n" + b"x" * 0x80000 + b"\r\n")
        await until(lambda: rig.server.bodies.held == MIB, "half of two bodies is here")
        first.write(b"78000\r\n" + b"x" * 0x78000 + b"\r\n")
        await until(lambda: rig.server.bodies.held > MIB, "more of the first")
        second.write(b"78000\r\n" + b"x" * 0x78000 + b"\r\n")
        reply = await read_reply(second_reader)
        assert reply is not None
        assert reply.status == 503
        first.write(b"0\r\n\r\n")
        reply = await read_reply(first_reader)
        assert reply is not None
        assert (reply.status, len(reply.body)) == (200, 0xF8000)
        await until(lambda: rig.server.bodies.held == 0, "everything is given back")


@pytest.mark.parametrize(
    "raw",
    [
        post(b"x" * 5000),
        announced(5000) + b"x" * 10,
        HEAD + CHUNKED + b"\r\n\r\n5\r\nhello\r\nzz\r\n",
        announced(5000, b"Content-Encoding: gzip") + b"x" * 10,
        announced(2 * MIB) + b"x" * 10,
    ],
)
async def test_however_a_request_ends_nothing_stays_counted(raw: bytes) -> None:
    async with bounded(limits=HttpLimits(sweep_secs=0.02, body_secs=0.1)) as rig:
        reader, writer = await rig.open()
        writer.write(raw)
        assert await read_reply(reader) is not None
        writer.close()
        await until(lambda: not rig.server.connections, "the connection is gone")
        assert rig.server.bodies.held == 0


async def test_a_body_counts_while_its_request_is_served_and_no_longer_than_it_is_needed() -> None:
    sent, end = asyncio.Event(), asyncio.Event()

    async def serve(services: Any, inbound: Any, out: Any) -> None:
        await sent.wait()
        inbound.sent()
        await end.wait()
        await out.send(200, [], b"%d" % len(inbound.body))

    async with bounded(routes={ECHO.decode(): serve}) as rig:
        reader, writer = await rig.open()
        writer.write(post(b"x" * 100_000))
        await until(lambda: rig.server.bodies.held == 100_000, "the request is served")
        sent.set()
        await until(lambda: rig.server.bodies.held == 0, "the worker has it")
        end.set()
        reply = await read_reply(reader)
        assert reply is not None
        assert reply.body == b"0"


async def test_a_task_that_is_cut_off_before_it_begins_gives_its_body_back() -> None:
    async with bounded() as rig:
        _, writer = await rig.open()
        writer.write(announced(MIB)[:-4])
        await until(lambda: any(one._partial for one in rig.server.connections), "half a head")
        (connection,) = rig.server.connections
        connection.data_received(b"\r\n\r\n" + b"x" * MIB)
        assert rig.server.bodies.held == MIB
        connection.cut_off()
        await until(lambda: not rig.server.connections, "the connection is gone")
        assert (rig.server.bodies.held, rig.seen) == (0, [])


@pytest.mark.parametrize("raw", [announced(MIB), HEAD + CHUNKED + b"\r\n\r\nfffff\r\n"])
async def test_a_body_that_comes_in_too_slowly_is_refused(raw: bytes) -> None:
    limits = HttpLimits(sweep_secs=0.02, window_secs=0.1, window_bytes=1000)
    async with bounded(limits=limits) as rig:
        reader, writer = await rig.open()
        writer.write(raw)
        (connection,) = await connections(rig)
        windows = 0
        for _ in range(3):  # fast enough
            due = connection.due
            writer.write(b"x" * 1000)
            await until(lambda due=due: connection.due > due, "the next window")  # type: ignore[misc]
            windows += 1
        reply = await read_reply(reader)
        assert reply is not None
        assert (windows, reply.status, reply.headers[b"connection"]) == (3, 408, b"close")
        assert "too slowly" in reply.json["error"]["message"]
        assert rig.server.bodies.held == 0


async def connections(rig: Rig) -> list[Any]:
    await until(lambda: rig.services.in_flight.count == 1, "the head is here")
    return list(rig.server.connections)


async def test_a_read_of_tiny_chunks_is_worked_through_in_turns() -> None:
    async with running(max_body_bytes=MIB) as rig:
        reader, writer = await rig.open()
        writer.write(HEAD + CHUNKED + b"\r\n\r\n" + b"1\r\nx\r\n" * 60_000 + b"0\r\n\r\n" + post(b"after"))
        for expected in (b"x" * 60_000, b"after"):
            reply = await read_reply(reader)
            assert reply is not None
            assert (reply.status, reply.body) == (200, expected)


async def test_more_tiny_chunks_than_any_client_sends_are_refused() -> None:
    async with running(max_body_bytes=MIB) as rig:
        reader, writer = await rig.open()
        writer.write(HEAD + CHUNKED + b"\r\n\r\n" + b"1\r\nx\r\n" * 100_000)
        reply = await read_reply(reader)
        assert reply is not None
        assert (reply.status, reply.headers[b"connection"]) == (400, b"close")
        assert "too many chunks" in reply.json["error"]["message"]


@pytest.mark.parametrize("kind", ["length", "chunked"])
async def test_a_client_that_sends_all_of_a_body_too_large_reads_the_refusal(kind: str) -> None:
    """Nothing is read before everything is written: a reset would have taken the response with it."""
    size = 100 * MIB
    async with running(max_body_bytes=MIB) as rig:
        reader, writer = await rig.open()
        if kind == "length":
            writer.write(announced(size))
        else:
            writer.write(HEAD + CHUNKED + b"\r\n\r\n%x\r\n" % size)
        for _ in range(size // MIB):
            writer.write(b"x" * MIB)
            await writer.drain()
        reply = await read_reply(reader)
        assert reply is not None
        assert (reply.status, reply.headers[b"connection"]) == (413, b"close")
        assert await reader.read() == b""
        if kind == "length":
            await until(lambda: not rig.server.connections, "closed with the last byte, not by a timer")


async def test_a_refused_client_that_asks_first_sends_nothing() -> None:
    async with bounded() as rig:
        rig.server.bodies.take(3 * MIB, MIB)
        reader, writer = await rig.open()
        writer.write(announced(MIB, b"Expect: 100-continue"))
        reply = await read_reply(reader)
        assert reply is not None
        assert (reply.interim, reply.status) == ([], 503)
