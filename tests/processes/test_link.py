from __future__ import annotations

import asyncio
import pathlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sgl_router.outcome import Outcome
from sgl_router.routing.remote.link import Link
from sgl_router.routing.remote.messages import Choose, End, Hello, Message, encode_into, to_routing


class End2:
    """A link and the bare socket at its other end."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.lost = 0
        self.link: Link[Any] = Link(to_routing, self.heard.append, self._lost, max_message_bytes=1 << 20)
        self.far, self._near = socket.socketpair()
        self.far.setblocking(False)

    async def open(self) -> End2:
        await asyncio.get_running_loop().create_unix_connection(lambda: self.link, sock=self._near)
        return self

    def _lost(self) -> None:
        self.lost += 1

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.far, data)

    async def settle(self, messages: int) -> None:
        for _ in range(2000):
            if len(self.heard) >= messages or self.lost:
                return
            await asyncio.sleep(0.001)
        raise AssertionError(f"heard {len(self.heard)} of {messages}")


@pytest.fixture
async def end() -> AsyncIterator[End2]:
    made = await End2().open()
    yield made
    made.link.abort()
    made.far.close()


def encoded(*messages: Message) -> bytes:
    buffer = bytearray()
    for message in messages:
        encode_into(message, buffer)
    return bytes(buffer)


SOME: list[Message] = [
    Hello(1, 2),
    Choose(7, "m", 5000, {1: b"x" * 5000}, None, None, "req-7", None, [], True, 0),
    End(7, Outcome.COMPLETED, 3),
]


async def test_messages_arrive_however_the_bytes_are_cut(end: End2) -> None:
    data = encoded(*SOME)
    for step in (1, 3, 4, 5, 1000, len(data)):
        before = len(end.heard)
        for at in range(0, len(data), step):
            end.link.data_received(data[at : at + step])
        assert end.heard[before:] == SOME


async def test_what_is_sent_in_one_turn_is_one_write(end: End2) -> None:
    for message in SOME:
        end.link.send(message)
    data = await asyncio.get_running_loop().sock_recv(end.far, 1 << 20)
    assert data == encoded(*SOME)


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00\x10\x00\x01",  # one byte more than is allowed
        b"\xff\xff\xff\xff",
        b"\0\0\0\1\xc1",
        b"\0\0\0\0",
        b"\0\0\0\2\x91\x63",  # an unknown tag
        b"\0\0\0\3\x93\x01\x01\x02"[:7],
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_cannot_be_read_closes_the_connection(end: End2, junk: bytes) -> None:
    await end.send(encoded(*SOME) + junk)
    await end.settle(len(SOME) + 1)
    assert end.heard == SOME
    assert (end.lost, end.link.open) == (1, False)
    end.link.send(SOME[0])  # nothing happens


async def test_a_message_that_cannot_be_handled_closes_the_connection(end: End2) -> None:
    def fail(message: object) -> None:
        raise ValueError("no")

    end.link._on_message = fail
    await end.send(encoded(*SOME))
    await end.settle(1)
    assert end.lost == 1


async def test_a_peer_that_does_not_read_is_congested_then_given_up(end: End2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgl_router.routing.remote.link._MAX_UNSENT_BYTES", 16 << 20)
    large = Choose(1, "m", 0, {1: b"x" * (1 << 20)}, None, None, "req", None, [], True, 0)
    for _ in range(8):
        end.link.send(large)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert end.link.congested
    assert end.link.open
    for _ in range(24):
        end.link.send(large)
    await end.settle(1)
    assert not end.link.open


async def test_congestion_passes(end: End2) -> None:
    large = Choose(1, "m", 0, {1: b"x" * (1 << 20)}, None, None, "req", None, [], True, 0)
    for _ in range(8):
        end.link.send(large)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert end.link.congested
    got = 0
    while got < 8 << 20:
        got += len(await asyncio.wait_for(asyncio.get_running_loop().sock_recv(end.far, 1 << 20), 120))
    for _ in range(2000):
        if not end.link.congested:
            break
        await asyncio.sleep(0.001)
    assert not end.link.congested


async def test_closing_sends_what_is_queued(end: End2) -> None:
    end.link.send(SOME[0])
    await end.link.close()
    assert await asyncio.get_running_loop().sock_recv(end.far, 1 << 20) == encoded(SOME[0])
    assert end.lost == 1


async def test_a_stranger_is_cut_off(rig: Any, tmp_path: pathlib.Path) -> None:
    routing = await rig.routing("http://a:1")
    for data in (encoded(SOME[1]), b"GET / HTTP/1.1\r\n\r\n", encoded(Hello(1, 2), SOME[1], SOME[1])):
        reader, writer = await asyncio.open_unix_connection(routing.path)
        writer.write(data)
        await asyncio.wait_for(reader.read(), 120)
        writer.close()
    await rig.until(routing.idle, "nothing is held for it")
