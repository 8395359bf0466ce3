"""Measures how long the event loop was held."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["watch_loop_lag"]


async def watch_loop_lag(observe: Callable[[float], None], period_secs: float = 0.05) -> None:
    """Until cancelled: sleep, and report by how much the wake-up was late, in seconds."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + period_secs
        await asyncio.sleep(period_secs)
        observe(max(0.0, loop.time() - due))
