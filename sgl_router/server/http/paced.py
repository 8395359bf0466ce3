"""aiohttp's side of a connection, given one read in each turn of the loop."""

from __future__ import annotations

import asyncio
from typing import cast

__all__ = ["Paced"]

_LARGE_READ = 16 << 10


class Paced(asyncio.Protocol):
    """Hands everything on to `inner`. libuv reads a connection up to 32 times before it looks at another: of chunks of
    a byte each, aiohttp's parser would hold the loop for a quarter of a second."""

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)
        transport = self._transport
        if len(data) >= _LARGE_READ and transport is not None and transport.is_reading():
            transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        transport = self._transport
        # aiohttp stops reading where a body waits for its reader, and goes on by itself.
        if transport is not None and not getattr(self._inner, "_reading_paused", False):
            transport.resume_reading()

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
