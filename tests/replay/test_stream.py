"""What is read from a stream of events."""

from __future__ import annotations

import json
import math
from array import array
from typing import Any

import pytest

from sgl_router.lab.replay.call import Call, Result
from sgl_router.lab.replay.stream import AnswerStream
from sgl_router.lab.simulate.trace import TraceRow


class Reader:
    def __init__(self) -> None:
        self.call = Call(0, TraceRow(0.0, 10, 3, (1,)), due_at=0.0, sent_at=0.0)
        self.gaps = array("d")
        self.stream = AnswerStream(self.call, self.gaps)

    def feed(self, now: float, *events: Any) -> bool:
        text = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)
        return self.stream.feed(text.encode(), now)


def said(text: str | None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def test_times_are_those_of_texts() -> None:
    reader = Reader()
    reader.feed(1.0, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    reader.feed(1.5, said("a"))
    reader.feed(2.5, said("b"), said("c"))
    reader.feed(3.0, {"choices": [{"delta": {}, "finish_reason": "length"}]}, "[DONE]")
    call = reader.call
    assert (call.first_event_at, call.first_token_at, call.last_text_at, call.ttft) == (1.0, 1.5, 2.5, 1.5)
    assert list(reader.gaps) == [1.0, 0.0]
    assert reader.stream.done


def test_an_answer_without_text_began_with_its_first_event() -> None:
    reader = Reader()
    reader.feed(1.0, said(None), "[DONE]")
    assert reader.call.first_token_at == 1.0 and math.isnan(reader.call.first_text_at)


@pytest.mark.parametrize("field", ["reasoning_content", "tool_calls"])
def test_thoughts_and_tool_calls_are_text(field: str) -> None:
    reader = Reader()
    reader.feed(1.0, {"choices": [{"delta": {field: "x" if field == "reasoning_content" else [{"id": "1"}]}}]})
    assert reader.call.first_text_at == 1.0


def test_usage_is_kept() -> None:
    reader = Reader()
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    reader.feed(1.0, {"choices": [], "usage": usage})
    call = reader.call
    assert (call.prompt_tokens, call.completion_tokens, call.cached_tokens) == (9, 3, 4)
    reader.feed(1.0, {"choices": None, "usage": {"prompt_tokens": 9, "prompt_tokens_details": None}})
    assert call.cached_tokens == 4


def test_an_event_may_arrive_in_pieces_and_with_other_lines() -> None:
    reader = Reader()
    data = f": keep-alive\r\n\r\nevent: x\r\ndata:{json.dumps(said('a'))}\r\n\r\n".encode()
    for byte in range(len(data)):
        assert reader.stream.feed(data[byte : byte + 1], 1.0)
    assert reader.call.first_text_at == 1.0


@pytest.mark.parametrize(
    ("event", "result", "error"),
    [
        ({"error": {"message": "out of memory"}}, Result.ERROR_EVENT, '{"message":"out of memory"}'),
        ({"object": "error", "message": "gone"}, Result.ERROR_EVENT, '"gone"'),
        ("{", Result.BROKEN, "an event that makes no sense"),
        ({"choices": 3}, Result.BROKEN, "an event that makes no sense"),
        ("x" * (2 << 20), Result.BROKEN, "an event that makes no sense"),
    ],
)
def test_what_is_no_answer_ends_the_reading(event: Any, result: Result, error: str) -> None:
    reader = Reader()
    assert not reader.feed(1.0, event, said("never read"))
    assert reader.call.result is result and reader.call.error.startswith(error)
    assert math.isnan(reader.call.first_event_at)


@pytest.mark.parametrize("data", [b'{"choices": [{"delta": {"content": "\xff"}}]}', b'{"error": ' + b"[" * 100_000])
def test_bytes_that_are_no_text_and_brackets_without_end_are_a_broken_stream(data: bytes) -> None:
    """Nothing may be raised: it would cost the results of the whole replay."""
    reader = Reader()
    assert not reader.stream.feed(b"data: " + data + b"\n", 1.0)
    assert reader.call.result is Result.BROKEN and reader.call.error.startswith("an event that makes no sense")


def test_an_event_without_end_is_not_collected_for_ever() -> None:
    reader = Reader()
    assert not reader.stream.feed(b"data: " + b"x" * (1 << 20), 1.0)
    assert reader.call.result is Result.BROKEN
