"""The HTTP front, whichever serves it: the daemon starts one, stops it, and knows nothing else of it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Protocol

from .aiohttp_front import AiohttpFront
from .routes import DATA_ROUTES, Routes

if TYPE_CHECKING:
    from .services import Services

__all__ = ["Front", "make_front"]


class Front(Protocol):
    """`start`, then `stop_listening`, then, when the requests in flight are over or out of time, `close`."""

    async def start(self, listener: socket.socket, backlog: int = 2048) -> None:
        """Serve on a bound socket."""

    async def stop_listening(self) -> None:
        """Accept nothing new, close what is idle. Requests in flight go on. Idempotent."""

    async def close(self) -> None:
        """Cut off whatever is still open. Idempotent."""


def make_front(services: Services, kind: str = "native", routes: Routes = DATA_ROUTES) -> Front:
    """`kind`: `server.http_front`. To be called on the running loop."""
    if kind == "aiohttp":
        return AiohttpFront(services, routes)
    from .http.front import NativeFront

    return NativeFront(services, routes)
