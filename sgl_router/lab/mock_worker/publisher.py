"""One rank's KV-event stream on real sockets: PUB with sequence numbers, and the replay endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import structlog
import zmq
import zmq.asyncio

from sgl_router.lab.mock_worker.dialects import encode_batch, encode_events, in_medium
from sgl_router.lab.mock_worker.ops import CacheOp
from sgl_router.lab.mock_worker.profile import EngineProfile

log = structlog.get_logger(__name__)

END_SEQUENCE = b"\xff" * 8
_CORRUPT_PAYLOAD = b"\xc1not msgpack"
_REPLAY_TURN = 256
_BIND_SECS = 2.0
_BIND_RETRY_SECS = 0.01


@dataclass
class StreamFaults:
    """Faults of one event stream; each count is used up by the batches (or replies) it hits.

    A dropped batch takes its sequence number and stays replayable. While `paused`, nothing is sent or
    replayed; batches wait and are sent in order afterwards. `reorder` swaps a batch with its successor.
    While `muted`, events are lost before they get a number, as with a publisher that died in a worker that serves.
    `medium`: what events say in place of their own medium.
    `replay_drop` leaves replies out of replays, as a full pipe does. `replay_no_end` withholds END. What is `corrupt`
    is whole in a replay, unless `replay_corrupt` garbles it there too.
    """

    drop: int = 0
    duplicate: int = 0
    corrupt: int = 0
    reorder: int = 0
    replay_drop: int = 0
    replay_corrupt: int = 0
    replay_no_end: int = 0
    paused: bool = False
    muted: bool = False
    medium: str | None = None

    def take(self, name: str) -> bool:
        """Use up one occurrence of a counted fault, if any is left."""
        left: int = getattr(self, name)
        if left:
            setattr(self, name, left - 1)
        return left > 0

    def clear(self) -> None:
        """Back to normal."""
        for fault in fields(self):
            setattr(self, fault.name, fault.default)


def tcp_endpoint(host: str, port: int | str) -> str:
    """A ZMQ endpoint; IPv6 hosts are bracketed."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


async def bind(socket: zmq.asyncio.Socket, host: str, port: int, *, patient: bool) -> int:
    """Bind to a port (0: any) and return it; if patient, wait a moment for its last owner to let go."""
    if ":" in host:
        socket.setsockopt(zmq.IPV6, 1)
    deadline = time.monotonic() + _BIND_SECS
    while True:
        try:
            socket.bind(tcp_endpoint(host, port or "*"))
            break
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or not patient or time.monotonic() > deadline:
                raise
        await asyncio.sleep(_BIND_RETRY_SECS)
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return int(endpoint.rstrip(b"\0").rpartition(b":")[2])


