"""A large JSON object, read in slices: for a thread; no step of it holds the interpreter for more than milliseconds.

First an outline: where the brackets, commas and colons outside of strings are. By it values are cut into pieces that
are decoded one by one. What each of them says of its own part holds for the whole: nothing is taken on trust.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import msgspec
import numpy as np
import numpy.typing as npt

from sgl_router.errors import BadRequest

__all__ = ["MAX_MEMBERS", "MAX_STRINGS", "MAX_TOKENS", "MAX_VALUES", "READ_BYTES", "SLICE_BYTES", "Sliced", "malformed",
           "read_object"]  # fmt: skip

SLICE_BYTES = 128 << 10
READ_BYTES = 8 << 20
"""A larger value is checked but not kept: no model's context has room for what it would become."""
MAX_MEMBERS = 50_000
MAX_STRINGS = 200_000
MAX_VALUES = 200_000
"""Of numbers and the like, in arrays."""
MAX_TOKENS = 1 << 20
"""Of an array of token ids, which is kept as one of numpy's where it has more than MAX_VALUES."""
_MAX_KEYS = 1_000
_MAX_LEVELS = 900
_MAX_LARGE_LEVELS = 100
_TOKEN_FIELDS = ("input_ids", "tokens")

_SPACE = b" \t\n\r"
_OPEN, _CLOSE, _COMMA, _COLON = b"{[", b"}]", 0x2C, 0x3A
_STRUCTURE = np.zeros(256, dtype=bool)
_STRUCTURE[list(b'{}[],:"')] = True
_STEP = np.zeros(256, dtype=np.int32)
_STEP[list(_OPEN)], _STEP[list(_CLOSE)] = 1, -1
_BYTE_AT = re.compile(r"\(byte (\d+)\)")
_HALF_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
_LOW_HALF = re.compile(rb"\\u[dD][c-fC-F]")
_HIGH_HALF = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")

_value = msgspec.json.Decoder().decode
_check = msgspec.json.Decoder(msgspec.Raw).decode
_integers = msgspec.json.Decoder(list[int]).decode


class Sliced(NamedTuple):
    """The members of an object. `raw`: small values, as they came; `decoded`: large ones; `unread`: larger than
    READ_BYTES, with their first byte."""

    raw: dict[str, bytes]
    decoded: dict[str, Any]
    unread: dict[str, int]


class Outline(NamedTuple):
    """Structure outside of strings, but for the commas within a run of numbers and the like.

    `level`: how many containers are open, the bracket's own included; `left_out`: how many such commas came before.
    """

    at: npt.NDArray[np.int64]
    kind: npt.NDArray[np.uint8]
    level: npt.NDArray[np.int32]
    left_out: npt.NDArray[np.int64]


def read_object(body: bytes, *, slice_bytes: int = SLICE_BYTES, read_bytes: int = READ_BYTES) -> Sliced:
    """Raises BadRequest, as `body.parse_object` does. Blocking: some 10 ms for each MiB."""
    reader = _Reader(body, slice_bytes)
    start, stop = reader.stripped(0, len(body))
    if start == stop:
        raise BadRequest("the request body is empty; expected a JSON object")
    _check_utf8(body, slice_bytes)
    if body[start] != 0x7B:
        raise BadRequest(f"the request body is {kind_of(body[start])}; expected a JSON object")
    try:
        return reader.object(start, stop, read_bytes)
    except RecursionError:
        raise BadRequest("the request body is nested too deeply") from None


def kind_of(first: int) -> str:
    """What the value is that begins with this byte."""
    names = {0x5B: "an array", 0x22: "a string", 0x74: "a boolean", 0x66: "a boolean", 0x6E: "null", 0x7B: "an object"}
    return names.get(first, "a number")


def malformed(detail: str, text: bytes | msgspec.Raw, at: int = 0) -> str:
    """`detail`: msgspec's words of `text`, which begins at byte `at`."""
    if "truncated" in detail:
        half = _HALF_PAIR.search(text)
        if half:
            return f"the JSON is malformed at byte {at + half.start()}: half of a surrogate pair"
        return "the JSON ends too early: it is truncated"
    where = _BYTE_AT.search(detail)
    if where is None:
        return f"the JSON is malformed: {detail}"
    return f"the JSON is malformed at byte {at + int(where.group(1))}"


def _check_utf8(body: bytes, slice_bytes: int) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(body), slice_bytes):
        held = len(decoder.getstate()[0])
        try:
            decoder.decode(body[start : start + slice_bytes], start + slice_bytes >= len(body))
        except UnicodeDecodeError as error:
            where = start - held + error.start
            raise BadRequest(f"the request body is not UTF-8: {error.reason} at byte {where}") from None


