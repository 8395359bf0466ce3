"""The two HTTP fronts of a router in several processes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from sgl_router.errors import RoutingAway
from sgl_router.observability.refusals import log_refusal
from sgl_router.proxy import Headers
from sgl_router.server.aiohttp_front import make_runner
from sgl_router.server.envelope import error_response
from sgl_router.server.exchange import too_many_requests
from sgl_router.server.http.front import NativeFront
from sgl_router.server.http.paced import Paced
from sgl_router.server.views import LIVENESS_PATHS

from .fallback import AWAY
from .splice import Splice

if TYPE_CHECKING:
    from sgl_router.server.services import Services

__all__ = ["AdminFront", "DataFront"]


class DataFront(NativeFront):
    """Of a data process: the data routes here, every other connection spliced to the routing process."""

    def __init__(self, services: Services, admin_path: str, away: Callable[[], bool]) -> None:
        super().__init__(services)
        self._admin_path = admin_path
        self._routing_away = away
        self._spliced = 0
        # The routing process must have a descriptor for each.
        self._most_spliced = max(services.descriptors.requests // services.config.server.processes, 8)

    def successor(self) -> asyncio.Protocol:
        self._spliced += 1
        return Splice(self._admin_path, self._instead, self._over)

    def handed_over(self) -> int:
        return 2 * self._spliced

    def _over(self) -> None:
        self._spliced -= 1

    def _instead(self, request: bytes, refused: bool) -> bytes | None:
        """This process is alive, whatever the other is; everything else only the other knows."""
        crowded = self._spliced > self._most_spliced
        if not (crowded or refused or self._routing_away()):
            return None
        method, _, rest = request.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        head_only = method == b"HEAD"
        if path.decode("latin-1") in LIVENESS_PATHS:
            return _answer(200, [], msgspec.json.encode({"status": "ok"}), head_only)
        if crowded:
            overload = too_many_requests()
            log_refusal(overload, None, method.decode("latin-1"), path)
            return _answer(*error_response(overload), head_only)
        if path == b"/readyz":
            return _answer(503, [], msgspec.json.encode({"status": "not ready", "reasons": [AWAY]}), head_only)
        if not refused:
            return None
        error = RoutingAway(AWAY)
        log_refusal(error, None, method.decode("latin-1"), path)
        return _answer(*error_response(error), head_only)


class AdminFront:
    """Of the routing process: everything but the data routes, on a unix socket. One request per connection: what a
    client asks next on one that was spliced here may belong to a data process."""

    def __init__(self, services: Services) -> None:
        self._runner = make_runner(services, {})
        self._runner.app.on_response_prepare.append(_close_after)
        self._server: asyncio.AbstractServer | None = None

    async def start(self, listener: socket.socket, backlog: int = 128) -> None:
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Paced(server()), sock=listener, backlog=backlog)

    async def stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def close(self) -> None:
        await self.stop_listening()
        await self._runner.cleanup()


async def _close_after(request: web.Request, response: web.StreamResponse) -> None:
    response.force_close()
    response.headers["connection"] = "close"


def _answer(status: int, headers: Headers, body: bytes, head_only: bool) -> bytes:
    headers = [*headers, (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    lines = [b"HTTP/1.1 %d %b" % (status, HTTPStatus(status).phrase.encode())]
    return b"\r\n".join(lines + [b"%b: %b" % pair for pair in headers]) + b"\r\n\r\n" + (b"" if head_only else body)

