"""The socket between the supervisor and one of its processes: `ready` comes up, `drain` and `stop` go down."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from enum import Enum

import structlog

__all__ = ["Control", "Order", "die_with_parent"]

log = structlog.get_logger(__name__)

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


class Order(str, Enum):
    READY = "ready"
    """The one word that goes up."""
    DRAIN = "drain"
    """Say that you are about to go, and after `shutdown_drain_secs` go (the routing process waits for `stop`)."""
    STOP = "stop"


class Control:
    """A process's end. When the supervisor is gone, so is the process."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._drain = asyncio.Event()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def start(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)
        self._task = asyncio.create_task(self._listen(reader), name="control")

    def ready(self) -> None:
        """Tell the supervisor that requests can be answered."""
        assert self._writer is not None
        self._writer.write(Order.READY.value.encode() + b"\n")

    async def drain(self) -> None:
        await self._drain.wait()

    async def stop(self) -> None:
        await self._stop.wait()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                if line.strip() == Order.DRAIN.value.encode():
                    self._drain.set()
                elif line.strip() == Order.STOP.value.encode():
                    self._drain.set()
                    self._stop.set()
        except OSError:
            pass
        log.error("the supervisor is gone, exiting")
        sys.stderr.flush()
        os._exit(1)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process with its parent, even where the event loop hangs. Linux only; elsewhere the
    end of the control socket has to do."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was over before the kernel knew
        os._exit(1)
