"""One parse of a request body: what routing needs is decoded, the rest stays the client's bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from sgl_router.errors import BadRequest

__all__ = ["JsonObject", "parse_chat", "parse_object"]

MAX_MEMBERS = 50_000
MAX_KEYS = 1_000
MAX_STRINGS = 1_000_000
_SMALLEST_NODE = len("[],")
_NODES = (b":", b"[", b"{")
_STRING = re.compile(rb'"[^"]*"')

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_value = msgspec.json.Decoder().decode
_UNKNOWN = object()
_KEY = re.compile(rb'[ \t\n\r]*("[^"\\]*(?:\\.[^"\\]*)*")[ \t\n\r]*:[ \t\n\r]*', re.DOTALL)
_AFTER_VALUE = re.compile(rb"[ \t\n\r]*[,}]")
_HALF_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
_BYTE_AT = re.compile(r"\(byte (\d+)\)")


class JsonObject(Mapping[str, Any]):
    """A JSON object whose values are decoded when asked for, once. Asking raises BadRequest for what is malformed."""

    __slots__ = ("_decoded", "_fields")

    def __init__(self, fields: dict[str, msgspec.Raw]) -> None:
        self._fields = fields
        self._decoded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        value = self._decoded.get(name, _UNKNOWN)
        if value is not _UNKNOWN:
            return value
        raw = self._fields[name]
        try:
            value = self._decoded[name] = _decode_value(raw)
        except RecursionError:
            raise BadRequest(f"{name!r} is nested too deeply", name) from None
        except msgspec.DecodeError as error:
            raise BadRequest(f"{name!r}: {_malformed(str(error), raw)}", name) from None
        return value

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self._fields else default

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
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise BadRequest(f"the request body is not UTF-8: {error.reason} at byte {error.start}") from None
    if len(body) > _SMALLEST_NODE * MAX_MEMBERS and max(map(body.count, _NODES)) > MAX_MEMBERS // 2:
        _limit_nodes(body)
    try:
        fields = _decode_fields(body)
    except msgspec.ValidationError:
        raise BadRequest(f"the request body is {_kind(body)}; expected a JSON object") from None
    except msgspec.DecodeError as error:
        raise BadRequest(_malformed(str(error), body)) from None
    except RecursionError:
        raise BadRequest("the request body is nested too deeply") from None
    if len(fields) > MAX_KEYS:
        raise BadRequest(f"the request body has {len(fields)} keys; expected at most {MAX_KEYS}")
    if not _each_key_once(body, fields):
        _reject_repeated_key(body, fields)
    return JsonObject(fields)


def parse_chat(body: bytes) -> JsonObject:
    """A `/v1/chat/completions` body: an object with a string `model`, an array `messages`, a boolean `stream`."""
    chat = parse_object(body)
    model = _field(chat, "model", str, "a string")
    _field(chat, "messages", list, "an array")
    if "stream" in chat._fields:
        _field(chat, "stream", bool, "a boolean")
    if not model:
        raise BadRequest("'model' is an empty string; expected a model id", "model")
    return chat


def _field(chat: JsonObject, name: str, kind: type, expected: str) -> Any:
    if name not in chat._fields:
        raise BadRequest(f"'{name}' is missing; expected {expected}", name)
    value = chat[name]
    if not isinstance(value, kind):
        raise BadRequest(f"'{name}' is {_describe(value)}; expected {expected}", name)
    return value


def _limit_nodes(body: bytes) -> None:
    """Members of objects, and arrays, cost up to thirty times their bytes: a body made of nothing else would take a
    gigabyte, and hold the loop for seconds."""
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # now each quote begins or ends a string
    strings = plain.count(b'"') // 2
    if strings > MAX_STRINGS:
        raise BadRequest(f"the request body has {strings} strings; expected at most {MAX_STRINGS}")
    outside = _STRING.sub(b"", plain)
    members, containers = outside.count(b":"), outside.count(b"{") + outside.count(b"[")
    if members > MAX_MEMBERS:
        raise BadRequest(f"the request body has {members} object members; expected at most {MAX_MEMBERS}")
    if containers > MAX_MEMBERS:
        raise BadRequest(f"the request body has {containers} objects and arrays; expected at most {MAX_MEMBERS}")


def _each_key_once(body: bytes, fields: dict[str, msgspec.Raw]) -> bool:
    """Whether `body` is exactly `fields`. The decoder keeps one value of a repeated key, so a body with a repetition is
    longer than what is kept of it. False may also mean unusual white space, or a key written with escapes."""
    if not fields:
        return len(body) == 2
    # Each pair has two quotes, a colon and a comma, but for the last, whose comma's place the braces take one of.
    # Keys that are not ASCII are longer than this says: a body is never shorter than what is kept of it.
    compact = sum(map(len, fields)) + sum([len(memoryview(raw)) for raw in fields.values()]) + 4 * len(fields) + 1
    if len(body) == compact:
        return True
    if len(body) != compact + 2 * len(fields) - 1:
        return False
    spaced = b", ".join([b'"%b": %b' % (name.encode("utf-8", "surrogatepass"), raw) for name, raw in fields.items()])
    return body == b"{%b}" % spaced


def _reject_repeated_key(body: bytes, fields: dict[str, msgspec.Raw]) -> None:
    """Whatever the white space: go from key to key, over values that are known to be those kept."""
    seen: set[str] = set()
    pair = _KEY.match(body, body.index(b"{") + 1)
    while pair:
        name = _decode_value(pair[1])
        kept = bytes(fields[name])
        after = _AFTER_VALUE.match(body, pair.end() + len(kept))
        # A value that is not the one kept is one the decoder has replaced by a later one.
        if name in seen or after is None or not body.startswith(kept, pair.end()):
            raise BadRequest(f"{name[:80]!r} is given more than once; expected each key once", name[:80])
        seen.add(name)
        pair = _KEY.match(body, after.end())


def _malformed(detail: str, text: bytes | msgspec.Raw) -> str:
    if "truncated" in detail:
        half = _HALF_PAIR.search(text)
        if half:
            return f"the JSON is malformed at byte {half.start()}: half of a surrogate pair"
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
