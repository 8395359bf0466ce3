"""One client's connection: bytes to requests, one after the other, each served by a task of its own."""

from __future__ import annotations

import asyncio
import math
from enum import Enum
from io import BytesIO
from typing import TYPE_CHECKING, cast

from sgl_router.errors import RouterError
from sgl_router.http import ClientGone
from sgl_router.http.chunked import ChunkedDecoder
from sgl_router.http.cors import is_client_route
from sgl_router.http.faults import HttpFault, HttpRefused
from sgl_router.http.head import RequestHead, read_head
from sgl_router.http.refusals import body_too_large, check_encoding, too_many_requests
from sgl_router.http.request import Request, request_id
from sgl_router.http.request_head_cache import RequestHeadCache
from sgl_router.http.response import Http1Writer
from sgl_router.http.routes import UNMATCHED

if TYPE_CHECKING:
    from sgl_router.http.routes import Route, Routes, Serve
    from sgl_router.http.server import HttpServer

__all__ = ["ClientConnection", "Stage"]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Stage(Enum):
    HEAD = "head"
    """Between requests, or in the middle of a head (`_partial`)."""
    BODY = "body"
    SERVING = "serving"
    """A task is at work; what arrives meanwhile waits in `_ahead`."""
    LINGER = "linger"
    """Answered and half closed; what arrives is dropped."""
    CLOSING = "closing"
    """The last bytes are on their way out."""


_HEAD, _BODY, _SERVING, _LINGER, _CLOSING = Stage.HEAD, Stage.BODY, Stage.SERVING, Stage.LINGER, Stage.CLOSING


