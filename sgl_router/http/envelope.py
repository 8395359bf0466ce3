"""The error body clients get: OpenAI's envelope, with the router's code in a header too."""

from __future__ import annotations

import msgspec

from sgl_router.errors import RouterError, error_type
from sgl_router.http import Headers

__all__ = ["ERROR_HEADER", "error_event", "error_response"]

ERROR_HEADER = b"x-router-error-code"


def error_response(error: RouterError) -> tuple[int, Headers, bytes]:
    """Status, headers and body of an error."""
    headers = [(b"content-type", b"application/json"), (ERROR_HEADER, error.code.value.encode())]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after))
    return error.status, headers, _body(error)


def error_event(error: RouterError) -> bytes:
    """The same as a server-sent event, for a stream whose status line is long gone. The blank line in front ends
    whatever event was cut short."""
    return b"\n\ndata: " + _body(error) + b"\n\n"


def _body(error: RouterError) -> bytes:
    return msgspec.json.encode(
        {
            "error": {
                "message": error.message,
                "type": error_type(error.status),
                "code": error.code.value,
                "param": error.param,
            }
        }
    )
