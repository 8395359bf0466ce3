"""Operators' requests that another process of this router answers: theirs goes there, and the response comes back.

Guarantees: status, headers and body are those of the other process; a client that reads slowly slows the sender, so
nothing piles up here.
Failure modes: where the other process does not answer, the client gets 503 `routing_unavailable`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sgl_router.errors import ConnectFailed, RoutingUnavailable, UpstreamTimeout, UpstreamUnreachable
from sgl_router.http.envelope import ERROR_HEADER
from sgl_router.upstream import Deadline, UpstreamPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from sgl_router.descriptors import Descriptors
    from sgl_router.http import ResponseWriter
    from sgl_router.http.request import Request
    from sgl_router.services import Services

__all__ = ["Forward"]

_CONNECT_SECS = 5.0
_ANSWER_SECS = 30.0
_IDLE_SECS = 30.0


class _Error(msgspec.Struct):
    code: str


class _Envelope(msgspec.Struct):
    error: _Error


class Forward:
    """To the process that serves on the unix socket at `path`. `away`: what to tell clients while it does not."""

    def __init__(self, path: str, away: Callable[[], str], descriptors: Descriptors, connections: int) -> None:
        self._url = "unix:" + path
        self._away = away
        self._pool = UpstreamPool(descriptors=descriptors, max_connections=connections)

    async def serve(self, services: Services, request: Request, writer: ResponseWriter) -> None:
        """Raises RoutingUnavailable, UpstreamTimeout and ClientGone."""
        with Deadline() as deadline:
            try:
                # HEAD is asked as GET: `out` leaves the body out, and knows its length.
                exchange = await self._pool.open(
                    self._url,
                    b"GET" if request.method == "HEAD" else request.method.encode("ascii"),
                    request.target,
                    b"%b\r\nx-request-id: %b" % (request.forwarded, request.request_id.encode("ascii")),
                    request.body,
                    deadline=deadline,
                    connect_secs=_CONNECT_SECS,
                    answer_secs=_ANSWER_SECS,
                )
            except (ConnectFailed, UpstreamUnreachable, UpstreamTimeout) as error:
                raise RoutingUnavailable(self._away()) from error
            with exchange:
                connection = exchange.connection
                if connection.complete:
                    deadline.disarm()
                    body = connection.take()
                    await writer.send(connection.status, connection.lines + _code(connection.status, body), body)
                    return
                await writer.start(connection.status, connection.lines)
                deadline.disarm()
                while (piece := await exchange.read()) is not None:
                    deadline.disarm()
                    await writer.write(piece)
                    deadline.arm(_IDLE_SECS, _silent)
                deadline.disarm()
                await writer.end()

    def close(self) -> None:
        self._pool.close()


def _silent() -> UpstreamTimeout:
    return UpstreamTimeout(f"the response stopped for {_IDLE_SECS:g} s")


def _code(status: int, body: bytes) -> bytes:
    """The header with an error's code, which no worker may set and the pool therefore drops."""
    if status < 400:
        return b""
    try:
        code = msgspec.json.decode(body, type=_Envelope).error.code
    except msgspec.DecodeError:
        return b""
    return b"\r\n%b: %b" % (ERROR_HEADER, code.encode("ascii", "replace"))
