"""One SUB socket for one (worker, dp_rank), driven by the loop's own readiness, without a future per message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog
import zmq
from zmq.utils.monitor import parse_monitor_message

__all__ = ["Subscriber", "make_context"]

log = structlog.get_logger(__name__)

_RECONNECT_MS = 100
_RECONNECT_MAX_MS = 2_000
_MONITORED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


def make_context() -> zmq.Context[zmq.Socket[bytes]]:
    """A context that admits two sockets (events, monitor) per rank of a large fleet; libzmq's default stops at 1023."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, min(32_768, context.get(zmq.SOCKET_LIMIT)))
    return context


class Subscriber:
    """Connects at once and reconnects on its own. `readable(self)` is called on the loop when messages may be waiting.

    Invariant: libzmq signals readiness by edge. After `readable`, call `receive` until it returns None; whoever stops
    earlier must come back by itself.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        topic: str,
        *,
        receive_high_water_mark: int,
        max_message_bytes: int,
        readable: Callable[[Subscriber], None],
        connection: Callable[[Subscriber, bool], None],
    ) -> None:
        self.endpoint = endpoint
        self.connected = False
        self._readable = readable
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        socket = context.socket(zmq.SUB)
        socket.set(zmq.LINGER, 0)
        # The engine's publisher drops at 100,000 frames; an equal mark here means a stalled router loses nothing
        # earlier than the engine itself would. Frames are small, and the mark is a bound, not an allocation.
        socket.set(zmq.RCVHWM, receive_high_water_mark)
        socket.set(zmq.MAXMSGSIZE, max_message_bytes)
        socket.set(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.set(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        socket.set(zmq.TCP_KEEPALIVE, 1)
        socket.set(zmq.TCP_KEEPALIVE_IDLE, 30)
        socket.set(zmq.TCP_KEEPALIVE_INTVL, 10)
        socket.set(zmq.TCP_KEEPALIVE_CNT, 3)
        socket.set(zmq.IPV6, 1)
        socket.set(zmq.SUBSCRIBE, topic.encode())
        self._socket: zmq.Socket[bytes] | None = socket
        self._monitor: Any = socket.get_monitor_socket(_MONITORED)
        self._fds = (int(socket.get(zmq.FD)), int(self._monitor.get(zmq.FD)))
        self._loop.add_reader(self._fds[0], self._on_readable)
        self._loop.add_reader(self._fds[1], self._on_monitor)
        socket.connect(endpoint)
        # libzmq signals only a mailbox whose owner has found it empty: look once, or the first edge may never come.
        self._loop.call_soon(self._on_monitor)
        self._loop.call_soon(self._on_readable)

    def receive(self) -> list[bytes] | None:
        """The next message's parts, None when nothing is waiting (or the subscriber is closed)."""
        if self._socket is None:
            return None
        try:
            return self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def close(self) -> None:
        """Leave the loop and drop what is queued. Idempotent."""
        if self._socket is None:
            return
        socket, self._socket = self._socket, None
        for fd in self._fds:
            self._loop.remove_reader(fd)
        socket.disable_monitor()
        self._monitor.close(0)
        socket.close(0)

    def _on_readable(self) -> None:
        if self._socket is not None:
            # Looking makes libzmq do its pending work (above all: subscribe again after a reconnect), also while
            # nobody receives.
            self._socket.get(zmq.EVENTS)
            self._readable(self)

    def _on_monitor(self) -> None:
        while self._socket is not None:
            try:
                message = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            connected = message["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if connected != self.connected:
                self.connected = connected
                log.debug("kv event socket", endpoint=self.endpoint, connected=connected)
                self._connection(self, connected)
