"""What a connection may cost before it is told off."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HttpLimits"]


@dataclass(frozen=True)
class HttpLimits:
    """Times are checked every `sweep_secs`, so each may last that much longer."""

    sweep_secs: float = 1.0
    idle_secs: float = 75.0
    """Between requests, and before the first."""
    crowded_idle_secs: float = 2.0
    """The same while other clients cannot be let in for want of descriptors."""
    head_secs: float = 20.0
    """From the first byte of a request to the end of its headers."""
    body_secs: float = 60.0
    """For all of a body, however fast it comes in."""
    window_secs: float = 10.0
    window_bytes: int = 16 << 10
    """So much of a body must come in within each `window_secs`, but for the last of it."""
    flush_secs: float = 60.0
    """For the client to take the end of the last answer on a connection, or anything at all of one before."""
    linger_secs: float = 30.0
    """How long what a refused client still sends is read and dropped, so that it gets to read the refusal: many
    clients send all of a body before they look."""
    linger_bytes: int = 256 << 20
    ahead_bytes: int = 64 << 10
    """Reading pauses while a request is served and more than this waits behind it."""
    write_high: int = 256 << 10
    write_low: int = 64 << 10
