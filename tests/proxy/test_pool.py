from __future__ import annotations

import asyncio

import pytest

from sgl_router.errors import ConnectFailed, UpstreamBodyIncomplete, UpstreamUnreachable
from sgl_router.upstream import UpstreamExchange, UpstreamPool
from sgl_router.upstream.pool import IDLE_SECS


def answer(body: bytes = b"ok", status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def saying(*pieces: bytes, close: bool = False):
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.close()

    return script


async def post(pool: UpstreamPool, url: str, body: bytes = b"{}") -> UpstreamExchange:
    return await pool.open(url, b"POST", b"/v1/x", [(b"content-type", b"application/json")], body)


async def read_all(exchange: UpstreamExchange) -> bytes:
    pieces = []
    with exchange:
        while (chunk := await exchange.read()) is not None:
            pieces.append(chunk)
    return b"".join(pieces)


async def test_request_and_answer(pool, upstream) -> None:
    server = await upstream(saying(answer(b"hello", headers="X-A: 1\r\nX-A: 2\r\n")))
    exchange = await post(pool, server.url, b'{"a":1}')
    assert exchange.status == 200
    assert exchange.headers == [(b"x-a", b"1"), (b"x-a", b"2")]
    assert await read_all(exchange) == b"hello"
    head, body = server.requests[0]
    assert body == b'{"a":1}'
    assert head.startswith(b"POST /v1/x HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"content-length: 7\r\n" in head


async def test_connections_are_reused(pool, upstream) -> None:
    server = await upstream(saying(answer()))
    for _ in range(5):
        assert await read_all(await post(pool, server.url)) == b"ok"
    assert server.connections == 1


async def test_concurrent_exchanges_have_a_connection_each(pool, upstream) -> None:
    server = await upstream(saying(answer()))
    first, second = await asyncio.gather(post(pool, server.url), post(pool, server.url))
    assert await read_all(first) == await read_all(second) == b"ok"
    assert server.connections == 2
    assert await read_all(await post(pool, server.url)) == b"ok"
    assert server.connections == 2


async def test_idle_connections_do_not_outlive_the_workers_patience(upstream) -> None:
    now = 0.0
    pool = UpstreamPool(clock=lambda: now)
    server = await upstream(saying(answer()))
    await read_all(await post(pool, server.url))
    now = IDLE_SECS + 0.1
    await read_all(await post(pool, server.url))
    assert server.connections == 2
    pool.close()


@pytest.mark.parametrize("framing", ["Connection: close\r\n", ""])
async def test_a_connection_the_worker_closes_is_not_reused(pool, upstream, framing: str) -> None:
    server = await upstream(saying(answer(headers=framing), close=True))
    assert await read_all(await post(pool, server.url)) == b"ok"
    assert await read_all(await post(pool, server.url)) == b"ok"
    assert server.connections == 2


async def test_an_unread_answer_drops_the_connection(pool, upstream) -> None:
    server = await upstream(saying(answer(b"x" * 100_000)))
    with await post(pool, server.url):
        pass
    assert len(await read_all(await post(pool, server.url))) == 100_000
    assert server.connections == 2


async def test_chunked_bodies_and_trailers(pool, upstream) -> None:
    server = await upstream(
        saying(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"5\r\nhello\r\n6;ext=1\r\n world\r\n",
            b"0\r\nX-Trailer: t\r\n\r\n",
        )
    )
    exchange = await post(pool, server.url)
    assert await read_all(exchange) == b"hello world"
    assert exchange.headers == []
    await read_all(await post(pool, server.url))
    assert server.connections == 1


async def test_a_body_without_framing_ends_with_the_connection(pool, upstream) -> None:
    server = await upstream(saying(b"HTTP/1.1 200 OK\r\n\r\nall", b" of it", close=True))
    assert await read_all(await post(pool, server.url)) == b"all of it"


async def test_no_header_names_a_worker(pool, upstream) -> None:
    hosts = (
        "Location: http://worker-7:30000/v1\r\nContent-Location: //worker-7/x\r\nRefresh: 0; url=worker-7:30000/x\r\n"
        'Link: <https://worker-7/next>; rel="next"\r\nAlt-Svc: h2="worker-7:443"\r\nlocation: /\\worker-7\r\n'
    )
    paths = 'Location: /v1/elsewhere?a=1\r\nContent-Location: x\r\nRefresh: 5\r\nLink: </next>; rel="next"\r\n'
    headers = hosts + "Server: uvicorn\r\n" + paths
    server = await upstream(saying(answer(status="307 Temporary Redirect", headers=headers)))
    for _ in range(2):  # the second head is one that is known
        with await post(pool, server.url) as exchange:
            assert exchange.headers == [
                (b"server", b"uvicorn"),
                (b"location", b"/v1/elsewhere?a=1"),
                (b"content-location", b"x"),
                (b"refresh", b"5"),
                (b"link", b'</next>; rel="next"'),
            ]
            assert b"worker-7" not in exchange.connection.lines


async def test_interim_answers_are_skipped(pool, upstream) -> None:
    server = await upstream(
        saying(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", answer(b"final"))
    )
    exchange = await post(pool, server.url)
    assert exchange.status == 200
    assert exchange.headers == []
    assert await read_all(exchange) == b"final"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_answers_without_a_body(pool, upstream, status: str) -> None:
    server = await upstream(saying(f"HTTP/1.1 {status}\r\n\r\n".encode()))
    for _ in range(2):
        assert await read_all(await post(pool, server.url)) == b""
    assert server.connections == 1


@pytest.mark.parametrize(
    "piece",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_a_body_that_breaks_off(pool, upstream, piece: bytes) -> None:
    server = await upstream(saying(piece, close=True))
    with pytest.raises(UpstreamBodyIncomplete):
        await read_all(await post(pool, server.url))


@pytest.mark.parametrize(
    "piece",
    [
        b"",
        b"HTTP/1.1 20",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000,
    ],
)
async def test_what_is_no_answer(pool, upstream, piece: bytes) -> None:
    server = await upstream(saying(piece, close=True))
    with pytest.raises(UpstreamUnreachable) as caught:
        await post(pool, server.url)
    assert not isinstance(caught.value, ConnectFailed)
    assert server.url.rpartition(":")[2] not in caught.value.message


async def test_nobody_listens(pool) -> None:
    with pytest.raises(ConnectFailed):
        await post(pool, "http://127.0.0.1:1")


async def test_a_request_that_was_read_is_not_sent_again(pool, upstream) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(server.requests) == 2:
            writer.transport.abort()
        else:
            writer.write(answer())

    server = await upstream(script)
    await read_all(await post(pool, server.url))
    with pytest.raises(UpstreamUnreachable) as caught:
        await post(pool, server.url)
    assert not isinstance(caught.value, ConnectFailed)
    assert (server.connections, len(server.requests)) == (1, 2)


async def test_a_fresh_connection_that_breaks_is_not_retried(pool, upstream) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    server = await upstream(script)
    with pytest.raises(UpstreamUnreachable):
        await post(pool, server.url)
    assert len(server.requests) == 1


async def test_words_nobody_asked_for_close_the_connection(pool, upstream) -> None:
    server = await upstream(saying(answer() + answer(b"smuggled")))
    assert await read_all(await post(pool, server.url)) == b"ok"
    assert await read_all(await post(pool, server.url)) == b"ok"
    assert server.connections == 2


async def test_a_forgotten_worker_keeps_no_connection(pool, upstream) -> None:
    server = await upstream(saying(answer()))
    exchange = await post(pool, server.url)
    pool.forget(server.url)
    assert await read_all(exchange) == b"ok"
    await read_all(await post(pool, server.url))
    assert server.connections == 2


async def test_reading_stops_while_nobody_takes_the_answer(pool, upstream) -> None:
    sent = 0
    total = 64 << 20

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while sent < total:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    server = await upstream(script)
    exchange = await post(pool, server.url)
    before = -1
    while sent != before:  # until the worker is stuck
        before = sent
        await asyncio.sleep(0.1)
    assert sent < total / 2  # the rest of what it got rid of lies in kernel buffers
    assert len(await read_all(exchange)) == total


@pytest.mark.parametrize(
    ("begin", "more"),
    [(b"0\r\n", b"A: b\r\n" * 4_000), (b"0\r\nA: ", b"b" * 20_000), (b"5;", b"a" * 20_000)],
    ids=["trailers", "one trailer", "an extension"],
)
async def test_an_answer_that_goes_on_without_a_body_is_given_up(pool, upstream, begin: bytes, more: bytes) -> None:
    """An endless trailer held the loop for 14 s, and everything it said was kept."""
    sent = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n" + begin)
        while sent < 64 << 20:
            writer.write(more)
            sent += len(more)
            await writer.drain()

    server = await upstream(script)
    with pytest.raises(UpstreamBodyIncomplete, match="goes on without a body"):
        await read_all(await post(pool, server.url))
    assert sent < 64 << 20


async def test_size_lines_on_their_own_are_no_endless_framing(pool, upstream) -> None:
    pieces = [piece for _ in range(300) for piece in (b"1;" + b"a" * 250 + b"\r\n", b"x\r\n")]
    server = await upstream(saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *pieces, b"0\r\n\r\n"))
    assert await read_all(await post(pool, server.url)) == b"x" * 300
