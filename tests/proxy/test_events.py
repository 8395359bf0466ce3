from __future__ import annotations

import pytest

from sgl_router.upstream.events import MOST_BYTES, FirstEvents, data_of, last_data
from sgl_router.upstream.verdict import Said

TOKEN = b'{"choices": [{"delta": {"content": "x"}}]}'
ROLE = b'{"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": null}]}'
ABORT = b'{"choices": [{"delta": {}, "finish_reason": "abort"}]}'
ERROR = b'{"error": {"code": 503, "message": "full"}}'


def event(data: bytes, end: bytes = b"\n") -> bytes:
    return b"data: " + data + end * 2


def told(*pieces: bytes) -> list[Said]:
    """What each piece says, and at last the end."""
    first = FirstEvents()
    return [first.feed(piece).said for piece in pieces] + [first.end().said]


NOTHINGS = [
    b": keep-alive\n\n",
    b"data:\n\n",
    b"data: \n\n",
    b"data: [DONE]\n\n",
    b"event: ping\n\n",
    b"\n\n",
    b"data: {}\n\n",
    b"data: null\n\n",
    b"retry: 3000\n\n",
    b"data\n\n",
    b"metadata: " + TOKEN + b"\n\n",
    b": data: " + TOKEN + b"\n\n",
    b"data: hello\n\n",
    b"x" * 100,
]


@pytest.mark.parametrize("piece", NOTHINGS)
def test_what_is_no_token(piece: bytes) -> None:
    assert set(told(piece)) == {Said.NOTHING}
    assert told(piece, piece, event(TOKEN))[:2] == [Said.NOTHING] * 2


@pytest.mark.parametrize("before", [b"", *NOTHINGS[:-1], b"event: message\nid: 7\n", b": a comment\r\n"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_token_is_found_whatever_stands_before_it(before: bytes, end: bytes) -> None:
    piece = before.replace(b"\n", end) + event(TOKEN, end)
    assert Said.GOOD in told(piece)
    assert Said.GOOD in told(b"\xef\xbb\xbf" + piece)
    assert told(piece + b"\n", b"")[0] is Said.GOOD


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("data", [TOKEN, ERROR, ABORT, ROLE])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_it_does_not_matter_where_pieces_are_cut(data: bytes, end: bytes, bom: bytes) -> None:
    stream = bom + b": hi" + end * 2 + b"data:" + end * 2 + event(data, end) + b"data: [DONE]" + end * 2
    [whole] = set(told(stream)) - {Said.NOTHING}
    for cut in range(len(stream)):
        assert set(told(stream[:cut], stream[cut:])) - {Said.NOTHING} == {whole}
    assert set(told(*(stream[at : at + 1] for at in range(len(stream))))) - {Said.NOTHING} == {whole}


def test_data_of_several_lines_is_joined() -> None:
    lines = b'data: {"choices": [{"delta":\ndata:{"content": "x"}}]}\n\n'
    assert told(lines)[0] is Said.GOOD
    assert told(b'data: {"error":\ndata: {"code": 429}}\n\n')[0] is Said.ERROR
    assert data_of(b"event: x\ndata: a\nid: 1\ndata:b\ndata:  c") == b"a\nb\n c"


def test_the_first_that_settles_it_counts() -> None:
    assert told(event(ROLE) + event(TOKEN) + event(ERROR))[0] is Said.GOOD
    assert told(event(ROLE) + event(ERROR) + event(TOKEN))[0] is Said.ERROR
    assert told(event(ROLE) + event(ABORT) + event(b"[DONE]"))[0] is Said.ABORTED
    assert told(event(ABORT) + event(ROLE) + b": x\n\n")[0] is Said.OPENING


def test_an_event_without_its_blank_line_counts_at_the_end() -> None:
    assert told(b"data: " + TOKEN) == [Said.NOTHING, Said.GOOD]
    assert told(b"data: " + ERROR + b"\r\n") == [Said.NOTHING, Said.ERROR]


def test_what_it_keeps_is_bounded() -> None:
    first = FirstEvents()
    for _ in range(100):  # a comment without end
        assert first.feed(b":" + b"x" * 4096).said is Said.NOTHING
        assert len(first._rest) <= MOST_BYTES + 8192
    assert first.feed(b"\n\n" + event(TOKEN)).said is Said.GOOD
    assert told(*[b": keep-alive\n\n"] * 10_000) == [Said.NOTHING] * 10_001


def test_a_huge_event_goes_by_its_beginning() -> None:
    first = FirstEvents()
    assert first.feed(b": hi\n\nid: 1\ndata: " + TOKEN[:-1] + b"x" * 9).said is Said.NOTHING
    assert first.feed(b"x" * MOST_BYTES).said is Said.GOOD
    assert told(b'data: {"error": {"code": 429, "message": "' + b"x" * MOST_BYTES)[0] is Said.ERROR


def test_the_last_data_comes_first() -> None:
    tail = b'ut": 1}\n\n' + event(b"1") + b": x\n\n" + event(b"2", b"\r\n") + b"data:\n\n" + event(b"[DONE]")
    assert list(last_data(tail)) == [b"2", b"1"]
