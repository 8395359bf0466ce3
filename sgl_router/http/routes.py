"""Which paths there are, and what answers them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from sgl_router.errors import MethodNotAllowed, RouteNotFound, RouterError
from sgl_router.http import ResponseWriter
from sgl_router.http.request import Request

if TYPE_CHECKING:
    from sgl_router.config import Config
    from sgl_router.descriptors import Descriptors
    from sgl_router.http.headers import Headers

__all__ = ["UNMATCHED", "Accounting", "HttpServices", "Route", "Routes", "Serve"]

Serve = Callable[[Any, Request, ResponseWriter], Awaitable[None]]
"""Answers one request, given what the server was given for it (`HttpServices`, of which the server itself uses little).
May raise RouterError before its response has begun: the client then gets that."""


class Counter(Protocol):
    """Requests under way."""

    count: int


class HttpServices(Protocol):
    """As much of what handlers are given as the server uses."""

    config: Config
    descriptors: Descriptors
    draining: bool
    closing: bool

    @property
    def in_flight(self) -> Counter: ...


class Accounting(Protocol):
    """`begin` and `end` enclose a request from the end of its headers to the end of its response."""

    def begin(self, route: str, method: str) -> None: ...

    def end(self, route: str, method: str, status: int) -> None: ...

    def refusal(
        self, error: RouterError, name: str, method: str, target: bytes | str, allow: str
    ) -> tuple[int, Headers, bytes]:
        """Status, headers and body for an error that no handler answered."""

    def failed(self, name: str, path: str) -> RouterError:
        """The error for an exception that no handler foresaw, while that is being handled."""


_SHOWN = 200


class Route:
    """One path and what answers it, by method; whoever answers GET answers HEAD.

    A `template` that ends in `{id}` stands for every path that begins as it does and goes on. `connects`: answering
    takes a connection to another process, so no more are let in than there are file descriptors for.
    """

    __slots__ = ("allow", "connects", "handlers", "template")

    def __init__(self, template: str, *, connects: bool = False, **handlers: Serve) -> None:
        self.template = template
        self.connects = connects
        self.handlers = handlers
        if "GET" in handlers:
            handlers.setdefault("HEAD", handlers["GET"])
        self.allow = ", ".join(handlers)
        """The value of the header that a refused method is answered with."""

    def refusal(self, method: str, path: str) -> RouterError:
        """Why `method` is not answered here."""
        if not self.handlers:
            return RouteNotFound(f"there is no {path[:_SHOWN]!r} here")
        return MethodNotAllowed(f"{method[:20]} is not allowed on {path[:_SHOWN]!r}")


UNMATCHED = Route("unmatched")
"""Of every path that no other route takes."""


class Routes:
    """The routes of one listener. `exact`: by path as it stands in the request, of which each route has one spelling:
    a proxy in front that keeps clients from a path must not be got around by another way to write it."""

    __slots__ = ("_prefixes", "exact")

    def __init__(self, routes: Iterable[Route]) -> None:
        self.exact: dict[bytes, Route] = {}
        self._prefixes: list[tuple[bytes, Route]] = []
        for route in routes:
            path = route.template.encode("ascii")
            if path.endswith(b"{id}"):
                self._prefixes.append((path.removesuffix(b"{id}"), route))
            else:
                self.exact[path] = route

    def other(self, path: bytes) -> Route:
        """The route of a path that is not in `exact`."""
        for prefix, route in self._prefixes:
            if path.startswith(prefix) and len(path) > len(prefix):
                return route
        return UNMATCHED
