from __future__ import annotations

import asyncio
import sys

import pytest

from sgl_router.errors import UpstreamBodyIncomplete, UpstreamTimeout
from sgl_router.http import ClientGone
from sgl_router.upstream import Deadline, Relayed, Said, relay
from sgl_router.upstream.connection import WHOLE_LIMIT

relaying = sys.modules[relay.__module__]
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def run(
    pool, server, recorder, *, idle_secs: float = 5.0, answer_secs: float = 20.0
) -> tuple[Relayed, list[int]]:
    relayed, firsts = Relayed(), []
    with (
        Deadline() as deadline,
        await pool.open(
            server.url, b"POST", b"/", [], b"{}", deadline=deadline, connect_secs=5.0, answer_secs=answer_secs
        ) as exchange,
    ):
        await relay(
            exchange,
            recorder,
            relayed,
            deadline=deadline,
            idle_secs=idle_secs,
            added_lines=b"\r\nx-added: 1",
            first_byte=lambda: firsts.append(len(recorder.body)),
        )
    return relayed, firsts


async def test_a_small_answer_is_sent_whole(pool, upstream, recorder) -> None:
    async def script(reader, writer) -> None:
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")

    relayed, firsts = await run(pool, await upstream(script), recorder)
    assert (recorder.status, recorder.body, recorder.writes) == (404, b"{}", 1)
    assert recorder.headers == [(b"content-type", b"application/json"), (b"x-added", b"1")]
    assert recorder.whole
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
    size = WHOLE_LIMIT * 2

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


async def test_nor_is_one_that_becomes_slow_later(pool, upstream, recorder) -> None:
    step = asyncio.Event()

    async def script(reader, writer) -> None:
        writer.write(SSE + chunk(b"data: 1\n\n"))
        await step.wait()
        writer.write(chunk(b"data: 2\n\n") + b"0\r\n\r\n")

    job = asyncio.create_task(run(pool, await upstream(script), recorder, idle_secs=0.1))
    while not recorder.body:
        await asyncio.sleep(0)
    recorder.room.clear()
    step.set()
    asyncio.get_running_loop().call_later(0.3, recorder.room.set)
    await job
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
    await asyncio.wait_for(closed.wait(), 120)


class Direct:
    """A Recorder's better half: takes pieces at once while `open`."""

    def __init__(self, recorder) -> None:
        self.recorder = recorder
        self.open = True
        self.taken: list[bytes] = []
        self.refused = 0
        self.last = False

    def __getattr__(self, name: str):
        return getattr(self.recorder, name)

    def try_write(self, data: bytes, last: bool = False) -> bool:
        self.last = last
        if not self.open:
            self.refused += 1
            return False
        self.taken.append(data)
        self.recorder.body += data
        return True


def counted(work):
    """A task, and a list with an entry for every time it was woken."""
    wakes: list[None] = []

    class Steps:
        def __await__(self):
            steps = work.__await__()
            try:
                waiting = next(steps)
                while True:
                    try:
                        yield waiting
                    except BaseException as error:
                        waiting = steps.throw(error)
                    else:
                        wakes.append(None)
                        waiting = next(steps)
            except StopIteration as end:
                return end.value

    async def job():
        return await Steps()

    return asyncio.create_task(job()), wakes


def events(*numbers: int) -> bytes:
    return b"".join(b"data: %d\n\n" % number for number in numbers)


async def until(condition) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come about")


async def test_a_front_that_can_takes_events_without_a_task_being_woken(pool, upstream, recorder) -> None:
    step = asyncio.Semaphore(0)

    async def script(reader, writer) -> None:
        writer.write(SSE)
        for number in range(20):
            await step.acquire()
            writer.write(chunk(events(number)))
        await step.acquire()
        writer.write(b"0\r\n\r\n")

    server, out = await upstream(script), Direct(recorder)
    job, wakes = counted(run(pool, server, out))
    seen = []
    for number in range(20):
        step.release()
        await until(lambda number=number: recorder.body == events(*range(number + 1)))
        seen.append(len(wakes))
    step.release()
    relayed, firsts = await job
    assert len(set(seen[1:])) == 1
    assert (len(out.taken), recorder.writes) == (20, 0)
    assert (relayed.bytes_out, len(firsts)) == (len(recorder.body), 1)
    assert recorder.ended


