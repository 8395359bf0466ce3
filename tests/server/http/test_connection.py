"""One connection of the server: time, memory, back-pressure, and what happens when either side goes away."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import pytest

from sgl_router.errors import NoHealthyWorkers
from sgl_router.http import ClientGone
from sgl_router.http.connection import Stage
from sgl_router.http.limits import HttpLimits
from sgl_router.http.routes import Route
from tests.conformance.case import ECHO, HEALTH, STREAM, post
from tests.conformance.rig import Rig, read_reply, running, until

QUICK = HttpLimits(sweep_secs=0.02, idle_secs=0.3, head_secs=0.1, body_secs=0.1, linger_secs=0.1, flush_secs=0.2)
GET = post(b"", line=b"GET " + HEALTH + b" HTTP/1.1", length=False)


def connection(rig: Rig) -> Any:
    (found,) = rig.server.connections
    return found


def answer_with(rig: Rig, serve: Any) -> None:
    rig.routes.exact[ECHO] = Route(ECHO.decode(), POST=serve)


async def test_small_writes_go_out_at_once() -> None:
    async with running() as rig:
        await rig.open()
        await until(lambda: bool(rig.server.connections), "the connection is accepted")
        sock = connection(rig).transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST ", 408),
        (post(b"hello")[:-1], 408),
        (b"POST /v1/tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na", 408),
    ],
)
async def test_a_request_that_trickles_in_is_answered_408(sent: bytes, status: int) -> None:
    async with running(limits=QUICK) as rig:
        reader, writer = await rig.open()
        loop = asyncio.get_running_loop()
        started = loop.time()
        for byte in sent:
            writer.write(bytes((byte,)))  # a byte now and then does not buy time
        reply = await read_reply(reader)
        assert reply is not None
        assert reply.status == status
        assert reply.headers[b"connection"] == b"close"
        assert await reader.read() == b""
        assert loop.time() - started > 0.08
        assert not rig.seen
        assert rig.services.in_flight.count == 0


async def test_an_idle_connection_is_closed_without_a_word() -> None:
    async with running(limits=QUICK) as rig:
        reader, writer = await rig.open()
        writer.write(post())
        assert await read_reply(reader) is not None
        assert await reader.read() == b""


async def test_a_slow_handler_is_nobodys_fault() -> None:
    async with running(limits=QUICK) as rig:
        rig.gate = asyncio.Event()
        reader, writer = await rig.open()
        writer.write(post())
        await asyncio.sleep(0.5)  # longer than any limit
        rig.gate.set()
        reply = await read_reply(reader)
        assert reply is not None
        assert reply.status == 200


@pytest.mark.parametrize("how", ["close", "reset", "half"])
async def test_a_client_that_leaves_cancels_its_request(how: str) -> None:
    async with running() as rig:
        rig.gate = asyncio.Event()
        reader, writer = await rig.open()
        writer.write(post())
        await until(lambda: bool(rig.seen), "the handler runs")
        if how == "half":
            writer.write_eof()
            assert await reader.read() == b""
        else:
            if how == "reset":
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort() if how == "reset" else writer.close()
        await until(lambda: rig.cancelled == 1, "the handler is cancelled")
        await until(lambda: not rig.server.connections, "the connection is forgotten")
        assert rig.services.in_flight.count == 0
        assert rig.services.metrics.responses.labels(ECHO.decode(), "POST", "499").value == 1


async def test_a_client_that_leaves_while_an_answer_ends_leaves_nothing_in_flight() -> None:
    """Its end is read in the very turn in which the answer goes out, and another request waits behind."""

    async def serve(services: Any, inbound: Any, out: Any) -> None:
        rig.seen.append(inbound)
        await out.send(200, [], b"")
        connection(rig).transport.close()  # what asyncio does at a client's end

    async with running() as rig:
        answer_with(rig, serve)
        _, writer = await rig.open()
        writer.write(post() + post())
        await until(lambda: bool(rig.seen) and not rig.server.connections, "the connection is forgotten")
        assert rig.services.in_flight.count == 0
        assert len(rig.seen) == 1
        assert rig.services.metrics.responses.labels(ECHO.decode(), "POST", "499").value == 1


async def test_a_request_that_arrives_as_all_is_cut_off_is_not_left_in_flight() -> None:
    async with running() as rig:
        await rig.open()
        await until(lambda: bool(rig.server.connections), "the connection is accepted")
        connection(rig).data_received(post())
        await rig.server.close()
        assert rig.services.in_flight.count == 0
        assert not rig.seen


async def test_a_client_that_leaves_in_the_middle_of_its_body() -> None:
    async with running() as rig:
        _, writer = await rig.open()
        writer.write(post()[:-2])
        await until(lambda: rig.services.in_flight.count == 1, "the headers have arrived")
        writer.close()
        await until(lambda: rig.services.in_flight.count == 0, "the request is written off")
        assert not rig.seen


async def test_a_large_refused_upload_gets_to_read_the_refusal() -> None:
    async with running() as rig:
        reader, writer = await rig.open()
        writer.write(b"POST " + ECHO + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n")
        for _ in range(40):
            writer.write(b"x" * 100_000)
        reply = await read_reply(reader)
        assert reply is not None
        assert (reply.status, reply.headers[b"connection"]) == (413, b"close")
        await asyncio.wait_for(writer.drain(), 5)
        assert await reader.read() == b""


async def test_a_refused_client_that_never_stops_is_cut_off() -> None:
    limits = HttpLimits(sweep_secs=0.02, linger_secs=30, linger_bytes=300_000)
    async with running(limits=limits) as rig:
        _, writer = await rig.open()
        writer.write(b"X Y Z\r\n\r\n")
        with pytest.raises(ConnectionError):
            while True:
                writer.write(b"x" * 100_000)
                await asyncio.wait_for(writer.drain(), 5)
        await until(lambda: not rig.server.connections, "the connection is gone")


async def test_a_refused_client_that_stays_is_closed_in_time() -> None:
    async with running(limits=QUICK) as rig:
        reader, _writer = await rig.open()
        _writer.write(b"X Y Z\r\n\r\n")
        assert await read_reply(reader) is not None
        await until(lambda: not rig.server.connections, "the connection is gone")


async def test_reading_stops_while_too_much_waits_and_goes_on() -> None:
    async with running() as rig:
        rig.gate = asyncio.Event()
        reader, writer = await rig.open()
        one = post(b"x" * 1000)
        count = 3000
        writer.write(one * count)
        await until(lambda: bool(rig.seen) and connection(rig)._reading_paused, "reading has stopped")
        await asyncio.sleep(0.05)
        assert len(connection(rig)._ahead) < (1 << 20) < len(one) * count
        rig.gate.set()
        for _ in range(count):
            reply = await read_reply(reader)
            assert reply is not None
            assert reply.status == 200
        assert len(rig.seen) == count
        assert not connection(rig)._reading_paused


async def test_a_handler_waits_for_a_client_that_does_not_read() -> None:
    written = 0
    refused = asyncio.Event()

    async def serve(services: Any, inbound: Any, out: Any) -> None:
        nonlocal written
        await out.start(200, [])
        piece = b"y" * 65536
        while written < 160:
            if not out.try_write(piece):
                refused.set()
                await out.write(piece)
            written += 1
        await out.end()

    async with running() as rig:
        answer_with(rig, serve)
        reader, writer = await rig.open()
        writer.write(post())
        await asyncio.wait_for(refused.wait(), 120)
        await asyncio.sleep(0.05)
        assert connection(rig).write_paused
        assert written < 150
        assert connection(rig).transport.get_write_buffer_size() < 1 << 20
        reply = await read_reply(reader)
        assert reply is not None
        assert len(reply.body) == 160 * 65536


@pytest.mark.parametrize("how", ["send", "end"])
async def test_a_client_that_takes_nothing_of_a_whole_answer_is_cut_off(how: str) -> None:
    async def serve(services: Any, inbound: Any, out: Any) -> None:
        rig.seen.append(inbound)
        if how == "send":
            await out.send(200, [], b"y" * (16 << 20))
        else:
            await out.start(200, [])
            while out.try_write(b"y" * 65536):
                pass
            await out.end()

    async with running(limits=QUICK) as rig:
        answer_with(rig, serve)
        _, _writer = await rig.open()
        _writer.write(post())
        await until(lambda: bool(rig.seen) and not rig.server.connections, "the connection is gone")
        await until(lambda: not rig.services.in_flight.count, "the request is over")


async def test_a_client_that_takes_its_time_gets_all_of_its_answer() -> None:
    async def serve(services: Any, inbound: Any, out: Any) -> None:
        await out.send(200, [], b"y" * (16 << 20))

    limits = HttpLimits(sweep_secs=0.02, flush_secs=1.6)
    async with running(limits=limits) as rig:
        answer_with(rig, serve)
        reader, writer = await rig.open()
        writer.write(post())
        await reader.readuntil(b"\r\n\r\n")
        taken = 0
        for _ in range(16):
            await asyncio.sleep(limits.flush_secs / 8)
            taken += len(await reader.readexactly(1 << 20))
        assert taken == 16 << 20
        await until(lambda: not rig.services.in_flight.count, "the request is over")
        writer.write(post())
        assert (await read_reply(reader)).status == 200


async def test_a_waiting_handler_is_cancelled_when_the_client_leaves() -> None:
    ended: list[BaseException] = []

    async def serve(services: Any, inbound: Any, out: Any) -> None:
        try:
            await out.start(200, [])
            while True:
                await out.write(b"y" * 65536)
        except BaseException as error:
            ended.append(error)
            raise

    async with running() as rig:
        answer_with(rig, serve)
        _, writer = await rig.open()
        writer.write(post())
        await until(lambda: bool(rig.server.connections) and connection(rig).write_paused, "the handler waits")
        writer.transport.abort()
        await until(lambda: bool(ended), "the handler has ended")
        assert isinstance(ended[0], (asyncio.CancelledError, ClientGone))
        assert rig.services.in_flight.count == 0


async def test_100_is_sent_for_a_body_that_is_awaited_and_only_then() -> None:
    async with running() as rig:
        reader, writer = await rig.open()
        head = b"POST " + ECHO + b" HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        writer.write(head)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello" + head + b"h")  # the second one does not wait to be asked
        assert (await read_reply(reader)).body == b"hello"
        writer.write(b"ello")
        reply = await read_reply(reader)
        assert (reply.body, reply.interim) == (b"hello", [])


async def test_routes_of_both_kinds_share_a_connection() -> None:
    async with running() as rig:
        reader, writer = await rig.open()
        writer.write(post(b"one") + GET[:20])
        assert (await read_reply(reader)).body == b"one"
        assert len(rig.server.connections) == 1
        writer.write(GET[20:] + post(b"two") + post(b"three", target=STREAM)[:-3])
        assert (await read_reply(reader)).json == {"status": "ok"}
        assert (await read_reply(reader)).body == b"two"
        writer.write(b"ree")
        assert (await read_reply(reader)).body == b"three"


async def test_the_next_request_waits_until_the_client_has_taken_the_response_before() -> None:
    paused: list[bool] = []
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))

    async def serve(services: Any, inbound: Any, out: Any) -> None:
        await out.start(200, [])
        while connection(rig).transport.get_write_buffer_size() < 240_000:
            assert out.try_write(b"y" * 8192)
        assert out.try_write(b"z" * 30_000, True)  # fills the buffer and is the end
        paused.append(connection(rig).write_paused)
        await out.end()
        paused.append(connection(rig).write_paused)

    async with running() as rig:
        answer_with(rig, serve)
        reader, writer = await rig.open()
        writer.write(post() + GET)
        await until(lambda: bool(paused), "the handler has written")
        assert (await read_reply(reader)).body.endswith(b"yz" + b"z" * 29_999)
        assert (await read_reply(reader)).json == {"status": "ok"}
        assert paused == [True, False]
        assert not failures


async def test_a_paused_connection_goes_on_reading() -> None:
    async with running() as rig:
        rig.gate = asyncio.Event()
        reader, writer = await rig.open()
        writer.write(post(b"one") + (GET + post(b"x" * 1000)) * 200)
        await until(lambda: bool(rig.seen) and connection(rig)._reading_paused, "reading has stopped")
        rig.gate.set()
        statuses = [(await read_reply(reader)).status for _ in range(401)]
        assert statuses == [200] * 401


async def test_a_closing_router_closes_idle_connections_and_ends_the_others_after_their_answer() -> None:
    async with running() as rig:
        rig.gate = asyncio.Event()
        idle, _writer = await rig.open()
        reader, writer = await rig.open()
        taken, taken_writer = await rig.open()
        writer.write(post())
        taken_writer.write(GET)
        assert (await read_reply(taken)).status == 200
        await until(lambda: bool(rig.seen), "the handler runs")
        rig.services.draining = rig.services.closing = True
        await rig.server.stop_listening()
        assert await idle.read() == b""
        assert await taken.read() == b""
        with pytest.raises(OSError):
            await rig.open()
        rig.gate.set()
        reply = await read_reply(reader)
        assert (reply.status, reply.headers[b"connection"]) == (200, b"close")
        assert await reader.read() == b""


async def test_what_is_in_flight_when_time_is_up_is_cut_off() -> None:
    async with running() as rig:
        rig.gate = asyncio.Event()
        reader, writer = await rig.open()
        writer.write(post())
        await until(lambda: bool(rig.seen), "the handler runs")
        await rig.server.close()
        assert rig.cancelled == 1
        assert rig.services.in_flight.count == 0
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        await rig.server.close()  # again


@pytest.mark.parametrize("stage", [Stage.HEAD, Stage.BODY])
async def test_nothing_is_left_open_at_the_end(stage: Stage) -> None:
    async with running() as rig:
        _, writer = await rig.open()
        writer.write(post()[:-2] if stage is Stage.BODY else post()[:9])
        await until(lambda: bool(rig.server.connections) and connection(rig).stage is stage, "it has got there")
        await rig.server.close()
        assert not rig.server.connections
        assert rig.services.in_flight.count == 0


async def test_a_handler_that_fails_is_a_500_and_the_connection_goes_on() -> None:
    async def serve(services: Any, inbound: Any, out: Any) -> None:
        raise KeyError("x")

    async with running() as rig:
        answer_with(rig, serve)
        reader, writer = await rig.open()
        writer.write(post() + post(target=STREAM))
        reply = await read_reply(reader)
        assert (reply.status, reply.headers[b"x-router-error-code"]) == (500, b"internal_error")
        assert (await read_reply(reader)).status == 200


async def test_an_error_of_the_routers_own_is_answered_in_the_envelope() -> None:
    async def serve(services: Any, inbound: Any, out: Any) -> None:
        raise NoHealthyWorkers("nobody")

    async with running() as rig:
        answer_with(rig, serve)
        reader, writer = await rig.open()
        writer.write(post())
        reply = await read_reply(reader)
        assert (reply.status, reply.headers[b"retry-after"]) == (503, b"1")
        assert reply.json["error"]["message"] == "nobody"


async def test_an_answer_that_stays_away_or_breaks_off_breaks_the_connection() -> None:
    async def nothing(services: Any, inbound: Any, out: Any) -> None:
        pass

    async def half(services: Any, inbound: Any, out: Any) -> None:
        await out.start(200, [])
        await out.write(b"x")
        raise KeyError("x")

    for serve in (nothing, half):
        async with running() as rig:
            answer_with(rig, serve)
            reader, writer = await rig.open()
            writer.write(post() + post(target=STREAM))
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                while True:
                    await reader.readexactly(1)
            assert rig.services.in_flight.count == 0


async def test_a_header_cannot_break_out_of_its_line() -> None:
    async def serve(services: Any, inbound: Any, out: Any) -> None:
        await out.send(200, [(b"x-a", b"b\r\nset-cookie: c")], b"")

    async with running() as rig:
        answer_with(rig, serve)
        reader, writer = await rig.open()
        writer.write(post())
        reply = await read_reply(reader)
        assert reply.status == 500
        assert b"set-cookie" not in reply.headers


async def test_what_comes_after_the_end_breaks_the_connection() -> None:
    """As chat does when a stale stream is told so while its end is on the way out."""

    async def serve(services: Any, inbound: Any, out: Any) -> None:
        await out.start(200, [])
        await out.end()
        assert not out.try_write(b"x")
        with pytest.raises(ClientGone):
            await out.write(b"x")

    async with running() as rig:
        answer_with(rig, serve)
        reader, writer = await rig.open()
        writer.write(post())
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            while True:
                await reader.readexactly(1)


@pytest.mark.parametrize("piece", [b"", b"x", b"y" * 100_000])
async def test_the_last_piece_may_bring_the_end(piece: bytes) -> None:
    async def serve(services: Any, inbound: Any, out: Any) -> None:
        await out.start(200, [])
        assert out.try_write(b"first")
        assert out.try_write(piece, True)
        await out.end()

    async with running() as rig:
        answer_with(rig, serve)
        reader, writer = await rig.open()
        writer.write(post() + post() + post(target=STREAM))
        assert [(await read_reply(reader)).body for _ in range(3)] == [b"first" + piece] * 2 + [b"hello"]


async def test_large_answers_arrive_whole() -> None:
    body = bytes(range(256)) * 1024

    async def serve(services: Any, inbound: Any, out: Any) -> None:
        if inbound.body == b"hello":
            await out.send(200, [], body)
        else:
            await out.start(200, [])
            await out.write(body)
            await out.end()

    async with running() as rig:
        answer_with(rig, serve)
        reader, writer = await rig.open()
        writer.write(post() + post(b"in pieces") + post())
        assert [(await read_reply(reader)).body for _ in range(3)] == [body] * 3


async def test_an_empty_piece_is_not_the_last_chunk() -> None:
    async def serve(services: Any, inbound: Any, out: Any) -> None:
        await out.start(200, [])
        await out.write(b"")
        await out.write(b"x")
        await out.end()

    async with running() as rig:
        answer_with(rig, serve)
        reader, writer = await rig.open()
        writer.write(post())
        assert (await read_reply(reader)).body == b"x"
