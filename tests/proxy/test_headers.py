from __future__ import annotations

from sgl_router.proxy import forward_headers


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
