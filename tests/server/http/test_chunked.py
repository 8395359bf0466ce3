"""The chunk decoder's bounds; what it accepts is in the conformance tables."""

from __future__ import annotations

import pytest

from sgl_router.errors import BodyTooLarge
from sgl_router.http.chunked import MAX_EXTENSION_BYTES, ChunkedDecoder
from sgl_router.http.faults import HttpFault, HttpRefused


def test_a_chunk_that_is_too_much_is_refused_by_its_size_line() -> None:
    decoder = ChunkedDecoder(10)
    assert not decoder.feed(b"8\r\n12345678\r\n")
    with pytest.raises(BodyTooLarge):
        decoder.feed(b"3\r\n")


def test_one_byte_at_a_time() -> None:
    raw = b'3;a="b"\r\nabc\r\n0\r\nX: y\r\n\r\n'
    decoder = ChunkedDecoder(10)
    assert [decoder.feed(raw[at : at + 1]) for at in range(len(raw))] == [False] * (len(raw) - 1) + [True]
    assert (decoder.body, decoder.rest) == (b"abc", b"")


def test_what_follows_is_left_alone() -> None:
    decoder = ChunkedDecoder(10)
    assert decoder.feed(b"0\r\n\r\nPOST /")
    assert (decoder.body, decoder.rest) == (b"", b"POST /")


def test_extensions_have_a_sum() -> None:
    decoder = ChunkedDecoder(1 << 20)
    with pytest.raises(HttpRefused) as refused:
        for _ in range(MAX_EXTENSION_BYTES // 100 + 1):
            decoder.feed(b"1;" + b"a" * 100 + b"\r\nx\r\n")
    assert refused.value.fault is HttpFault.CHUNK_EXTENSIONS


@pytest.mark.parametrize("start", [b"1\n", b"x" * 300, b"5\r\nhelloX", b"0\r\nX: y\nZ"])
def test_what_cannot_become_a_chunk_is_refused_before_it_ends(start: bytes) -> None:
    with pytest.raises(HttpRefused):
        ChunkedDecoder(10).feed(start)
