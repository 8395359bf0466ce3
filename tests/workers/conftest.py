"""A scripted worker on a real socket, and helpers to wait for conditions."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

SGLANG_INFO: dict[str, Any] = {
    "served_model_name": "m",
    "model_path": "/models/m",
    "disaggregation_mode": "null",
    "page_size": 16,
    "dp_size": 1,
    "version": "0.5.23",
    "random_seed": 1,
    "kv_events": None,
}


class ScriptedWorker:
    """Its port is reserved from the start, but connections are refused until `listen`."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {
            "/server_info": (200, dict(SGLANG_INFO)),
            "/ready": (200, ""),
        }
        self.drop: set[str] = set()
        self.hang: set[str] = set()
        self.redirect: str | None = None
        self.statuses: dict[str, Iterator[int]] = {}  # used up first, one per request
        self.calls: Counter[str] = Counter()
        self.authorization: list[str | None] = []
        self._runner: web.AppRunner | None = None
        self._socket = self._bind(0)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    @staticmethod
    def _bind(port: int) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        return sock

    def info(self, **fields: Any) -> None:
        """What /server_info says from now on."""
        self.answers["/server_info"] = (200, {**SGLANG_INFO, **fields})

    async def listen(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._answer)
        self._runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.01, handler_cancellation=True)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()

    async def refuse(self) -> None:
        """Close the listening socket and reserve its port again."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            self._socket = self._bind(self.port)

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        self._socket.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.calls[request.path] += 1
        self.authorization.append(request.headers.get("Authorization"))
        if request.path in self.drop and request.transport is not None:
            request.transport.abort()
        if request.path in self.hang:
            await asyncio.Event().wait()
        if self.redirect is not None:
            raise web.HTTPTemporaryRedirect(self.redirect + request.path)
        status, body = self.answers.get(request.path, (404, {"detail": "Not Found"}))
        status = next(self.statuses.get(request.path, iter(())), status)
        if isinstance(body, bytes):
            return web.Response(status=status, body=body)
        return web.json_response(body, status=status)


async def wait_until(condition: Callable[[], Any], what: str = "the condition") -> None:
    """Returns as soon as the condition holds; fails where it never does."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.002)


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    return wait_until


@pytest.fixture
async def make_worker() -> AsyncIterator[Callable[[], ScriptedWorker]]:
    made: list[ScriptedWorker] = []

    def make() -> ScriptedWorker:
        made.append(ScriptedWorker())
        return made[-1]

    yield make
    for worker in made:
        await worker.close()
