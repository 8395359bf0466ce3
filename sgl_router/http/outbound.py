"""What the data path needs of the HTTP server: somewhere to put a response."""

from __future__ import annotations

from typing import Protocol

from sgl_router.http.headers import Headers

__all__ = ["ClientGone", "DirectWriter", "ResponseWriter"]


class ClientGone(Exception):
    """The client closed its connection; nobody reads what is still to come."""


class ResponseWriter(Protocol):
    """One answer to one client. Either `send` once, or `start`, any number of `write`, then `end`.

    Headers are pairs, or their lines. `write` returns when the client may be sent more: that is the back-pressure. All
    raise ClientGone.
    """

    @property
    def started(self) -> bool:
        """Whether the status line is out: from then on nothing may be retried or answered otherwise."""

    async def send(self, status: int, headers: Headers | bytes, body: bytes) -> None: ...

    async def start(self, status: int, headers: Headers | bytes) -> None: ...

    async def write(self, data: bytes) -> None: ...

    async def end(self) -> None: ...

    def abort(self) -> None:
        """Break the connection, so that the client can tell that the answer is not whole."""


class DirectWriter(ResponseWriter, Protocol):
    """One that can also take a piece at once, outside of any task: a stream then costs no wake-up per event.

    An ResponseWriter without `try_write` is served by `write` alone.
    """

    def try_write(self, data: bytes, last: bool = False) -> bool:
        """Write `data` now, after `start` and before `end`, if the client may be sent more at this moment; where it is
        the `last`, the end too: `end` then only waits.

        False: nothing was taken, because the client is slow, or gone, or the answer is over; `write` is then called
        with the same data and waits or says why. Never raises, never waits; called from the worker's `data_received`.
        The piece that fills the client's buffer is still taken: the next one is the first to be refused.
        """
