"""To be added as tests/component/test_refusals_in_streams.py once the relay tells error events (outcome BACK_PRESSURE
for an error event inside a 200)."""

from __future__ import annotations

import asyncio
from typing import Any


async def test_a_refusal_by_an_event_inside_a_200_backs_the_worker_off(rig: Any) -> None:
    """The mock's scheduler refuses in the stream when its queue is full: 200, then an error event with 503."""
    fleet = await rig(workers=2, worker={"max_running": 1, "queue_limit": 0, "speed": 1.0})
    blocker = {"model": "mock-model", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4_000}

    async def occupy() -> None:
        url = fleet.workers[0].url + "/v1/chat/completions"  # past the router, which knows nothing of it
        async with fleet.session.post(url, json={**blocker, "ignore_eos": True, "stream": True}) as reply:
            await reply.content.readany()
            occupied.set()
            await reply.read()

    occupied = asyncio.Event()
    task = asyncio.create_task(occupy())
    await occupied.wait()
    first, second = (fleet.worker(number) for number in range(2))
    try:
        for number in range(40):
            await fleet.ask(f"request {number}", stream=True, max_tokens=1)
            if first.stats.requests:
                break
        assert first.stats.requests == {"back_pressure": 1}
        assert first.backed_off == 1
        assert first.breaker.failures == 0
        before = sum(second.stats.requests.values())
        assert (await fleet.ask("the next", stream=True, max_tokens=1)).worker == second.id
        assert sum(second.stats.requests.values()) == before + 1
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
