"""One SUB subscription for one (worker, dp_rank), driven by the loop's own readiness, without a future per message.

Each connection has a socket of its own. libzmq would reconnect by itself, but then frames from before and after the
break stand in one queue and nobody can tell them apart. Here a break is announced twice: at once (`lost`, out of band)
and when the last frame from before it was received (`connection(False)`, in band). Only then the next socket opens.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import structlog
import zmq
from zmq.utils.monitor import parse_monitor_message

from sgl_router.descriptors import spare, tell_shortage

__all__ = ["LARGE_BYTES", "SPARE_DESCRIPTORS", "Subscriber", "make_context"]

log = structlog.get_logger(__name__)

SPARE_DESCRIPTORS = 16
"""libzmq ends the process (SIGABRT) where it finds no descriptor for an I/O thread: so many must be there before a
context's first socket is opened."""

_RETRY_SECS = (0.1, 2.0)
_STABLE_SECS = 5.0
_CONNECT_MS = 3_000
# So long without a connection, and somebody should look: a worker that starts or restarts takes less, mostly.
_UNANSWERED_SECS = 10.0
LARGE_BYTES = 64 << 10
"""A payload from here on is not copied."""
# Longer than any handshake: covers what libzmq reports no event for, such as a name that does not resolve.
_WATCHDOG_SECS = 10.0
_ENDED = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


