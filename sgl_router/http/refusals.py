"""Why a request is refused before any handler sees it."""

from __future__ import annotations

import errno

from sgl_router.descriptors import tell_shortage
from sgl_router.errors import BadRequest, BodyTooLarge, Overloaded

__all__ = ["body_too_large", "check_encoding", "too_many_requests"]


def check_encoding(encoding: str) -> None:
    """`encoding`: a request's Content-Encoding, empty where it has none. Raises BadRequest."""
    if encoding and encoding.lower() != "identity":
        raise BadRequest(f"content-encoding {encoding.lower()[:40]!r} is not supported; send the body uncompressed")


def body_too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is larger than the limit of {limit} bytes (server.max_body_bytes)")


def too_many_requests() -> Overloaded:
    """No descriptor is left for another request's connection to a worker."""
    tell_shortage(errno.EMFILE, "requests are refused with 503")
    return Overloaded(
        "the router is at its limit of concurrent requests, set by its file descriptors; try again in a moment"
    )
