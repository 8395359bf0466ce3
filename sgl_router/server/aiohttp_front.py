"""The HTTP surface on aiohttp's server: all of it, or what the native front hands on."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec
from aiohttp import web
from aiohttp.http import SERVER_SOFTWARE, HttpVersion11
from aiohttp.log import server_logger
from multidict import CIMultiDict

from sgl_router.errors import BadRequest, BodyTooLarge, Overloaded, RouteNotFound, RouterError
from sgl_router.observability.metrics import CONTENT_TYPE
from sgl_router.observability.refusals import RefusedByParser
from sgl_router.proxy import ClientGone, Headers, forward_headers, header_lines, header_pairs
from sgl_router.routing import LocalRouting

from .cors import Cors, is_client_route
from .decisions import decisions_view
from .door import Door, turns
from .exchange import (
    FLUSH_SECS,
    SERVER,
    UNMATCHED,
    UPLOAD_SECS,
    Exchanges,
    body_too_large,
    check_encoding,
    method_not_allowed,
    too_many_requests,
)
from .http.faults import HttpFault, HttpRefused
from .inbound import Inbound, request_id
from .memory import BodyBudget, body_budget
from .routes import DATA_ROUTES, Routes, Serve
from .snapshots import SNAPSHOT_PATH, snapshot_route
from .views import LIVENESS_PATHS, model_view, models_view, readiness_view, workers_view

if TYPE_CHECKING:
    from .services import Services

__all__ = ["AiohttpFront", "close_idle", "make_runner"]

_REFUSED = RefusedByParser()
# aiohttp warns about plain string keys from the version on that has RequestKey.
_ID: Any = web.RequestKey("request_id", str) if hasattr(web, "RequestKey") else "request_id"
_ABSOLUTE = re.compile(r"(?i:https?)://[^/?#]*(/.*)", re.DOTALL)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AiohttpFront:
    """The whole surface on aiohttp's server."""

    def __init__(self, services: Services, routes: Routes = DATA_ROUTES) -> None:
        self._runner = make_runner(services, routes)
        self._descriptors = services.descriptors
        self._door: Door | None = None

    async def start(self, listener: socket.socket, backlog: int = 2048) -> None:
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        self._door = Door(listener, server, lambda: len(server.connections), self._descriptors, backlog)
        await self._door.open()

    async def stop_listening(self) -> None:
        if self._door is not None:
            self._door.close()
            self._door = None
            await turns()
            close_idle(self._runner)

    async def close(self) -> None:
        await self.stop_listening()
        await self._runner.cleanup()


def make_runner(services: Services, routes: Routes = DATA_ROUTES) -> web.AppRunner:
    """The server, not yet listening. A handler is cancelled when its client goes away."""
    # Malformed requests would each be a traceback; aiohttp tells the commonest of them at the debug level.
    server_logger.setLevel(logging.DEBUG)
    server_logger.addFilter(_REFUSED)
    cors = Cors.of(services.config.cors)
    app = web.Application(
        client_max_size=services.config.server.max_body_bytes + 1,
        middlewares=[_observe(Exchanges(services), routes, cors)],
    )
    app.on_response_prepare.append(_sign)
    bodies = body_budget(services.config.server) if routes else BodyBudget(0)
    if cors is not None:
        app.on_response_prepare.append(_share(cors))
    for path, serve in routes.items():
        app.router.add_post(path, _data_route(services, serve, bodies))
    app.router.add_get("/v1/models", _view(lambda: (200, models_view(services))))
    app.router.add_get("/v1/models/{id:.+}", _model(services))
    for path in LIVENESS_PATHS:
        app.router.add_get(path, _view(lambda: (200, {"status": "ok"})))
    app.router.add_get("/readyz", _view(lambda: readiness_view(services)))
    app.router.add_get("/workers", _view(lambda: (200, workers_view(services))))
    app.router.add_get("/metrics", _metrics(services))
    if isinstance(services.routing, LocalRouting):
        app.router.add_get("/internal/decisions", _decisions(services.routing))
    app.router.add_get(SNAPSHOT_PATH, snapshot_route(services.index))
    return web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        auto_decompress=False,
        keepalive_timeout=75.0,
        shutdown_timeout=0.25,  # the grace for requests in flight is over when the server is torn down
    )


def close_idle(runner: web.AppRunner) -> None:
    """Close the connections that carry no request; the others end with the response they carry.

    aiohttp has no name for that: what it keeps of a connection is looked at where it is as expected, else left alone.
    """
    if runner.server is None:
        return
    for handler in runner.server.connections:
        busy = getattr(handler, "_current_request", handler)
        if busy is None and not getattr(handler, "_messages", True) and handler.transport is not None:
            handler.transport.close()
        elif busy is not None and busy is not handler:
            handler.close()


