"""The floor under every Python router: `python datapath_floor.py PORT WORKER_PORT...` relays, and does nothing else.

asyncio protocols on uvloop, httptools for both heads, the least loaded worker, kept-alive connections. No timeouts, no
retries, no limits, no pipelining, no JSON: what is slower than this is slower for what it does beyond.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httptools
import uvloop


class Worker:
    """A worker's port, its load, and its idle connections."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.load = 0
        self.idle: list[Upstream] = []


class Upstream(asyncio.Protocol):
    """One connection to a worker; what it receives is passed on unread, the parser only finds the end."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.client: Client | None = None
        self.parser = httptools.HttpResponseParser(self)
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.client is not None:
            self.client.transport.write(data)
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        client, self.client = self.client, None
        self.worker.load -= 1
        self.parser = httptools.HttpResponseParser(self)
        self.worker.idle.append(self)
        if client is not None:
            client.upstream = None

    def connection_lost(self, _: Exception | None) -> None:
        if self in self.worker.idle:
            self.worker.idle.remove(self)
        if self.client is not None:
            self.worker.load -= 1
            self.client.transport.abort()


class Client(asyncio.Protocol):
    """One downstream connection."""

    def __init__(self, workers: list[Worker]) -> None:
        self.workers = workers
        self.upstream: Upstream | None = None
        self.transport: Any = None
        self.connecting: asyncio.Task[None] | None = None
        self.reset()

    def reset(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parts: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parts.append(data)
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        request = b"".join(self.parts)
        self.reset()
        worker = min(self.workers, key=lambda candidate: candidate.load)
        worker.load += 1
        if worker.idle:
            self.send(worker.idle.pop(), request)
        else:
            self.connecting = asyncio.ensure_future(self.connect(worker, request))

    async def connect(self, worker: Worker, request: bytes) -> None:
        made = await asyncio.get_running_loop().create_connection(lambda: Upstream(worker), "127.0.0.1", worker.port)
        self.send(made[1], request)

    def send(self, upstream: Upstream, request: bytes) -> None:
        upstream.client, self.upstream = self, upstream
        if self.transport.is_closing():
            upstream.transport.abort()
        else:
            upstream.transport.write(request)

    def connection_lost(self, _: Exception | None) -> None:
        if self.upstream is not None:
            self.upstream.transport.abort()


async def main() -> None:
    workers = [Worker(int(port)) for port in sys.argv[2:]]
    server = await asyncio.get_running_loop().create_server(
        lambda: Client(workers), "127.0.0.1", int(sys.argv[1]), backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(main())
