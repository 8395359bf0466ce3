"""How reports are come by, and what became of each attempt: metric labels and log fields."""

from __future__ import annotations

from enum import Enum

__all__ = ["LoadOutcome", "LoadSource"]


class LoadSource(str, Enum):
    CHANNEL = "channel"
    """Frames the worker publishes by itself."""
    POLL = "poll"
    """Answers to questions over HTTP."""


class LoadOutcome(str, Enum):
    OK = "ok"
    """A report."""
    BAD = "bad"
    """A frame, an answer or a failed exchange that holds none."""
    UNSUPPORTED = "unsupported"
    """A frame of another kind; a worker without any endpoint that tells its load."""
    TIMEOUT = "timeout"
    """A question without an answer in time; a channel that has fallen silent, counted once each time."""
