"""What is counted of every request, and what is logged of one that no handler answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from sgl_router.errors import InternalError, MethodNotAllowed, RouterError
from sgl_router.http import Headers
from sgl_router.http.envelope import error_response
from sgl_router.observability.refusals import log_refusal

if TYPE_CHECKING:
    from sgl_router.services import Services

__all__ = ["Accounting"]

log = structlog.get_logger(__name__)

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Accounting:
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
