"""A kept connection on which the worker hangs up just as the next request goes out, and huge requests."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from sgl_router.errors import UpstreamUnreachable
from sgl_router.proxy import UpstreamPool
from sgl_router.proxy.connection import UPLOAD_PIECE

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BOTH = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


class Worker:
    """A listening socket driven by the test itself, so that nothing happens in between unless it says so."""

    def __init__(self) -> None:
        self.pool = UpstreamPool()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.loop = asyncio.get_running_loop()

    async def accept(self) -> socket.socket:
        accepted, _ = await self.loop.sock_accept(self.listener)
        return accepted

    async def serve_one(self, accepted: socket.socket) -> bytes:
        data = await self.loop.sock_recv(accepted, 65536)
        await self.loop.sock_sendall(accepted, ANSWER)
        return data

    async def ask(self, body: bytes = b"{}") -> bytes:
        with await self.pool.open(self.url, b"POST", b"/", [], body) as exchange:
            return await exchange.read() or b""

    async def kept(self) -> socket.socket:
        """A connection that has served a request and is idle in the pool."""
        asked = asyncio.create_task(self.ask())
        accepted = await self.accept()
        await self.serve_one(accepted)
        assert await asked == b"ok"
        return accepted


def reset(accepted: socket.socket) -> None:
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    accepted.close()


HANG_UPS: dict[str, Callable[[socket.socket], None]] = {
    "close": socket.socket.close,
    "reset": reset,
    "half-close": lambda accepted: accepted.shutdown(socket.SHUT_WR),
}


def transport_of(asked: asyncio.Task[bytes]) -> asyncio.Transport:
    """That of the connection on which a request is under way: only the coroutines know it."""
    waiting = asked.get_coro()
    while "connection" not in waiting.cr_frame.f_locals:
        waiting = waiting.cr_await
    return waiting.cr_frame.f_locals["connection"]._transport


def on(loop: Callable[[], asyncio.AbstractEventLoop], job: Callable[[Worker], Awaitable[None]]) -> None:
    async def main() -> None:
        worker = Worker()
        try:
            await asyncio.wait_for(job(worker), 20)
        finally:
            worker.pool.close()
            worker.listener.close()

    running = loop()
    try:
        running.run_until_complete(main())
    finally:
        running.close()


@BOTH
@pytest.mark.parametrize("hang_up", HANG_UPS)
@pytest.mark.parametrize("noticed", [False, True])
def test_hanging_up_before_any_answer_costs_one_fresh_connection(loop, hang_up: str, noticed: bool) -> None:
    async def job(worker: Worker) -> None:
        first = await worker.kept()
        HANG_UPS[hang_up](first)
        if noticed:
            await asyncio.sleep(0.02)

        async def second() -> None:
            await worker.serve_one(await worker.accept())

        serving = asyncio.ensure_future(second())
        assert await worker.ask() == b"ok"  # its first step runs at once: not noticed, it writes to what is closed
        await serving
        first.close()
        await asyncio.sleep(0)
        assert worker.pool._addresses[worker.url].open == 1

    on(loop, job)


@BOTH
def test_it_is_asked_twice_at_most(loop) -> None:
    async def job(worker: Worker) -> None:
        reset(await worker.kept())
        asked = asyncio.ensure_future(worker.ask())
        reset(await worker.accept())
        with pytest.raises(UpstreamUnreachable):
            await asked
        with pytest.raises(BlockingIOError):
            worker.listener.accept()

    on(loop, job)


@BOTH
def test_a_second_stale_connection_is_not_replaced_again(loop) -> None:
    async def job(worker: Worker) -> None:
        worker.pool = UpstreamPool(max_connections=1)
        first = await worker.kept()
        asked = asyncio.ensure_future(worker.ask())
        await asyncio.sleep(0)
        others = [asyncio.ensure_future(worker.ask()) for _ in range(2)]  # in line before it comes back
        await asyncio.sleep(0)
        reset(first)
        second = await worker.accept()
        for other in others:
            await worker.serve_one(second)
            assert await other == b"ok"
        await worker.loop.sock_recv(second, 65536)  # the connection was handed on to it, used as it is
        second.close()
        with pytest.raises(UpstreamUnreachable):
            await asked

    on(loop, job)


@BOTH
def test_once_a_byte_was_answered_it_is_not_asked_again(loop) -> None:
    async def job(worker: Worker) -> None:
        accepted = await worker.kept()
        asked = asyncio.ensure_future(worker.ask())
        await worker.loop.sock_recv(accepted, 65536)
        await worker.loop.sock_sendall(accepted, b"H")
        accepted.close()
        with pytest.raises(UpstreamUnreachable):
            await asked
        with pytest.raises(BlockingIOError):
            worker.listener.accept()

    on(loop, job)


@BOTH
def test_small_writes_are_not_held_back(loop) -> None:
    async def job(worker: Worker) -> None:
        accepted = await worker.kept()
        [connection] = worker.pool._addresses[worker.url].idle
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        accepted.close()

    on(loop, job)


@BOTH
def test_a_huge_request_waits_for_a_slow_worker_outside_the_transport(loop) -> None:
    body = bytes(range(256)) * (128 << 10)

    async def job(worker: Worker) -> None:
        asked = asyncio.ensure_future(worker.ask(body))
        accepted = await worker.accept()
        await asyncio.sleep(0.1)
        assert 0 < transport_of(asked).get_write_buffer_size() <= 2 * UPLOAD_PIECE
        received = bytearray()
        while not received.endswith(body[-1024:]) or len(received) < len(body):
            received += await worker.loop.sock_recv(accepted, 1 << 20)
        assert received.partition(b"\r\n\r\n")[2] == body
        await worker.loop.sock_sendall(accepted, ANSWER)
        assert await asked == b"ok"
        accepted.close()

    on(loop, job)


@BOTH
def test_an_answer_to_half_a_request_is_taken_and_the_rest_is_not_sent(loop) -> None:
    body = b"x" * (32 << 20)

    async def job(worker: Worker) -> None:
        asked = asyncio.ensure_future(worker.ask(body))
        accepted = await worker.accept()
        await worker.loop.sock_recv(accepted, 65536)
        await worker.loop.sock_sendall(accepted, ANSWER.replace(b"200 OK", b"413 Too Large"))
        assert await asked == b"ok"
        assert not worker.pool._addresses[worker.url].idle
        received = 0
        try:
            while data := await worker.loop.sock_recv(accepted, 1 << 20):
                received += len(data)
        except ConnectionResetError:
            pass
        assert received < len(body)
        accepted.close()

    on(loop, job)
