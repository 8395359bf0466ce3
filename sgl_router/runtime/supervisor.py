"""Starts the processes of one router, keeps them alive, and takes them down in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import structlog

from sgl_router import __version__, signals
from sgl_router.runtime.child import Child
from sgl_router.runtime.control import Cause, Order
from sgl_router.runtime.folder import private_folder
from sgl_router.runtime.heartbeat import Watch
from sgl_router.runtime.listen import StartupError, bind
from sgl_router.runtime.paths import Paths

if TYPE_CHECKING:
    from sgl_router.config import Config

__all__ = ["Supervisor", "supervise"]

log = structlog.get_logger(__name__)

_RESTART_SECS = (0.05, 5.0)
_WELL_AFTER_SECS = 30.0
_STOP_SECS = 10.0
_WATCH = Watch()


def supervise(config: Config, watch: Watch = _WATCH) -> int:
    """Run the router until a signal. 0 after a clean shutdown, 2 if it could not start."""
    server, admin = config.server, config.admin
    with contextlib.ExitStack() as stack:
        try:
            listeners = bind(server.host, server.port, sockets=server.processes)
            for listener in listeners:
                stack.callback(listener.close)
            admin_listeners: list[socket.socket] = []
            if admin is not None:
                admin_listeners = bind(admin.host, admin.port, sockets=server.processes, section="admin")
            paths = stack.enter_context(private_folder())
        except StartupError as error:
            print(f"sgl-router: {error}", file=sys.stderr)
            return 2
        paths.config.write_bytes(msgspec.json.encode(config))
        return asyncio.run(Supervisor(config, paths, listeners, watch, admin_listeners).run())


class Supervisor:
    """One routing process, and a data process for each listener; `admin_listeners`: none, or as many."""

    def __init__(
        self,
        config: Config,
        paths: Paths,
        listeners: list[socket.socket],
        watch: Watch = _WATCH,
        admin_listeners: Sequence[socket.socket] = (),
    ) -> None:
        self._config = config
        self._folder, self._removed = paths.folder, paths.removed
        self._listeners = listeners
        self._admin_listeners = admin_listeners
        self._watch_secs = watch.turn_secs
        self._routing = Child("routing", ["routing"], paths.folder, watch)
        self._routing.on_born = self._tell_restarts
        self._data = [
            Child(f"data-{number}", ["data", "--number", str(number)], paths.folder, watch, self._listeners_of(number))
            for number in range(len(listeners))
        ]
        self._restarts: Counter[tuple[str, Cause]] = Counter()
        self._stopping = False
        self._started = False

    def _listeners_of(self, number: int) -> dict[str, socket.socket]:
        """By the option of a data process."""
        found = {"--listener": self._listeners[number]}
        if self._admin_listeners:
            found["--admin-listener"] = self._admin_listeners[number]
        return found

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        structlog.contextvars.bind_contextvars(process="supervisor")
        asked = asyncio.Event()

        def on_signal(number: signal.Signals) -> None:
            if asked.is_set():
                log.warning("second signal, exiting at once", signal=number.name)
                self._kill_all()
                shutil.rmtree(self._folder, ignore_errors=True)  # the configuration is in it
                _flush_logs()
                os._exit(128 + number)
            log.info("signal received, draining", signal=number.name)
            asked.set()

        for number in signals.LEAVING:
            loop.add_signal_handler(number, on_signal, number)
        keepers = {asyncio.create_task(self._keep(child)): child for child in (self._routing, *self._data)}
        signalled = asyncio.create_task(asked.wait())
        await asyncio.sleep(0)
        _set_up_logging(self._config)  # while the processes start: it is the slow part of this one
        signals.handle(loop, self._forward)
        if self._removed:
            log.info("removed files left behind by killed routers", folders=self._removed)
        try:
            starting = asyncio.create_task(self._all_ready())
            await asyncio.wait((starting, signalled, *keepers), return_when=asyncio.FIRST_COMPLETED)
            starting.cancel()
            for keeper, child in keepers.items():
                if keeper.done() and not asked.is_set():
                    log.error("the router could not start", failed=child.name, status=keeper.result())
                    return max(keeper.result(), 1)
            if not asked.is_set():
                self._started = True
                self._announce()
                watching = asyncio.create_task(self._watch())
                await signalled
                watching.cancel()  # who takes long to stop is dealt with below
                await self._take_down(keepers)
            return 0
        finally:
            self._stopping = True
            self._kill_all()
            signalled.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            log.info("router stopped")
            _flush_logs()

    async def _keep(self, child: Child) -> int:
        """Start a process again whenever it ends; the exit status where it must not be."""
        loop = asyncio.get_running_loop()
        pause = _RESTART_SECS[0]
        while True:
            born = loop.time()
            status: int | None = None
            try:
                status = await child.live()
            except OSError as error:  # too many processes or open files, or no memory: that may pass
                log.error("process could not be started", name=child.name, reason=error.strerror)
            if self._stopping or not self._started:
                return os.EX_OSERR if status is None else status
            if loop.time() - born >= _WELL_AFTER_SECS:
                pause = _RESTART_SECS[0]
            if status is not None:
                log.error("process died, restarting it", name=child.name, status=status, in_secs=pause)
                self._restarts[child.name, Cause.HUNG if child.hung else Cause.DIED] += 1
                self._tell_restarts()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _RESTART_SECS[1])
            if self._stopping:
                return status or 0

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._watch_secs)
            for child in (self._routing, *self._data):
                child.end_if_it_hangs()

    def _tell_restarts(self) -> None:
        """Totals, so that a new routing process need not know what the last one was told."""
        for (name, cause), count in self._restarts.items():
            self._routing.say(Order.RESTARTED, name, cause.value, str(count))

    async def _all_ready(self) -> None:
        for child in (self._routing, *self._data):
            await child.ready.wait()

    def _announce(self) -> None:
        server = self._config.server
        port = self._listeners[0].getsockname()[1]
        host = f"[{server.host}]" if ":" in server.host else server.host
        more = {"admin_port": self._admin_listeners[0].getsockname()[1]} if self._admin_listeners else {}
        log.info(
            "router listening",
            url=f"http://{host}:{port}",
            version=__version__,
            models=sorted(model.id for model in self._config.models),
            processes=server.processes,
            pid=os.getpid(),
            routing_pid=self._routing.pid,
            data_pids=[child.pid for child in self._data],
            **more,
        )

    async def _take_down(self, keepers: dict[asyncio.Task[int], Child]) -> None:
        """Data processes first: the routing process must hear how their requests ended."""
        self._stopping = True
        server = self._config.server
        for child in (self._routing, *self._data):
            child.say(Order.DRAIN)
        for listener in (*self._listeners, *self._admin_listeners):
            listener.close()  # what data processes hold is closed when they stop to listen; then nothing must be left
        carrying = [keeper for keeper, child in keepers.items() if child is not self._routing]
        patience = server.shutdown_drain_secs + server.shutdown_grace_secs + _STOP_SECS
        _, late = await asyncio.wait(carrying, timeout=patience)
        self._report(late, keepers)
        self._routing.say(Order.STOP)
        _, late = await asyncio.wait(keepers, timeout=_STOP_SECS)
        self._report(late, keepers)

    def _report(self, late: set[asyncio.Task[int]], keepers: dict[asyncio.Task[int], Child]) -> None:
        for keeper in late:
            log.warning("process did not stop in time, killing it", name=keepers[keeper].name)
            keepers[keeper].kill()

    def _forward(self, number: signal.Signals) -> None:
        for child in (self._routing, *self._data):
            child.pass_on(number)

    def _kill_all(self) -> None:
        for child in (self._routing, *self._data):
            child.kill()


def _set_up_logging(config: Config) -> None:
    from sgl_router.observability import configure_logging

    configure_logging(config.observability.log_level, config.observability.log_format)


def _flush_logs() -> None:
    from sgl_router.observability import flush_logs

    flush_logs()
