"""Connections to workers, kept alive between requests and shared by all of them."""

from __future__ import annotations

import asyncio
import errno
import ssl
import time
from collections.abc import Callable
from functools import lru_cache
from types import TracebackType

from sgl_router.descriptors import Descriptors, shortage, spare, tell_shortage
from sgl_router.errors import ConnectFailed, Overloaded, RouterError, UpstreamTimeout, UpstreamUnreachable
from sgl_router.http import Headers
from sgl_router.http.headers import header_lines
from sgl_router.upstream.connection import UpstreamConnection
from sgl_router.upstream.deadline import Deadline
from sgl_router.upstream.host import Address

__all__ = ["UpstreamExchange", "UpstreamPool"]

# SGLang's HTTP server closes a connection idle for 5 s; leaving first avoids sending into a closing one.
IDLE_SECS = 4.0
MAX_IDLE_PER_WORKER = 256
# A worker's address has no more than some 28,000 local ports to be reached from.
MAX_CONNECTIONS_PER_WORKER = 16384


class UpstreamExchange:
    """One request and its response. A context manager: leaving it returns the connection, or drops it where the
    response was not read to its end (then the worker sees the client gone)."""

    __slots__ = ("_address", "_pool", "connection")

    def __init__(self, pool: UpstreamPool, address: Address, connection: UpstreamConnection) -> None:
        self._pool = pool
        self._address = address
        self.connection = connection

    @property
    def status(self) -> int:
        return self.connection.status

    @property
    def headers(self) -> Headers:
        """Those that travel on to the client, names in lower case."""
        return self.connection.headers

    async def read(self) -> bytes | None:
        """The next piece of the body, None at its end. Raises UpstreamBodyIncomplete."""
        return await self.connection.read()

    def __enter__(self) -> UpstreamExchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool._return(self._address, self.connection)


