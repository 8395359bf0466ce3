"""The HTTP surface on aiohttp's server: routes, limits, and the adapter between a request and the data path."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from aiohttp import web
from multidict import CIMultiDict

from sgl_router.errors import BadRequest, BodyTooLarge, InternalError, MethodNotAllowed, RouteNotFound, RouterError
from sgl_router.observability.metrics import CONTENT_TYPE
from sgl_router.proxy import ClientGone, Headers, Outbound

from .chat import serve_chat
from .envelope import error_response
from .inbound import Inbound, request_id
from .services import Services
from .snapshots import SNAPSHOT_PATH, snapshot_route
from .tokens import serve_detokenize, serve_tokenize
from .views import models_view, readiness_view, workers_view

__all__ = ["make_runner"]

log = structlog.get_logger(__name__)

# aiohttp warns about plain string keys from the version on that has RequestKey.
_ID: Any = web.RequestKey("request_id", str) if hasattr(web, "RequestKey") else "request_id"
_Serve = Callable[[Services, Inbound, Outbound], Awaitable[None]]
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_runner(services: Services) -> web.AppRunner:
    """The server, not yet listening. A handler is cancelled when its client goes away."""
    app = web.Application(
        client_max_size=services.config.server.max_body_bytes + 1, middlewares=[_observe(services)]
    )
    app.router.add_post("/v1/chat/completions", _data_route(services, serve_chat))
    app.router.add_post("/v1/tokenize", _data_route(services, serve_tokenize))
    app.router.add_post("/v1/detokenize", _data_route(services, serve_detokenize))
    app.router.add_get("/v1/models", _view(lambda: (200, models_view(services))))
    app.router.add_get("/healthz", _view(lambda: (200, {"status": "ok"})))
    app.router.add_get("/readyz", _view(lambda: readiness_view(services)))
    app.router.add_get("/workers", _view(lambda: (200, workers_view(services))))
    app.router.add_get("/metrics", _metrics(services))
    app.router.add_get(SNAPSHOT_PATH, snapshot_route(services.index), allow_head=False)
    return web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        auto_decompress=False,
        keepalive_timeout=75.0,
        shutdown_timeout=0.25,  # the grace for requests in flight is over when the server is torn down
    )


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

    async def send(self, status: int, headers: Headers, body: bytes) -> None:
        response = web.Response(status=status, headers=self._headers(headers), body=body)
        await self._prepare(response)
        await self._guard(response.write_eof())

    async def start(self, status: int, headers: Headers) -> None:
        await self._prepare(web.StreamResponse(status=status, headers=self._headers(headers)))

    async def write(self, data: bytes) -> None:
        assert self.response is not None
        if self._ending:  # the end of the body may be out: what came after it would be read as the next answer
            self.abort()
            raise ClientGone
        await self._guard(self.response.write(data))

    async def end(self) -> None:
        assert self.response is not None
        self._ending = True
        await self._guard(self.response.write_eof())

    def abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _prepare(self, response: web.StreamResponse) -> None:
        if self._services.closing:
            response.force_close()
        self.response = response
        await self._guard(response.prepare(self._request))

    async def _guard(self, step: Awaitable[Any]) -> None:
        try:
            await step
        except ConnectionError as error:
            raise ClientGone from error

    def _headers(self, headers: Headers) -> CIMultiDict[str]:
        result: CIMultiDict[str] = CIMultiDict((name.decode("latin-1"), _text(value)) for name, value in headers)
        result["x-request-id"] = self._request_id
        return result


def _data_route(services: Services, serve: _Serve) -> _Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        headers: Headers = list(request.raw_headers)
        out = _AiohttpOutbound(request, request[_ID], services)
        body = await _read_body(request, services.config.server.max_body_bytes)
        inbound = Inbound(request.method, request.path, headers, body, request[_ID])
        try:
            await serve(services, inbound, out)
        except ClientGone:
            pass  # recorded by the handler; aiohttp finds the connection closed on its own
        if out.response is not None:
            return out.response
        return web.Response(status=499)  # never seen: the client left before an answer began

    return handle


async def _read_body(request: web.Request, limit: int) -> bytes:
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise BadRequest(f"content-encoding {encoding[:40]!r} is not supported; send the body uncompressed")
    too_large = BodyTooLarge(f"the request body is larger than the limit of {limit} bytes (server.max_body_bytes)")
    if request.content_length is not None and request.content_length > limit:
        raise too_large
    try:
        body = await asyncio.wait_for(request.read(), UPLOAD_SECS)
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None
    except asyncio.TimeoutError:
        raise BadRequest(f"the request body was not received within {UPLOAD_SECS:g} s") from None
    except Exception as error:  # the connection ended, or its framing is broken; aiohttp has several names for that
        raise BadRequest("the request body broke off before its end") from error
    if len(body) > limit:
        raise too_large
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


def _metrics(services: Services) -> _Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(body=services.metrics.render(), headers={"content-type": CONTENT_TYPE})

    return handle


def _observe(services: Services) -> Any:
    """Counts every request and response by route template, names it, and puts errors into the envelope."""

    @web.middleware
    async def middleware(request: web.Request, handler: _Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "unmatched"
        method = request.method if request.method in _METHODS else "other"
        name = request[_ID] = request_id(list(request.raw_headers))
        services.metrics.requests.labels(route, method).inc()
        error: RouterError
        try:
            with services.in_flight:
                response = await handler(request)
        except asyncio.CancelledError:
            services.metrics.responses.labels(route, method, "499").inc()
            raise
        except RouterError as raised:
            error = raised
            response = _error(services, error, name)
            if isinstance(error, BodyTooLarge):
                response.force_close()  # the rest of the body is not going to be read
        except web.HTTPException as raised:
            response = _error(services, _translate(request, raised), name)
            if "allow" in raised.headers:
                response.headers["allow"] = raised.headers["allow"]
        except Exception:
            log.exception("request failed", request_id=name, path=request.path)
            response = _error(services, InternalError("the router failed to handle this request"), name)
        services.metrics.responses.labels(route, method, str(response.status)).inc()
        return response

    return middleware


# A body that trickles in, or whose chunks are malformed, must not hold its connection for ever.
UPLOAD_SECS = 60.0
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


def _translate(request: web.Request, raised: web.HTTPException) -> RouterError:
    if raised.status == 404:
        return RouteNotFound(f"there is no {request.path[:200]!r} here")
    if raised.status == 405:
        return MethodNotAllowed(f"{request.method[:20]} is not allowed on {request.path[:200]!r}")
    return BadRequest(raised.reason or "the request is not valid")


def _error(services: Services, error: RouterError, name: str) -> web.Response:
    services.metrics.errors.labels(error.code.value).inc()
    status, headers, body = error_response(error)
    response = web.Response(status=status, body=body)
    for key, value in headers:
        response.headers[key.decode()] = value.decode()
    response.headers["x-request-id"] = name
    return response
