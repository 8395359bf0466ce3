"""Decoding of payloads that are too large for one step: msgpack taken apart by hand, and decoded a slice at a time.

msgspec decodes a payload in one call, during which nothing else runs: a million blocks take 0.1 s and more. Here the
ends of objects are found by looking at their first bytes, and what lies between two of them is decoded as usual: some
hundred events together, or some hundred blocks of one event that is large itself. Half as much work again, or twice
as much; frames of ordinary size never come here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import msgspec

from sgl_router.kv_events.follow.wire import (
    MAX_BLOCK_SIZE,
    MAX_EVENTS_PER_BATCH,
    BlockStored,
    DecodeFailure,
    Event,
    WireError,
    decode_event,
    decode_events,
)

__all__ = ["LargeBatch"]

# Events that are kept as they are; more of them in one slice are decoded again.
_KEPT_EVENTS = 32
# What is decoded in one call, about.
_SLICE_BYTES = 16 << 10
_SLICE_EVENTS = 256
_SLICE_TOKENS = 4_096
_SLICE_BLOCKS = 512
# Objects skipped between two breaths.
_SLICE_OBJECTS = 8_192
# Up to here msgspec finds where events end, without decoding them.
_SPLIT_BYTES = 1 << 20
# An event from here on is itself taken apart.
_LARGE_EVENT = 64 << 10

_decode = msgspec.msgpack.Decoder().decode
_raws = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_Data = bytes | memoryview


def _sizes() -> list[int]:
    """By first byte: the bytes of an object that holds no others and has no length of its own; else `_NO_SIZE`."""
    sizes = [1] * 0x80 + [_NO_SIZE] * 0x20 + [1 + length for length in range(0x20)] + [_NO_SIZE] * 0x20 + [1] * 0x20
    for first, size in {0xC0: 1, 0xC2: 1, 0xC3: 1, 0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}.items():
        sizes[first] = size
    for first, size in {0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9, 0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18}.items():
        sizes[first] = size
    return sizes


# Beyond the end of any payload: where it is added, the next look fails.
_NO_SIZE = 1 << 62
_SIZES = _sizes()
# Of those with a length: how many bytes it has, and how many bytes lie between it and the contents.
_LENGTHS = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)}
_LENGTHS |= {0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}
_ARRAYS, _MAPS = {0xDC: 2, 0xDD: 4}, {0xDE: 2, 0xDF: 4}

_BREATH = None
_LARGE = -1
# The fields that are read, by key of a map and by place in an array (see `decode_event`); of these, those that have
# something for each block.
_FIELDS = {"type", "parent_block_hash", "block_size", "lora_id", "medium", "cache_salt", "lora_name", "group_idx"}
_FIELDS |= {"kv_cache_spec_kind"}
_PLACES = 11
_BY_BLOCK = {"block_hashes", "token_ids", "extra_keys", 1, 3, 8}


class _Span(NamedTuple):
    """An array that was not decoded: how many objects, from where to where."""

    objects: int
    start: int
    stop: int


class _Again:
    """Events to be decoded when they are wanted: a frame's worth of them would take more memory than its bytes, and
    much of the garbage collector's time."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], Iterable[Event]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Event]:
        return iter(self._make())


