from __future__ import annotations

import asyncio

import pytest

from sgl_router.errors import UpstreamBodyIncomplete, UpstreamTimeout
from sgl_router.proxy import ClientGone, Deadline, Relayed, relay
from sgl_router.proxy.relay import BUFFER_LIMIT

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def run(pool, server, recorder, *, idle_secs: float = 5.0) -> tuple[Relayed, list[int]]:
    relayed, firsts = Relayed(), []
    with Deadline() as deadline, await pool.open(server.url, b"POST", b"/", [], b"{}") as exchange:
        await relay(
            exchange,
            recorder,
            relayed,
            deadline=deadline,
            idle_secs=idle_secs,
            added_headers=[(b"x-added", b"1")],
            first_byte=lambda: firsts.append(len(recorder.body)),
        )
    return relayed, firsts


async def test_a_small_answer_is_sent_whole(pool, upstream, recorder) -> None:
    async def script(reader, writer) -> None:
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")

    relayed, firsts = await run(pool, await upstream(script), recorder)
    assert (recorder.status, recorder.body, recorder.writes) == (404, b"{}", 1)
    assert recorder.headers == [(b"content-type", b"application/json"), (b"x-added", b"1")]
    assert (relayed.status, relayed.bytes_out, relayed.streamed) == (404, 2, False)
    assert len(firsts) == 1


async def test_an_answer_that_breaks_off_before_it_is_whole_was_never_started(pool, upstream, recorder) -> None:
    async def script(reader, writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf")
        writer.close()

    with pytest.raises(UpstreamBodyIncomplete):
        await run(pool, await upstream(script), recorder)
    assert not recorder.started


async def test_a_large_answer_is_passed_on_in_pieces(pool, upstream, recorder) -> None:
    size = BUFFER_LIMIT * 2

    async def script(reader, writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        writer.write(b"x" * size)

    relayed, _ = await run(pool, await upstream(script), recorder)
    assert len(recorder.body) == relayed.bytes_out == size
    assert recorder.writes > 1
    assert recorder.ended


async def test_events_are_relayed_as_they_come(pool, upstream, recorder) -> None:
    step = asyncio.Event()

    async def script(reader, writer) -> None:
        writer.write(SSE + chunk(b"data: 1\n\n"))
        await step.wait()
        writer.write(chunk(b"data: 2\n\n") + b"0\r\n\r\n")

    server = await upstream(script)
    job = asyncio.create_task(run(pool, server, recorder))
    while recorder.body != b"data: 1\n\n":
        await asyncio.sleep(0)
    step.set()
    relayed, firsts = await job
    assert recorder.body == b"data: 1\n\ndata: 2\n\n"
    assert relayed.streamed
    assert recorder.ended
    assert firsts == [0]


async def test_a_slow_client_is_not_a_silent_worker(pool, upstream, recorder) -> None:
    async def script(reader, writer) -> None:
        writer.write(SSE + chunk(b"data: 1\n\n"))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(chunk(b"data: 2\n\n") + b"0\r\n\r\n")

    server = await upstream(script)
    recorder.room.clear()
    asyncio.get_running_loop().call_later(0.3, recorder.room.set)
    await run(pool, server, recorder, idle_secs=0.1)
    assert recorder.body == b"data: 1\n\ndata: 2\n\n"


async def test_a_silent_worker_is_given_up(pool, upstream, recorder) -> None:
    async def script(reader, writer) -> None:
        writer.write(SSE + chunk(b"data: 1\n\n"))
        await asyncio.Event().wait()

    with pytest.raises(UpstreamTimeout):
        await run(pool, await upstream(script), recorder, idle_secs=0.05)
    assert recorder.started
    assert not recorder.ended


async def test_a_client_that_left_closes_the_upstream(pool, upstream, recorder) -> None:
    closed = asyncio.Event()

    async def script(reader, writer) -> None:
        writer.write(SSE + chunk(b"data: 1\n\n"))
        await writer.drain()
        await reader.read()  # returns when the router hangs up
        closed.set()

    recorder.gone = True
    with pytest.raises(ClientGone):
        await run(pool, await upstream(script), recorder)
    await asyncio.wait_for(closed.wait(), 5)
