from __future__ import annotations

import json
from typing import Any

import pytest

from sgl_router.upstream.usage import BULK_BYTES, WHOLE_BYTES, DocumentTail, Ending, StreamTail, document_ending
from sgl_router.upstream.verdict import Said

DONE = b"data: [DONE]\n\n"


def usage(cached: Any = 144, output: Any = 12) -> dict[str, Any]:
    return {"prompt_tokens": 3, "completion_tokens": output, "prompt_tokens_details": {"cached_tokens": cached}}


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps({"id": "x", "choices": [], **fields}).encode() + b"\n\n"


def token(text: str = "x", **fields: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}], **fields)


def finish(reason: str, **fields: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": {}, "finish_reason": reason}], **fields)


def error(code: int) -> bytes:
    return b"data: " + json.dumps({"error": {"message": "m", "code": code}}).encode() + b"\n\n"


def stream(*pieces: bytes) -> Ending:
    tail = StreamTail()
    for piece in pieces:
        tail.add_bulk(piece) if len(piece) > BULK_BYTES else tail.add(piece)
    return tail.ending()


def counts(*pieces: bytes) -> tuple[int | None, int | None]:
    return stream(*pieces)[2:]


def test_a_stream_with_its_usage_in_front_of_done() -> None:
    pieces = [token()] * 50 + [finish("stop"), event(usage=usage(0, 50)), DONE]
    assert stream(*pieces) == Ending(Said.GOOD, 0, 0, 50)
    assert stream(b"".join(pieces)) == Ending(Said.GOOD, 0, 0, 50)
    assert stream(*(piece.replace(b"\n", b"\r\n") for piece in pieces)) == Ending(Said.GOOD, 0, 0, 50)


def test_a_usage_cut_over_pieces() -> None:
    text = token() + event(usage=usage()) + DONE
    for cut in range(1, len(text)):
        assert counts(text[:cut], text[cut:]) == (144, 12)


@pytest.mark.parametrize("size", [4 << 10, BULK_BYTES, 1 << 20])
def test_what_follows_the_usage_does_not_hide_it(size: int) -> None:
    after = event(sglext={"input_ids": "7" * size})
    assert counts(token(), event(usage=usage()), after, DONE) == (144, 12)
    assert counts(token() + event(usage=usage()) + after + DONE) == (144, 12)
    pieces = [after[at : at + 20_000] for at in range(0, len(after), 20_000)]
    assert counts(token(), event(usage=usage()), *pieces, DONE) == (144, 12)


def test_the_last_usage_counts() -> None:
    running = [token(usage=usage(144, number)) for number in range(30)]  # stream_options.continuous_usage_stats
    assert counts(*running, finish("stop"), DONE) == (144, 29)
    assert counts(*running, finish("stop"), event(usage=usage(144, 31)), DONE) == (144, 31)
    assert counts(token(usage=None), event(usage=usage()), event(usage=None), DONE) == (144, 12)


@pytest.mark.parametrize(
    "data",
    [
        event(metadata={"cached_tokens": 7, "usage": usage()}),
        event(usage={"prompt_tokens_details": None}),
        event(usage=usage("5", "6")),
        event(usage=usage(-1, -1)),
        event(usage=usage(1.0, True)),
        event(usage=usage(10**13, 10**13)),
        event(usage=[7]),
        token('"usage": {"completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": 7}}'),
        b'data: {"usage": {"completion_tokens": 8\n\n',
        b"",
    ],
)
def test_what_is_no_report(data: bytes) -> None:
    assert counts(token(), data, DONE) == (None, None)
    assert counts(token(), data + event(usage=usage()), DONE) == (144, 12)


def test_digits_are_not_cut() -> None:
    assert counts(event(usage=usage(123_456_789_012)), DONE) == (123_456_789_012, 12)


@pytest.mark.parametrize(
    ("last", "ending"),
    [
        ([finish("stop")], (Said.GOOD, 0)),
        ([finish("length"), event(usage=usage())], (Said.GOOD, 0)),
        ([], (Said.GOOD, 0)),
        ([error(500)], (Said.ERROR, 500)),
        ([error(503), event(usage=usage())], (Said.ERROR, 503)),
        ([finish("abort"), event(sglext={}), event(usage=usage())], (Said.ABORTED, 0)),
        ([error(500), token()], (Said.GOOD, 0)),
    ],
)
@pytest.mark.parametrize("done", [DONE, b""])
def test_how_a_stream_ended(last: list[bytes], ending: tuple[Said, int], done: bytes) -> None:
    assert stream(*[token()] * 40, *last, done)[:2] == ending


def test_what_a_stream_keeps_is_bounded() -> None:
    tail = StreamTail()
    for number in range(1000):
        tail.add_bulk(b"x" * (1 << 20)) if number % 100 == 0 else tail.add(b"y" * BULK_BYTES)
    assert sum(map(len, tail._pieces)) <= 16 * BULK_BYTES
    large = DocumentTail()
    for _ in range(50):
        large.add(b"z" * (256 << 10))
    large.add(b"z" * (8 << 20))
    assert sum(map(len, large._pieces)) <= 2 << 20


def document(padding: int = 0, **fields: Any) -> bytes:
    body = {"id": "x", "choices": [{"message": {"content": "x" * padding}, "finish_reason": "stop"}], **fields}
    return json.dumps(body).encode()


@pytest.mark.parametrize("padding", [0, 5000, WHOLE_BYTES, 3 << 20])
def test_a_bodys_usage_is_that_of_its_top_level(padding: int) -> None:
    after = {"metadata": {"cached_tokens": 7, "usage": {"completion_tokens": 1}}, "sglext": "y" * 8000}
    body = document(padding, usage=usage(), **after)
    assert document_ending(body) == Ending(Said.GOOD, 0, 144, 12)
    assert document_ending(body.replace(b": ", b":").replace(b", ", b",") + b"\n") == Ending(Said.GOOD, 0, 144, 12)
    assert document_ending(document(padding, metadata={"usage": usage()})) == Ending(Said.GOOD)
    assert document_ending(document(padding, usage=None, **after)) == Ending(Said.GOOD)


@pytest.mark.parametrize("size", [64 << 10, 256 << 10])
def test_a_body_in_pieces(size: int) -> None:
    body = document(9 << 20, usage=usage(), metadata={"cached_tokens": 7})
    tail = DocumentTail()
    for at in range(0, len(body), size):
        tail.add(body[at : at + size])
    assert tail.ending() == Ending(Said.GOOD, 0, 144, 12)


@pytest.mark.parametrize(
    ("body", "ending"),
    [
        (b"", (Said.NOTHING, 0)),
        (b"null", (Said.NOTHING, 0)),
        (b"<html>sign in</html>", (Said.NOTHING, 0)),
        (b'{"error": {"code": 429}}', (Said.ERROR, 429)),
        (b'{"object": "error", "message": "m", "code": 400}', (Said.ERROR, 400)),
        (b'{"error": {"message": "' + b"x" * WHOLE_BYTES + b'"}}', (Said.ERROR, 500)),
        (b'{"choices": [{"message": {"content": ""}, "finish_reason": "abort"}]}', (Said.ABORTED, 0)),
        (b'{"choices": [{"delta": {"role": "assistant"}, "finish_reason": null}]}', (Said.GOOD, 0)),
        (token() + DONE, (Said.GOOD, 0)),  # a stream that its head does not call one
        (error(503) + DONE, (Said.ERROR, 503)),
        (DONE, (Said.NOTHING, 0)),
    ],
)
def test_what_a_body_says(body: bytes, ending: tuple[Said, int]) -> None:
    assert document_ending(body)[:2] == ending


def test_a_stream_that_its_head_does_not_call_one_has_a_usage_too() -> None:
    assert document_ending(token() + finish("stop") + event(usage=usage()) + DONE) == Ending(Said.GOOD, 0, 144, 12)
