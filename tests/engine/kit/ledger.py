"""An account of a worker's cache kept from its KV events alone, independent of the router's."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import zmq

from kit.worker import WorkerClient

_POLL_MS = 50


class Ledger:
    """What each dp rank of one worker holds on the device, as announced. Exact from a clear on, until a frame is lost:
    a publisher drops what its subscribers are too slow for, and one that starts anew may speak before they are back.

    A thread owns the sockets; everything read from outside is replaced or counted under one lock.
    """

    def __init__(self, worker: WorkerClient) -> None:
        endpoints = worker.kv_endpoints()
        self._lock = threading.Lock()
        self._held: list[set[int]] = [set() for _ in endpoints]
        self._next_seq: list[int | None] = [None] * len(endpoints)
        self._exact = [False] * len(endpoints)
        self._frames = self._events = self._stored = self._removed = self._gaps = 0
        self._closing = threading.Event()
        self._context = zmq.Context()
        sockets = []
        for address, topic in endpoints:
            socket = self._context.socket(zmq.SUB)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt_string(zmq.SUBSCRIBE, topic)
            socket.connect(address)
            sockets.append(socket)
        self._thread = threading.Thread(target=self._read, args=(sockets,), daemon=True)
        self._thread.start()

    def blocks(self) -> list[int]:
        """Blocks on the device, per rank."""
        with self._lock:
            return [len(held) for held in self._held]

    def exact(self) -> list[bool]:
        """Per rank, whether nothing was lost since it was last known to be empty."""
        with self._lock:
            return list(self._exact)

    @property
    def frames(self) -> int:
        with self._lock:
            return self._frames

    @property
    def events(self) -> int:
        """Events so far; a frame is a batch of them."""
        with self._lock:
            return self._events

    def next_seq(self) -> list[int | None]:
        """The number each rank's next frame will have; None where nothing was heard."""
        with self._lock:
            return list(self._next_seq)

    @property
    def stored(self) -> int:
        """Blocks announced as new on the device so far, over all ranks."""
        with self._lock:
            return self._stored

    @property
    def removed(self) -> int:
        """Blocks evicted so far, over all ranks."""
        with self._lock:
            return self._removed

    @property
    def gaps(self) -> int:
        with self._lock:
            return self._gaps

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._context.destroy()

    def _read(self, sockets: list[zmq.Socket[bytes]]) -> None:
        poller = zmq.Poller()
        for socket in sockets:
            poller.register(socket, zmq.POLLIN)
        while not self._closing.is_set():
            for socket, _ in poller.poll(_POLL_MS):
                _, seq, payload = socket.recv_multipart()
                with self._lock:
                    self._apply(sockets.index(socket), int.from_bytes(seq, "big"), payload)

    def _apply(self, rank: int, seq: int, payload: bytes) -> None:
        expected = self._next_seq[rank]
        # A number below the expected one is a worker that started anew, whose cache is empty.
        if expected is not None and seq < expected:
            self._held[rank].clear()
        if seq != expected:
            self._exact[rank] = seq == 0
        self._gaps += expected is not None and seq > expected
        self._next_seq[rank] = seq + 1
        self._frames += 1
        held = self._held[rank]
        events = msgspec.msgpack.decode(payload)[1]
        self._events += len(events)
        for event in events:
            kind, hashes, medium = _fields(event)
            if kind == "AllBlocksCleared":
                held.clear()
                self._exact[rank] = True
            elif medium not in (None, "GPU"):
                continue
            elif kind == "BlockStored":
                self._stored += len(set(hashes).difference(held))
                held.update(hashes)
            elif kind == "BlockRemoved":
                self._removed += len(held.intersection(hashes))
                held.difference_update(hashes)


def _fields(event: Any) -> tuple[str, list[int], str | None]:
    """(kind, block hashes, medium) of an event in either form: a tagged map, or an array as before 0.5.20."""
    if isinstance(event, dict):
        return event["type"], event.get("block_hashes", []), event.get("medium")
    kind = event[0]
    place = {"BlockStored": 6, "BlockRemoved": 2}.get(kind)
    medium = event[place] if place is not None and len(event) > place else None
    return kind, event[1] if len(event) > 1 else [], medium
