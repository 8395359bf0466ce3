"""A request as an HTTP front hands it on."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable

import msgspec

from sgl_router.proxy import Headers

__all__ = ["Inbound", "request_id"]

_USABLE_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Inbound(msgspec.Struct):
    """Whole body, raw header pairs in the order received; `forwarded`: of them, what a worker is to see, as lines."""

    method: str
    path: str
    headers: Headers
    forwarded: bytes
    body: bytes
    request_id: str
    on_sent: Callable[[], None] | None = None

    def sent(self) -> None:
        """The body is not needed any more: a response to it has begun, and may take minutes. To be called once."""
        self.body = b""
        if self.on_sent is not None:
            self.on_sent()


def request_id(headers: Headers) -> str:
    """The client's `x-request-id` where it is printable ASCII of at most 128 characters, else a new one."""
    for name, value in headers:
        if len(name) == 12 and name.lower() == b"x-request-id" and _USABLE_ID.fullmatch(value):
            return value.decode("ascii")
    return f"req-{_PROCESS}{next(_numbers):012x}"


# New ids are unique, not secret: random per process, counted within it.
_PROCESS = secrets.token_hex(6)
_numbers = itertools.count(secrets.randbits(40))
