"""One HTTP/1.1 connection to a worker: a request out, a response in, bytes handed on as they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from sgl_router.errors import RouterError, UpstreamBodyIncomplete, UpstreamUnreachable
from sgl_router.http.headers import (
    CODING,
    CONNECTION,
    LENGTH,
    PLACE,
    RELAYED,
    TRAVELS,
    Headers,
    connection_options,
    header_lines,
    names_a_host,
)
from sgl_router.upstream.crossing import CROSSING_SECS, unacknowledged
from sgl_router.upstream.response_head_cache import ResponseHead, ResponseHeadCache

__all__ = ["WHOLE_LIMIT", "Headers", "UpstreamConnection"]

# An answer that is no event stream is held until it is complete, up to this size: one wake-up for all of it, and one
# that breaks off can still become a clean error.
WHOLE_LIMIT = 4 << 20
# Reading stops while this much of a response waits for the client, and goes on when it has been taken.
RELAY_HIGH_WATER = 256 << 10
MAX_HEAD_BYTES = 64 << 10
# Of framing alone, trailers or extensions of chunks, between two bytes of body or after the last.
MAX_FRAMING_BYTES = 64 << 10
# A larger request body is written in pieces of this size, as the worker takes them.
UPLOAD_PIECE = 256 << 10
# Below, a copy costs less than a second piece to write.
JOIN_LIMIT = 32 << 10


class Hearer(Protocol):
    """Who wants to know whether a response goes on."""

    heard: bool


class _Nobody:
    heard = False


Sink = Callable[[bytes, bool], bool]
"""Given bytes of the body, and whether they are the last ones. Returns whether it has taken them."""


class UpstreamConnection(asyncio.Protocol):
    """Reused for one exchange after another. At any time one task at most awaits it.

    Failure modes, as exceptions of `request` and `read`: UpstreamUnreachable (broken before an answer began) and
    UpstreamBodyIncomplete (broken in the middle of one). A worker's words never appear in them.
    """

    __slots__ = (
        "_bodiless",
        "_buffered",
        "_busy",
        "_chunked",
        "_chunks",
        "_crossed",
        "_distrusted",
        "_failure",
        "_framing_bytes",
        "_head_bytes",
        "_head_done",
        "_hop_options",
        "_limit",
        "_lines",
        "_loop",
        "_lost",
        "_parser",
        "_piecewise",
        "_reading_paused",
        "_sent_at",
        "_sink",
        "_transport",
        "_unsent",
        "_waiter",
        "_whole",
        "_writing_paused",
        "closed",
        "complete",
        "content_length",
        "headers",
        "heard_by",
        "idle_since",
        "on_body",
        "status",
        "stream",
    )

    def __init__(self, lost: Callable[[], None] | None = None) -> None:
        """`lost` is called once, when the connection is gone or `leave` says that it was not to be had."""
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._chunks: list[bytes] = []
        self.on_body = self._chunks.append
        """Called by the parser. What an answer's end is followed by is taken out again by `data_received`."""
        self._whole: int | None = None  # how many chunks there were at the end of the answer
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        # A class and its message, no instance: a kept exception would hold the frames that it passed through.
        self._failure: tuple[type[RouterError], str] | None = None
        self._buffered = 0
        self._limit = WHOLE_LIMIT
        self._piecewise = False  # whether every piece wakes the reader
        self._sink: Sink | None = None
        self._reading_paused = False
        self._writing_paused = False
        self._unsent = False
        self._busy = False
        self._bodiless = False
        self._head_done = False
        self._head_bytes = 0
        self._sent_at = 0.0
        self._crossed = False
        self._framing_bytes = 0
        self._chunked = False
        self._distrusted = False
        self._hop_options: set[bytes] | None = None
        self.closed = False
        self.complete = False
        self.status = 0
        self.headers: Headers = []
        self._lines: bytes | None = None
        self.content_length: int | None = None
        self.stream = False
        self.idle_since = 0.0
        self.heard_by: Hearer = _NOBODY
        """Its `heard` is set by each piece of a response after the head, for the rest of the exchange."""

    # --- exchange -----------------------------------------------------------------------------------------------

    async def request(self, head: bytes, body: bytes, bodiless: bool = False) -> None:
        """Send a request and wait for its answer: for the head of an event stream, for all of anything else (or the
        first WHOLE_LIMIT bytes). `bodiless`: the answer has no body whatever its head says, as with HEAD.

        Then `status`, `headers` (those for the client, names in lower case), `stream` and `complete` are set.
        """
        transport = self._transport
        self._busy = True
        self._bodiless = bodiless
        self.complete = self._head_done = False
        self._head_bytes = self._framing_bytes = 0
        self._limit = WHOLE_LIMIT
        self._piecewise = False
        self.heard_by = _NOBODY
        self._sent_at, self._crossed = self._loop.time(), False
        if self.closed or transport is None:
            self._crossed = True
            self._fail(_NO_ANSWER)
        elif len(body) <= JOIN_LIMIT:
            transport.write(head + body)
        elif len(body) <= UPLOAD_PIECE:
            transport.writelines((head, body))
        else:
            await self._upload(transport, head, body)
        while not self.complete:
            if self._failure is not None:
                raise self._failure[0](self._failure[1])
            if self._head_done and (self._piecewise or self._buffered > WHOLE_LIMIT):
                break
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._piecewise = True
        self._limit = RELAY_HIGH_WATER

    async def read(self, sink: Sink | None = None) -> bytes | None:
        """The next piece of the body, what has piled up joined; None at its end. Raises when it breaks off.

        While it waits, pieces go to `sink` the moment they arrive; it returns with the first one that `sink` refuses.
        """
        while not self._chunks:
            if self.complete:
                return None
            if self._failure is not None:
                raise self._failure[0](self._failure[1])
            self._waiter = self._loop.create_future()
            self._sink = sink
            try:
                await self._waiter
            finally:
                self._waiter = self._sink = None
        return self.take()

    def take(self) -> bytes:
        """What has arrived of the body and was not taken yet."""
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._buffered = 0
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()
        return data

    @property
    def lines(self) -> bytes:
        """`headers` as lines."""
        if self._lines is None:
            self._lines = header_lines(self.headers)
        return self._lines

    @property
    def crossed(self) -> bool:
        """Whether the worker's close crossed the last request on its way, so that it cannot have read all of it.

        True where the connection was found closed, or was closed without a byte of response before all of the request
        had arrived. What had arrived before a reset is not known: True within CROSSING_SECS of the first byte.
        """
        return self._crossed and not self._head_bytes

    @property
    def reusable(self) -> bool:
        """Whether the exchange ended cleanly and the worker keeps the connection open."""
        return self.complete and not (self.closed or self._chunks or self._unsent)

    def close(self) -> None:
        """Drop the connection at once; the worker sees the client gone. Idempotent."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def leave(self) -> None:
        """The connection is not to be used again. Calls `lost`, unless it has been called."""
        self._parser = None  # it holds this object
        lost, self._lost = self._lost, None
        if lost is not None:
            lost()

    async def _upload(self, transport: asyncio.Transport, head: bytes, body: bytes) -> None:
        """Write a large request as fast as the worker takes it; stop where it has answered before it had it all."""
        transport.write(head)
        rest = memoryview(body)
        self._unsent = True
        while rest:
            if self.complete or self._failure is not None:
                return
            if self._writing_paused:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            else:
                transport.write(rest[:UPLOAD_PIECE])
                rest = rest[UPLOAD_PIECE:]
        self._unsent = False

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, message: str) -> None:
        if self._failure is None and not self.complete:
            self._failure = (UpstreamBodyIncomplete if self._head_done else UpstreamUnreachable), message
        self.close()
        self._wake()

    # --- asyncio ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            self.close()  # a response nobody asked for: what follows on this connection cannot be told apart
            return
        began = self._head_done
        if not began:
            if not self._head_bytes and not self._bodiless and (split := _HEADS.split(data)) is not None:
                self._head_bytes = len(data)
                self._answered(*split)
                return
            self._head_bytes += len(data)
        else:
            self.heard_by.heard = True
        held = len(self._chunks)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("the worker tried to switch protocols")
        except httptools.HttpParserError:
            self._fail("the worker's response is not valid HTTP")
        if self._bodiless and self._head_done:
            self._parser = httptools.HttpResponseParser(self)  # the old one waits for the body that does not come
        if not began and self._head_bytes > MAX_HEAD_BYTES and not self._head_fits():
            self._failure = UpstreamUnreachable, "the worker's response headers are too large"
            self.complete = False
            self.close()
        chunks = self._chunks
        if len(chunks) > held:
            self._framing_bytes = 0
        elif began:
            self._framing_bytes += len(data)
            if self._framing_bytes > MAX_FRAMING_BYTES and not self.complete:
                self._fail("the worker's response goes on without a body")
        if self._whole is not None:
            if len(chunks) > self._whole:
                del chunks[self._whole :]
                self.close()
            self._whole = None
        if self.complete and not began and self._head_bytes == len(data):
            self._remember(data)
        if chunks:
            if self._sink is not None and self._sink(
                chunks[0] if len(chunks) == 1 else b"".join(chunks), self.complete
            ):
                chunks.clear()
                self._buffered = 0  # with what an earlier call refused and nobody has taken since
            else:
                self._buffered += len(data)
        if self.complete or self._failure is not None:
            self._wake()
        elif self._head_done:
            over = self._buffered > self._limit
            if over or (self._piecewise and (chunks or not began)):
                self._wake()
            if over and not self._reading_paused and self._transport is not None:
                self._reading_paused = True
                self._transport.pause_reading()

    def _answered(self, head: ResponseHead, body: bytes) -> None:
        """All of an answer, with a head that needs no parser: it does not get to see this message."""
        self.status, self.headers, self._lines = head
        self.content_length = len(body)
        self.stream = self._chunked = False
        self._head_done = self.complete = True
        self._busy = False
        if body:
            self._chunks.append(body)
        self._wake()

    def _remember(self, data: bytes) -> None:
        """`data` was a whole answer; its head is worth keeping where the length alone says where the body ends."""
        framed = self.content_length is not None and not self._chunked and self.status not in (204, 304)
        if framed and not (self.stream or self._bodiless or self.closed or self._hop_options):
            _HEADS.learn(data, ResponseHead(self.status, self.headers, self.lines))

    def eof_received(self) -> None:
        """The worker has closed in good order; `connection_lost` follows, and nothing is to be written until then."""
        if not self._busy:
            self.closed = True
            return
        left = unacknowledged(self._transport)
        self._crossed = self._just_sent() if left is None else self._unsent or left > 0

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._busy:
            if isinstance(exc, BrokenPipeError):  # at writing: some of the request has not left
                self._crossed = True
            elif exc is not None and not self._crossed:
                self._crossed = self._just_sent()
            framed = self._chunked or self.content_length is not None
            if not self._head_done:
                self._fail(_NO_ANSWER)
            elif framed or exc is not None:
                self._fail("the worker closed the connection in the middle of its response")
            else:
                self.complete, self._busy = True, False
        self._wake()
        self.leave()

    def _just_sent(self) -> bool:
        return self._loop.time() - self._sent_at < CROSSING_SECS

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._wake()

    # --- httptools ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.complete:
            self.close()  # a second answer to one request: whose it is cannot be told
            return
        self.headers = []
        self._lines = None
        self.content_length = None
        self.stream = False
        self._chunked = self._distrusted = False
        self._hop_options = None

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            return  # a trailer: nothing behind the router reads them
        lower, kind = RELAYED[name]
        if kind == TRAVELS:
            self.headers.append((lower, value))
        elif kind == LENGTH:
            self.content_length = int(value)
        elif kind == CODING:
            # Any coding but this one would reach the client undeclared, and two of them are a way to smuggle.
            self._distrusted = self._chunked or value.strip().lower() != b"chunked"
            self._chunked = True
        elif kind == CONNECTION:
            if value != b"keep-alive" and value != b"close":
                self._hop_options = connection_options(value) | (self._hop_options or set())
        elif kind == PLACE:
            if not names_a_host(value):
                self.headers.append((lower, value))
        elif lower == b"content-type":
            self.headers.append((lower, value))
            self.stream = value[:17].lower() == b"text/event-stream"

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        status: int = self._parser.get_status_code()
        if not 200 <= status <= 599:
            if not 100 <= status < 200:
                self._fail("the worker's response is not valid HTTP")
            return  # 100 Continue, 103 Early Hints: the answer proper follows
        if self._distrusted or (self._chunked and self.content_length is not None):
            self._fail("the worker framed its response ambiguously")
            return
        self.status = status
        if self._hop_options is not None:
            self.headers = [pair for pair in self.headers if pair[0] not in self._hop_options]
        self._head_done = True
        self._piecewise = self.stream
        if self._bodiless:
            self._end()

    def on_message_complete(self) -> None:
        if self._head_done and not self.complete:
            self._end()

    def _end(self) -> None:
        self.complete, self._busy = True, False
        self._whole = len(self._chunks)
        if not self._parser.should_keep_alive():
            self.close()

    def _head_fits(self) -> bool:
        return self._head_done and sum(len(name) + len(value) for name, value in self.headers) <= MAX_HEAD_BYTES


_NOBODY = _Nobody()
_HEADS = ResponseHeadCache()
_NO_ANSWER = "the worker closed the connection before it responded"