class UpstreamPool:
    """`open` sends a request on a live connection to a worker. One per process."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_connections: int = MAX_CONNECTIONS_PER_WORKER,
        descriptors: Descriptors | None = None,
    ) -> None:
        self._clock = clock
        self._descriptors = descriptors or Descriptors()
        self._max_connections = max_connections
        self._addresses: dict[str, Address] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None

    async def open(
        self,
        url: str,
        method: bytes,
        path: bytes,
        headers: Headers | bytes,
        body: bytes,
        *,
        deadline: Deadline | None = None,
        connect_secs: float = 0.0,
        answer_secs: float = 0.0,
    ) -> UpstreamExchange:
        """Send, and wait for the head of an event stream, for all of any other answer. `headers`: pairs, or their
        lines. Raises ConnectFailed, Overloaded, UpstreamUnreachable and UpstreamBodyIncomplete.

        With a `deadline`, a connection must be had within `connect_secs` (name, handshakes, waiting in line), and the
        answer within `answer_secs` of the call; the deadline is left armed.

        Where a kept-alive connection's close crossed the request on its way (`UpstreamConnection.crossed`), the request
        is sent once more, on a fresh connection to the same worker. ConnectFailed means that nothing was ever sent:
        where that fresh connection cannot be had, UpstreamUnreachable is raised.
        """
        address = self._addresses.get(url)
        if address is None:
            address = self._addresses[url] = Address(url, self._max_connections)
        answer_by = self._clock() + answer_secs
        lines = headers if isinstance(headers, bytes) else header_lines(headers)
        head = b"%b %b HTTP/1.1\r\nhost: %b%b\r\ncontent-length: %d\r\n\r\n" % (
            method, path, address.authority, lines, len(body)
        )  # fmt: skip
        connection = address.take(answer_by - answer_secs - IDLE_SECS)
        resent = False
        while True:
            reused = connection is not None
            if connection is None:
                if deadline is not None:
                    deadline.arm(connect_secs, (_not_reconnected if resent else _not_connected)(connect_secs))
                connection = await address.place()
                reused = connection is not None
                if connection is None:
                    try:
                        connection = await self._connect(address)
                    except ConnectFailed as error:
                        if resent:
                            raise UpstreamUnreachable(_NOT_AGAIN) from error
                        raise
                elif connection.closed:  # while it was handed on
                    connection = None
                    continue
            if deadline is not None:
                deadline.arm(answer_by - self._clock(), _not_answered(answer_secs))
            try:
                await connection.request(head, body, method == b"HEAD")
                return UpstreamExchange(self, address, connection)
            except UpstreamUnreachable:
                again = reused and not resent and connection.crossed
                connection.close()
                if not again:
                    raise
                resent, connection = True, None
            except BaseException:
                connection.close()
                raise

    def forget(self, url: str) -> None:
        """The worker is gone: close its idle connections."""
        address = self._addresses.pop(url, None)
        if address is not None:
            address.live = False
            address.close_idle(_NEVER)

    def close(self) -> None:
        for url in list(self._addresses):
            self.forget(url)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    async def _connect(self, address: Address) -> UpstreamConnection:
        """Raises ConnectFailed where the worker is to blame, Overloaded where this machine is short of something."""
        connection = UpstreamConnection(address.left)
        try:
            if sum(one.open for one in self._addresses.values()) > self._descriptors.requests:
                await self._close_oldest()
            if address.tls and self._tls is None:
                self._tls = _tls_context()
            for last in (False, True):
                try:
                    loop = asyncio.get_running_loop()
                    if address.unix is not None:
                        await loop.create_unix_connection(lambda: connection, address.unix)
                    else:
                        await loop.create_connection(
                            lambda: connection, address.host, address.port, ssl=self._tls if address.tls else None
                        )
                    break
                except OSError as error:  # refused, unreachable, name not found, TLS refused; or the router's own
                    code = shortage(error)
                    if code is None:
                        raise ConnectFailed("no connection to the worker could be made") from error
                    if last or code == errno.EADDRNOTAVAIL or not await self._close_oldest():
                        raise _overloaded(code) from error
        except BaseException:
            connection.leave()
            raise
        return connection

    async def _close_oldest(self) -> bool:
        """Close the connection that has been idle for longest, to whichever worker, for its descriptor."""
        idle = [address for address in self._addresses.values() if address.idle]
        if not idle:
            return False
        min(idle, key=lambda address: address.idle[0].idle_since).idle.pop(0).close()
        await asyncio.sleep(0)  # a transport closes its socket in the next turn
        return True

    def _return(self, address: Address, connection: UpstreamConnection) -> None:
        if not (connection.reusable and address.live):
            connection.close()
        elif address.waiting and address.hand_on(connection):
            pass
        elif len(address.idle) < MAX_IDLE_PER_WORKER:
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
        for address in self._addresses.values():
            address.close_idle(oldest)
        if any(address.idle for address in self._addresses.values()):
            self._sweeper = asyncio.get_running_loop().call_later(IDLE_SECS, self._sweep)


_NEVER = float("inf")
_NOT_AGAIN = "the worker closed the connection as the request was sent, and no other could be made"


def _tls_context() -> ssl.SSLContext:
    """Raises Overloaded: a context made without a descriptor to read the certificates with would trust nobody."""
    if not spare(1):
        raise _overloaded(errno.EMFILE)
    return ssl.create_default_context()


def _overloaded(code: int) -> Overloaded:
    tell_shortage(code, "requests are refused with 503")
    return Overloaded("the router has no connection to a worker to spare; try again in a moment")


@lru_cache(maxsize=16)
def _not_connected(secs: float) -> Callable[[], RouterError]:
    return lambda: ConnectFailed(f"no connection to the worker within {secs:g} s")


@lru_cache(maxsize=16)
def _not_reconnected(secs: float) -> Callable[[], RouterError]:
    return lambda: UpstreamUnreachable(f"{_NOT_AGAIN} within {secs:g} s")


@lru_cache(maxsize=16)
def _not_answered(secs: float) -> Callable[[], RouterError]:
    return lambda: UpstreamTimeout(f"the worker did not respond within {secs:g} s")