async def test_a_refused_event_is_not_overtaken(pool, upstream, recorder) -> None:
    total = 400

    async def script(reader, writer) -> None:
        writer.write(SSE)
        for number in range(total):
            writer.write(chunk(events(number)))
            if number % 3 == 0:
                await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    server, out = await upstream(script), Direct(recorder)
    job = asyncio.create_task(run(pool, server, out))
    while not job.done():
        out.open = not out.open
        await asyncio.sleep(0)
    relayed, _ = await job
    assert recorder.body == events(*range(total))
    assert relayed.bytes_out == len(recorder.body)


async def test_a_slow_client_holds_the_worker_back(pool, upstream, recorder) -> None:
    sent = 0
    total = 64 << 20

    async def script(reader, writer) -> None:
        nonlocal sent
        writer.write(SSE + chunk(events(0)))
        await writer.drain()
        while sent < total:
            writer.write(chunk(b"x" * 65536))
            await writer.drain()
            sent += 65536
        writer.write(b"0\r\n\r\n")

    server, out = await upstream(script), Direct(recorder)
    job = asyncio.create_task(run(pool, server, out))
    await until(lambda: recorder.body)
    recorder.room.clear()
    out.open = False
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.1)
    assert sent < total / 2
    assert not job.done()
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)


async def test_a_worker_that_falls_silent_after_direct_events_is_given_up(pool, upstream, recorder) -> None:
    async def script(reader, writer) -> None:
        writer.write(SSE)
        for number in range(4):  # each well within the limit, all of them beyond it
            writer.write(chunk(events(number)))
            await asyncio.sleep(0.08)
        await asyncio.Event().wait()

    with pytest.raises(UpstreamTimeout, match="in the middle"):
        await run(pool, await upstream(script), Direct(recorder), idle_secs=0.2)
    assert recorder.body == events(*range(4))
    assert not recorder.ended


async def test_a_client_that_left_between_direct_events(pool, upstream, recorder) -> None:
    step = asyncio.Event()

    async def script(reader, writer) -> None:
        writer.write(SSE + chunk(events(0)))
        await step.wait()
        writer.write(chunk(events(1)))
        await reader.read()

    server, out = await upstream(script), Direct(recorder)
    job = asyncio.create_task(run(pool, server, out))
    await until(lambda: recorder.body)
    out.open, recorder.gone = False, True
    step.set()
    with pytest.raises(ClientGone):
        await asyncio.wait_for(job, 120)
    await until(lambda: not pool._addresses[server.url].open)


@pytest.mark.parametrize("ending", [b"0\r\n\r\n", b""])
async def test_the_last_events_and_the_end_in_one_piece(pool, upstream, recorder, ending: bytes) -> None:
    step = asyncio.Event()

    async def script(reader, writer) -> None:
        writer.write(SSE + chunk(events(0)))
        await step.wait()
        writer.write(chunk(events(1)) + chunk(events(2)) + ending)
        writer.close()

    server, out = await upstream(script), Direct(recorder)
    job = asyncio.create_task(run(pool, server, out))
    await until(lambda: recorder.body)
    step.set()
    if ending:
        await job
    else:
        with pytest.raises(UpstreamBodyIncomplete):
            await job
    assert recorder.body == events(0, 1, 2)
    assert recorder.ended is bool(ending)


