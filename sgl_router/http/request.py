"""A request as the HTTP server hands it on."""

from __future__ import annotations

import itertools
import re
import secrets
from typing import Protocol

import msgspec

from sgl_router.http import Headers

__all__ = ["Account", "Request", "request_id"]

_USABLE_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Account(Protocol):
    """Where a request's bytes are counted."""

    def charge(self, size: int) -> None:
        """Count so many more. Raises Overloaded."""

    def release(self) -> None:
        """Count none any more."""


class Request(msgspec.Struct):
    """Whole body, raw header pairs in the order received; `forwarded`: of them, what a worker is to see, as lines.
    `target`: as it stands in the request line, `path` of it without the query."""

    method: str
    path: str
    target: bytes
    headers: Headers
    forwarded: bytes
    body: bytes
    request_id: str
    account: Account | None = None

    @property
    def query(self) -> bytes:
        return self.target.partition(b"?")[2]

    def sent(self) -> None:
        """The body is not needed any more: a response to it has begun, and may take minutes."""
        self.body = b""
        if self.account is not None:
            self.account.release()

    def charge(self, size: int) -> None:
        """Something of so many bytes was made of the body, and is held. Raises Overloaded."""
        if self.account is not None:
            self.account.charge(size)


def request_id(headers: Headers) -> str:
    """The client's `x-request-id` where it is printable ASCII of at most 128 characters, else a new one."""
    for name, value in headers:
        if len(name) == 12 and name.lower() == b"x-request-id" and _USABLE_ID.fullmatch(value):
            return value.decode("ascii")
    return f"req-{_PROCESS}{next(_numbers):012x}"


# New ids are unique, not secret: random per process, counted within it.
_PROCESS = secrets.token_hex(6)
_numbers = itertools.count(secrets.randbits(40))
