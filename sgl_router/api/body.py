"""One parse of a request body: what routing needs is decoded, the rest stays the client's bytes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from sgl_router.api.json_slices import kind_of, malformed, read_object
from sgl_router.errors import BadRequest

__all__ = ["JsonObject", "parse_chat", "parse_object", "read_chat", "read_json"]

MAX_KEYS = 1_000
INLINE_BYTES = 128 << 10
"""A larger body is read in slices, in a thread: of numbers, brackets or escapes, this much takes some milliseconds."""

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_value = msgspec.json.Decoder().decode
_UNKNOWN = object()
_NONE: Mapping[str, int] = {}
_KEY = re.compile(rb'[ \t\n\r]*("[^"\\]*(?:\\.[^"\\]*)*")[ \t\n\r]*:[ \t\n\r]*', re.DOTALL)
_AFTER_VALUE = re.compile(rb"[ \t\n\r]*[,}]")
# One thread: however many large bodies come at once, the loop has one rival for the interpreter.
_large = ThreadPoolExecutor(1, thread_name_prefix="large body")


class JsonObject(Mapping[str, Any]):
    """A JSON object whose values are decoded when asked for, once. Asking raises BadRequest for what is malformed.

    `unread`: what is too large to be looked at, with its first byte; asking for it is refused.
    """

    __slots__ = ("_decoded", "_fields", "unread")

    def __init__(
        self,
        fields: dict[str, msgspec.Raw],
        decoded: dict[str, Any] | None = None,
        unread: Mapping[str, int] | None = None,
    ) -> None:
        self._fields = fields
        self._decoded: dict[str, Any] = {} if decoded is None else decoded
        self.unread: Mapping[str, int] = _NONE if unread is None else unread

    def __getitem__(self, name: str) -> Any:
        value = self._decoded.get(name, _UNKNOWN)
        if value is not _UNKNOWN:
            return value
        raw = self._fields[name]
        if name in self.unread:
            raise BadRequest(f"{name!r} is too large to be read by the router", name)
        try:
            value = self._decoded[name] = _decode_value(raw)
        except RecursionError:
            raise BadRequest(f"{name!r} is nested too deeply", name) from None
        except msgspec.DecodeError as error:
            raise BadRequest(f"{name!r}: {malformed(str(error), raw)}", name) from None
        return value

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self._fields else default

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


async def read_json(body: bytes) -> JsonObject:
    """As `parse_object`; a large body does not hold the loop."""
    if len(body) <= INLINE_BYTES:
        return parse_object(body)
    return await asyncio.get_running_loop().run_in_executor(_large, parse_object, body)


async def read_chat(body: bytes) -> JsonObject:
    """As `parse_chat`; a large body does not hold the loop."""
    return _checked_chat(await read_json(body))


def parse_object(body: bytes) -> JsonObject:
    """A body that must be one JSON object without repeated keys. Raises BadRequest saying what is wrong, and where."""
    if len(body) > INLINE_BYTES:
        sliced = read_object(body)
        fields = {name: msgspec.Raw(raw) for name, raw in sliced.raw.items()}
        return JsonObject(fields, sliced.decoded, sliced.unread)
    if not body or body.isspace():
        raise BadRequest("the request body is empty; expected a JSON object")
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise BadRequest(f"the request body is not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        fields = _decode_fields(body)
    except msgspec.ValidationError:
        kind = kind_of(body.lstrip()[0])
        raise BadRequest(f"the request body is {kind}; expected a JSON object") from None
    except msgspec.DecodeError as error:
        raise BadRequest(malformed(str(error), body)) from None
    except RecursionError:
        raise BadRequest("the request body is nested too deeply") from None
    if len(fields) > MAX_KEYS:
        raise BadRequest(f"the request body has {len(fields)} keys; expected at most {MAX_KEYS}")
    if not _each_key_once(body, fields):
        _reject_repeated_key(body, fields)
    return JsonObject(fields)


def parse_chat(body: bytes) -> JsonObject:
    """A `/v1/chat/completions` body: an object with a string `model`, an array `messages`, a boolean `stream`."""
    return _checked_chat(parse_object(body))


def _checked_chat(chat: JsonObject) -> JsonObject:
    model = _field(chat, "model", str, "a string")
    if "messages" not in chat.unread:
        _field(chat, "messages", list, "an array")
    elif chat.unread["messages"] != 0x5B:
        raise BadRequest(f"'messages' is {kind_of(chat.unread['messages'])}; expected an array", "messages")
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


def _describe(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "an object")
