from __future__ import annotations

import asyncio

from sgl_router.load import ActiveLoad, Janitor


async def test_it_expires_by_its_own_clock(fleet) -> None:
    (target,) = fleet(0)
    load = ActiveLoad()
    ended = asyncio.Event()
    guard = load.acquire(target, prefill_tokens=0, decode_blocks=0, now=0.0)
    guard.on_expire = ended.set
    now = 0.05
    job = asyncio.create_task(Janitor(load, 0.1, clock=lambda: now).run())
    await asyncio.sleep(0.05)
    assert not ended.is_set()
    now = 0.2
    await asyncio.wait_for(ended.wait(), 120)
    job.cancel()
    assert guard.expired
