"""One parse of a request body: what routing needs is decoded, the rest stays the client's bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from sgl_router.errors import BadRequest

__all__ = ["JsonObject", "parse_chat", "parse_object"]

MAX_MEMBERS = 50_000
MAX_KEYS = 1_000

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_value = msgspec.json.Decoder().decode
_SPACE = re.compile(rb"[ \t\r\n]*")
_BYTE_AT = re.compile(r"\(byte (\d+)\)")


class JsonObject(Mapping[str, Any]):
    """A JSON object whose values are decoded when asked for, once. Asking raises BadRequest for what is malformed."""

    __slots__ = ("_decoded", "_fields")

    def __init__(self, fields: dict[str, msgspec.Raw]) -> None:
        self._fields = fields
        self._decoded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._decoded:
            raw = self._fields[name]
            try:
                self._decoded[name] = _decode_value(raw)
            except RecursionError:
                raise BadRequest(f"{name!r} is nested too deeply", name) from None
            except msgspec.DecodeError as error:
                raise BadRequest(f"{name!r}: {_malformed(str(error))}", name) from None
        return self._decoded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def parse_object(body: bytes) -> JsonObject:
    """A body that must be one JSON object without repeated keys. Raises BadRequest saying what is wrong, and where."""
    if not body or body.isspace():
        raise BadRequest("the request body is empty; expected a JSON object")
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"the request body is not UTF-8: {error.reason} at byte {error.start}") from None
    # Members of objects cost far more than their bytes: a body made of nothing else would hold the loop for seconds.
    # A quote before a colon ends a key, unless it is an escaped one inside a string.
    members = body.count(b'":') - body.count(b'\\":')
    if members > MAX_MEMBERS:
        raise BadRequest(f"the request body has {members} object members; expected at most {MAX_MEMBERS}")
    try:
        fields = _decode_fields(body)
    except msgspec.ValidationError:
        raise BadRequest(f"the request body is {_kind(body)}; expected a JSON object") from None
    except msgspec.DecodeError as error:
        raise BadRequest(_malformed(str(error))) from None
    except RecursionError:
        raise BadRequest("the request body is nested too deeply") from None
    if len(fields) > MAX_KEYS:
        raise BadRequest(f"the request body has {len(fields)} keys; expected at most {MAX_KEYS}")
    if not _each_key_once(body, fields):
        _reject_repeated_key(body)
    return JsonObject(fields)


def parse_chat(body: bytes) -> JsonObject:
    """A `/v1/chat/completions` body: an object with a string `model`, an array `messages`, a boolean `stream`."""
    chat = parse_object(body)
    for name, kind, expected, required in (
        ("model", str, "a string", True),
        ("messages", list, "an array", True),
        ("stream", bool, "a boolean", False),
    ):
        if name not in chat:
            if required:
                raise BadRequest(f"'{name}' is missing; expected {expected}", name)
            continue
        value = chat[name]
        if not isinstance(value, kind):
            raise BadRequest(f"'{name}' is {_describe(value)}; expected {expected}", name)
    if not chat["model"]:
        raise BadRequest("'model' is an empty string; expected a model id", "model")
    return chat


def _each_key_once(body: bytes, fields: dict[str, msgspec.Raw]) -> bool:
    """Whether `body` is exactly `fields` in order. The decoder keeps the last of repeated keys at the place of the
    first, so a repetition cannot pass. False may also mean a key written with escapes: look closer."""

    def skip(at: int) -> int:
        match = _SPACE.match(body, at)
        return match.end() if match else at

    at = skip(0) + 1
    for index, (name, raw) in enumerate(fields.items()):
        at = skip(at)
        if index:
            if not body.startswith(b",", at):
                return False
            at = skip(at + 1)
        key = b'"%b"' % name.encode("utf-8", "surrogatepass")
        if not body.startswith(key, at):
            return False
        at = skip(at + len(key))
        at = skip(at + 1)  # the colon: the decoder has seen it
        value = memoryview(raw)
        if body[at : at + len(value)] != value:
            return False
        at += len(value)
    return body.startswith(b"}", skip(at))


def _reject_repeated_key(body: bytes) -> None:
    top: list[tuple[str, Any]] = []

    def keep(pairs: list[tuple[str, Any]]) -> None:
        nonlocal top
        top = pairs  # called for inner objects first: the last call is the body itself

    try:
        json.loads(body, object_pairs_hook=keep)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request body is not valid JSON: {error}") from None
    seen: set[str] = set()
    for name, _ in top:
        if name in seen:
            raise BadRequest(f"{name[:80]!r} is given more than once; expected each key once", name[:80])
        seen.add(name)


def _malformed(detail: str) -> str:
    if "truncated" in detail:
        return "the JSON ends too early: it is truncated"
    where = _BYTE_AT.search(detail)
    return f"the JSON is malformed at byte {where.group(1)}" if where else f"the JSON is malformed: {detail}"


def _kind(body: bytes) -> str:
    first = body.lstrip()[:1]
    names = {b"[": "an array", b'"': "a string", b"t": "a boolean", b"f": "a boolean", b"n": "null"}
    return names.get(first, "a number")


def _describe(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "an object")
