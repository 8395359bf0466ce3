"""Waiting on a condition, with an end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(probe: Callable[[], T], what: str, timeout: float = 15.0, every: float = 0.05) -> T:
    """The first true value `probe` returns; AssertionError naming `what` and the last value after `timeout` s."""
    deadline = time.monotonic() + timeout
    while True:
        value = probe()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {what} (last seen: {value!r})"
        time.sleep(every)
