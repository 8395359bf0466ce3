"""One end of the socket between a data process and the routing process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import msgspec
import structlog

from sgl_router.routing.remote.messages import MAX_MESSAGE_BYTES, Message, encode_into

__all__ = ["Link"]

log = structlog.get_logger(__name__)

# Above the first the peer is not keeping up; above the second it is given up, for memory's sake.
_CONGESTED_BYTES = 4 << 20
_MAX_UNSENT_BYTES = 64 << 20

_Received = TypeVar("_Received")


class Link(asyncio.Protocol, Generic[_Received]):
    """Messages in, messages out; all that are sent in one turn of the loop leave in one write.

    A peer that sends what cannot be read is cut off. `on_lost` is called once, after the last message.
    """

    def __init__(
        self,
        decoder: msgspec.msgpack.Decoder[_Received],
        on_message: Callable[[_Received], None],
        on_lost: Callable[[], None],
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._decode = decoder.decode
        self._on_message = on_message
        self._on_lost = on_lost
        self._max_message_bytes = max_message_bytes
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._unsent = bytearray()
        self._partial = bytearray()
        self._needed = 4
        self._gone = self._loop.create_future()
        self.congested = False
        """The peer is slow to read: do not rely on it."""

    @property
    def open(self) -> bool:
        return self._transport is not None

    def send(self, message: Message) -> None:
        """Queue for the end of this turn. Nothing happens on a closed link."""
        if self._transport is None:
            return
        if not self._unsent:
            self._loop.call_soon(self._flush)
        encode_into(message, self._unsent)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def pause(self, paused: bool) -> None:
        """Stop reading, or go on."""
        if self._transport is None:
            return
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    async def close(self, within_secs: float = 1.0) -> None:
        """Send what is queued, then close."""
        if self._transport is None:
            return
        self._flush()
        if self._transport is not None:
            self._transport.close()
        await asyncio.wait((self._gone,), timeout=within_secs)
        self.abort()

    async def wait_lost(self) -> None:
        await asyncio.shield(self._gone)

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_CONGESTED_BYTES)

    def data_received(self, data: bytes) -> None:
        if self._partial:
            self._partial += data
            if len(self._partial) < self._needed:
                return
            data = bytes(self._partial)
            self._partial = bytearray()
        view = memoryview(data)
        at, end = 0, len(data)
        self._needed = 4
        while end - at >= 4:
            size = int.from_bytes(view[at : at + 4], "big")
            if size > self._max_message_bytes:
                self._refuse(f"a message of {size} bytes")
                return
            stop = at + 4 + size
            if stop > end:
                self._needed = 4 + size
                break
            try:
                message = self._decode(view[at + 4 : stop])
            except msgspec.DecodeError as error:
                self._refuse(str(error))
                return
            at = stop
            try:
                self._on_message(message)
            except Exception:
                log.exception("message of a peer process could not be handled, disconnecting it")
                self.abort()
                return
            if self._transport is None or self._transport.is_closing():
                return
        if at < end:
            self._partial += view[at:]

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._unsent.clear()
        self._partial.clear()
        if not self._gone.done():
            self._gone.set_result(None)
        self._on_lost()

    def _flush(self) -> None:
        unsent, transport = self._unsent, self._transport
        if not unsent or transport is None:
            return
        self._unsent = bytearray()
        transport.write(unsent)
        if transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
            log.error(
                "peer process does not read its messages, disconnecting it",
                unsent_bytes=transport.get_write_buffer_size(),
            )
            transport.abort()

    def _refuse(self, reason: str) -> None:
        log.error("peer process sent an unreadable message, disconnecting it", reason=reason)
        self.abort()
