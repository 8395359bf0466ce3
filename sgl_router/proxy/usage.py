"""Finds token counts in an answer without parsing it."""

from __future__ import annotations

import re

__all__ = ["UsageTail"]

# Quotes inside a JSON string are escaped, so no text that a model writes can look like these keys.
_CACHED = b'"cached_tokens"'
_OUTPUT = b'"completion_tokens"'
_COUNT = re.compile(rb"\s*:\s*(\d{1,12})")
_SEARCHED_BYTES = 4096


class UsageTail:
    """Keeps the last four pieces of a body: a stream's usage stands in one of its last events."""

    __slots__ = ("_first", "_last", "_second", "_third")

    def __init__(self) -> None:
        self._first = self._second = self._third = self._last = b""

    def feed(self, piece: bytes) -> None:
        self._first, self._second, self._third = self._second, self._third, self._last
        self._last = piece if len(piece) <= _SEARCHED_BYTES else piece[-_SEARCHED_BYTES:]

    def cached_tokens(self) -> int | None:
        """The last count reported, None where there is none."""
        return self._last_count(_CACHED)

    def output_tokens(self) -> int | None:
        """The answer's length, None where it is not told."""
        return self._last_count(_OUTPUT)

    def _last_count(self, key: bytes) -> int | None:
        tail = self._last
        if len(tail) < _SEARCHED_BYTES and self._third:
            tail = b"".join((self._first, self._second, self._third, tail))[-_SEARCHED_BYTES:]
        end = len(tail)
        while (start := tail.rfind(key, 0, end)) >= 0:
            count = _COUNT.match(tail, start + len(key))
            if count is not None:
                return int(count[1])
            end = start
        return None
