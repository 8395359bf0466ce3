"""What one JSON text of a worker's 200 says: that tokens come, an error, an abort, or nothing. Pure."""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import Any, NamedTuple

import msgspec

__all__ = ["NOTHING", "Said", "Verdict", "judge", "judge_start", "usage_of"]


class Said(Enum):
    """GOOD: part of a completion. OPENING: a role without content, which comes with the first token but also in front
    of an abort. ABORTED: the worker gave the request up. ERROR: with a status. NOTHING: no JSON, an empty one, or one
    with an empty list of choices."""

    NOTHING = 0
    OPENING = 1
    GOOD = 2
    ABORTED = 3
    ERROR = 4


class Verdict(NamedTuple):
    """`status`: of an error, 400 to 599. `usage`: the top-level object, None where there is none. `ending`: the text
    has choices, so that nothing before it has more to say of how the response ended."""

    said: Said
    status: int = 0
    usage: dict[str, Any] | None = None
    ending: bool = False


NOTHING = Verdict(Said.NOTHING)
_GOOD = Verdict(Said.GOOD, ending=True)
_OPENING = Verdict(Said.OPENING, ending=True)
_ABORTED = Verdict(Said.ABORTED, ending=True)
_NULL = msgspec.Raw(b"null")
# Texts that msgspec refuses and clients read (lone surrogates, NaN) are read by `json` up to this size, 2 ms.
_LENIENT_BYTES = 256 << 10
_EMPTY: tuple[Any, ...] = (None, "", [], {})
_UNNAMED = 500
# Error types of SGLang, vLLM, OpenAI and this router, where `code` is no status.
_STATUSES = {
    "BadRequestError": 400,
    "invalid_request_error": 400,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "service_unavailable_error": 503,
    "overloaded_error": 503,
}
_STARTS_WITH_ERROR = re.compile(rb'\s*\{\s*"error"\s*:\s*[^n\s]')
_STATUS_IN = re.compile(rb'"code"\s*:\s*"?([45]\d\d)\b')


class _Choice(msgspec.Struct, gc=False):
    """What a token is stays raw: what is skipped is neither checked nor built."""

    finish_reason: str | None = None
    delta: msgspec.Raw = _NULL
    message: msgspec.Raw = _NULL
    text: msgspec.Raw = _NULL


class _Body(msgspec.Struct, gc=False):
    error: msgspec.Raw = _NULL
    object: str | None = None
    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None


_body = msgspec.json.Decoder(_Body)


def judge(text: bytes) -> Verdict:
    """`text`: the data of an event, or a body. Never raises."""
    try:
        body = _body.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return _judge_leniently(text)
    if body.error is not _NULL and bytes(body.error) != b"null":
        return Verdict(Said.ERROR, _status(_loads(body.error)))
    if body.object == "error":
        return Verdict(Said.ERROR, _status(_loads(text)))
    choices = body.choices
    if choices:
        verdict = _of_choices(choices)
        return verdict if body.usage is None else verdict._replace(usage=body.usage)
    if choices is None and text.strip() != b"{}":
        return Verdict(Said.GOOD, 0, body.usage)
    return Verdict(Said.NOTHING, 0, body.usage)  # a usage or another extra: no token


def judge_start(text: bytes) -> Verdict:
    """Of a text that is too long to be looked at as a whole."""
    if _STARTS_WITH_ERROR.match(text) is None:
        return Verdict(Said.GOOD if text.strip() else Said.NOTHING)
    found = _STATUS_IN.search(text)
    return Verdict(Said.ERROR, int(found[1]) if found is not None else _UNNAMED)


def usage_of(text: bytes) -> dict[str, Any] | None:
    """The top-level `usage` of a JSON object; None for what is none to msgspec."""
    try:
        return _body.decode(text).usage
    except (msgspec.DecodeError, RecursionError):
        return None


def _of_choices(choices: list[_Choice]) -> Verdict:
    opening = aborted = False
    for choice in choices:
        if choice.finish_reason == "abort":
            aborted = True
        elif choice.finish_reason is None and choice.message is _NULL and choice.text is _NULL and _opens(choice.delta):
            opening = True
        else:
            return _GOOD
    return _ABORTED if aborted else _OPENING if opening else _GOOD


def _opens(raw: msgspec.Raw) -> bool:
    """Whether a delta has nothing but a role."""
    text = bytes(raw)
    if b'"role"' not in text:
        return text == b"{}"
    delta = _loads(text)
    return isinstance(delta, dict) and all(name == "role" or value in _EMPTY for name, value in delta.items())


def _judge_leniently(text: bytes) -> Verdict:
    """What is no JSON object to msgspec."""
    if len(text) > _LENIENT_BYTES:
        return judge_start(text)
    body = _loads(text, strict=False)
    if not isinstance(body, dict):
        return NOTHING if body in _EMPTY else Verdict(Said.GOOD)
    if body.get("error") is not None:
        return Verdict(Said.ERROR, _status(body["error"]))
    if body.get("object") == "error":
        return Verdict(Said.ERROR, _status(body))
    usage, choices = body.get("usage"), body.get("choices")
    usage = usage if isinstance(usage, dict) else None
    if body == {} or choices == []:
        return Verdict(Said.NOTHING, usage=usage)
    reasons = [choice.get("finish_reason") for choice in _listed(choices) if isinstance(choice, dict)]
    aborted = bool(reasons) and all(reason == "abort" for reason in reasons)
    return Verdict(Said.ABORTED if aborted else Said.GOOD, usage=usage, ending=bool(choices))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _status(error: Any) -> int:
    """The HTTP status that an error names; one that names none is the worker's failure."""
    if not isinstance(error, dict):
        return _UNNAMED
    code = error.get("code")
    if isinstance(code, str) and len(code) == 3 and code.isdecimal():
        code = int(code)
    if isinstance(code, int) and 400 <= code <= 599:
        return int(code)
    kind = error.get("type")
    return _STATUSES.get(kind, _UNNAMED) if isinstance(kind, str) else _UNNAMED


def _loads(text: bytes | msgspec.Raw, *, strict: bool = True) -> Any:
    """None for what is no JSON."""
    try:
        return msgspec.json.decode(text) if strict else json.loads(bytes(text))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return _loads(text, strict=False) if strict and len(bytes(text)) <= _LENIENT_BYTES else None
