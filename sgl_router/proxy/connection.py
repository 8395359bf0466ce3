"""One HTTP/1.1 connection to a worker: a request out, a response in, bytes handed on as they arrive."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

import httptools

from sgl_router.errors import RouterError, UpstreamBodyIncomplete, UpstreamUnreachable

__all__ = ["Headers", "UpstreamConnection"]

Headers = list[tuple[bytes, bytes]]

# Reading stops while this much of a response waits for the client, and goes on below a quarter of it.
RELAY_HIGH_WATER = 256 << 10
MAX_HEAD_BYTES = 64 << 10


class UpstreamConnection(asyncio.Protocol):
    """Reused for one exchange after another. At any time one task at most awaits it.

    Failure modes, as exceptions of `request` and `read`: UpstreamUnreachable (broken before an answer began) and
    UpstreamBodyIncomplete (broken in the middle of one). A worker's words never appear in them.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._error: RouterError | None = None
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._paused = False
        self._busy = False
        self._head_done = False
        self._complete = False
        self._until_close = False
        self._surplus = False
        self._head_bytes = 0
        self.closed = False
        self.status = 0
        self.headers: Headers = []
        self.content_length: int | None = None
        self.exchanges = 0
        self.idle_since = 0.0

    # --- exchange -----------------------------------------------------------------------------------------------

    async def request(self, head: bytes, body: bytes) -> None:
        """Send a request and wait for the response head: `status`, `headers`, `content_length` are then set."""
        if self.closed or self._transport is None:
            raise self._error or UpstreamUnreachable("the worker closed the connection before answering")
        self.exchanges += 1
        self._busy = True
        self._complete = self._head_done = self._until_close = False
        self._head_bytes = 0
        self.headers = []
        self.content_length = None
        self._transport.writelines((head, body))
        while not self._head_done:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self) -> bytes | None:
        """The next piece of the body, what has piled up joined; None at its end. Raises when it breaks off."""
        while not self._chunks:
            if self._complete:
                return None
            if self._error is not None:
                raise self._error
            await self._wait()
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    @property
    def unanswered(self) -> bool:
        """Whether the worker closed the connection without a single byte in answer to the last request."""
        return self.closed and not self._head_done and not self._head_bytes and self._error is not None

    @property
    def reusable(self) -> bool:
        """Whether the exchange ended cleanly and the worker keeps the connection open."""
        return not self.closed and self._complete and not self._busy and not self._chunks

    def close(self) -> None:
        """Drop the connection at once; the worker sees the client gone. Idempotent."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, message: str) -> None:
        if self._error is None:
            kind = UpstreamBodyIncomplete if self._head_done else UpstreamUnreachable
            self._error = kind(message)
        self.close()
        self._wake()

    # --- asyncio ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            self.close()  # a response nobody asked for: what follows on this connection cannot be told apart
            return
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("the worker tried to switch protocols")
        except httptools.HttpParserError:
            self._fail("the worker's answer is not valid HTTP")
        if not self._head_done and self._head_bytes > MAX_HEAD_BYTES:
            self._fail("the worker's response headers are too large")
        self._wake()
        if self._buffered > RELAY_HIGH_WATER and not self._paused and not self.closed and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._busy:
            if self._head_done and self._until_close and exc is None:
                self._complete, self._busy = True, False
            elif self._head_done:
                self._fail("the worker closed the connection in the middle of its answer")
            else:
                self._fail("the worker closed the connection before answering")
        self._wake()

    # --- httptools ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            self._surplus = True  # a second answer to one request: whose it is cannot be told
            self.close()
        else:
            self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_done:  # later ones are trailers: nothing behind the router reads them
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._surplus:
            return
        status = self._parser.get_status_code()
        if status < 200:
            return  # 100 Continue, 103 Early Hints: the answer proper follows
        self.status = status
        chunked = False
        for name, value in self.headers:
            lower = name.lower()
            if lower == b"content-length":
                self.content_length = int(value)
            elif lower == b"transfer-encoding":
                chunked = True
        self._until_close = not chunked and self.content_length is None and status not in (204, 304)
        self._head_done = True

    def on_body(self, body: bytes) -> None:
        if self._surplus:
            return
        self._chunks.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        if not self._head_done:
            return
        self._complete, self._busy = True, False
        if not self._parser.should_keep_alive():
            self.close()
