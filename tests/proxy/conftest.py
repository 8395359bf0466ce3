"""A scripted upstream on a real socket, and a client that only records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from sgl_router.http import ClientGone, Headers, header_pairs
from sgl_router.upstream import UpstreamPool

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Upstream:
    """`script(reader, writer)` runs per connection, after each request head and body was read into `requests`."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.requests: list[tuple[bytes, bytes]] = []
        self.connections = 0
        self.errors: list[BaseException] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                )
                self.requests.append((head, await reader.readexactly(length)))
                await self._script(reader, writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()


class Recorder:
    """An ResponseWriter. `room` cleared makes every write wait."""

    def __init__(self) -> None:
        self.started = False
        self.status = 0
        self.headers: Headers = []
        self.body = b""
        self.writes = 0
        self.ended = self.aborted = False
        self.room = asyncio.Event()
        self.room.set()
        self.gone = False
        self.whole = False

    async def send(self, status: int, headers: Headers | bytes, body: bytes) -> None:
        self.whole = True
        await self.start(status, headers)
        await self.write(body)
        await self.end()

    async def start(self, status: int, headers: Headers | bytes) -> None:
        self.started, self.status = True, status
        self.headers = header_pairs(headers) if isinstance(headers, bytes) else headers

    async def write(self, data: bytes) -> None:
        if self.gone:
            raise ClientGone
        self.writes += 1
        self.body += data
        await self.room.wait()

    async def end(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
async def upstream() -> AsyncIterator[Callable[[Script], Awaitable[Upstream]]]:
    servers: list[asyncio.AbstractServer] = []

    async def make(script: Script) -> Upstream:
        made = Upstream(script)
        server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
        servers.append(server)
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return made

    yield make
    for server in servers:
        server.close()


@pytest.fixture
async def pool() -> AsyncIterator[UpstreamPool]:
    pool = UpstreamPool()
    yield pool
    pool.close()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()