class ClientConnection(asyncio.Protocol):
    """A client that closes its half is taken to be gone: the request it waits for is cancelled."""

    __slots__ = (
        "_ahead",
        "_arrived",
        "_at",
        "_began",
        "_body",
        "_body_due",
        "_decoder",
        "_drain",
        "_head",
        "_held",
        "_linger",
        "_memo",
        "_missing",
        "_partial",
        "_reading_paused",
        "_route",
        "_routes",
        "_serve",
        "_task",
        "_unsent",
        "due",
        "gone",
        "server",
        "stage",
        "transport",
        "write_paused",
    )

    transport: asyncio.Transport
    _head: RequestHead
    _route: Route
    _serve: Serve | None
    _body: BytesIO | None
    _body_due: float
    _arrived: int

    def __init__(self, server: HttpServer, routes: Routes) -> None:
        self.server = server
        self._routes = routes
        self.stage = _HEAD
        self.due = math.inf
        """When to lose patience, by the server's clock."""
        self.gone = False
        self.write_paused = False
        self._ahead = b""
        self._at = 0  # what lies before it in `_ahead` has been dealt with
        self._partial = False
        self._linger = False
        self._memo: RequestHeadCache | None = None
        self._reading_paused = False
        self._missing = 0
        self._held = 0  # bytes of the body that the budget counts
        self._decoder: ChunkedDecoder | None = None
        self._route = UNMATCHED
        self._task: asyncio.Task[None] | None = None
        self._unsent = 0
        self._began = False  # whether it took its first step
        self._drain: asyncio.Future[None] | None = None

    # --- asyncio ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server = self.server
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(server.limits.write_high, server.limits.write_low)
        self.due = server.now + server.limits.idle_secs
        server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        stage = self.stage
        if stage is _HEAD:
            if self._ahead:
                data, self._ahead = self._ahead + data, b""
            self._next(data, 0)
        elif stage is _BODY:
            self._more_body(data)
        elif stage is _SERVING:
            self._ahead, self._at = self._ahead[self._at :] + data, 0
            if len(self._ahead) > self.server.limits.ahead_bytes:
                self._pause_reading()
        elif stage is _LINGER:
            self._missing -= len(data)
            if self._missing <= 0:
                self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self.server.forget(self)
        if self._cancel() is None and self.stage is _BODY:
            self._body = self._decoder = None
            self.release()
            self.server.accounting.end(self._route.template, self._head.method, 499)
        self.stage = _CLOSING
        self.resume_writing()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)

    # --- requests -----------------------------------------------------------------------------------------------

    def _next(self, data: bytes, at: int) -> None:
        """Take up the request that begins at `at`."""
        server = self.server
        head = self._memo.read(data, at) if self._memo is not None else None
        if head is None:
            try:
                head = read_head(data, at)
            except HttpRefused as error:
                self._refuse_head(error, data[at:])
                return
            if head is None:
                self._ahead = data[at:]
                if self._ahead and not self._partial:
                    self._partial = True
                    self.due = server.now + server.limits.head_secs
                return
            self._memo = RequestHeadCache.of(head, data[at : head.end])
        self._partial = False
        routes = self._routes
        route = routes.exact.get(head.path) or routes.other(head.path)
        self._head = head
        self._route = route
        self._serve = route.handlers.get(head.method)
        server.accounting.begin(route.template, head.method)
        if route.connects and server.in_flight.count > server.descriptors.requests:
            self._start(b"", too_many_requests(), False)
            return
        refusal: RouterError | None = None
        if self._serve is None or head.content_encoding or head.unmet_expectation:
            refusal = self._objection(head)
        start = head.end
        size = head.content_length
        stop = start + size
        whole = len(data) >= stop and not head.chunked
        if size > server.max_body_bytes:
            refusal, whole = body_too_large(server.max_body_bytes), False
        elif refusal is None and size:
            try:
                server.bodies.take(size, size)
                self._held = size
            except RouterError as error:
                refusal = error
        if whole:
            if len(data) > stop:
                self._ahead, self._at = data, stop
            self._start(data[start:stop], refusal, head.keep_alive)
        elif refusal is not None:
            self._missing = 0 if head.chunked else stop - len(data)
            self._start(b"", refusal, False)
        else:
            self._await_body(head, data, start)

    def _objection(self, head: RequestHead) -> RouterError | None:
        """Why a request is refused whatever its body; such a body is not asked for."""
        if self._serve is None:
            cors, path = self.server.cors, head.path.decode("latin-1")
            if cors is not None and is_client_route(path) and cors.is_preflight(head.method, head.headers):
                self._serve = cors.serve
                return None
            return self._route.refusal(head.method, path)
        if head.unmet_expectation:
            return HttpRefused(HttpFault.EXPECTATION)
        try:
            check_encoding(head.content_encoding.decode("latin-1"))
        except RouterError as error:
            return error
        return None

    def _await_body(self, head: RequestHead, data: bytes, start: int) -> None:
        server = self.server
        self.stage = _BODY
        self._body_due = server.now + server.limits.body_secs
        self.due = server.now + min(server.limits.window_secs, server.limits.body_secs)
        self._arrived = 0
        self._missing = head.content_length
        if head.chunked:
            self._decoder = ChunkedDecoder(server.max_body_bytes)
        else:
            self._body = BytesIO()
        if len(data) > start:
            self._more_body(data[start:])
        elif head.expects_continue:
            self.transport.write(CONTINUE)

    def _more_body(self, data: bytes) -> None:
        keep_alive = self._head.keep_alive
        self._arrived += len(data)
        decoder = self._decoder
        if decoder is None:
            assert self._body is not None
            missing = self._missing
            if len(data) < missing:
                self._body.write(data)
                self._missing = missing - len(data)
                return
            if len(data) > missing:
                self._ahead, self._at = data, missing
                data = data[:missing]
            self._body.write(data)
            body, self._body = self._body.getvalue(), None
            self._start(body, None, keep_alive)
            return
        try:
            whole = decoder.feed(data)
            self.server.bodies.take(decoder.size - self._held, decoder.size)
            self._held = decoder.size
        except RouterError as error:
            self._decoder = None
            self._missing = 0
            self._start(b"", error, False)
            return
        if not whole:
            if decoder.more:  # a read of tiny chunks is not worked through in one go
                self._pause_reading()
                self.server.loop.call_soon(self._go_on)
            return
        self._decoder = None
        self._ahead = decoder.rest
        self._start(decoder.body, None, keep_alive)

    def _go_on(self) -> None:
        if self.stage is _BODY and not self.gone:
            self._more_body(b"")
            if self._decoder is None or not self._decoder.more:
                self._resume_reading()

    def _start(self, body: bytes, refusal: RouterError | None, keep_alive: bool) -> None:
        """The request of `_head` is whole, or refused; in the latter case `keep_alive` says whether it was read."""
        head = self._head
        name = request_id(head.headers if head.named else [])
        forwarded = head.forwarded
        if forwarded is None:
            forwarded = head.forward()
        if refusal is not None:
            body, self._body = b"", None
            self.release()
        path = head.path.decode("latin-1")
        request = Request(head.method, path, head.target, head.headers, forwarded, body, name, self)
        writer = Http1Writer(self, name, keep_alive, head.http_1_0, head.method == "HEAD")
        cors = self.server.cors
        if cors is not None and is_client_route(path):
            writer.cors = cors.lines(head.headers)
        self._linger = refusal is not None and not keep_alive
        self.stage = _SERVING
        self.due = math.inf
        self._began = False
        self._task = self.server.loop.create_task(self._run(request, writer, refusal))

    def _refuse_head(self, fault: HttpRefused, data: bytes) -> None:
        """Answer what is not a request, or not yet: there is no method, and no knowing where the next one begins."""
        self._route = UNMATCHED
        self._missing = 0
        self.server.accounting.begin(UNMATCHED.template, "other")
        self._head = RequestHead("other", data[:1024].lstrip(b"\r\n"), b"", False, [], 0)
        self._start(b"", fault, False)

    def charge(self, size: int) -> None:
        """More is held for the request at work. Raises Overloaded."""
        self.server.bodies.take(size, size)
        self._held += size

    def release(self) -> None:
        """What is held for the request at work is gone, or about to go with its frame. Any number of times."""
        if self._held:
            self.server.bodies.give(self._held)
            self.server.trimmer.freed(self._held)
            self._held = 0

    async def _run(self, request: Request, writer: Http1Writer, refusal: RouterError | None) -> None:
        self._began = True
        accounting = self.server.accounting
        try:
            if refusal is None:
                assert self._serve is not None
                try:
                    await self._serve(self.server.services, request, writer)
                except RouterError as error:
                    refusal = error
                except ClientGone:
                    pass  # recorded by the handler
                except Exception:
                    refusal = accounting.failed(request.request_id, request.path)
            if refusal is not None and not writer.started:
                method, target = request.method, self._head.target
                await writer.send(*accounting.refusal(refusal, request.request_id, method, target, self._route.allow))
        except ClientGone:
            pass
        finally:
            refusal = None  # its traceback holds this frame
            self._task = None
            self.release()
            accounting.end(self._route.template, request.method, writer.status)
            self._served(writer)

    def _served(self, writer: Http1Writer) -> None:
        if self.gone:
            return
        if not writer.complete:
            self.abort()  # only a broken connection still says that the answer is not whole
            return
        if not writer.keep_alive or (self.server.services.closing and not self._ahead):
            self._finish()
            return
        self.stage = _HEAD
        self.due = self.server.now + self.server.limits.idle_secs
        if self._ahead:
            ahead, at = self._ahead, self._at
            self._ahead, self._at = b"", 0
            self._next(ahead, at)
        if self._reading_paused and len(self._ahead) - self._at <= self.server.limits.ahead_bytes:
            self._resume_reading()

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and not self.gone:
            self._reading_paused = False
            self.transport.resume_reading()

    # --- the end ------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Close after the last answer. A kernel that holds unread bytes at the close would reset the connection, and
        the answer could be lost with it: so what a refused client still sends is read and dropped for a while."""
        limits = self.server.limits
        if self._linger or self._ahead:
            self.stage = _LINGER
            self.due = self.server.now + limits.linger_secs
            waits, self._ahead = len(self._ahead) - self._at, b""
            unread = self._missing if self._linger else 0  # of a body of known length
            if unread and waits >= unread:
                self._close()
                return
            self._missing = min(unread - waits if unread else limits.linger_bytes, limits.linger_bytes)
            self.transport.write_eof()
            self._resume_reading()
        else:
            self._close()

    def _close(self) -> None:
        self.stage = _CLOSING
        self.due = self.server.now + self.server.limits.flush_secs
        self.transport.close()

    def abort(self) -> None:
        """Break the connection. The task that serves it, if any, is cancelled soon."""
        if not self.gone:
            self.gone = True
            self.transport.abort()

    def _cancel(self) -> asyncio.Task[None] | None:
        """Cancel the task at work, if any. One that has not begun never will: its end comes here."""
        task = self._task
        if task is not None:
            task.cancel()
            if not self._began:
                self._task = None
                self.release()
                self.server.accounting.end(self._route.template, self._head.method, 499)
        return task

    @property
    def more_waits(self) -> bool:
        """Whether another request, or the beginning of one, has arrived behind the one that is served."""
        return len(self._ahead) > self._at

    def close_if_idle(self) -> None:
        """For a server that shuts down: between requests there is nothing to wait for."""
        if self.stage is _HEAD and not self._partial:
            self._close()

    def cut_off(self) -> asyncio.Task[None] | None:
        """End this connection whatever it does. Returns the task that was serving it, cancelled."""
        task = self._cancel()
        if task is not None or self.stage is _LINGER or self.stage is _BODY:
            self.abort()
        else:
            self._close()
        return task

    def overdue(self) -> None:
        """`due` has passed."""
        if self.stage is _HEAD:
            if self._partial:
                ahead, self._ahead = self._ahead, b""
                self._refuse_head(HttpRefused(HttpFault.HEAD_TIMEOUT), ahead)
            else:
                self._close()
        elif self.stage is _BODY:
            self._body_overdue()
        elif self.stage is _SERVING and self.transport.get_write_buffer_size() < self._unsent:
            self._wait_for_client()
        else:
            self.abort()

    def _body_overdue(self) -> None:
        limits, now = self.server.limits, self.server.now
        fault = HttpFault.BODY_TIMEOUT
        if now - limits.sweep_secs < self._body_due:
            if self._arrived >= limits.window_bytes:
                self._arrived = 0
                self.due = min(now + limits.window_secs, self._body_due)
                return
            fault = HttpFault.BODY_TOO_SLOW
        if self._decoder is not None:
            self._decoder, self._missing = None, 0
        self._start(b"", HttpRefused(fault), False)

    async def flushed(self) -> None:
        """`drained`, when the answer is whole: a client that takes nothing of it for `flush_secs` is cut off."""
        self._wait_for_client()
        await self.drained()
        self.due = math.inf

    def _wait_for_client(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self.due = self.server.now + self.server.limits.flush_secs

    async def drained(self) -> None:
        """Until the client may be sent more. Raises ClientGone."""
        while self.write_paused:
            self._drain = self.server.loop.create_future()
            try:
                await self._drain
            finally:
                self._drain = None
        if self.gone:
            raise ClientGone
