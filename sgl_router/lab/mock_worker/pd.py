"""How a mock prefill and a mock decode worker meet: the prefill worker's bootstrap port.

The real pair moves KV pages over RDMA; here a decode worker asks the prefill worker's bootstrap server
whether the prefill of its room is done. What a router must get right is the same: both legs sent, one
room, the prefill's host and port, and the error when a leg is missing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from sgl_router.lab.mock_worker.config import MockWorkerConfig
from sgl_router.lab.mock_worker.generation import Bootstrap
from sgl_router.lab.mock_worker.listener import HttpListener
from sgl_router.lab.mock_worker.refusal import Refusal

FAKE_BOOTSTRAP_HOST = "2.2.2.2"
"""The host health checks use for a room nobody prefills."""

_ROOMS_KEPT = 10_000
_BOOTSTRAP_TIMEOUT_SECS = 300.0


@dataclass(frozen=True)
class PrefillResult:
    """What the prefill side hands over with the pages."""

    cached_tokens: int


class BootstrapServer:
    """The prefill worker's meeting point: rooms are filled when their prefill is done.

    `waiting` is the number of decode workers asking now.
    """

    def __init__(self, config: MockWorkerConfig, port: int) -> None:
        self._config = config
        self.waiting = 0
        self._rooms: OrderedDict[int, asyncio.Future[PrefillResult]] = OrderedDict()
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/route", self._route)
        app.router.add_post("/mock/rooms/{room}", self._wait_for_room)
        self._listener = HttpListener(app, config.host, port)

    @property
    def port(self) -> int:
        return self._listener.port

    async def start(self) -> None:
        """Open the bootstrap port."""
        await self._listener.start()

    async def stop(self) -> None:
        """Close it; decode workers still waiting lose their connection."""
        for room in self._rooms.values():
            room.cancel()
        await self._listener.stop()

    def fill(self, room: int, result: PrefillResult) -> None:
        """Announce that a room's pages are ready."""
        future = self._room(room)
        if not future.done():
            future.set_result(result)

    def _room(self, room: int) -> asyncio.Future[PrefillResult]:
        future = self._rooms.get(room)
        if future is None:
            future = self._rooms[room] = asyncio.get_running_loop().create_future()
            if len(self._rooms) > _ROOMS_KEPT:
                self._rooms.popitem(last=False)[1].cancel()
        return future

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def _route(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "attn_tp_size": 1,
                "attn_cp_size": 1,
                "dp_size": self._config.dp_size,
                "pp_size": 1,
                "page_size": self._config.page_size,
                "follow_bootstrap_room": True,
            }
        )

    async def _wait_for_room(self, request: web.Request) -> web.Response:
        self.waiting += 1
        try:
            result = await asyncio.shield(self._room(int(request.match_info["room"])))
        finally:
            self.waiting -= 1
        return web.json_response({"cached_tokens": result.cached_tokens})


class DecodeLink:
    """The decode worker's side."""

    def __init__(self, own_bootstrap_port: int) -> None:
        self._own_bootstrap_port = own_bootstrap_port
        self._session: aiohttp.ClientSession | None = None

    async def receive(self, bootstrap: Bootstrap) -> PrefillResult:
        """Wait until the prefill worker has filled the room; raises Refusal when it cannot be reached."""
        if bootstrap.host == FAKE_BOOTSTRAP_HOST:
            return PrefillResult(cached_tokens=0)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=_BOOTSTRAP_TIMEOUT_SECS),
                connector=aiohttp.TCPConnector(limit=0),
            )
        port = bootstrap.port or self._own_bootstrap_port
        url = f"http://{bootstrap.host}:{port}/mock/rooms/{bootstrap.room}"
        try:
            # Not a GET: those are retried on a new connection when the first one is lost.
            async with self._session.post(url) as response:
                response.raise_for_status()
                body = await response.json()
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
            raise _failed("Decode handshake failed", bootstrap, "Aborted by AbortReq.") from error
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            lost = f"Lost connection with prefill instance (bootstrap_addr: {bootstrap.host}:{port})"
            raise _failed("Decode transfer failed", bootstrap, lost) from error
        return PrefillResult(cached_tokens=int(body["cached_tokens"]))

    async def close(self) -> None:
        """Drop every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def _failed(what: str, bootstrap: Bootstrap, why: str) -> Refusal:
    return Refusal(f"{what} for request with bootstrap_room={bootstrap.room}: {why}", status=500, from_scheduler=True)
