"""Connections to workers, kept alive between requests and shared by all of them."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from types import TracebackType
from urllib.parse import urlsplit

from sgl_router.errors import ConnectFailed, UpstreamUnreachable

from .connection import Headers, UpstreamConnection

__all__ = ["UpstreamExchange", "UpstreamPool"]

# SGLang's HTTP server closes a connection idle for 5 s; leaving first avoids sending into a closing one.
IDLE_SECS = 4.0
MAX_IDLE_PER_WORKER = 256


class UpstreamExchange:
    """One request and its response. A context manager: leaving it returns the connection, or drops it where the
    response was not read to its end (then the worker sees the client gone)."""

    __slots__ = ("_address", "_connection", "_pool")

    def __init__(self, pool: UpstreamPool, address: _Address, connection: UpstreamConnection) -> None:
        self._pool = pool
        self._address = address
        self._connection = connection

    @property
    def status(self) -> int:
        return self._connection.status

    @property
    def headers(self) -> Headers:
        return self._connection.headers

    @property
    def content_length(self) -> int | None:
        return self._connection.content_length

    async def read(self) -> bytes | None:
        """The next piece of the body, None at its end. Raises UpstreamBodyIncomplete."""
        return await self._connection.read()

    def __enter__(self) -> UpstreamExchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool._return(self._address, self._connection)


class _Address:
    """Where one worker listens, and the idle connections to it (latest used last)."""

    __slots__ = ("authority", "host", "idle", "live", "port", "tls")

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self.tls = parts.scheme == "https"
        self.port = parts.port or (443 if self.tls else 80)
        self.authority = parts.netloc.encode("ascii")
        self.idle: list[UpstreamConnection] = []
        self.live = True


class UpstreamPool:
    """`open` sends a request on a live connection to a worker. One per process."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._addresses: dict[str, _Address] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None

    async def open(
        self,
        url: str,
        method: bytes,
        path: bytes,
        headers: Headers,
        body: bytes,
        *,
        connecting: Callable[[], None] = lambda: None,
        sent: Callable[[], None] = lambda: None,
    ) -> UpstreamExchange:
        """Send and wait for the response head. `connecting` runs before a new connection is made, `sent` once one
        is there (so that the caller can bound each phase). Raises ConnectFailed and UpstreamUnreachable.

        A kept-alive connection that the worker closed under the request, no byte answered, is replaced once by a
        fresh one: the worker had decided to close it before it saw the request.
        """
        address = self._addresses.get(url)
        if address is None:
            address = self._addresses[url] = _Address(url)
        head = _head(method, path, address.authority, headers, len(body))
        connection = self._take(address)
        reused = connection is not None
        while True:
            if connection is None:
                connecting()
                connection = await self._connect(address)
            sent()
            try:
                await connection.request(head, body)
                return UpstreamExchange(self, address, connection)
            except UpstreamUnreachable:
                retry = reused and connection.unanswered
                connection.close()
                if not retry:
                    raise
                reused, connection = False, None
            except BaseException:
                connection.close()
                raise

    def forget(self, url: str) -> None:
        """The worker is gone: close its idle connections."""
        address = self._addresses.pop(url, None)
        if address is not None:
            address.live = False
            for connection in address.idle:
                connection.close()
            address.idle.clear()

    def close(self) -> None:
        for url in list(self._addresses):
            self.forget(url)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def _take(self, address: _Address) -> UpstreamConnection | None:
        oldest = self._clock() - IDLE_SECS
        while address.idle:
            connection = address.idle.pop()
            if connection.reusable and connection.idle_since >= oldest:
                return connection
            connection.close()
        return None

    async def _connect(self, address: _Address) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        if address.tls and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            _, connection = await loop.create_connection(
                UpstreamConnection, address.host, address.port, ssl=self._tls if address.tls else None
            )
        except OSError as error:  # refused, unreachable, name not found, TLS refused
            raise ConnectFailed("no connection to the worker could be made") from error
        return connection

    def _return(self, address: _Address, connection: UpstreamConnection) -> None:
        if connection.reusable and address.live and len(address.idle) < MAX_IDLE_PER_WORKER:
            connection.idle_since = self._clock()
            address.idle.append(connection)
            if self._sweeper is None:
                self._sweeper = asyncio.get_running_loop().call_later(IDLE_SECS, self._sweep)
        else:
            connection.close()

    def _sweep(self) -> None:
        """Close what has been idle too long; runs only while something is idle."""
        self._sweeper = None
        oldest = self._clock() - IDLE_SECS
        remain = False
        for address in self._addresses.values():
            keep = []
            for connection in address.idle:
                if connection.closed or connection.idle_since < oldest:
                    connection.close()
                else:
                    keep.append(connection)
            address.idle[:] = keep
            remain = remain or bool(keep)
        if remain:
            self._sweeper = asyncio.get_running_loop().call_later(IDLE_SECS, self._sweep)


def _head(method: bytes, path: bytes, authority: bytes, headers: Headers, length: int) -> bytes:
    lines = [method + b" " + path + b" HTTP/1.1", b"host: " + authority]
    lines += [name + b": " + value for name, value in headers]
    lines.append(b"content-length: %d\r\n\r\n" % length)
    return b"\r\n".join(lines)
