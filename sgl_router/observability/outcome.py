"""How a request ended, as far as the chosen worker is concerned."""

from __future__ import annotations

from enum import Enum

__all__ = ["Outcome"]


class Outcome(str, Enum):
    """The same word in the log line and in `sgl_router_worker_requests_total{outcome}`."""

    COMPLETED = "completed"
    CLIENT_ERROR = "client_error"
    """The worker answered 4xx: the request's fault."""
    BACK_PRESSURE = "back_pressure"
    """The worker answered 429 or 503: it is full, not broken."""
    WORKER_ERROR = "worker_error"
    """The worker answered another 5xx."""
    UNREACHABLE = "unreachable"
    INCOMPLETE = "incomplete"
    TIMEOUT = "timeout"
    EXPIRED = "expired"
    CLIENT_GONE = "client_gone"
    REJECTED = "rejected"
    """Refused by the router itself: no worker was asked."""
    INTERNAL = "internal_error"
