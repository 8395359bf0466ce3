"""What one dp rank of a worker says it is working on."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["LoadReport", "LoadReportError", "RankLoad", "amount"]

_MOST = 2**53


class LoadReportError(ValueError):
    """What a worker said is no load report. Nothing of it was used."""


class LoadReport(msgspec.Struct, frozen=True):
    """Requests and KV tokens of one rank; None is what this version of the engine does not tell.

    `running` may leave out the batch that is being prefilled; `used_tokens` leaves out what is cached but idle.
    """

    running: int
    waiting: int
    used_tokens: int | None = None
    max_tokens: int | None = None
    waiting_uncached_tokens: int | None = None
    max_running: int | None = None
    prefilled_tokens: int | None = None
    """Prompt tokens computed since the engine started, and ..."""
    prefill_busy_secs: float | None = None
    """... how long that took: the difference of two reports is the rank's true speed."""


class RankLoad(msgspec.Struct, frozen=True):
    """One rank's part of an answer; `age_secs`: how old it was when the worker answered."""

    dp_rank: int
    report: LoadReport
    age_secs: float = 0.0


def amount(value: Any, what: str) -> int:
    """A count as a worker writes it. Raises LoadReportError."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not 0 <= value < _MOST:
        raise LoadReportError(f"{what} is no count")
    return value
