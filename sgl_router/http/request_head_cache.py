"""A client that keeps its connection sends the same head again and again, but for the length of the body."""

from __future__ import annotations

from sgl_router.http.head import RequestHead

__all__ = ["RequestHeadCache"]

MAX_DIGITS = 18


class RequestHeadCache:
    """The last head of a connection, cut open where the digits of its Content-Length are.

    Other digits in their place make another valid head that differs in nothing else, so it need not be parsed.
    """

    __slots__ = ("_after", "_before", "_head", "_position")

    def __init__(self, before: bytes, after: bytes, head: RequestHead, position: int) -> None:
        self._before = before
        self._after = after
        self._head = head
        self._position = position

    @classmethod
    def of(cls, head: RequestHead, raw: bytes) -> RequestHeadCache | None:
        """`raw`: the bytes that `head` was read from. None where there is no length in them."""
        for position, (name, value) in enumerate(head.headers):
            if len(name) == 14 and name.lower() == b"content-length":
                line = raw.find(b"\n" + name + b":") + 16
                start = raw.find(value, line)
                return cls(raw[:start], raw[start + len(value) :], head, position)
        return None

    def read(self, data: bytes, at: int) -> RequestHead | None:
        """The head at `at`, if it is the last one again. It is the same object: only one request is at work."""
        if not data.startswith(self._before, at):
            return None
        start = at + len(self._before)
        stop = data.find(b"\r", start, start + MAX_DIGITS + 1)
        if stop < 0 or not data.startswith(self._after, stop):
            return None
        digits = data[start:stop]
        if not digits.isdigit():
            return None
        head = self._head
        head.content_length = int(digits)
        head.headers = headers = head.headers.copy()
        headers[self._position] = (headers[self._position][0], digits)
        head.end = stop + len(self._after)
        return head
