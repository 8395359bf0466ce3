"""One rank's load on a PUB socket of its own: on change, and once a second."""

from __future__ import annotations

import asyncio
import itertools

import msgspec
import zmq
import zmq.asyncio

from sgl_router.lab.mock_worker.publisher import bind_row
from sgl_router.lab.mock_worker.scheduler import EngineModel

LOAD_TOPIC = "load"
HEARTBEAT_SECS = 1.0
_HIGH_WATER_MARK = 8

_encode = msgspec.msgpack.Encoder().encode


class LoadPublisher:
    """Numbers and sends the load records of one dp rank."""

    def __init__(self, socket: zmq.asyncio.Socket, *, rank: int, tells_queue: bool) -> None:
        self.rank = rank
        self._socket = socket
        self._tells_queue = tells_queue
        self._sequence = itertools.count()
        self._last: list[object] | None = None

    def publish(self, model: EngineModel, *, again: bool = False) -> None:
        """Send what the model's load is, unless that was sent last; `again` sends it anyway."""
        load = model.load()
        record: list[object] = ["LoadStat", load.running, load.waiting, load.used_tokens, load.max_tokens, self.rank]
        if self._tells_queue:
            record += [
                load.waiting_uncached_tokens,
                load.used_tokens + model.queued_tokens,
                load.max_running,
                model.prefilled_tokens,
                int(model.prefill_secs * 1e6),
            ]
        if again or record != self._last:
            self._last = record
            self._socket.send_multipart([LOAD_TOPIC.encode(), next(self._sequence).to_bytes(8, "big"), _encode(record)])

    async def beat(self, model: EngineModel) -> None:
        """Until cancelled."""
        while True:
            self.publish(model, again=True)
            await asyncio.sleep(HEARTBEAT_SECS)

    def close(self) -> None:
        self._socket.close(linger=0)


async def open_load_publishers(
    context: zmq.asyncio.Context, *, ranks: int, host: str, port: int, tells_queue: bool
) -> tuple[list[LoadPublisher], int]:
    """Bind every rank's socket on consecutive ports (0: free ones); returns the publishers and the first port."""
    sockets, base = await bind_row(context, zmq.PUB, ranks, host, port, {zmq.SNDHWM: _HIGH_WATER_MARK})
    return [LoadPublisher(socket, rank=rank, tells_queue=tells_queue) for rank, socket in enumerate(sockets)], base
