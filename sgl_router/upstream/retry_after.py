"""What a refusal's `Retry-After` says."""

from __future__ import annotations

from collections.abc import Iterable
from email.utils import parsedate_to_datetime

__all__ = ["retry_after_secs"]


def retry_after_secs(headers: Iterable[tuple[bytes, bytes]], wall_time: float) -> float | None:
    """Seconds from `wall_time` (seconds since the epoch), never negative; None where nothing usable is said.
    `headers`: names in lower case."""
    for name, value in headers:
        if name == b"retry-after":
            text = value.strip()
            if text.isdigit():
                return float(text[:9])
            try:
                return max(parsedate_to_datetime(text.decode("ascii")).timestamp() - wall_time, 0.0)
            except (ValueError, TypeError, OverflowError, IndexError):
                return None
    return None