class LargeBatch:
    """One payload. `parts()` yields its events, some at a time, and None after each slice of other work."""

    def __init__(self, payload: _Data) -> None:
        """Looks at the envelope alone. Raises WireError."""
        self._data = payload
        fields, at = self._header(0, _ARRAYS, 0x90, DecodeFailure.BATCH_SHAPE, "[ts, events, dp_rank]")
        if fields < 2:
            raise WireError(DecodeFailure.BATCH_SHAPE, "expected [ts, events, dp_rank]")
        end, left = self._skip(at, 1, _SLICE_OBJECTS)
        ts = self._small(at, end) if not left else None
        if isinstance(ts, bool) or not isinstance(ts, (int, float)):
            raise WireError(DecodeFailure.BATCH_SHAPE, f"ts is {type(ts).__name__}, expected a number")
        self.ts = float(ts)
        self._after = fields - 2
        self._count, self._at = self._header(end, _ARRAYS, 0x90, DecodeFailure.BATCH_SHAPE, "[ts, events, dp_rank]")
        if self._count > MAX_EVENTS_PER_BATCH:
            raise WireError(DecodeFailure.TOO_LARGE, f"{self._count} events, limit {MAX_EVENTS_PER_BATCH}")

    def parts(self) -> Iterator[Iterable[Event] | None]:
        """All of the payload is decoded once on the way. Raises WireError while iterating, not after."""
        start = at = self._at
        waiting = 0
        for end in self._ends():
            if end is _BREATH:
                yield _BREATH
                continue
            if end < 0:
                yield self._together(waiting, start, at)
                start = at = yield from self._large(at)
                waiting = 0
                self._at = at
                continue
            at = end
            waiting += 1
            if waiting == _SLICE_EVENTS or at - start >= _SLICE_BYTES:
                yield self._together(waiting, start, at)
                start, waiting = at, 0
        yield self._together(waiting, start, at)
        left = self._after
        while left:
            at, left = self._skip(at, left, _SLICE_OBJECTS)
            yield _BREATH
        if at != len(self._data):
            raise WireError(DecodeFailure.MSGPACK, f"ends at byte {at} of {len(self._data)}")

    def _ends(self) -> Iterator[int | None]:
        """Where each event ends. Minus one for a large one: then `_at` is to be set to its end before the next."""
        if len(self._data) <= _SPLIT_BYTES:
            try:
                sizes = list(map(len, _raws(_raws(self._data)[1])))
            except (msgspec.DecodeError, RecursionError, ValueError, TypeError) as error:
                raise WireError(DecodeFailure.MSGPACK, str(error)) from error
            yield _BREATH
            for size in sizes:
                if size < _LARGE_EVENT:
                    self._at += size
                    yield self._at
                else:
                    yield _LARGE
            return
        for _ in range(self._count):
            begin = at = self._at
            left = 1
            while left and at - begin < _LARGE_EVENT:
                at, left = self._skip(at, left, _SLICE_OBJECTS)
                if left:
                    yield _BREATH
            if left or at - begin >= _LARGE_EVENT:
                yield _LARGE
            else:
                self._at = at
                yield at

    # --- events -------------------------------------------------------------------------------------------------

    def _together(self, count: int, start: int, stop: int) -> Iterable[Event]:
        def make() -> Iterator[Event]:
            return decode_events(self._objects(count, start, stop))

        events = list(make())
        return events if len(events) <= _KEPT_EVENTS else _Again(make)

    def _large(self, at: int) -> Generator[Iterable[Event] | None, None, int]:
        """One event that begins at `at`, in pieces. Returns where it ends."""
        first = self._data[at]
        if 0x80 <= first < 0x90 or first in _MAPS:
            count, at = self._header(at, _MAPS, 0x80, DecodeFailure.EVENT_SHAPE, "a map")
            event: dict[Any, Any] = {}
            for _ in range(count):
                end, left = self._skip(at, 1, _SLICE_OBJECTS)
                key = self._small(at, end) if not left else None
                if not isinstance(key, str):
                    raise WireError(DecodeFailure.EVENT_SHAPE, f"a key of a map is {type(key).__name__}")
                event[key], at = yield from self._value(key, end)
            yield from self._pieces(event, "type", "block_hashes", "parent_block_hash", "token_ids", "block_size")
            return at
        count, at = self._header(at, _ARRAYS, 0x90, DecodeFailure.EVENT_SHAPE, "an array or a map")
        items: dict[Any, Any] = {}
        for place in range(count):
            value, at = yield from self._value(place, at)
            if place < _PLACES:
                items[place] = value
        yield from self._pieces(items, 0, 1, 2, 3, 4)
        return at

    def _value(self, field: Any, at: int) -> Generator[None, None, tuple[Any, int]]:
        """What stands at `at`, and where it ends: a span where it is an array with something for each block, and None
        where it is a field that nothing is made of. False: not an array, where one or nothing should be."""
        first = self._data[at] if at < len(self._data) else 0xC1
        span = field in _BY_BLOCK and (0x90 <= first < 0xA0 or first in _ARRAYS)
        count, start = 1, at
        if span:
            count, start = self._header(at, _ARRAYS, 0x90, DecodeFailure.EVENT_SHAPE, "an array")
        end, left = start, count
        while left:
            end, left = self._skip(end, left, _SLICE_OBJECTS)
            if left:
                yield _BREATH
        if span:
            return _Span(count, start, end), end
        if field in _BY_BLOCK:
            return (None if first == 0xC0 else False), end
        if field not in _FIELDS and not (isinstance(field, int) and field < _PLACES):
            return None, end
        if end - at > _LARGE_EVENT:
            raise WireError(DecodeFailure.EVENT_SHAPE, f"{field} takes {end - at} bytes")
        return self._small(at, end), end

    def _pieces(
        self, event: dict[Any, Any], tag: Any, hashes: Any, parent: Any, tokens: Any, size: Any
    ) -> Iterator[Iterable[Event]]:
        """The event, some blocks at a time, each piece as an event of its own."""
        kind, blocks = event.get(tag), event.get(hashes)
        if kind not in ("BlockStored", "BlockRemoved") or not isinstance(blocks, _Span):
            yield self._piece({key: None if isinstance(value, _Span) else value for key, value in event.items()}, {})
            return
        page: Any = 1
        most = _SLICE_BLOCKS
        if kind == "BlockStored":
            page, units = event.get(size), event.get(tokens)
            if type(page) is not int or not 1 <= page <= MAX_BLOCK_SIZE:
                raise WireError(DecodeFailure.EVENT_SHAPE, f"block_size {page!r} is not in 1..{MAX_BLOCK_SIZE}")
            if not isinstance(units, _Span) or units.objects != page * blocks.objects:
                found = units.objects if isinstance(units, _Span) else type(units).__name__
                raise WireError(DecodeFailure.TOKEN_IDS, f"{found} token ids for {blocks.objects} blocks of {page}")
            most = max(1, min(most, _SLICE_TOKENS // page))
        places: dict[Any, tuple[int, int]] = {}
        for field, span in event.items():
            if isinstance(span, _Span):
                each = page if field == tokens else 1
                if span.objects == blocks.objects * each:
                    places[field] = (each, span.start)
                else:
                    event[field] = False  # not one for each block: not to be trusted, and not a list either
        for done in range(0, blocks.objects, most):
            count = min(most, blocks.objects - done)
            spans: dict[Any, _Span] = {}
            for field, (each, start) in places.items():
                stop = self._run(start, count * each)
                spans[field] = _Span(count * each, start, stop)
                places[field] = (each, stop)
            make = partial(self._piece, event.copy(), spans)
            made = make()
            yield _Again(make)
            for one in made:
                if isinstance(one, BlockStored):
                    event[parent] = self._objects(*spans[hashes])[-1]

    def _piece(self, event: dict[Any, Any], spans: dict[Any, _Span]) -> list[Event]:
        """`decode_event` of a map, or of an array by place, with the spans in their places."""
        fields = event | {field: self._objects(*span) for field, span in spans.items()}
        found = decode_event([fields[place] for place in range(len(fields))] if 0 in fields else fields)
        return [] if found is None else [found]

    # --- bytes --------------------------------------------------------------------------------------------------

    def _header(self, at: int, wide: dict[int, int], fixed: int, failure: DecodeFailure, what: str) -> tuple[int, int]:
        """How many objects (a map: pairs) the array at `at` has, and where they begin."""
        data = self._data
        first = data[at] if at < len(data) else 0xC1
        if fixed <= first < fixed + 16:
            return first - fixed, at + 1
        width = wide.get(first)
        if width is None or at + 1 + width > len(data):
            raise WireError(failure, f"expected {what}")
        return int.from_bytes(data[at + 1 : at + 1 + width], "big"), at + 1 + width

    def _skip(self, at: int, left: int, most: int) -> tuple[int, int]:
        """Past `left` objects from `at` on, contents and all, or at least past the heads of `most`: where that is, and
        how many are left."""
        data, sizes = self._data, _SIZES
        try:
            while left and most:
                most -= 1
                first = data[at]
                size = sizes[first]
                if size < _NO_SIZE:
                    at += size
                    left -= 1
                    continue
                if first < 0x90:
                    at, left = at + 1, left - 1 + 2 * (first - 0x80)
                elif first < 0xA0:
                    at, left = at + 1, left - 1 + first - 0x90
                elif first in _LENGTHS:
                    width, more = _LENGTHS[first]
                    at += 1 + width + more + int.from_bytes(data[at + 1 : at + 1 + width], "big")
                    left -= 1
                elif first in _ARRAYS or first in _MAPS:
                    width = _ARRAYS.get(first) or _MAPS[first]
                    count = int.from_bytes(data[at + 1 : at + 1 + width], "big")
                    at, left = at + 1 + width, left - 1 + (count if first in _ARRAYS else 2 * count)
                else:
                    raise WireError(DecodeFailure.MSGPACK, f"byte {at} begins no object")
        except IndexError:
            at = len(data) + 1
        if at > len(data):
            raise WireError(DecodeFailure.MSGPACK, f"truncated at byte {len(data)}")
        return at, left

    def _run(self, at: int, count: int) -> int:
        """Where the next `count` objects end; quick for numbers."""
        data, sizes, start = self._data, _SIZES, at
        try:
            for _ in range(count):
                at += sizes[data[at]]
        except IndexError:
            at = _NO_SIZE
        if at <= len(data):
            return at
        left = count
        at = start
        while left:
            at, left = self._skip(at, left, _SLICE_OBJECTS)
        return at

    def _objects(self, count: int, start: int, stop: int) -> list[Any]:
        found: list[Any] = self._decoded(b"\xdd" + count.to_bytes(4, "big") + self._data[start:stop])
        return found

    def _small(self, start: int, stop: int) -> Any:
        return self._decoded(self._data[start:stop])

    @staticmethod
    def _decoded(data: _Data) -> Any:
        try:
            return _decode(data)
        except (msgspec.DecodeError, RecursionError, ValueError, TypeError) as error:
            raise WireError(DecodeFailure.MSGPACK, str(error)) from error
