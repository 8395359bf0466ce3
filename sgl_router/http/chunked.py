"""A chunked request body, decoded strictly and piece by piece."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import BytesIO

from sgl_router.http.faults import HttpFault, HttpRefused
from sgl_router.http.head import BARE, FIELD
from sgl_router.http.refusals import body_too_large

__all__ = ["ChunkedDecoder"]

MAX_LINE_BYTES = 256
# One chunk per byte is legal, so size lines have no limit of their own; extensions, which nobody reads, have one.
MAX_EXTENSION_BYTES = 4 << 10
MAX_TRAILER_BYTES = 8 << 10
# A chunk costs microseconds, whatever its size: so many are read at a time, and a body of more than MANY_CHUNKS must
# have so many bytes in each on the average.
CHUNKS_AT_A_TIME = 250
MANY_CHUNKS = 65_536
MIN_AVERAGE_CHUNK = 16

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = rb"(?:" + _TOKEN + rb'|"[\x20\x21\x23-\x5b\x5d-\x7e]*")'
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})((?:;" + _TOKEN + rb"(?:=" + _VALUE + rb")?)*)")
# A trailer that changed the framing, or what was decided from the headers, would be read after the fact.
_NOT_IN_TRAILER = frozenset(
    (
        b"authorization",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"expect",
        b"host",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)


class ChunkedDecoder:
    """`feed` until it returns True; `body` is then whole, and `rest` what came after it. After False, `more` says that
    it has not looked at all it was given: `feed(b"")` goes on, milliseconds at a time. `size`: bytes of body so far."""

    __slots__ = ("_body", "_chunks", "_extensions", "_left", "_limit", "_pause", "_stage", "more", "rest", "size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._body = BytesIO()  # not a list of chunks: a byte each would cost forty times their size
        self._chunks = 0
        self._pause = CHUNKS_AT_A_TIME
        self.size = 0
        self.more = False
        self._left = 0
        self._extensions = 0
        self._stage: _Stage | None = ChunkedDecoder._size_line
        self.rest = b""

    @property
    def body(self) -> bytes:
        return self._body.getvalue()

    def feed(self, data: bytes) -> bool:
        """Raises HttpRefused and BodyTooLarge, the latter before a byte of the chunk that is too much is kept."""
        if self.rest:
            data = self.rest + data
        at = 0
        self.more = False
        self._pause = self._chunks + CHUNKS_AT_A_TIME
        while self._stage is not None:
            if self._chunks >= self._pause:
                self.more = True
                self.rest = data[at:]
                return False
            taken = self._stage(self, data, at)
            if taken < 0:
                self.rest = data[at:]
                return False
            at = taken
        self.rest = data[at:]
        return True

    # Each stage returns the offset it got to, or -1 if it needs more bytes than there are.

    def _size_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n", at, at + MAX_LINE_BYTES + 2)
        if end < 0:
            if len(data) - at > MAX_LINE_BYTES or data.find(b"\n", at) >= 0:
                raise HttpRefused(HttpFault.CHUNK_SIZE)
            return -1
        line = _SIZE.fullmatch(data, at, end)
        if line is None:
            raise HttpRefused(HttpFault.CHUNK_SIZE)
        self._extensions += line.end(2) - line.start(2)
        if self._extensions > MAX_EXTENSION_BYTES:
            raise HttpRefused(HttpFault.CHUNK_EXTENSIONS)
        self._left = int(line.group(1), 16)
        if self.size + self._left > self._limit:
            raise body_too_large(self._limit)
        self._chunks += 1
        if self._chunks > MANY_CHUNKS and self.size < MIN_AVERAGE_CHUNK * self._chunks:
            raise HttpRefused(HttpFault.CHUNKS_TOO_SMALL)
        self._stage = ChunkedDecoder._data if self._left else ChunkedDecoder._trailer
        return end + 2

    def _data(self, data: bytes, at: int) -> int:
        have = min(len(data) - at, self._left)
        if not have:
            return -1
        self._body.write(data[at : at + have])
        self.size += have
        self._left -= have
        if not self._left:
            self._stage = ChunkedDecoder._data_end
        return at + have

    def _data_end(self, data: bytes, at: int) -> int:
        end = data[at : at + 2]
        if end == b"\r\n":
            self._stage = ChunkedDecoder._size_line
            return at + 2
        if end and end != b"\r":
            raise HttpRefused(HttpFault.CHUNK_END)
        return -1

    def _trailer(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            self._stage = None
            return at + 2
        end = data.find(b"\r\n\r\n", at, at + MAX_TRAILER_BYTES)
        if end < 0:
            if len(data) - at >= MAX_TRAILER_BYTES or BARE.search(data, at) is not None:
                raise HttpRefused(HttpFault.TRAILER)
            return -1
        block = b"\n" + data[at : end + 2]
        fields = FIELD.findall(block)
        if len(fields) != block.count(b"\n") - 1 or any(name.lower() in _NOT_IN_TRAILER for name, _ in fields):
            raise HttpRefused(HttpFault.TRAILER)
        self._stage = None
        return end + 4


_Stage = Callable[[ChunkedDecoder, bytes, int], int]
