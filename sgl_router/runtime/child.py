"""One process of the router, as the supervisor holds it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from sgl_router import signals
from sgl_router.runtime.control import Order
from sgl_router.runtime.heartbeat import Heartbeat, Watch

__all__ = ["Child"]

log = structlog.get_logger(__name__)

_LINGER_SECS = 2.0
_LOOK_SECS = 0.005
# With `-m` a module in the working directory would come before the router's own and the standard library's.
_RUN = f"import sys; sys.path[:] = {sys.path!r}; from sgl_router.runtime.child_main import main; sys.exit(main())"


class Child:
    """Started any number of times, one process at a time. `listeners`, by the option that names each to the process,
    stay the supervisor's: a process that is started again takes over the connections that wait on them."""

    def __init__(
        self,
        name: str,
        arguments: list[str],
        folder: Path,
        watch: Watch,
        listeners: Mapping[str, socket.socket] | None = None,
    ) -> None:
        self.name = name
        self._arguments = [*arguments, "--folder", str(folder), "--parent", str(os.getpid())]
        self._arguments += ["--beat-secs", str(watch.turn_secs)]
        self._watch = watch
        self.listeners = dict(listeners or {})
        self.on_born: Callable[[], None] = lambda: None
        """Called when a process has been started, and can be told something."""
        self.ready = asyncio.Event()
        """Set while a process is there that has said so."""
        self.hung = False
        """Whether the last process was ended because it hung."""
        self._pulse = Heartbeat(watch.patience)
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def live(self) -> int:
        """Start a process and stay with it to its end. The exit status, negative for a signal. Raises OSError where
        the system has no process to give."""
        process, control = self._spawn()
        try:
            self.on_born()
            await self._follow(control)
            return await self._ended(process)
        finally:
            self.ready.clear()
            self._process = self._control = None
            control.close()
            process.kill()
            process.wait()

    def _spawn(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        self.hung, self._pulse = False, Heartbeat(self._watch.patience)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                passed = [theirs.fileno()]
                arguments = [*self._arguments, "--control", str(theirs.fileno())]
                for option, listener in self.listeners.items():
                    passed.append(listener.fileno())
                    arguments += [option, str(listener.fileno())]
                # Its own session: a Ctrl-C on the terminal is for the supervisor.
                with signals.held_back():
                    self._process = subprocess.Popen(
                        [sys.executable, "-c", _RUN, *arguments],
                        pass_fds=passed,
                        stdin=subprocess.DEVNULL,
                        start_new_session=True,
                    )
        except OSError:
            ours.close()
            raise
        self._control = ours
        return self._process, ours

    def say(self, order: Order, *words: str) -> None:
        """Nothing happens where there is no process, or it has gone."""
        if self._control is not None:
            try:
                self._control.sendall(" ".join((order.value, *words)).encode() + b"\n")
            except OSError:
                pass

    def kill(self) -> None:
        """`live` then returns."""
        if self._process is not None:
            self._process.kill()

    def pass_on(self, number: signal.Signals) -> None:
        """Nothing happens where there is no process."""
        if self._process is not None:
            self._process.send_signal(number)

    def end_if_it_hangs(self) -> None:
        """To be called once in each turn of the watch. A process that has not been ready yet is left alone."""
        if not self.ready.is_set() or self.hung or not self._pulse.turn():
            return
        self.hung = True
        secs = self._watch.patience * self._watch.turn_secs
        log.error("process hangs, killing it", name=self.name, pid=self.pid, silent_secs=secs)
        self.kill()

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
            self._pulse.beat()
            heard = (heard + data)[-256:]
            if not self.ready.is_set() and Order.READY.value.encode() + b"\n" in heard:
                self.ready.set()

    async def _ended(self, process: subprocess.Popen[bytes]) -> int:
        for _ in range(int(_LINGER_SECS / _LOOK_SECS)):
            if (status := process.poll()) is not None:
                return status
            await asyncio.sleep(_LOOK_SECS)
        process.kill()
        return process.wait()
