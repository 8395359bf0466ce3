"""Cross-origin requests of web pages: which responses a browser may hand to them, and what they may send."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sgl_router.errors import BadRequest
from sgl_router.http import Headers, ResponseWriter

if TYPE_CHECKING:
    from sgl_router.config import CorsConfig
    from sgl_router.http.request import Request

__all__ = ["Cors", "is_client_route"]

_EXPOSED = b"x-request-id, x-sgl-router-worker, x-sgl-router-decision, x-router-error-code, retry-after"
_METHODS = b"GET, HEAD, POST, OPTIONS"
_MAX_AGE_SECS = 7200
# Names of headers that a page asks leave for, all together; a browser with more is refused by itself.
_MAX_REQUESTED = 2048


def is_client_route(path: str) -> bool:
    """Whether web pages may be let in here: operators' routes are for no page."""
    return path.startswith("/v1/")


class Cors:
    """What `cors.allowed_origins` means for the headers of a response. Credentials (cookies) are never allowed; a key
    in `Authorization` is a header like others."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._allowed = frozenset(origin.encode("ascii") for origin in origins)
        self._any = b"*" in self._allowed
        self._for_any = self._lines(b"*")

    @classmethod
    def of(cls, config: CorsConfig) -> Cors | None:
        """None where no origin is allowed: there is nothing to add to a response."""
        return cls(config.allowed_origins) if config.allowed_origins else None

    def lines(self, headers: Headers) -> bytes:
        """For the response to a request with these headers, as `header_lines` makes them."""
        if self._any:
            return self._for_any
        origin = _value(headers, b"origin")
        if origin is not None and origin in self._allowed:
            return self._lines(origin) + b"\r\nvary: Origin"
        return b"\r\nvary: Origin"

    def is_preflight(self, method: str, headers: Headers) -> bool:
        """Whether a browser asks what a page may send, rather than a client for something."""
        return (
            method == "OPTIONS"
            and _value(headers, b"origin") is not None
            and _value(headers, b"access-control-request-method") is not None
        )

    def preflight(self, headers: Headers) -> bytes:
        """The lines of the response to a preflight, beside those of `lines`. Raises BadRequest for another origin."""
        origin = _value(headers, b"origin") or b""
        if not self._any and origin not in self._allowed:
            raise BadRequest(f"origin {origin[:100].decode('latin-1')!r} is not allowed here (cors.allowed_origins)")
        lines = b"\r\naccess-control-allow-methods: %b\r\naccess-control-max-age: %d" % (_METHODS, _MAX_AGE_SECS)
        requested = _value(headers, b"access-control-request-headers")
        if requested and len(requested) <= _MAX_REQUESTED:
            lines += b"\r\naccess-control-allow-headers: %b" % requested
        return lines

    async def serve(self, services: object, request: Request, writer: ResponseWriter) -> None:
        """Answer a preflight; raises BadRequest."""
        await writer.send(204, self.preflight(request.headers), b"")

    def _lines(self, origin: bytes) -> bytes:
        return b"\r\naccess-control-allow-origin: %b\r\naccess-control-expose-headers: %b" % (origin, _EXPOSED)


def _value(headers: Headers, name: bytes) -> bytes | None:
    for key, value in headers:
        if len(key) == len(name) and key.lower() == name:
            return value
    return None
