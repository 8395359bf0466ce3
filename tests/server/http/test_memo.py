"""A head read from memory is the head that would have been parsed."""

from __future__ import annotations

import random

from sgl_router.http.head import RequestHead, read_head
from sgl_router.http.request_head_cache import RequestHeadCache
from tests.conformance.mutation import MESSAGES, edited, random_edits

FIELDS = list(RequestHead.__slots__)


def fields(head: RequestHead | None) -> dict[str, object] | None:
    return None if head is None else {name: getattr(head, name) for name in FIELDS}


def memo_of(raw: bytes) -> RequestHeadCache | None:
    head = read_head(raw)
    assert head is not None
    return RequestHeadCache.of(head, raw[: head.end])


def read(raw: bytes, at: int = 0) -> dict[str, object] | None:
    try:
        return fields(read_head(raw, at))
    except Exception:
        return None


HEAD = b"POST /v1/x HTTP/1.1\r\nHost: a\r\ncontent-LENGTH: %b\r\nX-Length: 12\r\n\r\n"


def test_another_length_is_all_that_may_change() -> None:
    memo = memo_of(HEAD % b"12")
    assert memo is not None
    for digits in (b"12", b"0", b"7", b"007", b"123456789012345678"):
        raw = b"...." + HEAD % digits + b"body"
        assert fields(memo.read(raw, 4)) == read(raw, 4)
    for wrong in (b"", b"-1", b"+1", b"1 ", b" 1", b"1,1", b"1\n", b"\xb2", b"1" * 19, b"1_0", b"0x1"):
        assert memo.read(HEAD % wrong, 0) is None


def test_what_is_not_whole_is_not_read() -> None:
    memo = memo_of(HEAD % b"12")
    assert memo is not None
    raw = HEAD % b"12"
    assert all(memo.read(raw[:end], 0) is None for end in range(len(raw)))


def test_headers_handed_out_before_do_not_change() -> None:
    memo = memo_of(HEAD % b"12")
    assert memo is not None
    first = memo.read(HEAD % b"1", 0)
    assert first is not None
    headers = first.headers
    memo.read(HEAD % b"2", 0)
    assert (b"content-LENGTH", b"1") in headers


def test_without_a_length_there_is_nothing_to_remember() -> None:
    assert memo_of(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") is None


def test_memory_and_parser_agree_on_nearly_the_same_heads() -> None:
    rng = random.Random(7)
    hits = 0
    for message in MESSAGES:
        memo = memo_of(message)
        if memo is None:
            continue
        for _ in range(800):
            other = edited(message, random_edits(rng))
            found = fields(memo.read(other, 0))
            if found is not None:
                hits += 1
                assert found == read(other), other
    assert hits > 100
