"""The HTTP server: its listeners, its connections, and the clock that watches them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from email.utils import formatdate
from typing import TYPE_CHECKING

from sgl_router.http.connection import ClientConnection
from sgl_router.http.cors import Cors
from sgl_router.http.door import Door, turns
from sgl_router.http.limits import HttpLimits
from sgl_router.http.memory import Trimmer, body_budget

if TYPE_CHECKING:
    from sgl_router.http.routes import Accounting, HttpServices, Routes

__all__ = ["HttpServer"]

# For answers that were given in full to reach their clients when the router stops.
_LAST_BYTES_SECS = 0.25


class HttpServer:
    """`listen` as often as there are listeners; then `stop_listening`; then, when the requests in flight are over or
    out of time, `close`. `services` is what handlers are given; `accounting` hears of every request."""

    def __init__(self, services: HttpServices, accounting: Accounting, limits: HttpLimits | None = None) -> None:
        self.services = services
        self.accounting = accounting
        self.limits = limits or HttpLimits()
        self.cors = Cors.of(services.config.cors)
        self.max_body_bytes = services.config.server.max_body_bytes
        self.bodies = body_budget(services.config.server)
        self.trimmer = Trimmer()
        self.connections: set[ClientConnection] = set()
        self.loop = asyncio.get_running_loop()
        self.now = 0.0
        """The time of the last sweep, plus the interval: waits that are counted from it are never cut short."""
        self.date_line = b""
        self.server_line = b"server: sgl-router\r\n"
        self.in_flight = services.in_flight
        self.descriptors = services.descriptors
        self._doors: list[Door] = []
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None

    async def listen(self, listener: socket.socket, routes: Routes, backlog: int = 2048) -> None:
        """Answer requests for `routes` on a bound socket."""
        if listener.family != socket.AF_UNIX:
            # Connections inherit both: no wait before a small write goes out; silent peers are found out in the end.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self._timer is None:
            self._sweep()
        door = Door(
            listener, lambda: ClientConnection(self, routes), lambda: len(self.connections), self.descriptors, backlog
        )
        self._doors.append(door)
        await door.open()

    async def stop_listening(self) -> None:
        """Accept nothing new, close what is idle. Requests in flight go on. Idempotent."""
        if self._doors:
            self._shut()
            await turns()
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

    def _shut(self) -> None:
        for door in self._doors:
            door.close()
        self._doors.clear()

    def forget(self, connection: ClientConnection) -> None:
        self.connections.discard(connection)
        if not self.connections and self._empty is not None:
            self._empty.set()

    def _sweep(self) -> None:
        now = self.loop.time()
        if any(door.full for door in self._doors):
            spared = now + self.limits.idle_secs - self.limits.crowded_idle_secs
            for connection in [connection for connection in self.connections if connection.due <= spared]:
                connection.close_if_idle()
        self.now = now + self.limits.sweep_secs
        self.date_line = b"date: " + formatdate(usegmt=True).encode("ascii") + b"\r\n"
        for connection in [connection for connection in self.connections if connection.due <= now]:
            connection.overdue()
        self._timer = self.loop.call_later(self.limits.sweep_secs, self._sweep)
