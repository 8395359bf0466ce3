from __future__ import annotations

import json

import pytest

from sgl_router.proxy.usage import UsageTail


def tail(*pieces: bytes) -> int | None:
    usage = UsageTail()
    for piece in pieces:
        usage.feed(piece)
    return usage.cached_tokens()


def event(**usage: object) -> bytes:
    return b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"


def test_a_buffered_answer() -> None:
    body = json.dumps({"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": 144}}}).encode()
    assert tail(body) == 144
    assert tail(body.replace(b" ", b"")) == 144


def test_a_stream_with_its_usage_in_front_of_done() -> None:
    usage = event(prompt_tokens=3, prompt_tokens_details={"cached_tokens": 0})
    assert tail(*[b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'] * 50, usage, b"data: [DONE]\n\n") == 0


def test_a_usage_cut_over_two_pieces() -> None:
    usage = event(prompt_tokens_details={"cached_tokens": 96})
    for cut in range(1, len(usage)):
        assert tail(usage[:cut], usage[cut:]) == 96


@pytest.mark.parametrize("body", [b"", b"{}", event(prompt_tokens_details=None), b'{"cached_tokens": "5"}'])
def test_no_report_is_none(body: bytes) -> None:
    assert tail(body) is None


def test_what_a_model_writes_is_not_a_report() -> None:
    text = 'the key "cached_tokens": 7 and {"cached_tokens":8}'
    assert tail(json.dumps({"choices": [{"message": {"content": text}}]}).encode()) is None


def test_the_answers_length_stands_beside_it() -> None:
    usage = UsageTail()
    usage.feed(b'data: {"choices":[{"delta":{"content":"\\"completion_tokens\\": 7"}}]}\n\n')
    assert usage.output_tokens() is None
    usage.feed(event(prompt_tokens=3, completion_tokens=12, prompt_tokens_details={"cached_tokens": 5}))
    assert (usage.output_tokens(), usage.cached_tokens()) == (12, 5)
