"""aiohttp's side of a connection, given one read in each turn of the loop."""

from __future__ import annotations

import asyncio
from typing import cast

__all__ = ["Paced"]

_A_TURN_BYTES = 8 << 10


class Paced(asyncio.Protocol):
    """Hands everything on to `inner`, a little in each turn. A read has up to 256 KiB, and libuv reads a connection up
    to 32 times before it looks at another: of chunks of a byte each, aiohttp's parser would hold the loop for a second.
    """

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        self._rest = memoryview(b"")
        self._transport: asyncio.Transport | None = None
        self._failed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._failed:
            return
        if self._rest:
            self._rest = memoryview(bytes(self._rest) + data)  # aiohttp has resumed the reading
        elif len(data) <= _A_TURN_BYTES:
            self._feed(data)
        else:
            self._rest = memoryview(data)
            self._go_on()

    def _go_on(self) -> None:
        """Hand on the next piece. Reading stops while there is more of it."""
        transport = self._transport
        if transport is None or not self._rest:
            return
        piece, self._rest = self._rest[:_A_TURN_BYTES], self._rest[_A_TURN_BYTES:]
        self._feed(bytes(piece))
        if self._rest:
            if not transport.is_closing():
                transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._go_on)
        elif not getattr(self._inner, "_reading_paused", False):  # aiohttp stops where a body waits for its reader
            transport.resume_reading()

    def _feed(self, piece: bytes) -> None:
        """What follows a piece that is not HTTP is dropped: aiohttp answers the first such piece and closes, and would
        keep each further one, in the frames of its error, until a garbage collection."""
        self._inner.data_received(piece)
        waiting = getattr(self._inner, "_messages", None)
        if waiting and isinstance(getattr(waiting[-1][0], "exc", None), Exception):
            self._failed, self._rest = True, memoryview(b"")

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._rest = memoryview(b"")
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
