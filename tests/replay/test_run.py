"""A replay through the router, and straight to a worker."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from typing import Any

import pytest

from sgl_router.config import parse_config
from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH
from sgl_router.lab.replay.prompts import PromptMaker
from sgl_router.lab.replay.run import ReplaySettings, run_replay
from sgl_router.lab.simulate.trace import scale_rows
from sgl_router.lab.simulate.workload import make_workload
from sgl_router.runtime.daemon import Daemon

BLOCK = 32


def settings(url: str, **over: Any) -> ReplaySettings:
    rows = scale_rows(make_workload("hot_prefix", requests=30, per_sec=4.0, seed=0), Fraction(1, 16))
    defaults: dict[str, Any] = {
        "workload": "hot_prefix",
        "rows": rows,
        "block_tokens": BLOCK,
        "scale": Fraction(1, 16),
        "rate": 10.0,
        "seed": 0,
        "url": url,
        "model": None,
        "api_key": None,
        "max_in_flight": 100,
        "timeout_secs": 20.0,
        "ignore_eos": True,
    }
    return ReplaySettings(**{**defaults, **over})


async def test_a_worker_s_own_count_is_the_trace_s(start_worker, vocabulary) -> None:
    worker = await start_worker(page_size=BLOCK)
    asked = settings(worker.url)
    shown: list[int] = []
    replay = await run_replay(
        asked,
        PromptMaker(vocabulary, block_tokens=BLOCK, seed=0),
        progress=lambda sender, total: shown.append(sender.ended),
    )
    summary = replay.summary
    assert (summary.answered, summary.errors, replay.interrupted, replay.model) == (30, {}, False, "mock-model")
    assert summary.same_prompt_tokens == summary.counted == 30
    assert summary.output_tokens == summary.wanted_output_tokens
    assert summary.hit_rate is not None and summary.hit_rate > 0.4, "the hot prefix is found again"
    assert summary.secs >= (asked.rows[-1].timestamp_ms - asked.rows[0].timestamp_ms) / 1e4
    assert shown[-1] == 30
    first, last = (asked.rows[number].timestamp_ms for number in (0, -1))
    assert replay.rows[-1]["arrival"] == pytest.approx((last - first) / 1e4), "ten times as fast"


async def test_the_router_s_placement_comes_with_it(start_worker, vocabulary) -> None:
    workers = [await start_worker(page_size=BLOCK) for _ in range(2)]
    config = parse_config(
        {
            "server": {"port": 0, "shutdown_drain_secs": 0, "shutdown_grace_secs": 0},
            "models": [{"id": "mock-model", "tokenizer_path": EMBEDDED_TOKENIZER_PATH}],
            "discovery": {"static_urls": {"urls": [worker.url for worker in workers]}},
        }
    ).config
    async with contextlib.AsyncExitStack() as stack:
        daemon = Daemon(config)
        await daemon.start()
        stack.push_async_callback(daemon.stop)
        for worker in workers:
            await worker.subscribed(timeout=120)
        maker = PromptMaker(vocabulary, block_tokens=BLOCK, seed=0)
        replay = await run_replay(settings(daemon.url, model="mock-model"), maker)
    summary = replay.summary
    assert summary.answered == 30
    assert {"cache_hit", "no_match"} <= set(summary.reasons)
    assert sum(worker.requests for worker in summary.workers) == 30
    assert summary.foreseen is not None and summary.foreseen > 0.5
    assert {row["worker"] for row in replay.rows} == {0, 1}
