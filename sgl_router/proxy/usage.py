"""Finds `cached_tokens` in an answer without parsing it."""

from __future__ import annotations

import re
from collections import deque

__all__ = ["UsageTail"]

# Quotes inside a JSON string are escaped, so no text that a model writes can look like this key.
_CACHED = re.compile(rb'"cached_tokens"\s*:\s*(\d{1,12})')
_KEPT_PIECES = 4
_SEARCHED_BYTES = 4096


class UsageTail:
    """Keeps the last few pieces of a body: a stream's usage stands in one of its last events."""

    __slots__ = ("_pieces",)

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque(maxlen=_KEPT_PIECES)

    def feed(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def cached_tokens(self) -> int | None:
        """The last count reported, None where there is none."""
        tail = b"".join(self._pieces)[-_SEARCHED_BYTES:]
        found = _CACHED.findall(tail)
        return int(found[-1]) if found else None
