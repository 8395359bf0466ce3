"""What a connection may cost before it is told off."""

from __future__ import annotations

from dataclasses import dataclass

from sgl_router.server.exchange import FLUSH_SECS, UPLOAD_SECS

__all__ = ["HttpLimits"]


@dataclass(frozen=True)
class HttpLimits:
    """Times are checked every `sweep_secs`, so each may last that much longer."""

    sweep_secs: float = 1.0
    idle_secs: float = 75.0
    """Between requests, and before the first."""
    head_secs: float = 20.0
    """From the first byte of a request to the end of its headers."""
    body_secs: float = UPLOAD_SECS
    flush_secs: float = FLUSH_SECS
    """For the client to take the end of the last answer on a connection, or anything at all of one before."""
    linger_secs: float = 5.0
    """How long what a refused client still sends is read and dropped, so that it gets to read the refusal."""
    linger_bytes: int = 8 << 20
    ahead_bytes: int = 64 << 10
    """Reading pauses while a request is served and more than this waits behind it."""
    write_high: int = 256 << 10
    write_low: int = 64 << 10
