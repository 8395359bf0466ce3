"""What is open to one worker: idle connections, the count of all, and who waits for one."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from urllib.parse import urlsplit

from sgl_router.upstream.connection import UpstreamConnection

__all__ = ["Address"]


class Address:
    """Where one worker listens, and the connections to it: at most `limit`, those in use and those idle together.
    `unix:/path` is a socket of this machine.

    Who finds all of them in use waits in line for one that is handed back, or for the place of one that was closed.
    """

    __slots__ = ("authority", "host", "idle", "limit", "live", "open", "port", "tls", "unix", "waiting")

    def __init__(self, url: str, limit: int) -> None:
        parts = urlsplit(url)
        self.unix = parts.path if parts.scheme == "unix" else None
        self.host = parts.hostname or ""
        self.tls = parts.scheme == "https"
        self.port = parts.port or (443 if self.tls else 80)
        self.authority = parts.netloc.rpartition("@")[2].encode("ascii") or b"localhost"
        self.limit = limit
        self.idle: list[UpstreamConnection] = []  # latest used last
        self.open = 0
        self.live = True
        self.waiting: OrderedDict[asyncio.Future[UpstreamConnection | None], None] = OrderedDict()

    def take(self, oldest: float) -> UpstreamConnection | None:
        """An idle connection used since `oldest`."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.closed and connection.idle_since >= oldest:
                return connection
            connection.close()
        return None

    async def place(self) -> UpstreamConnection | None:
        """None: a connection may now be made, and `left` must be called once when it is gone or was not to be had.
        Or one that somebody else has finished with."""
        if self.open < self.limit:
            self.open += 1
            return None
        turn: asyncio.Future[UpstreamConnection | None] = asyncio.get_running_loop().create_future()
        self.waiting[turn] = None
        try:
            return await turn
        except asyncio.CancelledError:
            self.waiting.pop(turn, None)
            if turn.done() and not turn.cancelled():  # it was this one's turn: the next one's then
                connection = turn.result()
                if connection is None:
                    self.left()
                elif not self.hand_on(connection):
                    connection.close()
            raise

    def hand_on(self, connection: UpstreamConnection) -> bool:
        """Give a connection to the first in line."""
        return bool(self.waiting) and self._call(connection)

    def left(self) -> None:
        """A connection is gone, or could not be made: its place goes to the first in line."""
        if not (self.waiting and self._call(None)):
            self.open -= 1

    def close_idle(self, oldest: float) -> None:
        """Close what was last used before `oldest`."""
        kept = []
        for connection in self.idle:
            if connection.closed or connection.idle_since < oldest:
                connection.close()
            else:
                kept.append(connection)
        self.idle[:] = kept

    def _call(self, connection: UpstreamConnection | None) -> bool:
        while self.waiting:
            turn, _ = self.waiting.popitem(last=False)
            if not turn.done():  # else it has just been cancelled
                turn.set_result(connection)
                return True
        return False