def _outline(body: bytes, slice_bytes: int) -> Outline:
    """Raises BadRequest for more than a chat can have of anything."""
    places: list[npt.NDArray[np.int64]] = []
    kinds: list[npt.NDArray[np.uint8]] = []
    runs: list[npt.NDArray[np.int64]] = []
    quotes = members = containers = left_out = start = 0
    while start < len(body):
        piece = body[start : start + slice_bytes]
        if piece.endswith(b"\\") and (len(piece) - len(piece.rstrip(b"\\"))) % 2:
            piece = body[start : start + slice_bytes + 1]  # never between a backslash and what it escapes
        here, start = start, start + len(piece)
        if quotes % 2 and b'"' not in piece:
            continue
        if b"\\" in piece:  # after this each quote begins or ends a string
            piece = piece.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        codes = np.frombuffer(piece, dtype=np.uint8)
        at = np.flatnonzero(_STRUCTURE[codes])
        kind = codes[at]
        is_quote = kind == 0x22
        seen = np.cumsum(is_quote) + quotes
        quotes = int(seen[-1]) if len(seen) else quotes
        keep = (seen % 2 == 0) & ~is_quote
        comma = (kind == _COMMA) & keep
        within = comma[:-2] & comma[1:-1] & comma[2:]  # a run of numbers
        keep[1:-1] &= ~within
        run = np.zeros(len(at), dtype=np.int64)
        run[1:-1] = np.cumsum(within)
        run, at, kind = run[keep] + left_out, at[keep], kind[keep]
        left_out += int(np.count_nonzero(within))
        members += int(np.count_nonzero(kind == _COLON))
        containers += int(np.count_nonzero(_STEP[kind] > 0))
        _limit(quotes // 2, MAX_STRINGS, "strings")
        _limit(members, MAX_MEMBERS, "object members")
        _limit(containers, MAX_MEMBERS, "objects and arrays")
        places.append(at + here)
        kinds.append(kind)
        runs.append(run)
    if quotes % 2:
        raise BadRequest("the JSON ends too early: it is truncated")
    kind = np.concatenate([np.empty(0, dtype=np.uint8), *kinds])
    step = _STEP[kind]
    level = np.cumsum(step, dtype=np.int32)
    if len(level) and int(level.max()) > _MAX_LEVELS:
        raise BadRequest("the request body is nested too deeply")
    if len(level) and int(level[-1]) > 0:
        raise BadRequest("the JSON ends too early: it is truncated")
    none = np.empty(0, dtype=np.int64)
    return Outline(np.concatenate([none, *places]), kind, level + (step < 0), np.concatenate([none, *runs]))


def _limit(count: int, most: int, what: str) -> None:
    if count > most:
        raise BadRequest(f"the request body has more than {most} {what}; expected at most {most}")


class _Reader:
    """Spans are offsets into the body, without white space around them; `first` and `last` those of the outline's
    entries within."""

    def __init__(self, body: bytes, slice_bytes: int) -> None:
        self._body = body
        self._slice = slice_bytes
        self._values = 0

    def stripped(self, start: int, stop: int) -> tuple[int, int]:
        """The span without the white space at its ends."""
        body = self._body
        while start < stop and body[start] in _SPACE:
            piece = body[start : min(start + self._slice, stop)]
            start += len(piece) - len(piece.lstrip(_SPACE))
        while start < stop and body[stop - 1] in _SPACE:
            piece = body[max(stop - self._slice, start) : stop]
            stop -= len(piece) - len(piece.rstrip(_SPACE))
        return start, stop

    def object(self, start: int, stop: int, read_bytes: int) -> Sliced:
        self.outline = outline = _outline(self._body, self._slice)
        separators = self._separators(start, stop, 0, len(outline.at))
        keys = int(np.count_nonzero(outline.kind[separators] == _COLON))
        if keys > _MAX_KEYS:
            raise BadRequest(f"the request body has {keys} keys; expected at most {_MAX_KEYS}")
        found = Sliced({}, {}, {})
        if not len(separators) and self.stripped(start + 1, stop - 1)[0] == stop - 1:
            return found
        for begin, end, low, high in self._members(start, stop, separators):
            colon = self._colon(begin, end, low, high)
            name = self._key(begin, int(outline.at[colon]))
            if name in found.raw:
                raise BadRequest(f"{name[:80]!r} is given more than once; expected each key once", name[:80])
            begin, end = self.stripped(int(outline.at[colon]) + 1, end)
            if end - begin <= self._slice:
                self._decode(self._body[begin:end], begin, build=False)
                found.raw[name] = self._body[begin:end]
                continue
            found.raw[name] = b""
            try:
                self._large(found, name, begin, end, colon + 1, high, read_bytes)
            except RecursionError:
                raise BadRequest(f"{name!r} is nested too deeply", name) from None
        return found

    def _large(self, found: Sliced, name: str, start: int, stop: int, first: int, last: int, read_bytes: int) -> None:
        if name in _TOKEN_FIELDS:
            ids = self._tokens(start, stop, first, last)
            if ids is not None and len(ids) <= MAX_TOKENS:
                found.decoded[name] = ids.tolist() if len(ids) <= MAX_VALUES else ids
                return
            if ids is not None:
                found.unread[name] = self._body[start]
                return
        if first < last:
            self._values += int(self.outline.left_out[last - 1] - self.outline.left_out[first])
            _limit(self._values, MAX_VALUES, "numbers in arrays")
        build = stop - start <= read_bytes
        value = self.value(start, stop, first, last, build)
        if build:
            found.decoded[name] = value
        else:
            found.unread[name] = self._body[start]

    def value(self, start: int, stop: int, first: int, last: int, build: bool, levels: int = 0) -> Any:
        """The value of a span; None unless `build`."""
        if stop - start <= self._slice:
            return self._decode(self._body[start:stop], start, build)
        if levels > _MAX_LARGE_LEVELS:
            raise RecursionError
        opening = self._body[start]
        if opening == 0x22:
            return self._string(start, stop, build)
        if opening not in _OPEN:
            self._fail(start)  # no number has so many digits
        separators = self._separators(start, stop, first, last)
        made: Any = [] if opening == 0x5B else {}
        if not len(separators) and self.stripped(start + 1, stop - 1)[0] == stop - 1:
            return made
        if opening == 0x5B:
            for items in self._items(start, stop, separators, build, levels):
                made += items
        else:
            for pairs in self._pairs(start, stop, separators, build, levels):
                made.update(pairs)
        return made

    def _separators(self, start: int, stop: int, first: int, last: int) -> npt.NDArray[np.int64]:
        """Indices of the container's own commas and colons, whose brackets stand at the ends of the span."""
        at, kind, level, _ = self.outline
        if last - first < 2 or at[first] != start or at[last - 1] != stop - 1:
            self._fail(start)
        own = int(level[first])
        levels = level[first:last]
        if self._body[stop - 1] != self._body[start] + 2 or int(levels.min()) < own:
            self._fail(start)
        mine = np.flatnonzero(levels == own) + first
        if mine[-1] != last - 1 or np.any(_STEP[kind[mine[1:-1]]]):
            self._fail(start)
        return mine[1:-1]

    def _groups(self, start: int, stop: int, commas: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, int, int]]:
        """Spans between commas, as many together as fit into a slice; and the outline's entries within."""
        at = self.outline.at
        begin, low = start + 1, int(np.searchsorted(at, start)) + 1
        ends = np.append(at[commas], stop - 1)
        indices = np.append(commas, np.searchsorted(at, stop - 1))
        number = 0
        while number < len(ends):
            fitting = int(np.searchsorted(ends, begin + self._slice, side="right")) - 1
            number = max(fitting, number)
            yield begin, int(ends[number]), low, int(indices[number])
            begin, low = int(ends[number]) + 1, int(indices[number]) + 1
            number += 1

    def _items(
        self, start: int, stop: int, commas: npt.NDArray[np.int64], build: bool, levels: int
    ) -> Iterator[list[Any]]:
        if np.any(self.outline.kind[commas] != _COMMA):
            self._fail(start)
        for span in self._groups(start, stop, commas):
            begin, end = self.stripped(span[0], span[1])
            if begin == end:
                self._fail(span[1])
            if end - begin <= self._slice:
                yield self._scalars(begin, end, build)
            elif span[2] == span[3] and self._body[begin] != 0x22:
                while end - begin > self._slice:  # a run of numbers, whose commas the outline leaves out
                    cut = self._body.rfind(b",", begin, begin + self._slice)
                    if cut < 0:
                        self._fail(begin)
                    yield self._scalars(begin, cut, build)
                    begin = cut + 1
                yield self._scalars(begin, end, build)
            else:
                item = self.value(begin, end, span[2], span[3], build, levels + 1)
                yield [item] if build else []

    def _scalars(self, start: int, stop: int, build: bool) -> list[Any]:
        piece = self._body[start:stop]
        if not piece.strip(_SPACE):
            self._fail(start)
        return self._decode(b"[%b]" % piece, start - 1, build) or []

    def _members(self, start: int, stop: int, separators: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, int, int]]:
        """Each member's span on its own."""
        at = self.outline.at
        commas = separators[self.outline.kind[separators] == _COMMA]
        begin, low = start + 1, int(np.searchsorted(at, start)) + 1
        for index in [*commas.tolist(), int(np.searchsorted(at, stop - 1))]:
            end = int(at[index])
            yield begin, end, low, index
            begin, low = end + 1, index + 1

    def _pairs(
        self, start: int, stop: int, separators: npt.NDArray[np.int64], build: bool, levels: int
    ) -> Iterator[dict[str, Any]]:
        at, kind = self.outline.at, self.outline.kind
        for begin, end, low, high in self._groups(start, stop, separators[kind[separators] == _COMMA]):
            if end - begin <= self._slice:
                piece = self._body[begin:end]
                if not piece.strip(_SPACE):
                    self._fail(end)
                yield self._decode(b"{%b}" % piece, begin - 1, build) or {}
                continue
            colon = self._colon(begin, end, low, high)
            key = self._key(begin, int(at[colon]))
            begin, end = self.stripped(int(at[colon]) + 1, end)
            value = self.value(begin, end, colon + 1, high, build, levels + 1)
            yield {key: value} if build else {}

    def _colon(self, begin: int, end: int, low: int, high: int) -> int:
        """The entry that parts a member's key from its value."""
        if low >= high or self.outline.kind[low] != _COLON:
            self._fail(end)
        return low

    def _key(self, start: int, stop: int) -> str:
        start, stop = self.stripped(start, stop)
        if start == stop or self._body[start] != 0x22:
            self._fail(start)
        return str(self._string(start, stop, True))

    def _string(self, start: int, stop: int, build: bool) -> str | None:
        body = self._body
        parts: list[str] = []
        if stop - start < 2 or body[stop - 1] != 0x22:
            self._fail(start)
        begin, end = start + 1, stop - 1
        while begin < end or not parts:
            cut = end if end - begin <= self._slice else _safe_cut(body, begin, begin + self._slice)
            piece = body[begin:cut]
            part = self._decode(b'"%b"' % piece, begin - 1, True)
            parts.append(part if build else "")
            begin = cut
        return "".join(parts) if build else None

    def _tokens(self, start: int, stop: int, first: int, last: int) -> npt.NDArray[np.int64] | None:
        """An array of integers; None where the value is something else, which is then read as such."""
        body, at = self._body, start + 1
        inner = self.outline.kind[first + 1 : last - 1]
        if body[start] != 0x5B or last - first < 2 or body[stop - 1] != 0x5D or np.any(inner != _COMMA):
            return None
        parts: list[npt.NDArray[np.int64]] = []
        count, size = 0, self._slice // 2
        while at < stop:
            cut = stop - 1 if stop - 1 - at <= size else body.rfind(b",", at, at + size)
            if cut < 0:
                return None
            piece = body[at:cut]
            try:
                part = np.array(_integers(b"[%b]" % piece), dtype=np.int64)
            except (msgspec.MsgspecError, OverflowError):
                return None
            if not len(part):
                return None
            count += len(part)
            if count <= MAX_TOKENS:
                parts.append(part)
            at = cut + 1
        return np.concatenate(parts) if count <= MAX_TOKENS else np.empty(count, dtype=np.int64)

    def _decode(self, piece: bytes, at: int, build: bool) -> Any:
        """The value that `piece` is, None unless `build`. Its first byte stands at `at`, or would."""
        try:
            return _value(piece) if build else self._checked(piece)
        except msgspec.DecodeError as error:
            text = malformed(str(error), piece, at)
            # A piece has an end that the body goes on after.
            raise BadRequest(f"the JSON is malformed at byte {at}" if "truncated" in text else text) from None

    def _checked(self, piece: bytes) -> None:
        _check(piece)

    def _fail(self, at: int) -> NoReturn:
        raise BadRequest(f"the JSON is malformed at byte {at}")


def _safe_cut(body: bytes, start: int, stop: int) -> int:
    """The last offset up to `stop` where a string can be cut: not within an escape, a surrogate pair, a character.
    At `start` it can."""
    while stop > start and body[stop] & 0xC0 == 0x80:
        stop -= 1
    escape = body.rfind(b"\\", max(stop - 5, start), stop)
    if escape >= 0 and _escapes(body, start, escape):
        width = 6 if body[escape + 1] == 0x75 else 2
        if escape + width > stop:
            stop = escape
    high = stop - 6
    if high > start and _LOW_HALF.match(body, stop) and _HIGH_HALF.match(body, high) and _escapes(body, start, high):
        return high
    return stop


def _escapes(body: bytes, start: int, at: int) -> bool:
    """Whether the backslash at `at` is the first byte of an escape. That at `start` would be."""
    run = body[start : at + 1]
    return (len(run) - len(run.rstrip(b"\\"))) % 2 == 1
