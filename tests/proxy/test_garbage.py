"""Requests leave nothing behind for the cycle collector, however they end."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

import pytest
import uvloop

from sgl_router.errors import ConnectFailed, RouterError, UpstreamBodyIncomplete, UpstreamTimeout, UpstreamUnreachable
from sgl_router.http import ClientGone
from sgl_router.upstream import Deadline, Relayed, UpstreamPool, relay

ROUNDS = 200
HEAD = b"HTTP/1.1 200 OK\r\n"
SSE = HEAD + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWERS = {
    "whole": (HEAD + b"Content-Length: 2\r\n\r\nok", None),
    "stream": (SSE + b"2\r\nok\r\n" * 3 + b"0\r\n\r\n", None),
    "cut": (HEAD + b"Content-Length: 9\r\n\r\nok", UpstreamBodyIncomplete),
    "stream cut": (SSE + b"2\r\nok\r\n", UpstreamBodyIncomplete),
    "nothing": (b"", UpstreamUnreachable),
    "no HTTP": (b"SSH", UpstreamUnreachable),
    "silence": (b"", UpstreamTimeout),
    "stream and silence": (SSE + b"2\r\nok\r\n", UpstreamTimeout),
    "client gone": (SSE + b"2\r\nok\r\n", ClientGone),
    "nobody listens": (b"", ConnectFailed),
}


class Worker(asyncio.Protocol):
    answer = b""
    close = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport | None = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(self.answer)
        if self.close:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None


class Client:
    started = False

    def __init__(self, gone: bool) -> None:
        self.gone = gone

    async def send(self, status, headers, body) -> None:
        self.started = True

    async def start(self, status, headers) -> None:
        self.started = True

    async def write(self, data) -> None:
        if self.gone:
            raise ClientGone

    def try_write(self, data, last=False) -> bool:
        return not self.gone

    async def end(self) -> None: ...

    def abort(self) -> None: ...


async def request(pool: UpstreamPool, url: str, expected: type[Exception] | None) -> None:
    impatient = expected is UpstreamTimeout
    try:
        with Deadline() as deadline:
            exchange = await pool.open(
                url, b"POST", b"/", [], b"{}", deadline=deadline, connect_secs=5, answer_secs=0.03 if impatient else 5
            )
            with exchange:
                await relay(
                    exchange,
                    Client(expected is ClientGone),
                    Relayed(),
                    deadline=deadline,
                    idle_secs=0.03 if impatient else 5,
                    added_lines=b"",
                    first_byte=lambda: None,
                )
    except (RouterError, ClientGone) as error:
        assert type(error) is expected
    else:
        assert expected is None


@pytest.mark.parametrize("case", ANSWERS)
def test_nothing_is_left_to_the_collector(case: str) -> None:
    loop = uvloop.new_event_loop()  # the transports of asyncio's own loop are cycles themselves
    try:
        loop.run_until_complete(leave_nothing(case))
    finally:
        loop.close()


async def leave_nothing(case: str) -> None:
    answer, expected = ANSWERS[case]
    kind = type("Scripted", (Worker,), {"answer": answer, "close": expected not in (None, UpstreamTimeout, ClientGone)})
    server = await asyncio.get_running_loop().create_server(kind, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    if expected is ConnectFailed:
        url = "http://127.0.0.1:1"
    pool = UpstreamPool()

    async def rounds(count: int) -> None:
        for _ in range(count // 50):
            await asyncio.gather(*[asyncio.create_task(request(pool, url, expected)) for _ in range(50)])

    await rounds(100)
    await asyncio.sleep(0.01)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        await rounds(ROUNDS)
        await asyncio.sleep(0.01)
        gc.collect()
        found = Counter(type(item) for item in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        pool.close()
        server.close()
    ours = {kind: count for kind, count in found.items() if kind.__module__.startswith("sgl_router")}
    assert not ours
    assert sum(found.values()) < ROUNDS / 10, found.most_common(8)
