"""A client's connection joined to the routing process's HTTP socket: bytes pass through, unread, both ways."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

__all__ = ["Splice"]


class Splice(asyncio.Protocol):
    """The client's side: from `connection_made` on, the connection is the routing process's.

    Reading stops on one side while the other is slow. A side that closes its half is closed for writing on the other;
    one that breaks breaks the other.

    `instead(request, refused)` may answer in the other's place: it is asked once before a connection is made, and
    again with True where none could be made; with None the client's connection is broken.
    """

    def __init__(
        self, path: str, instead: Callable[[bytes, bool], bytes | None], over: Callable[[], None] = lambda: None
    ) -> None:
        """`over` is called once, when the client's connection has closed."""
        self._path = path
        self._over = over
        self._instead = instead
        self._client: asyncio.Transport | None = None
        self._far: _Far | None = None
        self._early = bytearray()
        self._ended = False
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client = cast("asyncio.Transport", transport)
        self._client.pause_reading()
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def data_received(self, data: bytes) -> None:
        if self._far is not None:
            self._far.transport.write(data)
        else:
            self._early += data  # what came with the hand-over: after that nothing is read until there is a far side

    def eof_received(self) -> bool:
        self._ended = True
        if self._far is not None:
            self._far.end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._client = None
        self._over()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._far is not None:
            self._far.transport.abort()

    def pause_writing(self) -> None:
        if self._far is not None:
            self._far.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._far is not None:
            self._far.transport.resume_reading()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        answer = self._instead(bytes(self._early), False)
        far: _Far | None = None
        if answer is None:
            try:
                _, far = await loop.create_unix_connection(lambda: _Far(self), self._path)
            except OSError:
                answer = self._instead(bytes(self._early), True)
        self._connecting = None
        client = self._client
        if client is None:
            if far is not None:
                far.transport.abort()
            return
        if far is None:
            if answer is not None:
                client.write(answer)
            client.close()
            return
        self._far = far
        far.transport.write(bytes(self._early))
        self._early.clear()
        if self._ended:
            far.end()
        client.resume_reading()

    # --- what the far side says ---------------------------------------------------------------------------------

    def answered(self, data: bytes) -> None:
        if self._client is not None:
            self._client.write(data)

    def answer_ended(self) -> None:
        if self._client is not None:
            self._client.close()  # an HTTP server that closes its half has answered all it is going to

    def far_lost(self) -> None:
        if self._client is not None and not self._client.is_closing():
            self._client.abort()

    def pause_client(self, paused: bool) -> None:
        if self._client is not None and not self._client.is_closing():
            if paused:
                self._client.pause_reading()
            else:
                self._client.resume_reading()


class _Far(asyncio.Protocol):
    """The routing process's side."""

    transport: asyncio.Transport

    def __init__(self, splice: Splice) -> None:
        self._splice = splice

    def end(self) -> None:
        if not self.transport.is_closing():
            self.transport.write_eof()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._splice.answered(data)

    def eof_received(self) -> bool:
        self._splice.answer_ended()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._splice.far_lost()

    def pause_writing(self) -> None:
        self._splice.pause_client(True)

    def resume_writing(self) -> None:
        self._splice.pause_client(False)
