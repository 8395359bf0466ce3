"""The worker's HTTP port, which can refuse connections and cut them, and come back on the same number."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from typing import cast

from aiohttp import web

_REBIND_SECS = 2.0
_REBIND_RETRY_SECS = 0.01


def reset_connection(transport: asyncio.BaseTransport | None) -> None:
    """Drop a connection with RST instead of FIN."""
    if transport is None:
        return
    handle = transport.get_extra_info("socket")
    if handle is not None:
        # A duplicate, because uvloop's socket objects take no options.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(handle.fileno())) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    cast(asyncio.Transport, transport).abort()


class HttpListener:
    """Serves one application. Handlers are cancelled when their client goes away."""

    def __init__(self, app: web.Application, host: str, port: int, *, keep_alive_secs: float = 75.0) -> None:
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=0.1,
            keepalive_timeout=keep_alive_secs,
        )
        self._host = host
        self.port = port
        self._server: asyncio.Server | None = None

    @property
    def listening(self) -> bool:
        return self._server is not None

    async def start(self) -> None:
        """Begin to accept connections; the port is then known and stays."""
        await self._runner.setup()
        await self._listen(patient=False)

    async def reopen(self) -> None:
        """Accept connections again, waiting a moment for the port to be free."""
        if self._server is None:
            await self._listen(patient=True)

    async def _listen(self, *, patient: bool) -> None:
        factory = self._runner.server
        if factory is None:
            raise RuntimeError("the listener was not started")
        deadline = time.monotonic() + _REBIND_SECS
        while True:
            try:
                self._server = await asyncio.get_running_loop().create_server(
                    factory, self._host, self.port, reuse_address=True, backlog=512
                )
                break
            except OSError:
                if not patient or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_REBIND_RETRY_SECS)
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Stop accepting and reset every open connection, as a dead process would."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset_all()

    def reset_all(self) -> None:
        """Reset every open connection; their handlers are cancelled."""
        if self._runner.server is not None:
            for connection in list(self._runner.server.connections):
                reset_connection(connection.transport)

    async def stop(self) -> None:
        """Stop for good."""
        self.refuse()
        await self._runner.cleanup()
