"""What is kept of every request that was due."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from sgl_router.lab.simulate.trace import TraceRow

__all__ = ["Call", "Result"]


class Result(str, Enum):
    """How a request ended. Everything but ANSWERED is told apart in the report."""

    ANSWERED = "answered"
    STATUS = "status"
    """An answer, with a status other than 200."""
    TRANSPORT = "transport"
    """No answer: no connection, or one that broke before the answer's head."""
    BROKEN = "stream_broken"
    """Status 200, and then no whole stream: it broke off, ended early or was no stream of events."""
    ERROR_EVENT = "error_event"
    """Status 200, and an error in the stream."""
    TIMEOUT = "timeout"
    DROPPED = "dropped"
    """Never sent: too many were in flight."""
    UNFINISHED = "unfinished"
    """Still in flight when the replay was interrupted."""


@dataclass(eq=False)
class Call:
    """One request. Times are seconds since the replay began; what did not happen is nan, or None."""

    number: int
    row: TraceRow
    due_at: float
    sent_at: float = math.nan
    first_event_at: float = math.nan
    first_text_at: float = math.nan
    last_text_at: float = math.nan
    finished_at: float = math.nan
    result: Result = Result.UNFINISHED
    status: int | None = None
    error: str = ""
    worker: str | None = None
    reason: str | None = None
    predicted_tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def first_token_at(self) -> float:
        """The first text, or in an answer without any the first event."""
        return self.first_event_at if math.isnan(self.first_text_at) else self.first_text_at

    @property
    def ttft(self) -> float:
        return self.first_token_at - self.sent_at

    @property
    def total(self) -> float:
        return self.finished_at - self.sent_at

    @property
    def lag(self) -> float:
        """How late it was sent: the sender's own fault."""
        return self.sent_at - self.due_at
