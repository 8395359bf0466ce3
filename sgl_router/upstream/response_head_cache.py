"""Workers send the same heads again and again, but for the length: those met before are not parsed again."""

from __future__ import annotations

from typing import NamedTuple

from sgl_router.http.headers import Headers

__all__ = ["ResponseHead", "ResponseHeadCache"]

_LENGTH = b"\r\ncontent-length: "
_MAX_DIGITS = 15
_MAX_HEAD_BYTES = 4 << 10
# Heads have a date in them: each is of use for a second.
_MOST = 256


class ResponseHead(NamedTuple):
    """What the parser made of a head. `lines`: those of `headers`, for the client."""

    status: int
    headers: Headers
    lines: bytes


class ResponseHeadCache:
    """Heads by their bytes without the digits of the length. Other digits in their place make another valid head that
    differs in nothing else: so only what is new needs a parser."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, ResponseHead] = {}

    def split(self, data: bytes) -> tuple[ResponseHead, bytes] | None:
        """Head and body, where `data` is one whole answer with a head that is known."""
        at = data.find(_LENGTH, 0, _MAX_HEAD_BYTES)
        if at < 0:
            return None
        start = at + len(_LENGTH)
        stop = data.find(b"\r", start, start + _MAX_DIGITS + 1)
        end = data.find(b"\r\n\r\n", stop, _MAX_HEAD_BYTES)
        if stop < 0 or end < 0:
            return None
        head = self._known.get(data[:start] + data[stop:end])
        if head is None:
            return None
        digits = data[start:stop]
        body = data[end + 4 :]
        return (head, body) if digits.isdigit() and int(digits) == len(body) else None

    def learn(self, data: bytes, head: ResponseHead) -> None:
        """`data`: a whole answer with one head and the body that its length says, as it was parsed."""
        at = data.find(_LENGTH, 0, _MAX_HEAD_BYTES)
        start = at + len(_LENGTH)
        stop = data.find(b"\r", start, start + _MAX_DIGITS + 1)
        end = data.find(b"\r\n\r\n", 0, _MAX_HEAD_BYTES)
        if at < 0 or not start < stop <= end:
            return
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[data[:start] + data[stop:end]] = head
