"""The listening socket of a process: lets clients in while there are descriptors for what their requests need."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable

from sgl_router.descriptors import Descriptors, tell_shortage

__all__ = ["Door", "turns"]

_LOOK_SECS = 0.02


async def turns() -> None:
    """Some turns of the event loop: what has arrived on its connections is read."""
    for _ in range(3):
        await asyncio.sleep(0)


class Door:
    """Accepts connections while fewer than `descriptors.connections` are open; then they wait in the kernel's queue,
    and are accepted again as soon as one of the others has closed.

    `made` gives a protocol for each; `count` says how many descriptors of clients are in use. The socket that is
    served is a copy: closing that one is the only way to stop accepting that every event loop has.
    """

    def __init__(
        self,
        listener: socket.socket,
        made: Callable[[], asyncio.Protocol],
        count: Callable[[], int],
        descriptors: Descriptors,
        backlog: int,
    ) -> None:
        self.full = False
        """Whether clients wait outside."""
        self._listener = listener
        self._made = made
        self._count = count
        self._descriptors = descriptors
        self._backlog = min(backlog, descriptors.backlog)
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None
        self._looking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to accept. Raises OSError."""
        unix = self._listener.family == socket.AF_UNIX
        create = self._loop.create_unix_server if unix else self._loop.create_server
        self._server = await create(self._enter, sock=self._listener.dup(), backlog=self._backlog, start_serving=False)
        await self._server.start_serving()

    def close(self) -> None:
        """Accept nothing more, for good. Idempotent."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._server is not None:
            self._server.close()
            self._server = None
        self._listener.close()

    def _enter(self) -> asyncio.Protocol:
        if self._looking is None and self._count() + 1 >= self._descriptors.connections:
            self._looking = self._loop.create_task(self._wait_for_room(), name="descriptors")
        return self._made()

    async def _wait_for_room(self) -> None:
        try:
            while self._count() >= self._descriptors.connections or self._server is None:
                if self._server is not None:
                    self._server.close()
                    self._server = None
                    self.full = True
                    tell_shortage(errno.EMFILE, "new clients wait", clients=self._descriptors.connections)
                await asyncio.sleep(_LOOK_SECS)
                if self._count() < self._descriptors.connections:
                    with contextlib.suppress(OSError):  # something else has taken the last descriptors
                        await self.open()
        finally:
            self.full = False
            self._looking = None
