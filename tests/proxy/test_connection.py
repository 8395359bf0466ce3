"""What a worker may send, byte for byte, and what becomes of it: over sockets on both loops, and cut at every byte."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.errors import RouterError, UpstreamBodyIncomplete, UpstreamUnreachable
from sgl_router.upstream import UpstreamPool
from sgl_router.upstream.connection import MAX_HEAD_BYTES, UpstreamConnection

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
SSE = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TWO = OK + b"Content-Length: 2\r\n\r\nhi"
LONG = b"x" * 300_000
BAD, CUT = UpstreamUnreachable, UpstreamBodyIncomplete


@dataclass(frozen=True)
class Case:
    """`end`: what the worker does after its words: keep the connection, close it, or break it. `expect`: the body,
    or the failure. `kept`: whether the connection serves the next request too."""

    name: str
    raw: bytes
    expect: bytes | type[RouterError]
    kept: bool = True
    end: str = "keep"
    status: int = 200
    method: bytes = b"POST"
    headers: tuple[tuple[bytes, bytes], ...] | None = None


def head(*lines: bytes, status: bytes = b"200 OK", version: bytes = b"1.1") -> bytes:
    return b"HTTP/" + version + b" " + status + b"\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


CASES = [
    # --- content-length
    Case("length", TWO, b"hi"),
    Case("length zero", head(b"Content-Length: 0"), b""),
    Case("length, lower case", head(b"content-length: 2") + b"hi", b"hi"),
    Case("length, spaces around", head(b"Content-Length:   2  ") + b"hi", b"hi"),
    Case("length, no space", head(b"Content-Length:2") + b"hi", b"hi"),
    Case("length, tab", head(b"Content-Length:\t2") + b"hi", b"hi"),
    Case("length, leading zeros", head(b"Content-Length: 002") + b"hi", b"hi"),
    Case("length, big body", head(b"Content-Length: %d" % len(LONG)) + LONG, LONG),
    Case("length, closed early", head(b"Content-Length: 9") + b"hi", CUT, end="close"),
    Case("length, broken early", head(b"Content-Length: 9") + b"hi", CUT, end="break"),
    Case("length, closed before the body", head(b"Content-Length: 9"), CUT, end="close"),
    Case("length, closed after", TWO, b"hi", kept=False, end="close"),
    Case("length, one byte too many", TWO + b"!", b"hi", kept=False),
    Case("length, second answer", TWO + TWO, b"hi", kept=False),
    Case("length, negative", head(b"Content-Length: -2") + b"hi", BAD),
    Case("length, plus", head(b"Content-Length: +2") + b"hi", BAD),
    Case("length, hex", head(b"Content-Length: 0x2") + b"hi", BAD),
    Case("length, letters", head(b"Content-Length: two") + b"hi", BAD),
    Case("length, empty", head(b"Content-Length:") + b"hi", BAD),
    Case("length, list", head(b"Content-Length: 2, 2") + b"hi", BAD),
    Case("length, space inside", head(b"Content-Length: 2 2") + b"hi" * 11, BAD),
    Case("length, twice the same", head(b"Content-Length: 2", b"Content-Length: 2") + b"hi", BAD),
    Case("length, twice different", head(b"Content-Length: 2", b"Content-Length: 3") + b"hi!", BAD),
    Case("length, overflow", head(b"Content-Length: 99999999999999999999999") + b"hi", BAD),
    Case("length, fraction", head(b"Content-Length: 2.0") + b"hi", BAD),
    # --- chunked
    Case("chunked", CHUNKED + b"2\r\nhi\r\n0\r\n\r\n", b"hi"),
    Case("chunked, empty", CHUNKED + b"0\r\n\r\n", b""),
    Case("chunked, many", CHUNKED + b"1\r\nh\r\n" * 500 + b"0\r\n\r\n", b"h" * 500),
    Case("chunked, hex, both cases", CHUNKED + b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
    Case("chunked, leading zeros", CHUNKED + b"0002\r\nhi\r\n000\r\n\r\n", b"hi"),
    Case("chunked, extension", CHUNKED + b"2;a=b\r\nhi\r\n0;z\r\n\r\n", b"hi"),
    Case("chunked, quoted extension", CHUNKED + b'2;a="b c"\r\nhi\r\n0\r\n\r\n', b"hi"),
    Case("chunked, trailers", CHUNKED + b"2\r\nhi\r\n0\r\nX-T: 1\r\nX-U: 2\r\n\r\n", b"hi", headers=()),
    Case("chunked, framing in a trailer", CHUNKED + b"2\r\nhi\r\n0\r\nContent-Length: 7\r\n\r\n", CUT),
    Case("chunked, upper-case coding", head(b"TRANSFER-ENCODING: CHUNKED") + b"2\r\nhi\r\n0\r\n\r\n", b"hi"),
    Case("chunked, blank after the coding", head(b"Transfer-Encoding: chunked ") + b"0\r\n\r\n", b""),
    Case("chunked, CRLF in the data", CHUNKED + b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    Case("chunked, big", CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(LONG), LONG), LONG),
    Case("chunked, closed after", CHUNKED + b"2\r\nhi\r\n0\r\n\r\n", b"hi", kept=False, end="close"),
    Case("chunked, cut in the data", CHUNKED + b"5\r\nhi", CUT, end="close"),
    Case("chunked, cut in the size", CHUNKED + b"2\r\nhi\r\n1", CUT, end="close"),
    Case("chunked, cut before the last chunk", CHUNKED + b"2\r\nhi\r\n", CUT, end="close"),
    Case("chunked, cut before the last line", CHUNKED + b"2\r\nhi\r\n0\r\n", CUT, end="close"),
    Case("chunked, broken", CHUNKED + b"5\r\nhi", CUT, end="break"),
    Case("chunked, size not hex", CHUNKED + b"zz\r\nhi\r\n0\r\n\r\n", CUT),
    Case("chunked, size with 0x", CHUNKED + b"0x2\r\nhi\r\n0\r\n\r\n", CUT),
    Case("chunked, size negative", CHUNKED + b"-2\r\nhi\r\n0\r\n\r\n", CUT),
    Case("chunked, size with a space before", CHUNKED + b" 2\r\nhi\r\n0\r\n\r\n", CUT),
    Case("chunked, size empty", CHUNKED + b"\r\nhi\r\n0\r\n\r\n", CUT),
    Case("chunked, size overflow", CHUNKED + b"fffffffffffffffff\r\nhi", CUT),
    Case("chunked, bare LF after the size", CHUNKED + b"2\nhi\r\n0\r\n\r\n", CUT),
    Case("chunked, bare LF after the data", CHUNKED + b"2\r\nhi\n0\r\n\r\n", CUT),
    Case("chunked, data longer than its size", CHUNKED + b"2\r\nhi!\r\n0\r\n\r\n", CUT),
    Case("chunked, words after the end", CHUNKED + b"0\r\n\r\nHTTP/1.1 200", b"", kept=False),
    Case("chunked, second answer", CHUNKED + b"0\r\n\r\n" + TWO, b"", kept=False),
    # --- framing that contradicts itself
    Case("both framings, length first", head(b"Content-Length: 2", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", BAD),
    Case("both framings, coding first", head(b"Transfer-Encoding: chunked", b"Content-Length: 2") + b"0\r\n\r\n", BAD),
    Case("chunked twice", head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", BAD),
    Case("chunked, chunked", head(b"Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n", BAD),
    Case("gzip, chunked", head(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", BAD),
    Case("gzip", head(b"Transfer-Encoding: gzip") + b"hi", BAD),
    Case("identity", head(b"Transfer-Encoding: identity") + b"hi", BAD, end="close"),
    Case("chunked not last", head(b"Transfer-Encoding: chunked, gzip") + b"hi", BAD),
    Case("coding misspelt", head(b"Transfer-Encoding: xchunked") + b"0\r\n\r\n", BAD),
    Case("coding empty", head(b"Transfer-Encoding:") + b"hi", BAD),
    # --- framed by the end of the connection
    Case("until close", head() + b"all of it", b"all of it", kept=False, end="close"),
    Case("until close, empty", head(), b"", kept=False, end="close"),
    Case("until close, broken", head(b"X: 1") + b"part", CUT, end="break"),
    Case("until close, 1.0", head(version=b"1.0") + b"all", b"all", kept=False, end="close"),
    # --- no body by rule
    Case("204", head(status=b"204 No Content"), b"", status=204),
    Case("204 with a length", head(b"Content-Length: 0", status=b"204 No Content"), b"", status=204),
    Case("204 and yet a body", head(status=b"204 No Content") + b"hi", b"", kept=False, status=204),
    Case("304", head(b"ETag: x", status=b"304 Not Modified"), b"", status=304),
    Case("304 with the length it would have", head(b"Content-Length: 5", status=b"304 Not Modified"), b"", status=304),
    Case("HEAD with a length", head(b"Content-Length: 5"), b"", method=b"HEAD"),
    Case("HEAD chunked", CHUNKED, b"", method=b"HEAD"),
    Case("HEAD without framing", head(), b"", kept=False, method=b"HEAD"),
    Case("HEAD and yet a body", head(b"Content-Length: 2") + b"hi", b"", kept=False, method=b"HEAD"),
    Case("HEAD, closed after", head(b"Content-Length: 5"), b"", kept=False, method=b"HEAD", end="close"),
    # --- interim answers
    Case("100", head(status=b"100 Continue") + TWO, b"hi"),
    Case("102, 103", head(status=b"102 P") + head(b"Link: x", status=b"103 Early Hints") + TWO, b"hi", headers=()),
    Case("100 and nothing more", head(status=b"100 Continue"), BAD, end="close"),
    Case("103 with a length", head(b"Content-Length: 5", status=b"103 Early Hints") + TWO, b"hi"),
    Case("101", head(b"Upgrade: x", b"Connection: upgrade", status=b"101 Switching Protocols"), BAD),
    Case("interim answers without end", head(b"L: " + b"x" * 900, status=b"103 H") * 500 + TWO, BAD),
    # --- keep-alive
    Case("connection: close", head(b"Connection: close", b"Content-Length: 2") + b"hi", b"hi", kept=False),
    Case("Connection: Close", head(b"Connection: Close", b"Content-Length: 2") + b"hi", b"hi", kept=False),
    Case("close in a list", head(b"Connection: x, close", b"Content-Length: 2") + b"hi", b"hi", kept=False),
    Case("keep-alive", head(b"Connection: keep-alive", b"Content-Length: 2") + b"hi", b"hi", headers=()),
    Case("1.0", head(b"Content-Length: 2", version=b"1.0") + b"hi", b"hi", kept=False),
    Case("1.0 keep-alive", head(b"Connection: keep-alive", b"Content-Length: 2", version=b"1.0") + b"hi", b"hi"),
    # --- headers
    Case(
        "headers",
        head(b"X-A: 1", b"x-a:2", b"X-Empty:", b"X-S: \t a b", b"Content-Length: 0"),
        b"",
        headers=((b"x-a", b"1"), (b"x-a", b"2"), (b"x-empty", b""), (b"x-s", b"a b")),
    ),
    Case("bytes beyond ASCII", head(b"X: \xc3\xa9\xff", b"Content-Length: 0"), b"", headers=((b"x", b"\xc3\xa9\xff"),)),
    Case(
        "hop by hop",
        head(b"Connection: X-Hop", b"X-Hop: 1", b"TE: x", b"X-Request-Id: i", b"Server: u", b"Content-Length: 0"),
        b"",
        headers=((b"server", b"u"),),
    ),
    Case("obs-fold", head(b"X-A: 1", b" 2", b"Content-Length: 2") + b"hi", BAD),
    Case("obs-fold in the first line", head(b" X-A: 1", b"Content-Length: 2") + b"hi", BAD),
    Case("space before the colon", head(b"X-A : 1", b"Content-Length: 2") + b"hi", BAD),
    Case("space in a name", head(b"X A: 1", b"Content-Length: 2") + b"hi", BAD),
    Case("no colon", head(b"X-A", b"Content-Length: 2") + b"hi", BAD),
    Case("no name", head(b": 1", b"Content-Length: 2") + b"hi", BAD),
    Case("NUL in a value", head(b"X-A: a\0b", b"Content-Length: 2") + b"hi", BAD),
    Case("CR in a value", head(b"X-A: a\rb", b"Content-Length: 2") + b"hi", BAD),
    Case("bare LF", OK + b"X-A: 1\nContent-Length: 2\r\n\r\nhi", BAD),
    Case("only bare LF", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", BAD),
    Case("head too large", head(b"X: " + b"y" * (MAX_HEAD_BYTES + 1), b"Content-Length: 2") + b"hi", BAD),
    Case("head without end", OK + b"X: " + b"y" * (MAX_HEAD_BYTES * 2), BAD),
    Case("too many headers", head(*[b"X-%d: v" % n for n in range(20_000)], b"Content-Length: 2") + b"hi", BAD),
    Case("many headers", head(*[b"X-%d: v" % n for n in range(1000)], b"Content-Length: 2") + b"hi", b"hi"),
    # --- status line
    Case("no reason", b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
    Case("reason empty", b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nhi", b"hi"),
    Case("418", head(b"Content-Length: 2", status=b"418 I'm a teapot") + b"hi", b"hi", status=418),
    Case("599", head(b"Content-Length: 2", status=b"599 ?") + b"hi", b"hi", status=599),
    Case("blank line in front", b"\r\n" + TWO, b"hi"),
    Case("status of two digits", b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nhi", BAD),
    Case("status of four digits", b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nhi", BAD),
    Case("status of letters", b"HTTP/1.1 abc OK\r\nContent-Length: 2\r\n\r\nhi", BAD),
    Case("status 0", b"HTTP/1.1 000 OK\r\nContent-Length: 2\r\n\r\nhi", BAD),
    Case("status 600", b"HTTP/1.1 600 OK\r\nContent-Length: 2\r\n\r\nhi", BAD),
    Case("version 3", b"HTTP/3.7 200 OK\r\nContent-Length: 2\r\n\r\nhi", BAD),
    Case("no version", b"200 OK\r\n\r\n", BAD),
    Case("a request", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", BAD),
    Case("SSH", b"SSH-2.0-OpenSSH_9.6\r\n", BAD),
    Case("TLS", b"\x15\x03\x01\x00\x02\x02\x16", BAD),
    Case("nothing, closed", b"", BAD, end="close"),
    Case("nothing, broken", b"", BAD, end="break"),
    Case("half a status line", b"HTTP/1.1 20", BAD, end="close"),
    Case("half a head", OK + b"X-A: 1\r\n", BAD, end="close"),
    # --- event streams
    Case("events", SSE + b"9\r\ndata: 1\n\n\r\n0\r\n\r\n", b"data: 1\n\n"),
    Case("events, cut", SSE + b"9\r\ndata: 1\n\n\r\n", CUT, end="close"),
    Case("events until close", head(b"Content-Type: Text/Event-Stream;x") + b"data", b"data", kept=False, end="close"),
]


async def exchange(pool: UpstreamPool, url: str, case: Case) -> tuple[int, Any, bytes]:
    with await pool.open(url, case.method, b"/", [], b"") as answer:
        body = b""
        while (piece := await answer.read()) is not None:
            body += piece
        return answer.status, tuple(answer.headers), body


def check(case: Case, status: int, headers: tuple[tuple[bytes, bytes], ...], body: bytes) -> None:
    assert not isinstance(case.expect, type), body
    assert (status, body) == (case.status, case.expect)
    if case.headers is not None:
        assert headers == case.headers


async def over_a_socket(case: Case) -> None:
    connections = 0

    async def worker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await reader.readline():
            while (await reader.readline()).strip():
                pass
            writer.write(case.raw)
            try:
                await writer.drain()
            except ConnectionError:
                return
            if case.end == "close":
                writer.close()
                return
            if case.end == "break":
                await asyncio.sleep(0.02)  # what was said must not be overtaken by the reset
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                return

    server = await asyncio.start_server(worker, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    pool = UpstreamPool()
    try:
        if isinstance(case.expect, type):
            with pytest.raises(case.expect) as caught:
                await asyncio.wait_for(exchange(pool, url, case), 120)
            assert type(caught.value) is case.expect
            assert not any(address.idle for address in pool._addresses.values())
        else:
            check(case, *await asyncio.wait_for(exchange(pool, url, case), 120))
            if case.end == "close":
                await asyncio.sleep(0.02)
            check(case, *await asyncio.wait_for(exchange(pool, url, case), 120))
            assert connections == (1 if case.kept else 2)
    finally:
        pool.close()
        server.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_over_a_socket(case: Case, loop: str) -> None:
    runner = uvloop.new_event_loop() if loop == "uvloop" else asyncio.new_event_loop()
    try:
        runner.run_until_complete(over_a_socket(case))
    finally:
        runner.close()


class Wire:
    """A transport whose other end is the test."""

    def __init__(self) -> None:
        self.aborted = False
        self.written: list[bytes] = []
        self.paused = False

    def writelines(self, pieces: tuple[bytes, ...]) -> None:
        self.written += pieces

    def write(self, piece: bytes) -> None:
        self.written.append(bytes(piece))

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


@pytest.mark.parametrize("case", [case for case in CASES if len(case.raw) < 10_000], ids=lambda case: case.name)
async def test_cut_at_every_byte(case: Case) -> None:
    connection, wire = UpstreamConnection(), Wire()
    connection.connection_made(wire)  # type: ignore[arg-type]
    request = asyncio.ensure_future(connection.request(b"", b"", case.method == b"HEAD"))
    await asyncio.sleep(0)
    for offset in range(len(case.raw)):
        if not wire.aborted:
            connection.data_received(case.raw[offset : offset + 1])
    if case.end != "keep" or wire.aborted:
        connection.connection_lost(ConnectionResetError() if case.end == "break" else None)
    body = b""
    try:
        await request
        while (piece := await connection.read()) is not None:
            body += piece
    except RouterError as error:
        assert type(error) is case.expect
    else:
        check(case, connection.status, tuple(connection.headers), body)
        assert connection.reusable is case.kept
        assert connection.stream is case.name.startswith("events")


@settings(max_examples=400, deadline=None)
@given(data=st.data())
async def test_no_bytes_whatever_leave_a_request_waiting_or_in_doubt(data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from([case.raw for case in CASES if len(case.raw) < 2000])) * 2)
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(raw)))
        junk = data.draw(st.sampled_from([b"\r\n", b"\n", b"0", b"\0", b": ", b"HTTP/1.1 ", b"Content-Length: 3\r\n"]))
        raw[at : at + data.draw(st.integers(0, 3))] = junk
    connection, wire = UpstreamConnection(), Wire()
    connection.connection_made(wire)  # type: ignore[arg-type]
    request = asyncio.ensure_future(connection.request(b"", b""))
    await asyncio.sleep(0)
    offset = 0
    while offset < len(raw) and not wire.aborted:
        size = data.draw(st.integers(1, 200))
        connection.data_received(bytes(raw[offset : offset + size]))
        offset += size
    connection.connection_lost(None)
    try:
        await asyncio.wait_for(request, 120)
        while await asyncio.wait_for(connection.read(), 120) is not None:
            pass
    except RouterError:
        assert not connection.complete
    else:
        assert connection.complete
        assert 200 <= connection.status <= 599
        assert not any(b"\r" in part or b"\n" in part or b"\0" in part for pair in connection.headers for part in pair)


async def test_a_head_met_before_needs_no_parser() -> None:
    connection, wire = UpstreamConnection(), Wire()
    connection.connection_made(wire)  # type: ignore[arg-type]
    for body in (b"hi", b"x" * 2000, b""):
        request = asyncio.ensure_future(connection.request(b"", b""))
        await asyncio.sleep(0)
        start = b"HTTP/1.1 200 OK\r\nx-met: before\r\ncontent-length: %d\r\n\r\n" % len(body)
        connection.data_received(start + body)
        await request
        assert (connection.status, connection.headers) == (200, [(b"x-met", b"before")])
        assert (await connection.read() or b"") == body
        assert connection.reusable
        connection._parser = None
    assert not wire.aborted


async def test_what_a_sink_takes_after_all_is_not_waiting() -> None:
    """libuv may read a socket twice in one turn of the loop: before the task that was woken takes what was refused."""
    connection, wire = UpstreamConnection(), Wire()
    connection.connection_made(wire)  # type: ignore[arg-type]
    request = asyncio.ensure_future(connection.request(b"", b""))
    await asyncio.sleep(0)
    connection.data_received(SSE)
    await request
    taken = bytearray()
    room = False

    def sink(piece: bytes, last: bool) -> bool:
        if room:
            taken.extend(piece)
        return room

    reading = asyncio.ensure_future(connection.read(sink))
    for _ in range(5):
        await asyncio.sleep(0)
        for room in (False, True):  # noqa: B007 (the sink looks at it)
            connection.data_received(b"%x\r\n%b\r\n" % (100_000, b"x" * 100_000))
    assert len(taken) == 1_000_000
    assert not wire.paused
    connection.data_received(b"0\r\n\r\n")
    assert await asyncio.wait_for(reading, 120) is None
