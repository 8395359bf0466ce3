from __future__ import annotations

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from sgl_router.processes.splice import Splice

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class HandsOver(asyncio.Protocol):
    """As the native front does: reads a little, then the connection is somebody else's."""

    def __init__(self, successor: Callable[[], asyncio.Protocol]) -> None:
        self._successor = successor

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        successor = self._successor()
        self._transport.set_protocol(successor)
        successor.connection_made(self._transport)
        successor.data_received(data)


class Rig:
    def __init__(self, path: str, stack: contextlib.AsyncExitStack) -> None:
        self.path = path
        self._stack = stack
        self.asked: list[tuple[bytes, bool]] = []
        self.instead: Callable[[bytes, bool], bytes | None] = lambda request, refused: None

    async def far(self, serve: Serve) -> None:
        server = await asyncio.start_unix_server(serve, self.path, limit=1 << 16)
        self._stack.callback(server.close)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        def instead(request: bytes, refused: bool) -> bytes | None:
            self.asked.append((request, refused))
            return self.instead(request, refused)

        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: HandsOver(lambda: Splice(self.path, instead)), "127.0.0.1", 0)
        self._stack.callback(server.close)
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
        self._stack.callback(writer.close)
        return reader, writer


@pytest.fixture
async def rig(tmp_path: pathlib.Path) -> AsyncIterator[Rig]:
    async with contextlib.AsyncExitStack() as stack:
        yield Rig(str(tmp_path / "s"), stack)


async def soon(waiting: Awaitable[bytes]) -> bytes:
    return await asyncio.wait_for(waiting, 120)


async def test_bytes_pass_both_ways_from_the_first_on(rig: Rig) -> None:
    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data.upper())
        writer.write(b"-- end")
        writer.close()

    await rig.far(upper)
    reader, writer = await rig.connect()
    writer.write(b"one ")
    assert await soon(reader.readexactly(4)) == b"ONE "
    writer.write(b"two")
    assert await soon(reader.readexactly(3)) == b"TWO"
    writer.write_eof()  # the far side may still answer
    assert await soon(reader.read()) == b"-- end"
    assert rig.asked == [(b"one ", False)]


async def test_a_slow_client_stops_the_far_side_and_the_other_way_round(rig: Rig) -> None:
    whole = 64 << 20
    sent = 0
    drained = asyncio.Event()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        got = 0
        for _ in range(whole >> 16):
            writer.write(b"x" * (1 << 16))
            await writer.drain()
            sent += 1 << 16
        await drained.wait()  # only now read what the client pours
        while got < whole:
            got += len(await reader.read(1 << 16))
        writer.write(b"y")
        writer.close()

    await rig.far(pour)
    reader, writer = await rig.connect()
    writer.write(b"go")
    before = -1
    while sent != before or not sent:  # until nothing moves: the client does not read
        before = sent
        await asyncio.sleep(0.1)
    assert sent < whole // 2
    assert len(await soon(reader.readexactly(whole))) == whole

    poured = 0

    async def pour_back() -> None:
        nonlocal poured
        for _ in range((whole - 2) >> 16):
            writer.write(b"x" * (1 << 16))
            await writer.drain()
            poured += 1 << 16
        writer.write(b"x" * (whole - poured))

    pouring = asyncio.create_task(pour_back())
    before = -1
    while poured != before or not poured:
        before = poured
        await asyncio.sleep(0.1)
    assert poured < whole // 2
    drained.set()
    await pouring
    assert await soon(reader.read()) == b"y"


async def test_a_client_that_leaves_closes_the_far_connection(rig: Rig) -> None:
    left = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(100):
                writer.write(b"z" * 10_000)
                await writer.drain()
        left.set()
        writer.close()

    await rig.far(wait)
    reader, writer = await rig.connect()
    writer.write(b"go")
    await soon(reader.readexactly(100))
    writer.transport.abort()
    await asyncio.wait_for(left.wait(), 120)


async def test_a_far_side_that_breaks_breaks_the_client(rig: Rig) -> None:
    async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.transport.abort()

    await rig.far(fail)
    reader, writer = await rig.connect()
    writer.write(b"go")
    with contextlib.suppress(ConnectionResetError):
        assert await soon(reader.read()) == b""


async def test_where_nobody_listens_the_client_is_answered_instead(rig: Rig) -> None:
    rig.instead = lambda request, refused: b"away" if refused else None
    reader, writer = await rig.connect()
    writer.write(b"GET /x")
    assert await soon(reader.read()) == b"away"
    assert rig.asked == [(b"GET /x", False), (b"GET /x", True)]


async def test_an_answer_given_beforehand_needs_no_far_side(rig: Rig) -> None:
    rig.instead = lambda request, refused: b"here"
    reader, writer = await rig.connect()
    writer.write(b"GET /x")
    assert await soon(reader.read()) == b"here"
    assert rig.asked == [(b"GET /x", False)]


async def test_without_any_answer_the_connection_ends(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(b"GET /x")
    assert await soon(reader.read()) == b""
