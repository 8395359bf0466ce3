"""How a request ended, as far as the chosen worker is concerned."""

from __future__ import annotations

from enum import Enum

__all__ = ["FAILURES", "Outcome"]


class Outcome(str, Enum):
    """The same word in the log line and in `sgl_router_worker_requests_total{outcome}`."""

    COMPLETED = "completed"
    CLIENT_ERROR = "client_error"
    """The worker answered 4xx, or 200 and an error event that says so: the request's fault."""
    BACK_PRESSURE = "back_pressure"
    """The worker answered 429 or 503, or 200 and an error event that says so: it is full, not broken."""
    WORKER_ERROR = "worker_error"
    """The worker answered another 5xx."""
    UNREACHABLE = "unreachable"
    """No connection could be made: nothing was sent, so the request may go to another worker."""
    NO_RESPONSE = "no_response"
    """The request was sent, and the worker closed the connection without a response that could be read."""
    ERROR_EVENT = "error_event"
    """The worker answered 200, and what followed was an error that names a 5xx other than 503."""
    EMPTY = "empty"
    """The worker answered 200 and ended its response without one event or document that says anything."""
    ABORTED = "aborted"
    """The worker answered 200 and gave the request up (`finish_reason: "abort"`): somebody told it to."""
    INCOMPLETE = "incomplete"
    TIMEOUT = "timeout"
    EXPIRED = "expired"
    CLIENT_GONE = "client_gone"
    REJECTED = "rejected"
    """Refused by the router itself: no worker was asked."""
    INTERNAL = "internal_error"


FAILURES = frozenset(
    (
        Outcome.WORKER_ERROR,
        Outcome.ERROR_EVENT,
        Outcome.EMPTY,
        Outcome.UNREACHABLE,
        Outcome.NO_RESPONSE,
        Outcome.INCOMPLETE,
        Outcome.TIMEOUT,
    )
)
"""Outcomes that count against the worker's circuit breaker."""
