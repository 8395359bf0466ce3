"""A head met before means what it meant then; whatever is not exactly that goes to the parser."""

from __future__ import annotations

import pytest

from sgl_router.http.headers import header_lines, header_pairs
from sgl_router.upstream.response_head_cache import ResponseHead, ResponseHeadCache

START = b"HTTP/1.1 200 OK\r\nserver: u\r\ncontent-length: "
END = b"\r\ncontent-type: a/b\r\n\r\n"
PAIRS = [(b"server", b"u"), (b"content-type", b"a/b")]
HEAD = ResponseHead(200, PAIRS, header_lines(PAIRS))


def learned() -> ResponseHeadCache:
    heads = ResponseHeadCache()
    heads.learn(START + b"2" + END + b"hi", HEAD)
    return heads


@pytest.mark.parametrize("body", [b"", b"hi", b"x" * 4000, b"\r\n\r\n"])
def test_another_length_is_the_same_head(body: bytes) -> None:
    assert learned().split(START + b"%d" % len(body) + END + body) == (HEAD, body)


@pytest.mark.parametrize(
    "data",
    [
        START + b"2" + END + b"h",
        START + b"2" + END + b"hi!",
        START + b"+2" + END + b"hi",
        START + b"2 " + END + b"hi",
        START + b"" + END,
        START + b"2" + END[:-2],
        START.replace(b"u", b"v") + b"2" + END + b"hi",
        START + b"2" + END.replace(b"a/b", b"a/c") + b"hi",
        START.replace(b"200", b"500") + b"2" + END + b"hi",
        b"HTTP/1.1 100 Continue\r\n\r\n" + START + b"2" + END + b"hi",
        START + b"2\r\ntransfer-encoding: chunked" + END + b"hi",
        b"HTTP/1.1 200 OK\r\nserver: u\r\n\r\ncontent-length: 2" + END,
        b"",
    ],
)
def test_whatever_differs_is_not(data: bytes) -> None:
    assert learned().split(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + START + b"2" + END + b"hi",
        START.replace(b"content-length", b"Content-Length") + b"2" + END + b"hi",
        b"HTTP/1.1 200 OK\r\n\r\n\r\ncontent-length: 2\r\n",
    ],
)
def test_a_head_that_cannot_be_cut_open_is_not_learned(data: bytes) -> None:
    heads = ResponseHeadCache()
    heads.learn(data, HEAD)
    assert heads.split(data) is None


def test_no_more_is_kept_than_is_of_use() -> None:
    heads = ResponseHeadCache()
    for number in range(2000):
        heads.learn(START + b"2\r\nx: %d" % number + END + b"hi", HEAD)
        assert len(heads._known) <= 256
    assert heads.split(START + b"2\r\nx: 1999" + END + b"hi") is not None


def test_lines_are_pairs() -> None:
    assert header_pairs(header_lines(PAIRS)) == PAIRS
    assert header_pairs(header_lines([])) == []
    assert header_pairs(header_lines([(b"a", b""), (b"b", b"c: d")])) == [(b"a", b""), (b"b", b"c: d")]
    for broken in (b"b\r\nc: d", b"b\nc: d", b"b\r"):
        with pytest.raises(ValueError, match="line break"):
            header_lines([(b"a", broken)])
