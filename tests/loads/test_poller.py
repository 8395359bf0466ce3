"""Questions about load, over HTTP."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sgl_router.load.reports.outcome import LoadOutcome
from sgl_router.load.reports.poller import LoadPoller, PollSettings, load_session
from sgl_router.load.reports.report import LoadReport


class Heard:
    def __init__(self) -> None:
        self.reports: list[tuple[int, LoadReport, float]] = []
        self.counts: Counter[LoadOutcome] = Counter()

    def report(self, rank: int, report: LoadReport, at: float) -> None:
        self.reports.append((rank, report, at))

    def count(self, outcome: LoadOutcome) -> None:
        self.counts[outcome] += 1


@pytest.fixture
async def poll() -> AsyncIterator[Callable[..., tuple[Heard, LoadPoller]]]:
    session, made = load_session(), []

    def start(url: str, timeout_secs: float = 5.0, due_in: Callable[[], float] = lambda: 0.0, **more: Any) -> Any:
        heard = Heard()
        settings = {"api_key": None, "clock": time.monotonic, "rng": random.Random(1), **more}
        made.append(
            LoadPoller(
                session,
                url,
                PollSettings(0.01, timeout_secs),
                due_in=due_in,
                report=heard.report,
                count=heard.count,
                **settings,
            )
        )
        return heard, made[-1]

    yield start
    for one in made:
        one.close()
        await asyncio.gather(one.task, return_exceptions=True)
    await session.close()


async def test_every_rank_is_reported_again_and_again(server: Any, poll: Any, until: Any, tools: Any) -> None:
    server.answers["/v1/loads"] = tools.loads(3, 4)
    heard, _ = poll(server.url, api_key="secret")
    await until(lambda: len(heard.reports) >= 6)
    assert [(rank, report.running) for rank, report, _ in heard.reports[:4]] == [(0, 3), (1, 4), (0, 3), (1, 4)]
    assert heard.reports[0][1] == LoadReport(3, 1, 200, 4096, 30, 8)
    assert server.authorization == "Bearer secret"
    assert set(heard.counts) == {LoadOutcome.OK}
    assert set(server.calls) == {"/v1/loads"}


async def test_a_report_is_dated_when_it_was_true(server: Any, poll: Any, until: Any, tools: Any) -> None:
    status, body = tools.loads(3)
    body["timestamp"] = "2023-11-14T22:13:24+00:00"
    server.answers["/v1/loads"] = status, body
    heard, _ = poll(server.url, clock=lambda: 100.0)
    await until(lambda: heard.reports)
    assert heard.reports[0][2] == 96.0


async def test_an_old_version_is_asked_the_old_way(server: Any, poll: Any, until: Any) -> None:
    server.answers["/get_load"] = 200, [{"dp_rank": None, "num_reqs": 5, "num_waiting_reqs": 2, "num_tokens": 900}]
    heard, _ = poll(server.url)
    await until(lambda: len(heard.reports) >= 3)
    assert heard.reports[0][:2] == (0, LoadReport(3, 2))
    assert server.calls["/v1/loads"] == 1, "the endpoint that is there is kept"


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_worker_without_endpoints_is_left_alone(server: Any, poll: Any, status: int) -> None:
    server.answers["/v1/loads"] = server.answers["/get_load"] = status, {}
    heard, poller = poll(server.url)
    await asyncio.wait_for(poller.task, 120)
    assert heard.counts == {LoadOutcome.UNSUPPORTED: 1}
    assert server.calls == {"/v1/loads": 1, "/get_load": 1}


async def test_the_next_question_waits_for_the_last_ones_end(server: Any, poll: Any, until: Any, tools: Any) -> None:
    server.hang = True
    server.answers["/v1/loads"] = tools.loads(3)
    heard, _ = poll(server.url, timeout_secs=0.05)
    await until(lambda: heard.counts[LoadOutcome.TIMEOUT] >= 2)
    assert server.most_at_once == 1
    server.hang = False
    await until(lambda: heard.reports)


async def test_bad_answers_are_counted_and_survived(server: Any, poll: Any, until: Any, tools: Any) -> None:
    heard, _ = poll(server.url)
    for number, bad in enumerate(((500, {}), (401, {}), (200, {"loads": 3}), (200, [])), start=1):
        server.answers["/v1/loads"] = bad
        await until(lambda number=number: heard.counts[LoadOutcome.BAD] >= number)
    server.answers["/v1/loads"] = tools.loads(3)
    await until(lambda: heard.reports)


async def test_failures_space_the_questions_out(server: Any, poll: Any, until: Any) -> None:
    server.answers["/v1/loads"] = 500, {}
    began = time.monotonic()
    heard, _ = poll(server.url)
    await until(lambda: heard.counts[LoadOutcome.BAD] == 6)
    assert time.monotonic() - began > 0.8 * 0.01 * (1 + 2 + 4 + 8 + 16)


async def test_an_answer_ends_the_spacing(
    server: Any, poll: Any, until: Any, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(secs: float) -> None:
        if secs > 0.005:  # not the waiting of this test
            pauses.append(secs)
        await sleep(secs)

    monkeypatch.setattr("asyncio.sleep", noted)
    server.answers["/v1/loads"] = 500, {}
    heard, _ = poll(server.url)
    await until(lambda: len(pauses) >= 5)
    assert max(pauses) > 0.06
    server.answers["/v1/loads"] = tools.loads(3)
    await until(lambda: heard.reports)
    del pauses[:]
    server.answers["/v1/loads"] = 500, {}
    failed = heard.counts[LoadOutcome.BAD]
    await until(lambda: heard.counts[LoadOutcome.BAD] > failed)
    assert max(pauses) < 0.05


async def test_a_worker_that_is_away_is_asked_until_it_is_back(server: Any, poll: Any, until: Any, tools: Any) -> None:
    url = server.url
    await server.close()
    heard, _ = poll(url)
    await until(lambda: heard.counts[LoadOutcome.BAD] >= 2)
    assert not heard.reports


async def test_no_question_is_asked_before_one_is_due(server: Any, poll: Any, until: Any, tools: Any) -> None:
    server.answers["/v1/loads"] = tools.loads(3)
    waits = iter([0.01, 0.01, 0.01])
    asked: list[float] = []

    def due_in() -> float:
        asked.append(next(waits, 0.0))
        assert asked[-1] == 0.0 or not server.calls
        return asked[-1]

    heard, _ = poll(server.url, due_in=due_in)
    await until(lambda: heard.reports)
    assert asked[:3] == [0.01] * 3


async def test_a_defect_does_not_end_the_questions(server: Any, poll: Any, until: Any, tools: Any) -> None:
    server.answers["/v1/loads"] = tools.loads(3)
    clocks = iter([1.0])
    _, poller = poll(server.url, clock=lambda: next(clocks))  # StopIteration from the second question on
    await until(lambda: server.calls["/v1/loads"] >= 3)
    assert not poller.task.done()
