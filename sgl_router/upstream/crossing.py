"""Whether a worker's close and a request crossed on their way: only then is a request sent again."""

from __future__ import annotations

import asyncio
import fcntl
import struct
from contextlib import suppress
from termios import TIOCOUTQ

__all__ = ["CROSSING_SECS", "unacknowledged"]

# For a reset, which does not tell what had arrived before it. One that was under way when a request was sent is here
# within a round trip of the request's first byte: under a millisecond in one data centre, and some turns of a busy
# loop. A worker that has read a prompt works on it for longer. Counted from the first byte and not from the last: a
# worker that dies in the middle of a long upload has not crossed it.
CROSSING_SECS = 0.02


def unacknowledged(transport: asyncio.Transport | None) -> int | None:
    """Bytes written that the other host has not confirmed; None where the kernel does not say (it does on Linux).

    Asked when the other side has closed in good order, 0 means that all of it had arrived before the close: its FIN
    confirms what came before it. One that crossed the request leaves bytes unconfirmed, however late it is noticed.
    """
    sock = None if transport is None else transport.get_extra_info("socket")
    if transport is not None and sock is not None:
        with suppress(OSError, ValueError):
            queued = struct.unpack("i", fcntl.ioctl(sock.fileno(), TIOCOUTQ, bytes(4)))[0]
            return int(queued) + transport.get_write_buffer_size()
    return None
