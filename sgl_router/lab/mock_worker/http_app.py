"""The worker's HTTP application: routes, the engine's authentication, faults on what does not generate."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web

from sgl_router.lab.mock_worker.faults import FaultScope
from sgl_router.lab.mock_worker.generation import Endpoint
from sgl_router.lab.mock_worker.http_admin import AdminRoutes
from sgl_router.lab.mock_worker.http_faults import commit_before_headers
from sgl_router.lab.mock_worker.http_generate import GenerateRoutes
from sgl_router.lab.mock_worker.http_info import InfoRoutes

if TYPE_CHECKING:
    from sgl_router.lab.mock_worker.worker import MockWorker

_MAX_BODY_BYTES = 64 * 2**20
_OPEN_PREFIXES = ("/health", "/ready", "/metrics")
_GENERATING = frozenset(endpoint.value for endpoint in Endpoint)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(worker: MockWorker) -> tuple[web.Application, AdminRoutes]:
    """The application of one worker, and its admin routes."""

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _allowed(request, worker.config.api_key):
            return await handler(request)
        return web.json_response({"error": "Unauthorized"}, status=401)

    @web.middleware
    async def commit_probe_faults(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in _GENERATING and not request.path.startswith("/mock/"):
            fault = worker.faults.take(FaultScope.PROBE)
            if fault is not None:
                response = await commit_before_headers(fault, request, worker.faults)
                if response is not None:
                    return response
        return await handler(request)

    app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[authenticate, commit_probe_faults])
    admin = AdminRoutes(worker)
    for group in (GenerateRoutes(worker), InfoRoutes(worker), admin):
        app.add_routes(group.routes())
    return app, admin


def _allowed(request: web.Request, api_key: str | None) -> bool:
    if api_key is None or request.method == "OPTIONS" or request.path.startswith(_OPEN_PREFIXES):
        return True
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(token.encode(), api_key.encode())