async def test_an_answer_in_several_pieces_wakes_once(pool, upstream, recorder) -> None:
    async def script(reader, writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        for byte in (b"h", b"e", b"l", b"l", b"o"):
            await writer.drain()
            await asyncio.sleep(0.002)
            writer.write(byte)

    server = await upstream(script)
    await run(pool, server, recorder)
    recorder.body = b""
    job, wakes = counted(run(pool, server, recorder))
    await job
    assert recorder.body == b"hello"
    assert (len(wakes), recorder.writes) == (1, 2)


async def test_the_end_is_told_with_the_last_events(pool, upstream, recorder) -> None:
    step = asyncio.Event()

    async def script(reader, writer) -> None:
        writer.write(SSE + chunk(events(0)))
        await step.wait()
        writer.write(chunk(events(1)) + chunk(events(2)) + b"0\r\n\r\n")

    out = Direct(recorder)
    job = asyncio.create_task(run(pool, await upstream(script), out))
    await until(lambda: recorder.body)
    assert not out.last
    step.set()
    await job
    assert out.taken == [events(0), events(1, 2)]
    assert out.last


def data(text: str) -> bytes:
    return f"data: {text}\n\n".encode()


TOKEN = data('{"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": null}]}')
ROLE = data('{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]}')
STOP = data('{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}')
ABORT = data('{"choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]}')
FULL = data('{"error": {"object": "error", "message": "full", "type": "t", "param": null, "code": 503}}')
DONE = data("[DONE]")
FRONTS = pytest.mark.parametrize("direct", [False, True], ids=["waiting", "direct"])


def streaming(*pieces: bytes, head: bytes = SSE):
    async def script(reader, writer) -> None:
        writer.write(head)
        for piece in pieces:
            await writer.drain()
            await asyncio.sleep(0.001)  # a piece of its own
            writer.write(chunk(piece))
        writer.write(b"0\r\n\r\n")

    return script


@FRONTS
@pytest.mark.parametrize(
    ("pieces", "firsts", "said", "status"),
    [
        ([TOKEN, STOP, DONE], 1, Said.GOOD, 200),
        ([ROLE, TOKEN, STOP, DONE], 1, Said.GOOD, 200),
        ([b": keep-alive\n\n"] * 3 + [ROLE, TOKEN, DONE], 1, Said.GOOD, 200),
        ([ROLE, DONE], 1, Said.GOOD, 200),
        ([TOKEN[:20], TOKEN[20:], DONE], 1, Said.GOOD, 200),
        ([TOKEN[:-2]], 1, Said.GOOD, 200),
        ([ROLE, FULL, DONE], 0, Said.ERROR, 503),
        ([FULL, DONE], 0, Said.ERROR, 503),
        ([b": keep-alive\n\n", FULL.replace(b"503", b"500"), DONE], 0, Said.ERROR, 500),
        ([FULL[:-2]], 0, Said.ERROR, 503),
        ([TOKEN, FULL, DONE], 1, Said.ERROR, 503),
        ([ABORT, DONE], 0, Said.ABORTED, 200),
        ([ROLE + ABORT, DONE], 0, Said.ABORTED, 200),
        ([TOKEN, ABORT, DONE], 1, Said.ABORTED, 200),
        ([b": keep-alive\n\n"], 0, Said.NOTHING, 200),
        ([b"data:\n\n"], 0, Said.NOTHING, 200),
        ([DONE], 0, Said.NOTHING, 200),
        ([], 0, Said.NOTHING, 200),
    ],
)
async def test_what_a_stream_comes_to(
    pool, upstream, recorder, direct, pieces, firsts, said, status, monkeypatch
) -> None:
    monkeypatch.setattr(relaying, "OPENING_SECS", 60.0)
    out = Direct(recorder) if direct else recorder
    relayed, called = await run(pool, await upstream(streaming(*pieces)), out)
    assert (len(called), relayed.ending.said, relayed.judged_status) == (firsts, said, status)
    assert recorder.body == b"".join(pieces)
    assert relayed.bytes_out == len(recorder.body)
    assert recorder.ended


@FRONTS
async def test_a_role_counts_for_a_token_unless_an_abort_follows_at_once(
    pool, upstream, recorder, direct, monkeypatch
) -> None:
    monkeypatch.setattr(relaying, "OPENING_SECS", 60.0)
    out = Direct(recorder) if direct else recorder
    relayed, called = await run(pool, await upstream(streaming(ROLE, ABORT, DONE)), out)
    assert (len(called), relayed.ending.said) == (0, Said.ABORTED)

    monkeypatch.setattr(relaying, "OPENING_SECS", 0.001)
    step, called = asyncio.Event(), []

    async def script(reader, writer) -> None:
        writer.write(SSE + chunk(ROLE))
        await step.wait()
        writer.write(chunk(TOKEN) + b"0\r\n\r\n")

    server, recorder.body, relayed = await upstream(script), b"", Relayed()

    async def job() -> None:
        with Deadline() as deadline, await pool.open(server.url, b"POST", b"/", [], b"{}") as exchange:
            await relay(
                exchange, out, relayed, deadline=deadline, idle_secs=5.0, added_lines=b"",
                first_byte=lambda: called.append(recorder.body),
            )  # fmt: skip

    task = asyncio.create_task(job())
    await until(lambda: called)  # while the worker is at the first token
    assert called == [ROLE]
    step.set()
    await task
    assert (len(called), relayed.ending.said) == (1, Said.GOOD)


@FRONTS
async def test_comments_do_not_end_the_time_for_the_first_token(pool, upstream, recorder, direct) -> None:
    async def script(reader, writer) -> None:
        writer.write(SSE)
        while True:
            writer.write(chunk(b": keep-alive\n\n"))
            await writer.drain()
            await asyncio.sleep(0.01)

    out = Direct(recorder) if direct else recorder
    with pytest.raises(UpstreamTimeout, match="did not respond within"):
        await run(pool, await upstream(script), out, idle_secs=60.0, answer_secs=0.3)
    assert recorder.started
    assert not recorder.ended


@FRONTS
async def test_nor_do_they_shorten_it(pool, upstream, recorder, direct) -> None:
    async def script(reader, writer) -> None:
        writer.write(SSE + chunk(b": keep-alive\n\n"))
        await asyncio.sleep(0.3)
        writer.write(chunk(TOKEN) + b"0\r\n\r\n")

    out = Direct(recorder) if direct else recorder
    relayed, _ = await run(pool, await upstream(script), out, idle_secs=0.1)
    assert relayed.ending.said is Said.GOOD


@FRONTS
@pytest.mark.parametrize("first", [ROLE, FULL])
async def test_silence_is_bounded_once_it_is_known_what_the_stream_is(pool, upstream, recorder, direct, first) -> None:
    async def script(reader, writer) -> None:
        writer.write(SSE + chunk(first))
        await asyncio.Event().wait()

    out = Direct(recorder) if direct else recorder
    with pytest.raises(UpstreamTimeout, match="in the middle"):
        await run(pool, await upstream(script), out, idle_secs=0.05)


@pytest.mark.parametrize(
    ("body", "firsts", "said", "status"),
    [
        (b'{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}', 1, Said.GOOD, 200),
        (b'{"choices": [{"message": {"content": ""}, "finish_reason": "abort"}]}', 0, Said.ABORTED, 200),
        (b'{"error": {"message": "no", "code": 500}}', 0, Said.ERROR, 500),
        (b"", 0, Said.NOTHING, 200),
        (b'{"error": {"message": "' + b"x" * WHOLE_LIMIT + b'", "code": 500}}', 0, Said.ERROR, 500),
        (b'{"choices": ["' + b"x" * WHOLE_LIMIT + b'"], "usage": {"completion_tokens": 7}}', 1, Said.GOOD, 200),
    ],
)
async def test_what_a_body_comes_to(pool, upstream, recorder, body, firsts, said, status) -> None:
    async def script(reader, writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body)

    relayed, called = await run(pool, await upstream(script), recorder)
    assert (len(called), relayed.ending.said, relayed.judged_status) == (firsts, said, status)
    assert relayed.ending.output_tokens == (7 if b"usage" in body else None)
    assert recorder.body == body


@pytest.mark.parametrize("kind", [b"text/event-stream", b"application/json"])
async def test_a_compressed_response_is_not_looked_into(pool, upstream, recorder, kind) -> None:
    head = SSE.replace(b"text/event-stream", kind).replace(b"\r\n", b"\r\nContent-Encoding: gzip\r\n", 1)
    relayed, called = await run(pool, await upstream(streaming(b"\x1f\x8b", b"...", head=head)), recorder)
    assert (len(called), relayed.ending.said) == (1, Said.GOOD)
    assert recorder.body == b"\x1f\x8b..."


@FRONTS
async def test_a_refusal_that_streams_begins_with_its_first_byte(pool, upstream, recorder, direct) -> None:
    head = SSE.replace(b"200 OK", b"503 Service Unavailable")
    out = Direct(recorder) if direct else recorder
    relayed, called = await run(pool, await upstream(streaming(b": busy\n\n", FULL, head=head)), out)
    assert (len(called), relayed.judged_status) == (1, 503)
