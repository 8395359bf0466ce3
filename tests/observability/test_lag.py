from __future__ import annotations

import asyncio
import time

from sgl_router.observability import watch_loop_lag


async def test_a_held_loop_is_noticed() -> None:
    lags: list[float] = []
    seen = asyncio.Event()

    def observe(lag: float) -> None:
        lags.append(lag)
        seen.set()

    task = asyncio.create_task(watch_loop_lag(observe, period_secs=0.01))
    await asyncio.wait_for(seen.wait(), 120)
    seen.clear()
    time.sleep(0.1)  # noqa: ASYNC251  holding the loop is what is tested
    await asyncio.wait_for(seen.wait(), 120)
    task.cancel()
    assert max(lags) > 0.05