class EventPublisher:
    """Numbers, sends and remembers the event batches of one dp rank."""

    def __init__(
        self,
        publish_socket: zmq.asyncio.Socket,
        replay_socket: zmq.asyncio.Socket | None,
        *,
        rank: int,
        profile: EngineProfile,
        topic: str,
        buffer_steps: int,
    ) -> None:
        self.rank = rank
        self.next_sequence = 0
        self.faults = StreamFaults()
        self._sockets = [publish_socket, *([replay_socket] if replay_socket is not None else [])]
        self._publish_socket = publish_socket
        self._profile = profile
        self._topic = topic.encode()
        self._buffer: deque[tuple[bytes, bytes]] = deque(maxlen=buffer_steps)
        self._backlog: deque[tuple[bytes, bytes]] = deque()
        self._withheld: tuple[bytes, bytes] | None = None
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._subscribers = 0
        self._subscribers_changed = asyncio.Condition()
        self._tasks = [asyncio.ensure_future(self._watch_subscribers())]
        if replay_socket is not None:
            self._tasks.append(asyncio.ensure_future(self._serve_replay(replay_socket)))

    @property
    def subscribers(self) -> int:
        """Subscriptions seen and not withdrawn."""
        return self._subscribers

    async def subscribed(self, count: int = 1, *, timeout: float) -> None:
        """Wait until `count` subscriptions have arrived; what is published from then on reaches them."""

        async def wait() -> None:
            async with self._subscribers_changed:
                await self._subscribers_changed.wait_for(lambda: self._subscribers >= count)

        await asyncio.wait_for(wait(), timeout)

    def publish(self, ops: Iterable[CacheOp]) -> None:
        """Publish one batch; a batch without events in this dialect is not sent and takes no number."""
        events = encode_events(ops, self._profile.dialect)
        if self.faults.medium is not None:
            events = in_medium(events, self.faults.medium)
        if events and not self.faults.muted:
            self.publish_payload(encode_batch(events, timestamp=time.time(), rank=self.rank))

    def publish_payload(self, payload: bytes) -> None:
        """Publish ready-made bytes under the next sequence number."""
        batch = (struct.pack(">Q", self.next_sequence), payload)
        self.next_sequence += 1
        self._buffer.append(batch)
        if self.faults.paused:
            self._backlog.append(batch)
        else:
            self._send_through_faults(batch)

    def pause(self) -> None:
        """Stop sending and replaying, as a stuck publisher thread does."""
        self.faults.paused = True
        self._resumed.clear()

    def resume(self) -> None:
        """Send what piled up while paused, then carry on."""
        self.faults.paused = False
        while self._backlog:
            self._send_through_faults(self._backlog.popleft())
        self._resumed.set()

    def clear_faults(self) -> None:
        """End every fault; a batch held back for reordering is sent now."""
        self.resume()
        self.faults.clear()
        if self._withheld is not None:
            withheld, self._withheld = self._withheld, None
            self._send(*withheld)

    async def close(self) -> None:
        """Stop serving and close both sockets at once; what was not sent yet is lost."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for socket in self._sockets:
            socket.close(linger=0)

    def _send_through_faults(self, batch: tuple[bytes, bytes]) -> None:
        sequence, payload = batch
        if self.faults.take("drop"):
            return
        if self.faults.take("corrupt"):
            payload = _CORRUPT_PAYLOAD
        if self._withheld is None and self.faults.take("reorder"):
            self._withheld = (sequence, payload)
            return
        self._send(sequence, payload)
        if self.faults.take("duplicate"):
            self._send(sequence, payload)
        if self._withheld is not None:
            withheld, self._withheld = self._withheld, None
            self._send(*withheld)

    def _send(self, sequence: bytes, payload: bytes) -> None:
        # A PUB socket never blocks: at a subscriber's high-water mark it drops for that subscriber.
        self._publish_socket.send_multipart([self._topic, sequence, payload])

    async def _watch_subscribers(self) -> None:
        while True:
            frame = await self._publish_socket.recv()
            async with self._subscribers_changed:
                self._subscribers += 1 if frame[:1] == b"\x01" else -1
                self._subscribers_changed.notify_all()

    async def _serve_replay(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frames = await socket.recv_multipart()
            if len(frames) != 3 or frames[1] or len(frames[2]) != 8:
                log.warning("Invalid replay request", rank=self.rank, frames=len(frames))
                continue
            await self._resumed.wait()
            await self._replay(socket, frames[0], frames[2])

    async def _replay(self, socket: zmq.asyncio.Socket, client: bytes, start: bytes) -> None:
        batches: Sequence[tuple[bytes, bytes]] = [batch for batch in self._buffer if batch[0] >= start]
        for index, (sequence, payload) in enumerate(batches):
            if not self.faults.take("replay_drop"):
                sent = _CORRUPT_PAYLOAD if self.faults.take("replay_corrupt") else payload
                await socket.send_multipart(self._reply(client, self._topic, sequence, sent))
            if index % _REPLAY_TURN == _REPLAY_TURN - 1:
                await asyncio.sleep(0)
        if not self.faults.take("replay_no_end"):
            await socket.send_multipart(self._reply(client, b"", END_SEQUENCE, b""))

    def _reply(self, client: bytes, topic: bytes, sequence: bytes, payload: bytes) -> list[bytes]:
        if self._profile.replay_sends_topic:
            return [client, b"", topic, sequence, payload]
        return [client, b"", sequence, payload]


async def open_publishers(
    context: zmq.asyncio.Context,
    *,
    ranks: int,
    host: str,
    kv_port: int,
    replay_port: int | None,
    replay_send_high_water_mark: int,
    send_high_water_mark: int = 100_000,
    **settings: Any,
) -> tuple[list[EventPublisher], int, int | None]:
    """Bind every rank's sockets on consecutive ports; returns the publishers and both base ports."""
    publish = await bind_row(
        context, zmq.XPUB, ranks, host, kv_port, {zmq.SNDHWM: send_high_water_mark, zmq.XPUB_VERBOSER: 1}
    )
    replay: list[zmq.asyncio.Socket] = []
    replay_base: int | None = None
    if replay_port is not None:
        try:
            # The engine leaves its ROUTER at the default mark of 1000 and so drops silently when full.
            replay, replay_base = await bind_row(
                context, zmq.ROUTER, ranks, host, replay_port, {zmq.SNDHWM: replay_send_high_water_mark}
            )
        except BaseException:
            for socket in publish[0]:
                socket.close(linger=0)
            raise
    publishers = [
        EventPublisher(socket, replay[rank] if replay else None, rank=rank, **settings)
        for rank, socket in enumerate(publish[0])
    ]
    return publishers, publish[1], replay_base


async def bind_row(
    context: zmq.asyncio.Context,
    kind: int,
    ranks: int,
    host: str,
    base: int,
    options: dict[int, int],
) -> tuple[list[zmq.asyncio.Socket], int]:
    """Sockets bound to `base`, `base + 1`, ...; a free run of ports is searched when base is 0."""
    attempts = 1 if base else 50
    while True:
        attempts -= 1
        sockets: list[zmq.asyncio.Socket] = []
        try:
            first = base
            for rank in range(ranks):
                socket = context.socket(kind)
                sockets.append(socket)
                socket.setsockopt(zmq.LINGER, 0)
                for option, value in options.items():
                    socket.setsockopt(option, value)
                port = await bind(socket, host, first + rank if first else 0, patient=base > 0)
                first = first or port
            return sockets, first
        except BaseException as error:
            for socket in sockets:
                socket.close(linger=0)
            if not attempts or not isinstance(error, zmq.ZMQError):
                raise
