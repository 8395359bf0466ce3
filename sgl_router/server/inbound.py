"""A request as an HTTP front hands it on."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from sgl_router.proxy import Headers

__all__ = ["Inbound", "request_id"]

_USABLE_ID = re.compile(rb"[\x21-\x7e]{1,128}")


@dataclass(frozen=True)
class Inbound:
    """Whole body, raw header pairs in the order received."""

    method: str
    path: str
    headers: Headers
    body: bytes
    request_id: str


def request_id(headers: Headers) -> str:
    """The client's `x-request-id` where it is printable ASCII of at most 128 characters, else a new one."""
    for name, value in headers:
        if name.lower() == b"x-request-id" and _USABLE_ID.fullmatch(value):
            return value.decode("ascii")
    return f"req-{secrets.token_hex(12)}"
