"""What every request goes through: its counters, its limits, and an error's way into a response."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import structlog

from sgl_router.api.envelope import error_response
from sgl_router.descriptors import tell_shortage
from sgl_router.errors import BadRequest, BodyTooLarge, InternalError, MethodNotAllowed, Overloaded, RouterError
from sgl_router.observability.refusals import log_refusal
from sgl_router.proxy import Headers

if TYPE_CHECKING:
    from .services import Services

__all__ = [
    "SERVER",
    "Exchanges",
    "body_too_large",
    "check_encoding",
    "too_many_requests",
]

log = structlog.get_logger(__name__)

# The `server` header of every answer that a worker did not give.
SERVER = "sgl-router"

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Exchanges:
    """One per server. `begin` and `end` enclose a request from the end of its headers to the end of its answer."""

    __slots__ = ("_counted", "_in_flight", "_metrics", "_services")

    def __init__(self, services: Services, *, counted: bool = True) -> None:
        self._services = services
        self._counted = counted
        self._metrics = services.metrics
        self._in_flight = services.in_flight

    @property
    def closing(self) -> bool:
        """Whether each connection ends with its next answer."""
        return self._services.draining

    def begin(self, route: str, method: str) -> None:
        """`route` is a template, so that there are few."""
        if self._counted:
            self._metrics.requests.labels(route, method if method in _METHODS else "other").value += 1
        self._in_flight.count += 1

    def end(self, route: str, method: str, status: int) -> None:
        """`status` is 499 where the client left before an answer began."""
        if self._counted:
            self._metrics.responses.labels(route, method if method in _METHODS else "other", str(status)).value += 1
        self._in_flight.__exit__()

    def refusal(
        self, error: RouterError, name: str, method: str, target: bytes | str, allow: str
    ) -> tuple[int, Headers, bytes]:
        """Status, headers and body for an error that no handler answered; its log line is written. `name`: the
        request's id, `target` as `log_refusal` takes it, `allow`: what the route takes."""
        self._metrics.errors.labels(error.code.value).inc()
        log_refusal(error, name, method, target)
        status, headers, body = error_response(error)
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", allow.encode("ascii")))
        return status, headers, body

    def failed(self, name: str, path: str) -> InternalError:
        """The error for an exception nobody foresaw; to be called while that is being handled."""
        log.exception("request failed", request_id=name, path=path)
        return InternalError("the router failed to handle this request")


def check_encoding(encoding: str) -> None:
    """`encoding`: a request's Content-Encoding, empty where it has none. Raises BadRequest."""
    if encoding and encoding.lower() != "identity":
        raise BadRequest(f"content-encoding {encoding.lower()[:40]!r} is not supported; send the body uncompressed")


def body_too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is larger than the limit of {limit} bytes (server.max_body_bytes)")


def too_many_requests() -> Overloaded:
    """No descriptor is left for another request's connection to a worker."""
    tell_shortage(errno.EMFILE, "requests are refused with 503")
    return Overloaded("as many requests are under way as this router has file descriptors for")