def make_context() -> zmq.Context[zmq.Socket[bytes]]:
    """A context that admits two sockets (events, monitor) per rank of a large fleet; libzmq's default stops at 1023."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, min(32_768, context.get(zmq.SOCKET_LIMIT)))
    return context


class Subscriber:
    """Connects when made and again after each break, until closed. Callbacks run on the loop, never inside `__init__`.

    A peer that sends more than `max_message_bytes` in one part loses its connection: libzmq does not say why.
    `readable(self)`: messages may be waiting. libzmq signals readiness by edge: call `receive` until it returns None;
    whoever stops earlier must come back by itself.

    Where nothing has answered for `unanswered_secs`, one warning says so, and one line when it does: `of` says in them
    whose endpoint it is.
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
        lost: Callable[[Subscriber], None] = lambda subscriber: None,
        of: Mapping[str, object] = MappingProxyType({}),
        unanswered_secs: float = _UNANSWERED_SECS,
    ) -> None:
        self.endpoint = endpoint
        self.connected = False
        self.ipv6 = True
        """libzmq dials one address of a name: with this the IPv6 one, where there is one, else the IPv4 one. Engines
        mostly listen on IPv4 alone, so both are tried until one connects."""
        self._context = context
        self._topic = topic.encode()
        self._hwm = receive_high_water_mark
        self._max_bytes = max_message_bytes
        self._readable = readable
        self._connection = connection
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: Any = None
        self._fds: tuple[int, int] | None = None
        self._ended = False
        self._closed = False
        self._retry = _RETRY_SECS[0]
        self._connected_at = 0.0
        self._of = of
        self._unanswered_secs = unanswered_secs
        self._since = self._loop.time()  # there is no connection
        self._warned = False
        self._timer: asyncio.Handle | None = self._loop.call_soon(self._open)

    def receive(self) -> list[bytes | memoryview] | None:
        """The next message's parts, None when nothing is waiting (or the subscriber is closed). What is large stays in
        the memory it was received into: copying 64 MiB takes long enough to be noticed."""
        socket = self._socket
        if socket is None:
            return None
        try:
            parts: list[bytes | memoryview] = [socket.recv(zmq.NOBLOCK)]
            while socket.getsockopt(zmq.RCVMORE):
                if len(parts) == 2:
                    payload = socket.recv(copy=False)
                    parts.append(payload.buffer if len(payload) > LARGE_BYTES else payload.bytes)
                else:
                    parts.append(socket.recv())
            return parts
        except zmq.Again:
            if self._ended:
                self._drop_socket()
                self._connection(self, False)
                self._open_later()
            return None

    def close(self) -> None:
        """Leave the loop and drop what is queued. Idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._drop_socket()
        self.connected = False

    def _open(self) -> None:
        self._timer = None
        self._ended = False
        if not spare(SPARE_DESCRIPTORS):
            tell_shortage(errno.EMFILE, "event sockets are opened later")
            self._open_later()
            return
        socket: zmq.Socket[bytes] | None = None
        try:
            socket = self._context.socket(zmq.SUB)
            socket.set(zmq.LINGER, 0)
            # The engine's publisher drops at 100,000 frames; an equal mark here means a stalled router loses nothing
            # earlier than the engine itself would. Frames are small, and the mark is a bound, not an allocation.
            socket.set(zmq.RCVHWM, self._hwm)
            socket.set(zmq.MAXMSGSIZE, self._max_bytes)
            socket.set(zmq.RECONNECT_IVL, -1)
            socket.set(zmq.CONNECT_TIMEOUT, _CONNECT_MS)
            socket.set(zmq.TCP_KEEPALIVE, 1)
            socket.set(zmq.TCP_KEEPALIVE_IDLE, 30)
            socket.set(zmq.TCP_KEEPALIVE_INTVL, 10)
            socket.set(zmq.TCP_KEEPALIVE_CNT, 3)
            socket.set(zmq.IPV6, int(self.ipv6))
            socket.set(zmq.SUBSCRIBE, self._topic)
            self._monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | _ENDED)
            socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            log.warning("kv event socket cannot be opened", endpoint=self.endpoint, reason=str(error))
            if socket is not None:
                if self._monitor is not None:
                    socket.disable_monitor()
                    self._monitor = None
                socket.close(0)
            self._open_later()
            return
        self._socket = socket
        self._fds = (int(socket.get(zmq.FD)), int(self._monitor.get(zmq.FD)))
        self._loop.add_reader(self._fds[0], self._on_readable)
        self._loop.add_reader(self._fds[1], self._on_monitor)
        # libzmq signals only a mailbox whose owner has found it empty: look once, or the first edge may never come.
        self._loop.call_soon(self._on_monitor)
        self._loop.call_soon(self._on_readable)
        self._timer = self._loop.call_later(_WATCHDOG_SECS, self._end)

    def _open_later(self) -> None:
        if not self._closed:
            self._warn()
            self._timer = self._loop.call_later(self._retry * random.uniform(0.8, 1.2), self._open)
            self._retry = min(self._retry * 2, _RETRY_SECS[1])

    def _warn(self) -> None:
        """Say once that nothing answers. libzmq says nothing of the kind, it dials again for ever."""
        waited = self._loop.time() - self._since
        if not self._warned and waited >= self._unanswered_secs:
            self._warned = True
            log.warning(
                "event port does not answer",
                **self._of,
                endpoint=self.endpoint,
                secs=round(waited),
                check="the endpoint in the worker's --kv-events-config: its own port, bound to an address that can be "
                "reached from here, let through by firewalls, containers and Kubernetes services",
            )

    def _drop_socket(self) -> None:
        socket, self._socket = self._socket, None
        if socket is None or self._fds is None:
            return
        for fd in self._fds:
            self._loop.remove_reader(fd)
        self._fds = None
        socket.disable_monitor()
        self._monitor.close(0)
        self._monitor = None
        socket.close(0)

    def _on_readable(self) -> None:
        if self._socket is not None:
            # Looking makes libzmq do its pending work also while nobody receives.
            self._socket.get(zmq.EVENTS)
            self._readable(self)

    def _on_monitor(self) -> None:
        while self._monitor is not None:
            try:
                message = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            if message["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
                self.connected = True
                self._connected_at = self._loop.time()
                log.debug("kv event socket connected", endpoint=self.endpoint)
                if self._warned:
                    self._warned = False
                    log.info("event port answers", **self._of, endpoint=self.endpoint)
                self._connection(self, True)
            else:
                self._end()

    def _end(self) -> None:
        """The connection broke, or was never made."""
        if self._ended or self._socket is None:
            return
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.connected:
            self.connected = False
            self._since = self._loop.time()
            if self._loop.time() - self._connected_at > _STABLE_SECS:
                self._retry = _RETRY_SECS[0]  # a connection that breaks at once does not count as one
            log.debug("kv event socket lost", endpoint=self.endpoint)
            self._lost(self)
            self._readable(self)  # what is still queued goes first; `receive` finds the end of it
        else:
            self._drop_socket()
            if not self._connected_at and "[" not in self.endpoint:
                self.ipv6 = not self.ipv6
            self._open_later()