def _more_waits(request: web.Request) -> bool:
    """Whether another request has arrived behind this one."""
    return bool(getattr(request.protocol, "_messages", False))


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    """aiohttp has named itself by now, unless the worker's name is relayed."""
    if response.headers.get("server") == SERVER_SOFTWARE:
        response.headers["server"] = SERVER


def _share(cors: Cors) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        if is_client_route(request.path):
            for name, value in header_pairs(cors.lines(list(request.raw_headers))):
                response.headers.add(name.decode(), value.decode("latin-1"))

    return prepare


class _AiohttpOutbound:
    """An Outbound over one aiohttp request."""

    def __init__(self, request: web.Request, request_id: str, services: Services) -> None:
        self._request = request
        self._request_id = request_id
        self._services = services
        self._ending = False
        self.response: web.StreamResponse | None = None

    @property
    def started(self) -> bool:
        return self.response is not None

    async def send(self, status: int, headers: Headers | bytes, body: bytes) -> None:
        response = web.Response(status=status, headers=self._headers(headers), body=body)
        await self._prepare(response)
        await self._finish(response)

    async def start(self, status: int, headers: Headers | bytes) -> None:
        response = web.StreamResponse(status=status, headers=self._headers(headers))
        if self._request.version < HttpVersion11:
            response.force_close()  # the end of the connection is the end of the body
        await self._prepare(response)

    async def write(self, data: bytes) -> None:
        assert self.response is not None
        if self._ending:  # the end of the body may be out: what came after it would be read as the next answer
            self.abort()
            raise ClientGone
        await self._guard(self.response.write(data))

    async def end(self) -> None:
        assert self.response is not None
        self._ending = True
        await self._finish(self.response)

    def abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _prepare(self, response: web.StreamResponse) -> None:
        if self._services.draining and not _more_waits(self._request):
            response.force_close()
        self.response = response
        await self._guard(response.prepare(self._request))

    async def _finish(self, response: web.StreamResponse) -> None:
        """A client that takes nothing of the end of its answer for FLUSH_SECS is cut off."""
        patience = _Patience(self._request)
        try:
            await self._guard(response.write_eof())
        finally:
            patience.end()

    async def _guard(self, step: Awaitable[Any]) -> None:
        try:
            await step
        except ConnectionError as error:
            raise ClientGone from error

    def _headers(self, headers: Headers | bytes) -> CIMultiDict[str]:
        pairs = header_pairs(headers) if isinstance(headers, bytes) else headers
        result: CIMultiDict[str] = CIMultiDict((name.decode("latin-1"), _text(value)) for name, value in pairs)
        result["x-request-id"] = self._request_id
        return result


class _Patience:
    """With a client, until `end`: its connection breaks when nothing of what is unsent goes out for FLUSH_SECS."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._unsent: float = math.inf
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.Handle = self._loop.call_soon(self._look)  # when all is written that is going to be

    def _look(self) -> None:
        transport = self._request.transport
        if transport is None:
            return
        unsent = transport.get_write_buffer_size()
        if unsent < self._unsent:
            self._unsent = unsent
            self._next = self._loop.call_later(FLUSH_SECS, self._look)
        else:
            transport.abort()  # which cancels the handler

    def end(self) -> None:
        self._next.cancel()


def _data_route(services: Services, serve: Serve, bodies: BodyBudget) -> _Handler:
    limit = services.config.server.max_body_bytes

    async def handle(request: web.Request) -> web.StreamResponse:
        headers: Headers = list(request.raw_headers)
        if services.in_flight.count > services.descriptors.requests:
            raise too_many_requests()
        out = _AiohttpOutbound(request, request[_ID], services)
        size = min(limit if request.content_length is None else request.content_length, limit)
        bodies.take(size, size)
        try:
            body = await _read_body(request, limit)
            forwarded = header_lines(forward_headers(headers))
            inbound = Inbound(request.method, request.path, headers, forwarded, body, request[_ID])
            await serve(services, inbound, out)
        except ClientGone:
            pass  # recorded by the handler; aiohttp finds the connection closed on its own
        finally:
            bodies.give(size)
        if out.response is not None:
            return out.response
        return web.Response(status=499)  # never seen: the client left before an answer began

    return handle


async def _read_body(request: web.Request, limit: int) -> bytes:
    check_encoding(request.headers.get("content-encoding", ""))
    if request.content_length is not None and request.content_length > limit:
        raise body_too_large(limit)
    try:
        body = await asyncio.wait_for(request.read(), UPLOAD_SECS)
    except web.HTTPRequestEntityTooLarge:
        raise body_too_large(limit) from None
    except asyncio.TimeoutError:
        raise HttpRefused(HttpFault.BODY_TIMEOUT) from None
    except Exception as error:  # the connection ended, or its framing is broken; aiohttp has several names for that
        raise BadRequest("the request body broke off before its end") from error
    if len(body) > limit:
        raise body_too_large(limit)
    return body


def _text(value: bytes) -> str:
    """aiohttp writes header values as UTF-8, so what is UTF-8 stays byte for byte as the worker sent it."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _view(answer: Callable[[], tuple[int, dict[str, Any]]]) -> _Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        status, body = answer()
        return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")

    return handle


