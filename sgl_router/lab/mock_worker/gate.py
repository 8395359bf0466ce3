"""A door that holds requests until a test opens it."""

from __future__ import annotations

import asyncio


class Gate:
    """Open at first. While closed, whoever passes waits; `arrived` tells when they have come."""

    def __init__(self) -> None:
        self._door = asyncio.Event()
        self._door.set()
        self._waiting = 0
        self._watchers: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def waiting(self) -> int:
        """How many are held now."""
        return self._waiting

    @property
    def closed(self) -> bool:
        return not self._door.is_set()

    def close(self) -> None:
        """Hold everyone who arrives from now on."""
        self._door.clear()

    def open(self) -> None:
        """Let everyone through."""
        self._door.set()

    async def arrived(self, count: int = 1, *, timeout: float = 5.0) -> None:
        """Wait until `count` are held at once."""
        if self._waiting >= count:
            return
        reached = asyncio.get_running_loop().create_future()
        self._watchers.append((count, reached))
        await asyncio.wait_for(reached, timeout)

    async def passage(self) -> None:
        """Wait while closed."""
        if self._door.is_set():
            return
        self._waiting += 1
        self._tell_watchers()
        try:
            await self._door.wait()
        finally:
            self._waiting -= 1

    def _tell_watchers(self) -> None:
        for count, reached in self._watchers:
            if self._waiting >= count and not reached.done():
                reached.set_result(None)
        self._watchers = [watcher for watcher in self._watchers if not watcher[1].done()]
