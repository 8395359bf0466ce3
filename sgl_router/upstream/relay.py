"""Carries a worker's response to the client: whole where it is small, piece by piece where it streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sgl_router.errors import UpstreamTimeout
from sgl_router.http.outbound import ResponseWriter
from sgl_router.upstream.connection import UpstreamConnection
from sgl_router.upstream.deadline import Deadline
from sgl_router.upstream.events import FirstEvents
from sgl_router.upstream.pool import UpstreamExchange
from sgl_router.upstream.usage import BULK_BYTES, DocumentTail, Ending, StreamTail, document_ending
from sgl_router.upstream.verdict import NOTHING, Said, Verdict

__all__ = ["Relayed", "relay"]

# The engine sends a role without content just before its first token, and just before it says that it gave a request
# up. What follows the role follows within one step of its loop.
OPENING_SECS = 0.02


class Relayed:
    """What has been relayed so far; complete or not when an exception ends the relay.

    `ending` is what a whole response came to: `Said.NOTHING` where a success (below 400) had no content at all. Where
    the router cannot look, because the body is compressed, it is GOOD and has no counts.
    """

    __slots__ = ("bytes_out", "ending", "status", "streamed")

    def __init__(self) -> None:
        self.status = 0
        self.bytes_out = 0
        self.streamed = False
        self.ending = Ending(Said.GOOD)

    @property
    def judged_status(self) -> int:
        """The response's status, or that of the error that a success turned out to be."""
        return self.ending.status or self.status


async def relay(
    exchange: UpstreamExchange,
    writer: ResponseWriter,
    relayed: Relayed,
    *,
    deadline: Deadline,
    idle_secs: float,
    added_lines: bytes,
    first_byte: Callable[[], None],
) -> None:
    """Pass status, headers and body through. `first_byte` is called once at most: where a stream's first token comes, a
    body below 400 is a completion, a body of 400 and above begins. `deadline` comes armed and stays so until a stream's
    first token; from then on `idle_secs` bounds each silence.

    Raises UpstreamBodyIncomplete, UpstreamTimeout (by way of `deadline`) and ClientGone; `out.started` then says
    whether the client has seen anything.
    """
    connection = exchange.connection
    relayed.status = status = connection.status
    headers = connection.lines + added_lines
    judged = status < 400 and b"\r\ncontent-encoding: " not in connection.lines
    # Pause the idle timeout while writing to the client: client back-pressure is not worker silence.
    if connection.complete and not connection.stream:
        deadline.disarm()
        body = connection.take()
        if judged:
            relayed.ending = document_ending(body)
        if relayed.ending.said is Said.GOOD:
            first_byte()
        relayed.bytes_out = len(body)
        await writer.send(status, headers, body)
        return
    relayed.streamed = connection.stream
    await writer.start(status, headers)
    carry = _stream if connection.stream else _large
    await carry(connection, writer, relayed, deadline, idle_secs, first_byte, judged)
    deadline.disarm()
    await writer.end()


async def _large(
    connection: UpstreamConnection,
    writer: ResponseWriter,
    relayed: Relayed,
    deadline: Deadline,
    idle_secs: float,
    first_byte: Callable[[], None],
    judged: bool,
) -> None:
    """A body too large to be held."""
    silent, tail = _silent(idle_secs), DocumentTail()
    piece = await connection.read()
    deadline.disarm()
    ending = document_ending(piece or b"") if judged else relayed.ending
    if ending.said is Said.GOOD:
        first_byte()
    while piece is not None:
        await writer.write(piece)
        relayed.bytes_out += len(piece)
        tail.add(piece)
        deadline.arm(idle_secs, silent)
        piece = await connection.read()
        deadline.disarm()
    if judged:
        relayed.ending = tail.ending() if ending.said is Said.GOOD else ending


async def _stream(
    connection: UpstreamConnection,
    writer: ResponseWriter,
    relayed: Relayed,
    deadline: Deadline,
    idle_secs: float,
    first_byte: Callable[[], None],
    judged: bool,
) -> None:
    """Events as they come. The first ones are looked at, and after the end the last ones."""
    silent, tail = _silent(idle_secs), StreamTail()
    add = tail.add
    first = FirstEvents()
    found = NOTHING
    looking = True
    opening: asyncio.TimerHandle | None = None

    def settle(verdict: Verdict) -> None:
        nonlocal looking, found
        looking, found = False, verdict
        no_opening()
        if verdict.said is not Said.ERROR:
            first_byte()
        deadline.arm(idle_secs, silent)

    def no_opening() -> None:
        nonlocal opening
        if opening is not None:
            opening.cancel()
            opening = None

    def look(piece: bytes) -> None:
        nonlocal found, opening
        verdict = first.feed(piece) if judged else _GOOD
        said = verdict.said
        if said in _SETTLING:
            settle(verdict)
        elif said is Said.OPENING:
            if opening is None:
                opening = asyncio.get_running_loop().call_later(OPENING_SECS, settle, verdict)
        elif said is Said.ABORTED:
            no_opening()
            found = verdict

    sink = None
    try_write: Callable[[bytes, bool], bool] | None = getattr(writer, "try_write", None)
    if try_write is not None:

        def sink(piece: bytes, last: bool) -> bool:
            """Runs in the worker's `data_received`: an event goes out without waking this task, and the end of the
            response with the last one."""
            if not try_write(piece, last):
                return False
            if looking:
                look(piece)
            else:
                deadline.arm(idle_secs, silent)
            relayed.bytes_out += len(piece)
            if len(piece) > BULK_BYTES:
                tail.add_bulk(piece)
            else:
                add(piece)
            return True

    try:
        piece = await connection.read()
        while piece is not None:
            if sink is None or not sink(piece, connection.complete):
                if looking:
                    look(piece)
                if not looking:
                    deadline.disarm()
                await writer.write(piece)
                relayed.bytes_out += len(piece)
                tail.add_bulk(piece) if len(piece) > BULK_BYTES else add(piece)
                if not looking:
                    deadline.arm(idle_secs, silent)
            piece = await connection.read(sink)
        if not judged:
            return
        if looking and ((verdict := first.end()).said in _SETTLING or opening is not None):
            settle(verdict)
    finally:
        no_opening()
    if looking:
        relayed.ending = Ending(found.said)  # aborted, or nothing
    else:
        relayed.ending = Ending(Said.ERROR, found.status) if found.said is Said.ERROR else tail.ending()


def _silent(idle_secs: float) -> Callable[[], UpstreamTimeout]:
    return lambda: UpstreamTimeout(f"the worker sent nothing for {idle_secs:g} s in the middle of its response")


_SETTLING = (Said.GOOD, Said.ERROR)
_GOOD = Verdict(Said.GOOD)