def _model(services: Services) -> _Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        # Its name as it came, decoded once: in `match_info` an escaped slash stays escaped.
        _, _, name = request.rel_url.raw_path.partition("/v1/models/")
        body = msgspec.json.encode(model_view(services, unquote(name, errors="replace")))
        return web.Response(body=body, content_type="application/json")

    return handle


def _metrics(services: Services) -> _Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(body=await services.metrics.render_aside(), headers={"content-type": CONTENT_TYPE})

    return handle


def _decisions(routing: LocalRouting) -> _Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        answer = decisions_view(routing, request.query.get("limit"))
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    return handle


def _observe(exchanges: Exchanges, routes: Routes, cors: Cors | None) -> Any:
    """Counts every request and response by route template, names it, and puts errors into the envelope."""

    @web.middleware
    async def middleware(request: web.Request, handler: _Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        # A data route that is asked for with the wrong method is still that route.
        unmatched = request.path if request.path in routes else UNMATCHED
        route = unmatched if resource is None else resource.canonical
        name = request[_ID] = request_id(list(request.raw_headers))
        status = 499
        exchanges.begin(route, request.method)
        if cors is not None and is_client_route(request.path):
            headers: Headers = list(request.raw_headers)
            if cors.is_preflight(request.method, headers):
                handler = _preflight(cors, headers)
        try:
            response = await _answer(exchanges, request, handler, name)
            status = response.status
            if not response.prepared:
                response.headers["x-request-id"] = name
                if exchanges.closing and not _more_waits(request):
                    response.force_close()
            return response
        finally:
            exchanges.end(route, request.method, status)

    return middleware


def _preflight(cors: Cors, headers: Headers) -> _Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.Response(status=204)
        for name, value in header_pairs(cors.preflight(headers)):
            response.headers.add(name.decode(), value.decode("latin-1"))
        return response

    return handle


async def _answer(exchanges: Exchanges, request: web.Request, handler: _Handler, name: str) -> web.StreamResponse:
    allow = ""
    try:
        _check_spelling(request)
        _check_singletons(request)
        return await handler(request)
    except RouterError as raised:
        error = raised
    except web.HTTPException as raised:
        error = _translate(request, raised)
        allow = raised.headers.get("allow", "")
    except Exception:
        error = exchanges.failed(name, request.path)
    status, headers, body = exchanges.refusal(error, name, request.method, request.path, allow)
    response = web.Response(status=status, body=body)
    for key, value in headers:
        response.headers[key.decode()] = value.decode()
    if isinstance(error, (BodyTooLarge, HttpRefused, Overloaded)):
        response.force_close()  # the rest of the body is not going to be read
    return response


def _check_spelling(request: web.Request) -> None:
    """Each route has one spelling; a proxy in front that keeps clients from `/internal` must not be got around by
    another one that aiohttp decodes to it. What follows `/v1/` may also come in absolute form. Raises RouteNotFound."""
    path = request.raw_path.partition("?")[0]
    absolute = _ABSOLUTE.match(path)
    if absolute is not None and absolute[1].startswith("/v1/"):
        path = absolute[1]
    resource = request.match_info.route.resource
    if resource is not None and "{" in resource.canonical:
        right = path.startswith(resource.canonical.partition("{")[0])
    else:
        right = path == request.path
    if not right:
        raise RouteNotFound(f"there is no {path[:200]!r} here")


def _check_singletons(request: web.Request) -> None:
    """As the native front reads a head. Raises HttpRefused."""
    names = [name.lower() for name, _ in request.raw_headers]
    if names.count(b"authorization") > 1:
        raise HttpRefused(HttpFault.AUTHORIZATION_TWICE)
    if names.count(b"content-type") > 1:
        raise HttpRefused(HttpFault.CONTENT_TYPE_TWICE)


def _translate(request: web.Request, raised: web.HTTPException) -> RouterError:
    if raised.status == 404:
        return RouteNotFound(f"there is no {request.path[:200]!r} here")
    if raised.status == 405:
        return method_not_allowed(request.method, request.path)
    return BadRequest(raised.reason or "the request is not valid")
