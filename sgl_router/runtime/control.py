"""The socket between the supervisor and one of its processes, a line a message: `ready` and `alive` come up, `drain`,
`stop` and `restarted` go down."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from enum import Enum

import structlog

__all__ = ["Cause", "Control", "Order", "die_with_parent"]

log = structlog.get_logger(__name__)

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


class Order(str, Enum):
    READY = "ready"
    """Goes up, once."""
    ALIVE = "alive"
    """Goes up again and again after `ready`, from a timer of the event loop: it turns."""
    DRAIN = "drain"
    """Say that you are about to go, and after `shutdown_drain_secs` go (the routing process waits for `stop`)."""
    STOP = "stop"
    RESTARTED = "restarted"
    """To the routing process, which shows the metrics: name of a process, `Cause`, how often by now."""


class Cause(str, Enum):
    """Why a process was started again: the metric label."""

    DIED = "died"
    HUNG = "hung"
    """Its event loop did not turn: the supervisor ended it."""


class Control:
    """A process's end. When the supervisor is gone, so is the process."""

    def __init__(self, descriptor: int, beat_secs: float = 1.0) -> None:
        self.restarted: Callable[[str, str, int], None] = lambda name, cause, count: None
        """Called with every `restarted`. Set it before `start`."""
        self._beat_secs = beat_secs
        self._socket = socket.socket(fileno=descriptor)
        self._drain = asyncio.Event()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def start(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)
        self._task = asyncio.create_task(self._listen(reader), name="control")

    async def close(self) -> None:
        """The process is about to end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def ready(self) -> None:
        """Tell the supervisor that requests can be answered."""
        assert self._writer is not None
        self._writer.write(Order.READY.value.encode() + b"\n")
        self._beat(self._writer.transport)

    def _beat(self, transport: asyncio.WriteTransport) -> None:
        if not transport.get_write_buffer_size():  # a supervisor that does not read has not lost anything
            transport.write(Order.ALIVE.value.encode() + b"\n")
        asyncio.get_running_loop().call_later(self._beat_secs, self._beat, transport)

    async def drain(self) -> None:
        await self._drain.wait()

    async def stop(self) -> None:
        await self._stop.wait()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                order, *words = line.decode().split()
                if order == Order.DRAIN.value:
                    self._drain.set()
                elif order == Order.STOP.value:
                    self._drain.set()
                    self._stop.set()
                elif order == Order.RESTARTED.value:
                    name, cause, count = words
                    self.restarted(name, cause, int(count))
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
