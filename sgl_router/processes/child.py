"""One process of the router, as the supervisor holds it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

from .control import Order

__all__ = ["Child"]

_LINGER_SECS = 2.0
_LOOK_SECS = 0.005


class Child:
    """Started any number of times, one process at a time. `listener` stays the supervisor's: a process that is
    started again takes over the connections that wait on it."""

    def __init__(self, name: str, arguments: list[str], folder: Path, listener: socket.socket | None = None) -> None:
        self.name = name
        self._arguments = [*arguments, "--folder", str(folder), "--parent", str(os.getpid())]
        self.listener = listener
        self.ready = asyncio.Event()
        """Set while a process is there that has said so."""
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def live(self) -> int:
        """Start a process and stay with it to its end. The exit status, negative for a signal."""
        process, control = self._spawn()
        try:
            await self._follow(control)
            return await self._ended(process)
        finally:
            self.ready.clear()
            self._process = self._control = None
            control.close()
            process.kill()
            process.wait()

    def _spawn(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs:
            passed = [theirs.fileno()]
            arguments = [*self._arguments, "--control", str(theirs.fileno())]
            if self.listener is not None:
                passed.append(self.listener.fileno())
                arguments += ["--listener", str(self.listener.fileno())]
            # Its own session: a Ctrl-C on the terminal is for the supervisor.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sgl_router.processes", *arguments],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._control = ours
        return self._process, ours

    def say(self, order: Order) -> None:
        """Nothing happens where there is no process, or it has gone."""
        if self._control is not None:
            try:
                self._control.sendall(order.value.encode() + b"\n")
            except OSError:
                pass

    def kill(self) -> None:
        """`live` then returns."""
        if self._process is not None:
            self._process.kill()

    async def _follow(self, control: socket.socket) -> None:
        """Until the other end of the control socket closes, which only the end of the process does."""
        loop = asyncio.get_running_loop()
        control.setblocking(False)
        heard = b""
        while True:
            try:
                data = await loop.sock_recv(control, 256)
            except OSError:
                return
            if not data:
                return
            heard = (heard + data)[-256:]
            if Order.READY.value.encode() + b"\n" in heard:
                self.ready.set()

    async def _ended(self, process: subprocess.Popen[bytes]) -> int:
        for _ in range(int(_LINGER_SECS / _LOOK_SECS)):
            if (status := process.poll()) is not None:
                return status
            await asyncio.sleep(_LOOK_SECS)
        process.kill()
        return process.wait()
