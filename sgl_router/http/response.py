"""One answer, written as the bytes of HTTP/1.1 (or 1.0, for a client that speaks that)."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from sgl_router.http import ClientGone, Headers, header_lines

if TYPE_CHECKING:
    from sgl_router.http.connection import ClientConnection

__all__ = ["Http1Writer"]

_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_LINES: dict[tuple[int, bool], bytes] = {}
_BODILESS = frozenset((204, 304))
# Below, one write of a copy costs less than several. Not `writelines`: that of asyncio in Python 3.12 and 3.13 never
# pauses the writer, so a client that does not read could take any amount of memory.
JOIN_LIMIT = 32 << 10


class Http1Writer:
    """An ResponseWriter, and a DirectWriter, on a client's connection. `headers` never contain the framing: not
    Content-Length, Transfer-Encoding or Connection."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_head_only",
        "_http_1_0",
        "_request_id",
        "complete",
        "cors",
        "keep_alive",
        "started",
        "status",
    )

    def __init__(
        self, connection: ClientConnection, request_id: str, keep_alive: bool, http_1_0: bool, head_only: bool
    ) -> None:
        self._connection = connection
        self._request_id = request_id
        self._http_1_0 = http_1_0
        self._head_only = head_only
        self._chunked = False
        self.keep_alive = keep_alive
        self.started = False
        self.complete = False
        self.cors = b""  # lines that every response on this exchange has
        self.status = 499

    async def send(self, status: int, headers: Headers | bytes, body: bytes) -> None:
        connection = self._connection
        if connection.gone:
            raise ClientGone
        if status in _BODILESS:
            head, body = self._head(status, headers, b"\r\n"), b""
        else:
            head = self._head(status, headers, b"\r\ncontent-length: %d\r\n" % len(body))
            if self._head_only:
                body = b""
        self.complete = True
        if len(body) > JOIN_LIMIT:
            connection.transport.write(head)
            connection.transport.write(body)
        else:
            connection.transport.write(head + body)
        if connection.write_paused:
            await connection.flushed()

    async def start(self, status: int, headers: Headers | bytes) -> None:
        connection = self._connection
        if connection.gone:
            raise ClientGone
        if status in _BODILESS or self._head_only:
            self._head_only = True
            framing = b"\r\n"
        elif self._http_1_0:
            self.keep_alive = False  # the end of the connection is the end of the body
            framing = b"\r\n"
        else:
            self._chunked = True
            framing = b"\r\ntransfer-encoding: chunked\r\n"
        connection.transport.write(self._head(status, headers, framing))

    async def write(self, data: bytes) -> None:
        if not self._put(data):
            raise ClientGone
        if self._connection.write_paused:
            await self._connection.drained()

    def try_write(self, data: bytes, last: bool = False) -> bool:
        connection = self._connection
        if connection.write_paused or self.complete or connection.gone:
            return False
        if last and self._chunked and data and len(data) <= JOIN_LIMIT:
            self.complete = True
            connection.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
            return True
        return self._put(data)

    async def end(self) -> None:
        connection = self._connection
        if connection.gone:
            raise ClientGone
        if not self.complete:
            self.complete = True
            if self._chunked:
                connection.transport.write(b"0\r\n\r\n")
        if connection.write_paused:
            await connection.flushed()

    def abort(self) -> None:
        self._connection.abort()

    def _put(self, data: bytes) -> bool:
        connection = self._connection
        if connection.gone:
            return False
        if self.complete:  # the end of the body is out: what came after it would be read as the next answer
            connection.abort()
            return False
        if self._chunked:
            if len(data) > JOIN_LIMIT:
                connection.transport.write(b"%x\r\n" % len(data))
                connection.transport.write(data)
                connection.transport.write(b"\r\n")
            elif data:  # an empty chunk would be the last one
                connection.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        elif not self._head_only:
            connection.transport.write(data)
        return True

    def _head(self, status: int, headers: Headers | bytes, framing: bytes) -> bytes:
        """The head up to and including its blank line. ValueError where a header would break out of its line."""
        connection = self._connection
        server = connection.server
        lines = headers if isinstance(headers, bytes) else header_lines(headers)
        if self.cors:
            lines += self.cors
        if server.services.draining and not connection.more_waits:
            self.keep_alive = False  # what the client has sent already is answered first
        if self.keep_alive:
            end = b"connection: keep-alive\r\n\r\n" if self._http_1_0 else b"\r\n"
        else:
            end = b"\r\n" if self._http_1_0 else b"connection: close\r\n\r\n"
        self.started = True
        self.status = status
        return b"%b%b\r\nx-request-id: %b%b%b%b%b" % (
            _LINES.get((status, self._http_1_0)) or _status_line(status, self._http_1_0),
            lines,
            self._request_id.encode("ascii"),
            framing,
            b"" if b"\r\ndate: " in lines else server.date_line,
            b"" if b"\r\nserver: " in lines else server.server_line,
            end,
        )


def _status_line(status: int, http_1_0: bool) -> bytes:
    text = f"HTTP/1.{0 if http_1_0 else 1} {status} {_PHRASES.get(status, '')}"
    line = _LINES[status, http_1_0] = text.encode("ascii")
    return line
