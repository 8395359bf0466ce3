"""A kept connection on which the worker hangs up just as the next request goes out, and huge requests."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from sgl_router.errors import ConnectFailed, UpstreamUnreachable
from sgl_router.upstream import Deadline, UpstreamPool, connection
from sgl_router.upstream.connection import UPLOAD_PIECE
from sgl_router.upstream.crossing import CROSSING_SECS

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


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may be so busy that a reset which crossed a request is noticed late."""
    monkeypatch.setattr(connection, "CROSSING_SECS", 20.0)


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
            await asyncio.wait_for(job(worker), 120)
        finally:
            worker.pool.close()
            worker.listener.close()

    running = loop()
    try:
        running.run_until_complete(main())
    finally:
        running.close()


@BOTH
@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("hang_up", "noticed"),
    # Whether a half-closed worker's host confirms what comes later is a matter of luck: such a close is not crossed.
    [("close", False), ("reset", False), ("close", True), ("reset", True), ("half-close", True)],
)
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
@pytest.mark.usefixtures("patient")
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
@pytest.mark.usefixtures("patient")
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


def works_and_hangs_up(hang_up: str, secs: float, *, first: bytes = b"", part: int = 1 << 20):
    """A worker that reads what there is of a request on a kept connection, works, and closes."""

    async def job(worker: Worker) -> None:
        accepted = await worker.kept()
        asked = asyncio.ensure_future(worker.ask(b"x" * 64))
        await worker.loop.sock_recv(accepted, part)
        if first:
            await worker.loop.sock_sendall(accepted, first)
        await asyncio.sleep(secs)
        HANG_UPS[hang_up](accepted)
        with pytest.raises(UpstreamUnreachable) as caught:
            await asked
        assert not isinstance(caught.value, ConnectFailed)
        with pytest.raises(BlockingIOError):
            worker.listener.accept()
        accepted.close()

    return job


@BOTH
@pytest.mark.parametrize("hang_up", HANG_UPS)
def test_a_worker_that_works_and_closes_is_not_asked_again(loop, hang_up: str) -> None:
    on(loop, works_and_hangs_up(hang_up, 5 * CROSSING_SECS))


@BOTH
@pytest.mark.parametrize("hang_up", ["close", "half-close"])
def test_nor_is_one_that_closes_at_once_having_had_it_all(loop, hang_up: str) -> None:
    on(loop, works_and_hangs_up(hang_up, 0))


@BOTH
@pytest.mark.parametrize("hang_up", HANG_UPS)
def test_nor_is_one_that_has_begun_to_respond(loop, hang_up: str) -> None:
    on(loop, works_and_hangs_up(hang_up, 0, first=b"HTTP/1.1 100 Continue\r\n\r\n"))


@BOTH
def test_nor_is_one_that_dies_in_the_middle_of_an_upload(loop) -> None:
    async def job(worker: Worker) -> None:
        accepted = await worker.kept()
        asked = asyncio.ensure_future(worker.ask(bytes(32 << 20)))
        loop, received = worker.loop, 0
        began = loop.time()
        while received < 8 << 20:
            received += len(await loop.sock_recv(accepted, 64 << 10))
        while loop.time() < began + 5 * CROSSING_SECS:  # the first write is long ago, the last one has just been
            received += len(await loop.sock_recv(accepted, 64 << 10))
            await asyncio.sleep(0.01)
        reset(accepted)
        with pytest.raises(UpstreamUnreachable):
            await asked
        assert received < 32 << 20
        with pytest.raises(BlockingIOError):
            worker.listener.accept()

    on(loop, job)


@BOTH
def test_a_close_that_crosses_a_large_request_costs_one_fresh_connection(loop) -> None:
    body = bytes(range(256)) * (8 << 10)

    async def job(worker: Worker) -> None:
        (await worker.kept()).close()
        asked = asyncio.ensure_future(worker.ask(body))
        accepted, received = await worker.accept(), b""
        while len(received) < len(body) or not received.endswith(body[-1024:]):
            received += await worker.loop.sock_recv(accepted, 1 << 20)
        await worker.loop.sock_sendall(accepted, ANSWER)
        assert await asked == b"ok"
        assert received.partition(b"\r\n\r\n")[2] == body

    on(loop, job)


@BOTH
@pytest.mark.usefixtures("patient")
def test_where_it_cannot_be_sent_again_something_was_sent_all_the_same(loop) -> None:
    """A worker that died of the request: no other may be asked."""

    async def job(worker: Worker) -> None:
        first = await worker.kept()
        asked = asyncio.ensure_future(worker.ask())
        await asyncio.sleep(0)  # the request is out
        worker.listener.close()
        reset(first)
        with pytest.raises(UpstreamUnreachable, match="no other could be made") as caught:
            await asked
        assert not isinstance(caught.value, ConnectFailed)

    on(loop, job)


@BOTH
@pytest.mark.usefixtures("patient")
def test_nor_may_one_where_the_fresh_connection_is_waited_for_in_vain(loop) -> None:
    async def job(worker: Worker) -> None:
        first = await worker.kept()

        async def connecting(address: object) -> None:
            await asyncio.Event().wait()

        worker.pool._connect = connecting
        missing = pytest.raises(UpstreamUnreachable, match="no other could be made within")
        with missing as caught, Deadline() as deadline:
            reset(first)
            await worker.pool.open(
                worker.url, b"POST", b"/", [], b"{}", deadline=deadline, connect_secs=0.05, answer_secs=20
            )
        assert not isinstance(caught.value, ConnectFailed)

    on(loop, job)


@BOTH
def test_where_nothing_was_sent_another_may_be_asked(loop) -> None:
    async def job(worker: Worker) -> None:
        first = await worker.kept()
        first.close()
        worker.listener.close()
        [idle] = worker.pool._addresses[worker.url].idle
        while not idle.closed:
            await asyncio.sleep(0)
        with pytest.raises(ConnectFailed):
            await worker.ask()

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
