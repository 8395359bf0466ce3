"""Every failure a client can be told about, and the one table that turns it into an HTTP answer."""

from __future__ import annotations

from enum import Enum

__all__ = [
    "BadRequest",
    "BodyTooLarge",
    "ConnectFailed",
    "ErrorCode",
    "InternalError",
    "MethodNotAllowed",
    "ModelNotFound",
    "NoHealthyWorkers",
    "Overloaded",
    "QueueFull",
    "QueueTimeout",
    "RouteNotFound",
    "RouterError",
    "RoutingUnavailable",
    "SnapshotBusy",
    "StaleRequestExpired",
    "UpstreamBodyIncomplete",
    "UpstreamTimeout",
    "UpstreamUnreachable",
    "error_type",
]


class ErrorCode(str, Enum):
    """Stable machine codes: the `x-router-error-code` header, `error.code`, the log field and the metric label."""

    BAD_REQUEST = "bad_request"
    MODEL_NOT_FOUND = "model_not_found"
    ROUTE_NOT_FOUND = "route_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    BODY_TOO_LARGE = "body_too_large"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_BODY_INCOMPLETE = "upstream_body_incomplete"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    STALE_REQUEST_EXPIRED = "stale_request_expired"
    NO_HEALTHY_WORKERS = "no_healthy_workers"
    SNAPSHOT_BUSY = "snapshot_busy"
    ROUTING_UNAVAILABLE = "routing_unavailable"
    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    OVERLOADED = "overloaded"
    INTERNAL_ERROR = "internal_error"


class RouterError(Exception):
    """A failure with a stable code. `message` reaches the client: it must name no worker address."""

    code = ErrorCode.INTERNAL_ERROR
    status = 500
    retry_after: int | None = None
    """Seconds after which the same request may do better."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class BadRequest(RouterError):
    code, status = ErrorCode.BAD_REQUEST, 400


class ModelNotFound(RouterError):
    code, status = ErrorCode.MODEL_NOT_FOUND, 404


class RouteNotFound(RouterError):
    code, status = ErrorCode.ROUTE_NOT_FOUND, 404


class MethodNotAllowed(RouterError):
    code, status = ErrorCode.METHOD_NOT_ALLOWED, 405


class BodyTooLarge(RouterError):
    code, status = ErrorCode.BODY_TOO_LARGE, 413


class UpstreamUnreachable(RouterError):
    """No connection could be made, or it broke before a response began."""

    code, status = ErrorCode.UPSTREAM_UNREACHABLE, 502


class ConnectFailed(UpstreamUnreachable):
    """No connection could be made: nothing was sent, so another worker may be asked."""


class UpstreamBodyIncomplete(RouterError):
    """The worker's answer began and then broke off."""

    code, status = ErrorCode.UPSTREAM_BODY_INCOMPLETE, 502


class UpstreamTimeout(RouterError):
    code, status = ErrorCode.UPSTREAM_TIMEOUT, 504


class StaleRequestExpired(RouterError):
    code, status = ErrorCode.STALE_REQUEST_EXPIRED, 504


class NoHealthyWorkers(RouterError):
    code, status, retry_after = ErrorCode.NO_HEALTHY_WORKERS, 503, 1


class QueueFull(RouterError):
    """As many requests wait for a worker as may."""

    code, status = ErrorCode.QUEUE_FULL, 429

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueTimeout(RouterError):
    """Waited for a worker for as long as a request may."""

    code, status = ErrorCode.QUEUE_TIMEOUT, 503

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(RouterError):
    """The router itself lacks what the request needs: descriptors, ports or memory."""

    code, status = ErrorCode.OVERLOADED, 503

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RoutingUnavailable(RouterError):
    """Only the routing process could answer this, and it is being restarted or does not answer."""

    code, status, retry_after = ErrorCode.ROUTING_UNAVAILABLE, 503, 1


class SnapshotBusy(RouterError):
    """A snapshot of the index is being sent to somebody else."""

    code, status = ErrorCode.SNAPSHOT_BUSY, 429


class InternalError(RouterError):
    code, status = ErrorCode.INTERNAL_ERROR, 500


_TYPES = {404: "not_found_error", 429: "rate_limit_error", 503: "service_unavailable_error"}


def error_type(status: int) -> str:
    """OpenAI's `error.type` for an HTTP status."""
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
