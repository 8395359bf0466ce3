"""A whole worker: its events over real sockets tell what its cache holds, over restarts too."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest
import zmq
import zmq.asyncio

from sgl_router.lab.mock_worker import Dialect, MockWorker, MockWorkerConfig, Role
from sgl_router.tokenization import ModelTokenizer

StartWorker = Callable[..., Awaitable[MockWorker]]
URL = "/v1/chat/completions"


def body(topic: int, **change: Any) -> dict[str, Any]:
    text = f"{topic} " + "Please write a short summary of the following text. " * 8
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 20, **change}


async def chat(http: aiohttp.ClientSession, worker: MockWorker, topic: int, **change: Any) -> dict[str, Any]:
    async with http.post(worker.url + URL, json=body(topic, **change)) as response:
        assert response.status == 200
        answer: dict[str, Any] = await response.json()
        return answer


class Subscriber:
    """A naive index of one rank: the hashes a stream says are there, with full attention where a model is hybrid."""

    def __init__(self, socket: zmq.asyncio.Socket, group: int = 0) -> None:
        self._socket = socket
        self.group = group
        self.sequences: list[int] = []
        self.blocks: set[int] = set()
        self.clears = 0

    async def receive(self) -> None:
        _, sequence, payload = await asyncio.wait_for(self._socket.recv_multipart(), 120)
        self.sequences.append(struct.unpack(">Q", sequence)[0])
        for event in msgspec.msgpack.decode(payload)[1]:
            kind = event["type"] if isinstance(event, dict) else event[0]
            if kind == "AllBlocksCleared":
                self.blocks.clear()
                self.clears += 1
                continue
            if isinstance(event, dict) and event.get("group_idx", self.group) != self.group:
                continue
            hashes = event["block_hashes"] if isinstance(event, dict) else event[1]
            (self.blocks.update if kind == "BlockStored" else self.blocks.difference_update)(hashes)

    async def catch_up(self, worker: MockWorker, rank: int = 0) -> None:
        """Read until the last batch published so far."""
        await worker.idle()
        while not self.sequences or self.sequences[-1] + 1 < worker.publishers[rank].next_sequence:
            await self.receive()


@asynccontextmanager
async def subscriber(worker: MockWorker, rank: int = 0) -> AsyncIterator[Subscriber]:
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, worker.config.topic.encode())
    socket.setsockopt(zmq.RECONNECT_IVL, 1)
    socket.connect(f"tcp://127.0.0.1:{worker.kv_port + rank}")
    try:
        await worker.subscribed(rank=rank)
        yield Subscriber(socket, group=1 if worker.config.dialect is Dialect.VLLM_HYBRID else 0)
    finally:
        context.destroy(linger=0)


def held(worker: MockWorker, rank: int = 0) -> set[int]:
    return {block.hash for block in worker.caches[rank].blocks()}


@pytest.mark.parametrize("dialect", list(Dialect))
async def test_the_stream_tells_the_contents_of_the_cache(
    dialect: Dialect, start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(dialect=dialect, cache_tokens=640)
    async with subscriber(worker) as events:
        for topic in (1, 2, 1, 3, 4, 5, 1):
            await chat(http, worker, topic)
        await events.catch_up(worker)
        assert events.blocks == held(worker) != set()
        assert events.sequences[0] == (0 if dialect in (Dialect.VLLM, Dialect.VLLM_HYBRID) else 1)
        assert worker.flush_cache()
        await events.catch_up(worker)
        assert events.blocks == held(worker) == set()


async def test_late_decode_events_leave_at_the_latest_when_idle(
    start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(decode_log_interval=1000, page_size=4)
    async with subscriber(worker) as events:
        await chat(http, worker, 1)
        await events.catch_up(worker)
        assert events.blocks == held(worker)
        assert events.sequences == [1, 2]


async def test_bigram_workers_tell_too(start_worker: StartWorker, http: aiohttp.ClientSession) -> None:
    worker = await start_worker(bigram=True, page_size=4)
    async with subscriber(worker) as events:
        answer = await chat(http, worker, 1)
        again = await chat(http, worker, 1)
        await events.catch_up(worker)
        assert events.blocks == held(worker)
    prompt = answer["usage"]["prompt_tokens"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == (prompt - 2) // 4 * 4
    async with http.get(worker.url + "/server_info") as response:
        assert (await response.json())["speculative_algorithm"] == "EAGLE"


async def test_ranks_have_caches_and_streams_of_their_own(
    start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(dp_size=2)
    async with subscriber(worker, 0) as zero, subscriber(worker, 1) as one:
        await chat(http, worker, 1, routed_dp_rank=1)
        await one.catch_up(worker, 1)
        assert one.blocks == held(worker, 1) != set()
        assert zero.blocks == held(worker, 0) == set()
        await chat(http, worker, 1, routed_dp_rank=0)
        await zero.catch_up(worker, 0)
        assert zero.blocks == one.blocks


async def test_a_restart_in_place_keeps_ports_and_loses_everything_else(
    start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker()
    ports = (worker.port, worker.kv_port, worker.replay_port)
    async with http.get(worker.url + "/server_info") as response:
        before = await response.json()
    async with subscriber(worker) as events:
        await chat(http, worker, 1)
        await events.catch_up(worker)
        worker.gate.close()
        lost = asyncio.ensure_future(chat(http, worker, 2))
        await worker.gate.arrived()
        await worker.restart_in_place()
        worker.gate.open()
        with pytest.raises(aiohttp.ClientError):
            await lost
        assert (worker.port, worker.kv_port, worker.replay_port) == ports
        events.sequences.clear()
        reading = asyncio.ensure_future(events.receive())  # a SUB socket subscribes anew only when read
        await worker.subscribed()
        await chat(http, worker, 3)
        await reading
        await events.catch_up(worker)
        assert events.sequences[0] == 1  # 0 was the clear, before the subscriber was back
        assert held(worker) <= events.blocks
    async with http.get(worker.url + "/server_info") as response:
        after = await response.json()
    assert worker.incarnation == 2
    assert after["startup_time"] != before["startup_time"]
    assert after["random_seed"] != before["random_seed"]


async def test_a_stopped_worker_starts_again_on_its_ports(
    tokenizer: ModelTokenizer, http: aiohttp.ClientSession
) -> None:
    worker = MockWorker(MockWorkerConfig.instant(dp_size=2), tokenizer=tokenizer)
    await worker.start()
    url, kv_port = worker.url, worker.kv_port
    with pytest.raises(RuntimeError, match="already"):
        await worker.start()
    await worker.stop()
    await worker.stop()
    with pytest.raises(aiohttp.ClientConnectorError):
        await chat(http, worker, 1)
    async with worker:
        assert (worker.url, worker.kv_port) == (url, kv_port)
        await chat(http, worker, 1)


async def test_a_failed_start_leaves_nothing_bound(tokenizer: ModelTokenizer, start_worker: StartWorker) -> None:
    running = await start_worker()
    clash = MockWorker(MockWorkerConfig.instant(port=running.port), tokenizer=tokenizer)
    with pytest.raises(OSError, match="in use"):
        await clash.start()
    assert not clash.engines
    taken = clash.kv_port
    reuse = MockWorker(MockWorkerConfig.instant(kv_port=taken), tokenizer=tokenizer)
    async with reuse:
        assert reuse.kv_port == taken


async def test_decode_workers_bind_their_ports_and_stay_silent(
    start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(role=Role.DECODE)
    async with subscriber(worker):
        await chat(http, worker, 1, bootstrap_room=1, bootstrap_host="2.2.2.2")
        await worker.idle()
        assert worker.publishers[0].next_sequence == 0
        assert not held(worker)


async def test_simulated_time_passes(tokenizer: ModelTokenizer, http: aiohttp.ClientSession) -> None:
    config = MockWorkerConfig(decode_ms_per_token=20, decode_ms_per_running=0, prefill_overhead_ms=30)
    async with MockWorker(config, tokenizer=tokenizer) as worker:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await chat(http, worker, 1, max_tokens=4)
        assert loop.time() - begun >= 0.03 + 3 * 0.02


async def test_an_aborted_answer_is_cached_as_far_as_it_came(
    start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(page_size=1, answer_tokens=200)
    worker.stream_gate.close()
    async with http.post(worker.url + URL, json=body(1, stream=True, max_tokens=100)) as response:
        await response.content.readuntil(b"\n\n")
        prompt = worker.log.last.prompt_tokens
    await worker.idle()
    assert worker.cache.device_tokens >= prompt
