"""The event stream over real sockets: numbering, replay in both shapes, faults."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from sgl_router.lab.mock_worker.config import Dialect
from sgl_router.lab.mock_worker.ops import BlocksStored, CacheCleared, CacheOp
from sgl_router.lab.mock_worker.profile import EngineProfile
from sgl_router.lab.mock_worker.publisher import END_SEQUENCE, EventPublisher, open_publishers, tcp_endpoint

PROFILES = {
    "topic": EngineProfile(Dialect.MAP_LORA, "0.5.22"),
    "no topic": EngineProfile(Dialect.MAP, "0.5.21"),
    "vllm": EngineProfile(Dialect.VLLM, "0.32.0"),
}


def store(token: int) -> list[CacheOp]:
    return [BlocksStored((token,), None, (token,), 1)]


class Stream:
    """A publisher and everything a test reads it with."""

    def __init__(self, publisher: EventPublisher, subscriber: zmq.asyncio.Socket, dealer: zmq.asyncio.Socket) -> None:
        self.publisher = publisher
        self.subscriber = subscriber
        self.dealer = dealer

    async def receive(self) -> tuple[int, bytes]:
        topic, sequence, payload = await asyncio.wait_for(self.subscriber.recv_multipart(), 120)
        assert topic == b"kv"
        return struct.unpack(">Q", sequence)[0], payload

    async def sequences(self, count: int) -> list[int]:
        return [(await self.receive())[0] for _ in range(count)]

    async def replay(self, start: int) -> list[list[bytes]]:
        """All frames of a replay, END included."""
        await self.dealer.send_multipart([b"", struct.pack(">Q", start)])
        replies = []
        while True:
            replies.append(await asyncio.wait_for(self.dealer.recv_multipart(), 120))
            if replies[-1][-2] == END_SEQUENCE:
                return replies

    async def replayed(self, start: int) -> list[int]:
        return [struct.unpack(">Q", frames[-2])[0] for frames in await self.replay(start)][:-1]


@asynccontextmanager
async def stream(profile: str = "topic", **settings: Any) -> AsyncIterator[Stream]:
    context = zmq.asyncio.Context()
    options: dict[str, Any] = {"buffer_steps": 100, "replay_send_high_water_mark": 0, **settings}
    (publisher,), port, replay_port = await open_publishers(
        context,
        ranks=1,
        host="127.0.0.1",
        kv_port=0,
        replay_port=0,
        profile=PROFILES[profile],
        topic="kv",
        **options,
    )
    assert replay_port is not None
    subscriber, dealer = context.socket(zmq.SUB), context.socket(zmq.DEALER)
    subscriber.setsockopt(zmq.SUBSCRIBE, b"")
    dealer.setsockopt(zmq.RCVHWM, 0)
    subscriber.connect(tcp_endpoint("127.0.0.1", port))
    dealer.connect(tcp_endpoint("127.0.0.1", replay_port))
    try:
        await publisher.subscribed(timeout=60)
        yield Stream(publisher, subscriber, dealer)
    finally:
        await publisher.close()
        context.destroy(linger=0)


async def test_batches_are_numbered_and_carry_their_rank() -> None:
    async with stream() as events:
        events.publisher.publish([CacheCleared()])
        events.publisher.publish([])
        events.publisher.publish(store(7))
        assert (await events.receive())[0] == 0
        sequence, payload = await events.receive()
        assert sequence == 1
        timestamp, batch, rank = msgspec.msgpack.decode(payload)
        assert isinstance(timestamp, float)
        assert batch[0]["token_ids"] == [7]
        assert rank == 0


@pytest.mark.parametrize(("profile", "frames"), [("topic", 4), ("no topic", 3), ("vllm", 4)])
async def test_replay_starts_where_asked_and_ends_with_a_marker(profile: str, frames: int) -> None:
    async with stream(profile) as events:
        for token in range(5):
            events.publisher.publish(store(token))
        replies = await events.replay(2)
        assert {len(reply) for reply in replies} == {frames}
        assert [reply[-2] for reply in replies] == [struct.pack(">Q", n) for n in (2, 3, 4)] + [END_SEQUENCE]
        assert replies[-1] == [b""] * (frames - 2) + [END_SEQUENCE, b""]
        assert [reply[0] for reply in replies] == [b""] * 4
        if frames == 4:
            assert [reply[1] for reply in replies[:-1]] == [b"kv"] * 3


async def test_replayed_payloads_are_the_published_ones() -> None:
    async with stream() as events:
        events.publisher.publish(store(1))
        published = await events.receive()
        assert (await events.replay(0))[0][-1] == published[1]


async def test_replay_beyond_the_newest_is_just_the_marker() -> None:
    async with stream() as events:
        events.publisher.publish(store(1))
        assert await events.replayed(10**6) == []


async def test_replay_starts_at_the_oldest_remembered() -> None:
    async with stream(buffer_steps=3) as events:
        for token in range(10):
            events.publisher.publish(store(token))
        assert await events.replayed(0) == [7, 8, 9]


async def test_a_malformed_replay_request_gets_no_answer_and_does_no_harm() -> None:
    async with stream() as events:
        events.publisher.publish(store(1))
        await events.dealer.send_multipart([struct.pack(">Q", 0)])
        await events.dealer.send_multipart([b"", b"short"])
        assert await events.replayed(0) == [0]


async def test_a_dropped_batch_leaves_a_gap_that_replay_fills() -> None:
    async with stream() as events:
        events.publisher.publish(store(0))
        events.publisher.faults.drop = 2
        for token in range(1, 4):
            events.publisher.publish(store(token))
        assert await events.sequences(2) == [0, 3]
        assert await events.replayed(0) == [0, 1, 2, 3]


async def test_a_duplicated_batch_arrives_twice() -> None:
    async with stream() as events:
        events.publisher.faults.duplicate = 1
        events.publisher.publish(store(0))
        events.publisher.publish(store(1))
        assert await events.sequences(3) == [0, 0, 1]


async def test_a_reordered_batch_arrives_after_its_successor() -> None:
    async with stream() as events:
        events.publisher.faults.reorder = 1
        for token in range(3):
            events.publisher.publish(store(token))
        assert await events.sequences(3) == [1, 0, 2]


async def test_a_corrupt_batch_is_whole_in_the_replay() -> None:
    async with stream() as events:
        events.publisher.faults.corrupt = 1
        events.publisher.publish(store(5))
        with pytest.raises(msgspec.DecodeError):
            msgspec.msgpack.decode((await events.receive())[1])
        assert msgspec.msgpack.decode((await events.replay(0))[0][-1])[1][0]["token_ids"] == [5]


async def test_a_paused_stream_catches_up() -> None:
    async with stream() as events:
        events.publisher.pause()
        events.publisher.publish(store(0))
        replay = asyncio.ensure_future(events.replayed(0))
        events.publisher.publish(store(1))
        assert not await events.subscriber.poll(20)
        assert not replay.done()
        events.publisher.resume()
        assert await events.sequences(2) == [0, 1]
        assert await replay == [0, 1]


async def test_replies_can_get_lost_with_the_marker_intact() -> None:
    async with stream() as events:
        for token in range(4):
            events.publisher.publish(store(token))
        events.publisher.faults.replay_drop = 1
        assert await events.replayed(0) == [1, 2, 3]
        assert await events.replayed(0) == [0, 1, 2, 3]


async def test_the_marker_can_get_lost() -> None:
    async with stream() as events:
        events.publisher.publish(store(0))
        events.publisher.faults.replay_no_end = 1
        await events.dealer.send_multipart([b"", struct.pack(">Q", 0)])
        assert (await asyncio.wait_for(events.dealer.recv_multipart(), 120))[-2] == struct.pack(">Q", 0)
        assert not await events.dealer.poll(20)


async def test_clearing_faults_sends_what_was_held_back() -> None:
    async with stream() as events:
        events.publisher.faults.reorder = 1
        events.publisher.publish(store(0))
        events.publisher.faults.drop = 5
        events.publisher.clear_faults()
        events.publisher.publish(store(1))
        assert await events.sequences(2) == [0, 1]


async def test_subscribers_are_counted_as_they_come_and_go() -> None:
    async with stream() as events:
        assert events.publisher.subscribers == 1
        with pytest.raises(asyncio.TimeoutError):
            await events.publisher.subscribed(2, timeout=0.02)
        events.subscriber.setsockopt(zmq.UNSUBSCRIBE, b"")
        events.subscriber.setsockopt(zmq.SUBSCRIBE, b"kv")
        events.subscriber.setsockopt(zmq.SUBSCRIBE, b"k")
        await events.publisher.subscribed(2, timeout=60)


async def test_ranks_take_consecutive_ports_and_release_them() -> None:
    context = zmq.asyncio.Context()
    ports: tuple[int, int | None] | None = None
    for _ in range(2):
        publishers, port, replay_port = await open_publishers(
            context,
            ranks=3,
            host="127.0.0.1",
            kv_port=ports[0] if ports else 0,
            replay_port=(ports[1] if ports else None) or 0,
            replay_send_high_water_mark=1000,
            profile=PROFILES["topic"],
            topic="",
            buffer_steps=10,
        )
        assert replay_port is not None
        for base in (port, replay_port):
            for rank in range(3):
                with pytest.raises(zmq.ZMQError):
                    context.socket(zmq.PUB).bind(tcp_endpoint("127.0.0.1", base + rank))
        ports = (port, replay_port)
        for publisher in publishers:
            await publisher.close()
    context.destroy(linger=0)


def test_ipv6_endpoints_are_bracketed() -> None:
    assert tcp_endpoint("::1", 5) == "tcp://[::1]:5"
    assert tcp_endpoint("10.0.0.1", "*") == "tcp://10.0.0.1:*"
