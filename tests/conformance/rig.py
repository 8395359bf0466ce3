"""The HTTP server on real sockets, with a handler that says what reached it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from sgl_router.config import Config, parse_config
from sgl_router.descriptors import Descriptors
from sgl_router.http.limits import HttpLimits
from sgl_router.http.routes import Route, Routes
from sgl_router.http.server import HttpServer
from sgl_router.kv_events import KvIndex
from sgl_router.observability import Metrics
from sgl_router.runtime.accounting import Accounting
from sgl_router.runtime.surface import probe_routes
from sgl_router.services import InFlight
from sgl_router.workers import WorkerRegistry

MAX_BODY = 4096
ECHO, STREAM = "/v1/chat/completions", "/v1/tokenize"


@functools.cache
def _config(max_body_bytes: int) -> Config:
    return parse_config(
        {
            "server": {"max_body_bytes": max_body_bytes},
            "models": [{"id": "m", "tokenizer_path": "org/name"}],
            "discovery": {"static_urls": {"urls": ["http://127.0.0.1:1"]}},
        }
    ).config


class StubServices:
    """As much of Services as the server and the probes use."""

    def __init__(self, max_body_bytes: int = MAX_BODY) -> None:
        self.config = _config(max_body_bytes)
        self.registry = WorkerRegistry()
        self.index = KvIndex()
        self.metrics = Metrics(self.registry, self.index)
        self.in_flight = InFlight()
        self.routing = None
        self.descriptors = Descriptors()
        self.draining = self.closing = False


@dataclass
class Reply:
    status: int
    headers: dict[bytes, bytes]
    body: bytes
    interim: list[int] = field(default_factory=list)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Rig:
    """A server, and the requests its handler saw."""

    def __init__(
        self,
        limits: HttpLimits | None = None,
        max_body_bytes: int = MAX_BODY,
        routes: dict[str, Any] | None = None,
    ) -> None:
        self.services: Any = StubServices(max_body_bytes)
        self.seen: list[Any] = []
        self.cancelled = 0
        self.gate: asyncio.Event | None = None
        routes = routes or {ECHO: self._echo, STREAM: self._stream}
        data = [Route(path, POST=serve) for path, serve in routes.items()]
        self.routes = Routes([*data, *probe_routes()])
        self.server: Any = HttpServer(self.services, Accounting(self.services), limits)
        self.address = ("127.0.0.1", 0)

    async def _echo(self, services: Any, inbound: Any, out: Any) -> None:
        self.seen.append(inbound)
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        await out.send(200, [(b"content-type", b"text/plain")], inbound.body)

    async def _stream(self, services: Any, inbound: Any, out: Any) -> None:
        """The body's bytes, a chunk each."""
        self.seen.append(inbound)
        await out.start(200, [(b"content-type", b"text/event-stream")])
        for byte in inbound.body:
            await out.write(bytes((byte,)))
        await out.end()

    async def start(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        self.address = listener.getsockname()
        await self.server.listen(listener, self.routes)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.address)


async def read_reply(reader: asyncio.StreamReader, *, head_only: bool = False) -> Reply | None:
    """The next final answer; None at the end of the connection."""
    interim = []
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        line, *fields = head[:-4].split(b"\r\n")
        status = int(line.split(b" ")[1])
        if status >= 200:
            break
        interim.append(status)
    headers = {name.lower(): value for name, _, value in (one.partition(b": ") for one in fields)}
    assert len(headers) == len(fields), f"a header is given twice: {head!r}"
    assert not (b"content-length" in headers and b"transfer-encoding" in headers)
    if head_only or status in (204, 304):
        body = b""
    elif b"content-length" in headers:
        body = await reader.readexactly(int(headers[b"content-length"]))
    elif headers.get(b"transfer-encoding") == b"chunked":
        body = b""
        while True:
            size = int(await reader.readuntil(b"\r\n"), 16)
            piece = await reader.readexactly(size + 2)
            assert piece.endswith(b"\r\n")
            if not size:
                break
            body += piece[:-2]
    else:
        body = await reader.read()
    return Reply(status, headers, body, interim)


async def until(condition: Callable[[], bool], what: str, within: float = 120.0) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while not condition():
        assert loop.time() < deadline, f"not within {within} s: {what}"
        await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[Rig]:
    rig = Rig(**settings)
    await rig.start()
    try:
        yield rig
    finally:
        await rig.server.close()
