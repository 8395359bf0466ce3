"""The head parser beyond what the conformance tables say of it: offsets, partial heads, cost."""

from __future__ import annotations

import time

import pytest

from sgl_router.http.faults import HttpFault, HttpRefused
from sgl_router.http.head import MAX_FIELDS, MAX_HEAD_BYTES, read_head

RAW = b"POST /v1/x?y=z HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Encoding: br\r\nX: y  \r\n\r\n"


def fault(raw: bytes) -> HttpFault | None:
    try:
        read_head(raw)
    except HttpRefused as error:
        return error.fault
    return None


def test_a_head_in_the_middle_of_other_bytes() -> None:
    head = read_head(b"12345" + RAW + b"hello", 5)
    assert head is not None
    assert (head.method, head.target, head.path) == ("POST", b"/v1/x?y=z", b"/v1/x")
    assert head.end == 5 + len(RAW)
    assert (head.content_length, head.chunked, head.keep_alive, head.http_1_0) == (5, False, True, False)
    assert head.content_encoding == b"br"
    assert head.headers[-1] == (b"X", b"y")


def test_every_beginning_of_a_head_is_not_yet_one() -> None:
    assert all(read_head(RAW[:end]) is None for end in range(len(RAW)))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"\x16\x03\x01", HttpFault.REQUEST_LINE),
        (b"GET / HTTP/1.1\nHost: a\n", HttpFault.LINE_ENDING),
        (b"GET / HTTP/1.1\r\nHost: a\rX", HttpFault.LINE_ENDING),
        (b"GET /" + b"x" * 9000, HttpFault.TARGET_TOO_LONG),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * MAX_HEAD_BYTES, HttpFault.HEAD_TOO_LARGE),
        (b"\r\n" * 9, HttpFault.REQUEST_LINE),
    ],
)
def test_what_cannot_become_a_head_is_refused_before_it_ends(raw: bytes, expected: HttpFault) -> None:
    assert fault(raw) is expected


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (b"X-A: b\r\n c", HttpFault.FOLDED),
        (b"X-A : b", HttpFault.NAME),
        (b"X-A: \x00", HttpFault.VALUE),
        (b"X-A: b\nX-B: c", HttpFault.LINE_ENDING),
        (b"Host: b", HttpFault.HOST_TWICE),
        (b"Content-Length: 1\r\nContent-Length: 1", HttpFault.LENGTH_TWICE),
        (b"Content-Length: 1\r\nTransfer-Encoding: chunked", HttpFault.LENGTH_AND_ENCODING),
        (b"\r\n".join(b"X: y" for _ in range(MAX_FIELDS)), HttpFault.TOO_MANY_HEADERS),
    ],
)
def test_a_refusal_names_its_reason(field: bytes, expected: HttpFault) -> None:
    assert fault(b"GET / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n\r\n") is expected


@pytest.mark.parametrize(
    "filler",
    [b"X:" + b" " * 15_000 + b"\x00", b"X" * 15_000 + b" ", b"X: " + b"y " * 7_000 + b"\x00", b"X:\r\n" * 4_000],
)
def test_no_head_takes_long_to_refuse(filler: bytes) -> None:
    raw = b"GET / HTTP/1.1\r\nHost: a\r\n" + filler + b"\r\n" + filler + b"\r\n\r\n"
    started = time.process_time()
    assert fault(raw) is not None
    assert time.process_time() - started < 0.05
