"""What workers say of their own load follows requests that never passed the router, rank by rank."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from conftest import RANKED_KEY
from kit.engine import MODEL, Engine

from sgl_router.load.reports import LoadOutcome, LoadReport, LoadSource, LoadWatch
from sgl_router.workers import Target, Worker, WorkerRegistry, introspect

REQUESTS = 12
pytestmark = pytest.mark.own_workers("starts a worker of its own, with two ranks, an API key and a load channel")


class Watched:
    """The engine's reports, in the order they came."""

    def __init__(self, engine: Engine, session: aiohttp.ClientSession) -> None:
        self.engine = engine
        self.session = session
        self.registry = WorkerRegistry()
        self.reports: list[tuple[Target, LoadReport, float]] = []
        self.watch = LoadWatch(
            lambda target, report, at: self.reports.append((target, report, at)),
            wants=lambda model: model == MODEL,
            api_key=RANKED_KEY,
            interval_secs=0.2,
        )
        self.registry.add_listener(self.watch)

    async def register(self, channel: bool) -> Worker:
        info = await introspect(self.session, self.engine.url, RANKED_KEY)
        assert info.kv_source is not None
        assert info.kv_source.load_port_base == self.engine.ports.spare
        source = info.kv_source if channel else dataclasses.replace(info.kv_source, load_port_base=None)
        worker = Worker(self.engine.url, dataclasses.replace(info, kv_source=source))
        self.registry.add(worker)
        return worker

    def last(self, rank: int) -> LoadReport | None:
        return next((report for target, report, _ in self.reports[::-1] if target.dp_rank == rank), None)

    async def chat(self, number: int, rank: int) -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"{number} counts " + "on and on " * 20}],
            "max_tokens": 150,
            "ignore_eos": True,
        }
        headers = self.engine.headers(rank)
        async with self.session.post(self.engine.url + "/v1/chat/completions", json=body, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()


@pytest.fixture
async def watched(ranked_engine: Engine) -> AsyncIterator[Watched]:
    async with aiohttp.ClientSession() as session:
        made = Watched(ranked_engine, session)
        yield made
        await made.watch.stop()


async def until(condition: Callable[[], Any], what: str, seen: Watched) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"not within 30 s: {what}; last seen {seen.reports[-4:]}"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("source", [LoadSource.CHANNEL, LoadSource.POLL])
async def test_reports_follow_requests(watched: Watched, source: LoadSource, numbers: list[str]) -> None:
    worker = await watched.register(channel=source is LoadSource.CHANNEL)
    counts = watched.watch.counts

    def idle(rank: int) -> bool:
        report = watched.last(rank)
        return report is not None and report.running == report.waiting == report.used_tokens == 0

    await until(lambda: idle(0) and idle(1), "both ranks idle", watched)
    at_rest = watched.last(1)
    assert at_rest is not None
    assert at_rest.max_tokens
    assert at_rest.max_running
    assert at_rest.max_running < REQUESTS

    before, began = len(watched.reports), time.monotonic()
    asked = [asyncio.create_task(watched.chat(number, rank=1)) for number in range(REQUESTS)]

    def first(condition: Callable[[LoadReport], bool]) -> float | None:
        """When rank 1 first said so, in seconds after the requests were sent."""
        later = ((r, at) for target, r, at in watched.reports[before:] if target.dp_rank == 1)
        return next((at - began for report, at in later if condition(report)), None)

    await until(lambda: first(lambda report: report.running > 0), "requests running", watched)
    await until(lambda: first(lambda r: r.running + r.waiting == REQUESTS), "every request reported", watched)
    await until(lambda: first(lambda r: (r.waiting_uncached_tokens or 0) > 0), "queued prompts reported", watched)
    busy = watched.last(1)
    assert busy is not None
    assert busy.used_tokens
    await asyncio.gather(*asked)
    ended = time.monotonic()
    await until(lambda: idle(1), "rank 1 idle again", watched)

    later = [(target.dp_rank, report) for target, report, _ in watched.reports[before:]]
    assert all(report.running == report.waiting == 0 for rank, report in later if rank == 0), "rank 0 had nothing to do"
    assert max(report.running for rank, report in later if rank == 1) <= at_rest.max_running
    assert all(target.worker is worker for target, _, _ in watched.reports)
    assert {one for (one, outcome), count in counts.items() if count and outcome is LoadOutcome.OK} == {source}
    assert not counts[source, LoadOutcome.BAD]
    seen = first(lambda report: report.running > 0)
    numbers.append(
        f"load by {source.value}: {len(later)} reports in {ended - began:.1f} s of {REQUESTS} requests, running seen"
        f" after {seen or 0:.2f} s, idle {max(0.0, time.monotonic() - ended):.2f} s after the last answer"
    )
