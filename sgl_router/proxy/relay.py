"""Carries a worker's answer to the client: whole where it is small, piece by piece where it streams."""

from __future__ import annotations

from collections.abc import Callable

from sgl_router.errors import UpstreamTimeout

from .deadline import Deadline
from .outbound import Outbound
from .pool import UpstreamExchange
from .usage import UsageTail

__all__ = ["Relayed", "relay"]


class Relayed:
    """What has been relayed so far; complete or not when an exception ends the relay."""

    __slots__ = ("bytes_out", "status", "streamed", "usage")

    def __init__(self) -> None:
        self.status = 0
        self.bytes_out = 0
        self.streamed = False
        self.usage = UsageTail()


async def relay(
    exchange: UpstreamExchange,
    out: Outbound,
    relayed: Relayed,
    *,
    deadline: Deadline,
    idle_secs: float,
    added_lines: bytes,
    first_byte: Callable[[], None],
) -> None:
    """Pass status, headers and body through. `first_byte` is called once, when the answer's body begins.

    Raises UpstreamBodyIncomplete, UpstreamTimeout (by way of `deadline`) and ClientGone; `out.started` then says
    whether the client has seen anything.
    """
    connection = exchange.connection
    relayed.status = status = connection.status
    headers = connection.lines + added_lines
    # A client that does not read is not the worker's silence: no deadline runs while it is written to.
    if connection.complete and not connection.stream:
        deadline.disarm()
        first_byte()
        body = connection.take()
        relayed.bytes_out = len(body)
        relayed.usage.feed(body)
        await out.send(status, headers, body)
        return
    relayed.streamed = connection.stream
    await out.start(status, headers)
    piece = await connection.read()
    deadline.disarm()
    first_byte()

    def silent() -> UpstreamTimeout:
        return UpstreamTimeout(f"the worker sent nothing for {idle_secs:g} s in the middle of its answer")

    sink = None
    try_write: Callable[[bytes, bool], bool] | None = getattr(out, "try_write", None)
    if try_write is not None:

        def sink(piece: bytes, last: bool) -> bool:
            """Runs in the worker's `data_received`: an event goes out without waking this task, and the end of the
            answer with the last one."""
            if not try_write(piece, last):
                return False
            relayed.bytes_out += len(piece)
            relayed.usage.feed(piece)
            deadline.arm(idle_secs, silent)
            return True

    while piece is not None:
        if sink is None or not sink(piece, connection.complete):
            deadline.disarm()
            await out.write(piece)
            relayed.bytes_out += len(piece)
            relayed.usage.feed(piece)
            deadline.arm(idle_secs, silent)
        piece = await connection.read(sink)
    deadline.disarm()
    await out.end()
