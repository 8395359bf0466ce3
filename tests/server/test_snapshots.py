"""The snapshot endpoint and a client that stops reading."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from sgl_router.admin.snapshot import SNAPSHOT_PATH, snapshot_route
from sgl_router.http.response import Http1Writer
from sgl_router.http.routes import Route, Routes
from sgl_router.http.server import HttpServer
from sgl_router.kv_events import KvIndex
from sgl_router.kv_events.follow.wire import Frame, decode_batch
from sgl_router.runtime.accounting import Accounting
from sgl_router.workers import KvEventSource, Worker, WorkerInfo
from tests.conformance.rig import StubServices

BLOCKS = 500_000


@pytest.fixture
async def index() -> AsyncIterator[KvIndex]:
    """Too much for any socket's buffers."""
    index = KvIndex()
    source = KvEventSource(host="127.0.0.1", port_base=1)
    worker = Worker("http://w:1", WorkerInfo(served_model_name="m", started_at="then", kv_source=source))
    index.worker_added(worker)
    (status,) = index.status(worker)
    stored = {
        "type": "BlockStored",
        "block_hashes": list(range(1, BLOCKS + 1)),
        "parent_block_hash": None,
        "token_ids": list(range(BLOCKS)),
        "block_size": 1,
        "medium": "GPU",
    }
    payload = msgspec.msgpack.encode([1.0, [stored], 0])
    status.stream.observe(Frame(0, payload))
    for event in decode_batch(payload).events:
        status.stream.apply(event)
    yield index
    index.close()


@contextlib.asynccontextmanager
async def serving(index: KvIndex) -> AsyncIterator[tuple[str, int]]:
    services: Any = StubServices()
    server = HttpServer(services, Accounting(services))
    listener = socket.create_server(("127.0.0.1", 0))
    await server.listen(listener, Routes([Route(SNAPSHOT_PATH, GET=snapshot_route(index, stall_secs=0.1))]))
    yield listener.getsockname()
    await server.close()


async def test_a_client_that_stops_reading_is_cut_off_and_the_next_is_served(index: KvIndex) -> None:
    loop = asyncio.get_running_loop()

    async def ask(address: tuple[str, int]) -> socket.socket:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, address)
        await loop.sock_sendall(client, f"GET {SNAPSHOT_PATH} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        return client

    async with serving(index) as address:
        stuck = await ask(address)
        await loop.sock_recv(stuck, 16)
        await asyncio.sleep(0)
        for _ in range(400):
            if index.copying.locked():
                await asyncio.sleep(0.005)
        with pytest.raises(ConnectionResetError):
            for _ in range(400):
                stuck.send(b"x")  # not read by anybody, refused once the connection is gone
                await asyncio.sleep(0.02)
        stuck.close()
        again = await ask(address)
        assert (await asyncio.wait_for(loop.sock_recv(again, 15), 60)) == b"HTTP/1.1 200 OK"
        again.close()


async def test_nor_does_the_end_of_one_that_nobody_takes_hold_up_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    index = KvIndex()

    async def ask(address: tuple[str, int]) -> bytes:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(f"GET {SNAPSHOT_PATH} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        return answer

    async def never(*arguments: object) -> None:
        await asyncio.Event().wait()

    async with serving(index) as address:
        with monkeypatch.context() as patch:
            patch.setattr(Http1Writer, "end", never)
            with contextlib.suppress(ConnectionError):
                await ask(address)
        assert (await ask(address)).startswith(b"HTTP/1.1 200 OK")
    index.close()
