"""The engine model on the event loop."""

from __future__ import annotations

import asyncio

import pytest

from sgl_router.lab.mock_worker.radix import RadixCache
from sgl_router.lab.mock_worker.rank import RankEngine
from sgl_router.lab.mock_worker.scheduler import EngineModel, EngineRequest, Progress
from sgl_router.lab.mock_worker.timing import TimingModel

TIMING = TimingModel(
    prefill_tokens_per_sec=1_000.0, prefill_overhead_ms=0.0, decode_ms_per_token=10.0, decode_ms_per_running=0.0
)


async def test_a_late_timer_delays_its_step_and_not_those_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now, turn = 100.0, asyncio.sleep

    async def late(secs: float) -> None:
        nonlocal now
        now += secs + 0.004
        await turn(0)

    model = EngineModel(RadixCache(page_size=4, capacity=400), TIMING, max_running=4, chunked_prefill_size=64)
    monkeypatch.setattr(asyncio, "sleep", late)
    engine = RankEngine(0, model, [], None, lambda: now)
    heard: list[float] = []
    whole = asyncio.Event()

    def sink(progress: Progress) -> None:
        heard.append(now)
        if progress.finish is not None:
            whole.set()

    assert engine.submit(EngineRequest("r", tuple(range(50)), tuple(range(20))), sink)
    await asyncio.wait_for(whole.wait(), 120)
    await engine.close()
    meant = [100.05 + 0.01 * step for step in range(20)]
    assert heard == pytest.approx([each + 0.004 for each in meant])
