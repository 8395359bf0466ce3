"""Carries a worker's answer to the client: whole where it is small, piece by piece where it streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sgl_router.errors import UpstreamTimeout

from .connection import Headers
from .deadline import Deadline
from .headers import relay_headers
from .outbound import Outbound
from .pool import UpstreamExchange
from .usage import UsageTail

__all__ = ["Relayed", "relay"]

# An answer up to this size is held until it is complete, so that one that breaks off can still become a clean error.
BUFFER_LIMIT = 4 << 20


@dataclass
class Relayed:
    """What has been relayed so far; complete or not when an exception ends the relay."""

    status: int = 0
    bytes_out: int = 0
    streamed: bool = False
    usage: UsageTail = field(default_factory=UsageTail)


async def relay(
    exchange: UpstreamExchange,
    out: Outbound,
    relayed: Relayed,
    *,
    deadline: Deadline,
    idle_secs: float,
    added_headers: Headers,
    first_byte: Callable[[], None],
) -> None:
    """Pass status, headers and body through. `first_byte` is called once, when the answer's body begins.

    Raises UpstreamBodyIncomplete, UpstreamTimeout (by way of `deadline`) and ClientGone; `out.started` then says
    whether the client has seen anything.
    """
    relayed.status = exchange.status
    headers = relay_headers(exchange.headers) + added_headers
    if not _is_stream(exchange):
        body, complete = await _collect(exchange)
        # A client that does not read is not the worker's silence: no deadline runs while it is written to.
        deadline.disarm()
        first_byte()
        if complete:
            relayed.bytes_out = len(body)
            relayed.usage.feed(body)
            await out.send(exchange.status, headers, body)
            return
        await out.start(exchange.status, headers)
        await out.write(body)
        relayed.bytes_out = len(body)
    else:
        relayed.streamed = True
        await out.start(exchange.status, headers)
        chunk = await exchange.read()
        deadline.disarm()
        first_byte()
        if chunk is not None:
            relayed.bytes_out = len(chunk)
            relayed.usage.feed(chunk)
            await out.write(chunk)

    def idle() -> UpstreamTimeout:
        return UpstreamTimeout(f"the worker sent nothing for {idle_secs:g} s in the middle of its answer")

    while True:
        deadline.arm(idle_secs, idle)
        chunk = await exchange.read()
        if chunk is None:
            break
        deadline.disarm()
        relayed.bytes_out += len(chunk)
        relayed.usage.feed(chunk)
        await out.write(chunk)
    deadline.disarm()
    await out.end()


async def _collect(exchange: UpstreamExchange) -> tuple[bytes, bool]:
    """The whole body, or its first BUFFER_LIMIT bytes and False."""
    pieces: list[bytes] = []
    size = 0
    while size <= BUFFER_LIMIT:
        chunk = await exchange.read()
        if chunk is None:
            return (pieces[0] if len(pieces) == 1 else b"".join(pieces)), True
        pieces.append(chunk)
        size += len(chunk)
    return b"".join(pieces), False


def _is_stream(exchange: UpstreamExchange) -> bool:
    return any(
        name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream")
        for name, value in exchange.headers
    )
