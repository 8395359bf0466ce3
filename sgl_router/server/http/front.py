"""The native front: its listener, its connections, and the clock that watches them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from email.utils import formatdate
from typing import TYPE_CHECKING

from sgl_router.server.aiohttp_front import close_idle, make_runner
from sgl_router.server.cors import Cors
from sgl_router.server.door import Door, turns
from sgl_router.server.exchange import SERVER, Exchanges
from sgl_router.server.memory import Trimmer, body_budget
from sgl_router.server.routes import DATA_ROUTES, Routes

from .connection import ClientConnection
from .limits import HttpLimits
from .paced import Paced

if TYPE_CHECKING:
    from sgl_router.server.services import Services

__all__ = ["NativeFront"]

# For answers that were given in full to reach their clients when the router stops.
_LAST_BYTES_SECS = 0.25


class NativeFront:
    """Data routes on own connections; a connection that asks for anything else becomes aiohttp's for good."""

    def __init__(self, services: Services, routes: Routes = DATA_ROUTES, limits: HttpLimits | None = None) -> None:
        self.services = services
        self.limits = limits or HttpLimits()
        self.routes = {path.encode("ascii"): (path, serve) for path, serve in routes.items()}
        self.exchanges = Exchanges(services)
        self.cors = Cors.of(services.config.cors)
        self.max_body_bytes = services.config.server.max_body_bytes
        self.bodies = body_budget(services.config.server)
        self.trimmer = Trimmer()
        self.connections: set[ClientConnection] = set()
        self.loop = asyncio.get_running_loop()
        self.now = 0.0
        """The time of the last sweep, plus the interval: waits that are counted from it are never cut short."""
        self.date_line = b""
        self.server_line = b"server: " + SERVER.encode("ascii") + b"\r\n"
        self._runner = make_runner(services, routes)
        self.in_flight = services.in_flight
        self.descriptors = services.descriptors
        self._door: Door | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None

    async def start(self, listener: socket.socket, backlog: int = 2048) -> None:
        """Serve on a bound socket."""
        await self._runner.setup()
        # Connections inherit both: no wait before a small write goes out, and silent peers are found out in the end.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._sweep()
        self._door = Door(listener, lambda: ClientConnection(self), self._in_use, self.descriptors, backlog)
        await self._door.open()

    async def stop_listening(self) -> None:
        """Accept nothing new, close what is idle. Requests in flight go on. Idempotent."""
        if self._door is not None:
            self._shut()
            await turns()
            close_idle(self._runner)
        for connection in list(self.connections):
            connection.close_if_idle()

    async def close(self) -> None:
        """Cut off whatever is still open. Idempotent."""
        self._shut()
        tasks = [task for connection in list(self.connections) if (task := connection.cut_off()) is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.connections:
            self._empty = asyncio.Event()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._empty.wait(), _LAST_BYTES_SECS)
        for connection in list(self.connections):
            connection.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.trimmer.close()
        await self._runner.cleanup()

    def _shut(self) -> None:
        if self._door is not None:
            self._door.close()
            self._door = None

    def forget(self, connection: ClientConnection) -> None:
        self.connections.discard(connection)
        if not self.connections and self._empty is not None:
            self._empty.set()

    def successor(self) -> asyncio.Protocol:
        """An aiohttp protocol, to take over a connection."""
        assert self._runner.server is not None, "the front has been started"
        return Paced(self._runner.server())

    def handed_over(self) -> int:
        """Descriptors of connections that are no longer this front's."""
        return len(self._runner.server.connections) if self._runner.server is not None else 0

    def _in_use(self) -> int:
        return len(self.connections) + self.handed_over()

    def _sweep(self) -> None:
        now = self.loop.time()
        if self._door is not None and self._door.full:
            spared = now + self.limits.idle_secs - self.limits.crowded_idle_secs
            for connection in [connection for connection in self.connections if connection.due <= spared]:
                connection.close_if_idle()
        self.now = now + self.limits.sweep_secs
        self.date_line = b"date: " + formatdate(usegmt=True).encode("ascii") + b"\r\n"
        for connection in [connection for connection in self.connections if connection.due <= now]:
            connection.overdue()
        self._timer = self.loop.call_later(self.limits.sweep_secs, self._sweep)
