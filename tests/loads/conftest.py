"""A publisher and an HTTP server that say what a test tells them to, on real sockets."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import msgspec
import pytest
import zmq
from aiohttp import web
from aiohttp.test_utils import TestServer

from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH, MockWorker, MockWorkerConfig, shared_tokenizer
from sgl_router.workers import KvEventSource, Worker, WorkerInfo

Until = Callable[..., Awaitable[None]]


@pytest.fixture
def until() -> Until:
    async def wait(condition: Callable[[], Any], what: str = "the condition") -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            await asyncio.sleep(0.002)

    return wait


def load_record(running: int, waiting: int = 0, *more: Any) -> list[Any]:
    return ["LoadStat", running, waiting, 100, 4096, 0, *more]


class LoadSocket:
    """The engine's side of a load channel."""

    def __init__(self, port: int = 0) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.linger = 0
        self._socket.set(zmq.XPUB_VERBOSE, 1)
        if port:
            self._socket.bind(f"tcp://127.0.0.1:{port}")
            self.port = port
        else:
            self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self.sequence = 0

    async def subscribed(self) -> None:
        await self._told(b"\x01load")

    async def unsubscribed(self) -> None:
        await self._told(b"\x00load")

    async def _told(self, what: bytes) -> None:
        deadline = time.monotonic() + 120
        while True:
            try:
                assert self._socket.recv(zmq.NOBLOCK) == what
                return
            except zmq.Again:
                assert time.monotonic() < deadline, f"nobody told {what!r}"
                await asyncio.sleep(0.005)

    def send(self, record: Any) -> None:
        self.send_frames(b"load", self.sequence.to_bytes(8, "big"), msgspec.msgpack.encode(record))
        self.sequence += 1

    def send_frames(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def open_socket() -> Iterator[Callable[..., LoadSocket]]:
    made: list[LoadSocket] = []

    def make(port: int = 0) -> LoadSocket:
        made.append(LoadSocket(port))
        return made[-1]

    yield make
    for one in made:
        one.close()


class ScriptedServer:
    """Answers each path with the status and the JSON that stand in `answers`; 404 otherwise."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {}
        self.hang = False
        self.calls: Counter[str] = Counter()
        self.authorization: str | None = None
        self.most_at_once = 0
        self._now = 0
        app = web.Application()
        app.router.add_get("/{tail:.*}", self._answer)
        self._server = TestServer(app, handler_cancellation=True)

    async def start(self) -> str:
        await self._server.start_server(shutdown_timeout=0.01)
        return str(self._server.make_url("")).rstrip("/")

    async def close(self) -> None:
        await self._server.close()

    async def _answer(self, request: web.Request) -> web.Response:
        self.calls[request.path] += 1
        self.authorization = request.headers.get("Authorization")
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            if self.hang:
                await asyncio.Event().wait()
            status, body = self.answers.get(request.path, (404, {"detail": "Not Found"}))
            return web.json_response(body, status=status)
        finally:
            self._now -= 1


def loads_answer(*running: int) -> tuple[int, Any]:
    """/v1/loads as 0.5.23 writes it, sections left out."""
    entries = [
        {
            "timestamp": 1_700_000_000.0,
            "dp_rank": rank,
            "num_running_reqs": count,
            "num_waiting_reqs": 1,
            "num_waiting_uncached_tokens": 30,
            "num_used_tokens": 200,
            "num_total_tokens": 240,
            "max_total_num_tokens": 4096,
            "max_running_requests": 8,
            "token_usage": 0.0488,
        }
        for rank, count in enumerate(running)
    ]
    return 200, {"timestamp": "2023-11-14T22:13:20+00:00", "version": "0.5.23", "loads": entries}


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    made = ScriptedServer()
    made.url = await made.start()  # type: ignore[attr-defined]
    yield made
    await made.close()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


def worker_at(url: str, *, dp_size: int = 1, load_port: int | None = None, model: str = "mock-model") -> Worker:
    source = None if load_port is None else KvEventSource("127.0.0.1", 1, load_port_base=load_port, load_topic="load")
    return Worker(url, WorkerInfo(served_model_name=model, dp_size=dp_size, kv_source=source))


@pytest.fixture
async def start_worker(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Awaitable[MockWorker]]]:
    monkeypatch.setattr("sgl_router.lab.mock_worker.load_publisher.HEARTBEAT_SECS", 0.1)
    workers: list[MockWorker] = []

    async def start(**settings: Any) -> MockWorker:
        worker = MockWorker(MockWorkerConfig(**settings), tokenizer=shared_tokenizer(EMBEDDED_TOKENIZER_PATH))
        workers.append(worker)
        await worker.start()
        return worker

    yield start
    for worker in workers:
        await worker.stop()


@pytest.fixture
def tools() -> Any:
    """The helpers above that take no set-up."""

    class Tools:
        worker = staticmethod(worker_at)
        scripted = ScriptedServer
        loads = staticmethod(loads_answer)
        record = staticmethod(load_record)

    return Tools
