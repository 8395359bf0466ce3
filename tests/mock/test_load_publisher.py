"""The load channel over real sockets: when a record is sent, what is in it, where it is advertised."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import msgspec
import pytest
import zmq
import zmq.asyncio

from sgl_router.lab.mock_worker import Dialect, MockWorker

StartWorker = Callable[..., Awaitable[MockWorker]]
CHAT = {"model": "mock-model", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a subscriber missed is told again soon."""
    monkeypatch.setattr("sgl_router.lab.mock_worker.load_publisher.HEARTBEAT_SECS", 0.1)


class Channel:
    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        self._socket = socket

    async def record(self) -> tuple[int, list[Any]]:
        topic, sequence, payload = await asyncio.wait_for(self._socket.recv_multipart(), 120)
        assert topic == b"load"
        assert len(sequence) == 8
        return int.from_bytes(sequence, "big"), msgspec.msgpack.decode(payload)


@pytest.fixture
async def follow() -> AsyncIterator[Callable[[MockWorker, int], Channel]]:
    context = zmq.asyncio.Context()

    def connect(worker: MockWorker, rank: int = 0) -> Channel:
        socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.SUBSCRIBE, b"load")
        socket.connect(f"tcp://127.0.0.1:{worker.load_port + rank}")
        return Channel(socket)

    yield connect
    context.destroy(linger=0)


async def advertised(http: aiohttp.ClientSession, worker: MockWorker) -> dict[str, Any]:
    async with http.get(worker.url + "/server_info") as response:
        return dict(json.loads(await response.read())["kv_events"])


async def test_it_is_off_unless_asked_for(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    for settings in (
        {},
        {"publish_load": True, "dialect": Dialect.ARRAY17},
        {"publish_load": True, "dialect": Dialect.VLLM},
        {"publish_load": True, "kv_events": False},
    ):
        worker = await start_worker(**settings)
        assert not worker.load_publishers
    assert "load_endpoint_port_base" not in await advertised(http, await start_worker())


async def test_every_rank_has_its_port(
    start_worker: StartWorker, http: aiohttp.ClientSession, follow: Callable[..., Channel]
) -> None:
    worker = await start_worker(publish_load=True, dp_size=2)
    block = await advertised(http, worker)
    assert (block["load_endpoint_port_base"], block["load_topic"]) == (worker.load_port, "load")
    for rank in (0, 1):
        _, record = await follow(worker, rank).record()
        assert record == ["LoadStat", 0, 0, 0, worker.config.cache_tokens, rank, 0, 0, 64, 0, 0]


async def test_the_record_of_0_5_19_is_the_short_one(start_worker: StartWorker, follow: Callable[..., Channel]) -> None:
    worker = await start_worker(publish_load=True, dialect=Dialect.SALT_ARRAY)
    assert (await follow(worker).record())[1] == ["LoadStat", 0, 0, 0, worker.config.cache_tokens, 0]


async def test_changes_are_told_at_once(
    start_worker: StartWorker, http: aiohttp.ClientSession, follow: Callable[..., Channel]
) -> None:
    worker = await start_worker(publish_load=True, speed=1.0, decode_ms_per_token=20.0)
    channel = follow(worker)
    first, idle = await channel.record()
    async with http.post(worker.url + "/v1/chat/completions", json=CHAT) as response:
        prompt = json.loads(await response.read())["usage"]["prompt_tokens"]
    records = [await channel.record()]
    while records[-1][1][1:4] != [0, 0, 0] or not any(record[1] for _, record in records):
        records.append(await channel.record())
    assert [number for number, _ in records] == [*range(first + 1, first + 1 + len(records))]
    waiting = {(record[1], record[2], record[6], record[7]) for _, record in records if record[2]}
    assert waiting == {(0, 1, prompt, prompt)}
    running = [record for _, record in records if record[1]]
    assert all(record[3] >= prompt and record[9] == prompt and record[10] > 0 for record in running)
    assert records[-1][1][4:9] == idle[4:9]


async def test_a_steady_load_is_told_again_and_again(start_worker: StartWorker, follow: Callable[..., Channel]) -> None:
    worker = await start_worker(publish_load=True)
    channel = follow(worker)
    (first, load), (second, again) = await channel.record(), await channel.record()
    assert (second, again) == (first + 1, load)


async def test_a_restarted_worker_publishes_on_the_same_port(
    start_worker: StartWorker, follow: Callable[..., Channel]
) -> None:
    worker = await start_worker(publish_load=True)
    await follow(worker).record()
    port = worker.load_port
    await worker.restart_in_place()
    assert worker.load_port == port
    assert (await follow(worker).record())[0] <= 2
