"""What can be wrong with a worker that was asked something: one enum for logs, metrics and status pages."""

from __future__ import annotations

from enum import Enum

__all__ = ["WorkerFault"]


class WorkerFault(str, Enum):
    CONNECT_FAILED = "connect_failed"
    TIMED_OUT = "timed_out"
    CONNECTION_LOST = "connection_lost"
    NOT_READY = "not_ready"
    UNAUTHORIZED = "unauthorized"
    BAD_STATUS = "bad_status"
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    INVALID = "invalid"
    NOT_A_WORKER = "not_a_worker"
    ROUTER_SHORT = "router_short"
    """The router is short of file descriptors or memory: says nothing of the worker."""

    @classmethod
    def of_status(cls, status: int) -> WorkerFault:
        """The fault behind an HTTP status that is not a success."""
        if status in (401, 403):
            return cls.UNAUTHORIZED
        return cls.NOT_READY if status == 503 else cls.BAD_STATUS
