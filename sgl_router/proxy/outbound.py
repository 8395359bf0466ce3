"""What the data path needs of an HTTP front: somewhere to put an answer."""

from __future__ import annotations

from typing import Protocol

from .connection import Headers

__all__ = ["ClientGone", "Outbound"]


class ClientGone(Exception):
    """The client closed its connection; nobody reads what is still to come."""


class Outbound(Protocol):
    """One answer to one client. Either `send` once, or `start`, any number of `write`, then `end`.

    `write` returns when the client may be sent more: that is the back-pressure. All raise ClientGone.
    """

    @property
    def started(self) -> bool:
        """Whether the status line is out: from then on nothing may be retried or answered otherwise."""

    async def send(self, status: int, headers: Headers, body: bytes) -> None: ...

    async def start(self, status: int, headers: Headers) -> None: ...

    async def write(self, data: bytes) -> None: ...

    async def end(self) -> None: ...

    def abort(self) -> None:
        """Break the connection, so that the client can tell that the answer is not whole."""
