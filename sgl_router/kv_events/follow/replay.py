"""Asking a worker's replay endpoint for frames that were missed.

The engine's publisher answers a DEALER's `["", start]` with one message per batch it still has from `start` on, then an
end marker. It keeps a bounded buffer and says nothing of what it dropped, and its ROUTER drops silently when a pipe is
full: so the receiving side is unbounded, every number is checked, and a hole is asked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from enum import Enum

import zmq
import zmq.asyncio

from sgl_router.kv_events.follow.wire import END_SEQ, Frame
from sgl_router.upstream.zmq_subscriber import LARGE_BYTES

__all__ = ["ReplayEnd", "replay"]


MAX_REPLAY_SECS = 120.0


class ReplayEnd(str, Enum):
    """How a replay ended: the metric label and the log field."""

    COMPLETE = "complete"
    """The end marker came, and every number up to it."""
    HOLE = "hole"
    """A number was skipped: ask again from there."""
    TIMEOUT = "timeout"
    """Nothing came for too long: no such endpoint, or its end marker was lost."""
    MALFORMED = "malformed"
    """What came is not a replay."""
    CLOSED = "closed"
    """The connection was made, and closed before the end."""


async def replay(
    context: zmq.asyncio.Context,
    endpoint: str,
    start: int,
    *,
    idle_secs: float,
    max_message_bytes: int,
    ipv6: bool = True,
) -> AsyncGenerator[Frame | ReplayEnd, None]:
    """Frames from `start` (or the oldest the worker still has) in order without a hole, then one ReplayEnd.

    The caller decides what a first frame later than `start` means. Takes at most `idle_secs` between two frames.
    `ipv6`: as `Subscriber.ipv6`, which has found out.
    """
    try:
        socket = context.socket(zmq.DEALER)
    except zmq.ZMQError:  # no file descriptor left
        yield ReplayEnd.TIMEOUT
        return
    monitor = None
    give_up = asyncio.get_running_loop().time() + MAX_REPLAY_SECS
    try:
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVHWM, 0)  # before connect, or a slow consumer loses messages silently
        socket.set(zmq.MAXMSGSIZE, max_message_bytes)
        socket.set(zmq.IPV6, int(ipv6))
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.connect(endpoint)
        await socket.send_multipart([b"", start.to_bytes(8, "big")])
        expected: int | None = None
        while True:
            if asyncio.get_running_loop().time() > give_up:
                yield ReplayEnd.TIMEOUT
                return
            try:
                parts = await asyncio.wait_for(socket.recv_multipart(copy=False), idle_secs)
            except asyncio.TimeoutError:
                yield ReplayEnd.CLOSED if await monitor.poll(0) else ReplayEnd.TIMEOUT
                return
            # ["", seq, payload] up to 0.5.21, ["", topic, seq, payload] after; the end marker has an empty payload.
            if len(parts) < 3 or len(parts[-2]) != 8:
                yield ReplayEnd.MALFORMED
                return
            seq, size = int.from_bytes(parts[-2].bytes, "big"), len(parts[-1])
            if not size:
                yield ReplayEnd.COMPLETE if seq == END_SEQ else ReplayEnd.MALFORMED
                return
            if seq < start or (expected is not None and seq < expected):
                continue
            if expected is not None and seq != expected:
                yield ReplayEnd.HOLE
                return
            expected = seq + 1
            yield Frame(seq, parts[-1].buffer if size > LARGE_BYTES else parts[-1].bytes)
    finally:
        with contextlib.suppress(zmq.ZMQError):
            if monitor is not None:
                socket.disable_monitor()
                monitor.close(0)
            socket.close(0)
