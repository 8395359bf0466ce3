from __future__ import annotations

from sgl_router.http import forward_headers


def test_hop_by_hop_headers_stay_behind_with_the_client() -> None:
    sent = [
        (b"Host", b"router"),
        (b"Connection", b"keep-alive, X-Hop"),
        (b"X-Hop", b"1"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Transfer-Encoding", b"chunked"),
        (b"TE", b"trailers"),
        (b"Upgrade", b"h2c"),
        (b"Content-Length", b"3"),
        (b"Expect", b"100-continue"),
        (b"X-Data-Parallel-Rank", b"3"),
        (b"X-Request-Id", b"theirs"),
        (b"Authorization", b"Bearer k"),
        (b"X-Custom", b"a"),
        (b"X-Custom", b"b"),
    ]
    assert forward_headers(sent) == [(b"authorization", b"Bearer k"), (b"x-custom", b"a"), (b"x-custom", b"b")]


async def test_what_a_worker_says_of_web_pages_stays_behind(pool, upstream) -> None:
    """SGLang's server lets every page read it; which may read the router is for `cors.allowed_origins` to say."""
    said = (
        b"Access-Control-Allow-Origin: *\r\naccess-control-allow-credentials: true\r\n"
        b"Access-Control-Expose-Headers: x\r\nAccess-Control-Max-Age: 1\r\nAccess-Control-Allow-Headers: y\r\n"
        b"Access-Control-Allow-Methods: POST\r\nX-Kept: 1\r\n"
    )

    async def script(reader, writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + said + b"Content-Length: 2\r\n\r\n{}")

    server = await upstream(script)
    with await pool.open(server.url, b"POST", b"/", [], b"{}") as exchange:
        assert exchange.connection.headers == [(b"x-kept", b"1")]
