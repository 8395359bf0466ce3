"""The events of one streamed answer."""

from __future__ import annotations

import math
from array import array
from typing import Any

import msgspec

from sgl_router.lab.replay.call import Call, Result

__all__ = ["AnswerStream"]

_MOST_UNREAD = 1 << 20
_SHOWN_CHARS = 200


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Event(msgspec.Struct):
    object: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    message: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class AnswerStream:
    """Feed it what arrives; it writes into `call`, and the time between texts into `gaps`."""

    def __init__(self, call: Call, gaps: array[float]) -> None:
        self._call = call
        self._gaps = gaps
        self._unread = b""
        self.done = False
        """`data: [DONE]` has come."""

    def feed(self, data: bytes, now: float) -> bool:
        """False where nothing further is worth reading; `call.result` says why."""
        *lines, self._unread = (self._unread + data).split(b"\n")
        if len(self._unread) > _MOST_UNREAD:
            return self._give_up(Result.BROKEN, "an event of more than a megabyte")
        return all(self._line(line, now) for line in lines)

    def _line(self, line: bytes, now: float) -> bool:
        if not line.startswith(b"data:"):
            return True
        data = line[5:].strip()
        if data == b"[DONE]":
            self.done = True
            return True
        try:
            event = _decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return self._give_up(Result.BROKEN, f"an event that makes no sense: {error}")
        if event.error is not None or event.object == "error":
            said = msgspec.json.encode(event.error if event.error is not None else event.message).decode()
            return self._give_up(Result.ERROR_EVENT, said[:_SHOWN_CHARS])
        self._take(event, now)
        return True

    def _take(self, event: _Event, now: float) -> None:
        call = self._call
        if event.choices:
            if math.isnan(call.first_event_at):
                call.first_event_at = now
            if any(map(_says_something, event.choices)):
                if math.isnan(call.first_text_at):
                    call.first_text_at = now
                else:
                    self._gaps.append(now - call.last_text_at)
                call.last_text_at = now
        usage = event.usage
        if usage is not None:
            call.prompt_tokens = usage.prompt_tokens
            call.completion_tokens = usage.completion_tokens
            if usage.prompt_tokens_details is not None:
                call.cached_tokens = usage.prompt_tokens_details.cached_tokens

    def _give_up(self, result: Result, error: str) -> bool:
        self._call.result, self._call.error = result, error
        return False


def _says_something(choice: _Choice) -> bool:
    delta = choice.delta
    return delta is not None and bool(delta.content or delta.reasoning_content or delta.tool_calls)
