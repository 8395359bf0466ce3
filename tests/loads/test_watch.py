"""Channel or questions, for each worker that somebody wants to know of."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
import structlog
from msgspec import structs

from sgl_router.lab.mock_worker import Dialect, MockWorker
from sgl_router.load.reports import LoadOutcome, LoadReport, LoadSource, LoadWatch
from sgl_router.workers import Target, Worker, WorkerRegistry, introspect

CHANNEL, POLL = LoadSource.CHANNEL, LoadSource.POLL
CHAT = {"model": "mock-model", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


class Rig:
    def __init__(self) -> None:
        self.registry = WorkerRegistry()
        self.reports: list[tuple[Target, LoadReport, float]] = []
        self.watches: list[LoadWatch] = []

    def watch(self, wants: Callable[[str], bool] = lambda model: True, **settings: Any) -> LoadWatch:
        made = LoadWatch(self.heard, wants=wants, **{"interval_secs": 0.02, "silent_secs": 0.2, **settings})
        self.registry.add_listener(made)
        self.watches.append(made)
        return made

    def heard(self, target: Target, report: LoadReport, at: float) -> None:
        self.reports.append((target, report, at))

    def last(self, worker: Worker, rank: int = 0) -> LoadReport | None:
        return next((report for target, report, _ in self.reports[::-1] if target is worker.targets[rank]), None)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    yield made
    for watch in made.watches:
        await watch.stop()
        await watch.stop()


async def registered(rig: Rig, session: aiohttp.ClientSession, mock: MockWorker) -> Worker:
    """As discovery would find it."""
    worker = Worker(mock.url, await introspect(session, mock.url, mock.config.api_key))
    rig.registry.add(worker)
    return worker


NO_TOTALS: dict[str, Any] = {"prefilled_tokens": None, "prefill_busy_secs": None}


def chat(session: aiohttp.ClientSession, worker: Worker, rank: int = 0) -> asyncio.Task[int]:
    async def ask() -> int:
        headers = {"X-Data-Parallel-Rank": str(rank), "Authorization": "Bearer key"}
        async with session.post(worker.url + "/v1/chat/completions", json=CHAT, headers=headers) as response:
            json.loads(await response.read())
            return response.status

    return asyncio.create_task(ask())


@pytest.mark.parametrize("publish", [True, False])
async def test_reports_follow_requests_that_nobody_told_the_router_of(
    rig: Rig, start_worker: Any, session: aiohttp.ClientSession, until: Any, publish: bool
) -> None:
    mock = await start_worker(publish_load=publish, dp_size=2, max_running=1, api_key="key", decode_ms_per_token=100.0)
    watch = rig.watch(api_key="key", silent_secs=30.0)
    worker = await registered(rig, session, mock)
    await until(lambda: all(rig.last(worker, rank) for rank in (0, 1)), "a report of each rank")
    idle = rig.last(worker, 1)
    assert idle is not None
    idle = structs.replace(idle, **NO_TOTALS)
    assert idle == LoadReport(0, 0, 0, mock.config.cache_tokens, 0, 1)
    asked = [chat(session, worker, rank=1) for _ in range(2)]
    await until(lambda: (now := rig.last(worker, 1)) and (now.running, now.waiting) == (1, 1), "one runs, one waits")
    busy = rig.last(worker, 1)
    assert busy is not None
    assert busy.used_tokens is not None
    assert busy.used_tokens > 0
    assert busy.waiting_uncached_tokens is not None
    other = rig.last(worker, 0)
    assert other is not None
    assert structs.replace(other, **NO_TOTALS) == idle
    assert await asyncio.gather(*asked) == [200, 200]
    await until(lambda: (now := rig.last(worker, 1)) and structs.replace(now, **NO_TOTALS) == idle, "idle again")
    if publish:
        now = rig.last(worker, 1)
        assert now is not None
        assert now.prefilled_tokens > 0
        assert now.prefill_busy_secs > 0
    source, unused = (CHANNEL, POLL) if publish else (POLL, CHANNEL)
    assert watch.counts[source, LoadOutcome.OK] >= 3
    assert not any(count for (one, _), count in watch.counts.items() if one is unused)


@pytest.mark.parametrize(("version", "told"), [("0.5.20", False), ("0.5.21", True)])
async def test_speeds_counted_from_launch_to_launch_are_not_believed(
    rig: Rig, start_worker: Any, session: aiohttp.ClientSession, until: Any, version: str, told: bool
) -> None:
    mock = await start_worker(publish_load=True, version=version, decode_ms_per_token=100.0)
    rig.watch(silent_secs=30.0)
    worker = await registered(rig, session, mock)
    assert worker.info.version == version
    await until(lambda: rig.last(worker), "the channel is heard")
    asked = chat(session, worker)
    await until(lambda: (now := rig.last(worker)) and now.running, "it runs")
    assert await asked == 200
    await until(lambda: (now := rig.last(worker)) and not now.running, "it is done")
    now = rig.last(worker)
    assert now is not None
    assert bool(now.prefilled_tokens) is bool(now.prefill_busy_secs) is told


@pytest.mark.parametrize(("version", "dialect"), [("0.5.6", "legacy"), ("0.5.8", "legacy"), ("0.5.19", "salt_array")])
async def test_older_versions(
    rig: Rig, start_worker: Any, session: aiohttp.ClientSession, until: Any, version: str, dialect: str
) -> None:
    mock = await start_worker(publish_load=True, dialect=Dialect(dialect), version=version)
    watch = rig.watch(silent_secs=30.0)
    worker = await registered(rig, session, mock)
    await until(lambda: rig.last(worker))
    expected = {
        "0.5.6": LoadReport(0, 0, 0),
        "0.5.8": LoadReport(0, 0, 0, mock.config.cache_tokens, None, mock.config.max_running),
        "0.5.19": LoadReport(0, 0, 0, mock.config.cache_tokens),
    }
    assert rig.last(worker) == expected[version]
    assert watch.counts[CHANNEL if version == "0.5.19" else POLL, LoadOutcome.OK]


async def test_a_worker_without_load_is_left_alone(
    rig: Rig, start_worker: Any, session: aiohttp.ClientSession, until: Any
) -> None:
    watch = rig.watch()
    await registered(rig, session, await start_worker(dialect=Dialect.VLLM))
    await until(lambda: watch.counts[POLL, LoadOutcome.UNSUPPORTED] == 1)
    assert not rig.reports


class Clock:
    """Silence is measured on it; pauses are real."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_silent_channel_is_asked_for_until_it_speaks(
    rig: Rig, server: Any, open_socket: Any, until: Any, tools: Any
) -> None:
    server.answers["/v1/loads"] = tools.loads(7)
    socket, clock = open_socket(), Clock()
    watch = rig.watch(clock=clock)
    worker = tools.worker(server.url, load_port=socket.port)
    rig.registry.add(worker)
    await socket.subscribed()
    socket.send(tools.record(1))
    await until(lambda: rig.reports)
    for _ in range(2):
        clock.now += 0.19
        assert not server.calls
        socket.send(tools.record(1))
        await until(lambda: rig.reports[-1][2] == clock.now)
    assert {report.running for _, report, _ in rig.reports} == {1}

    clock.now += 0.21
    spoken = len(rig.reports)
    await until(lambda: len(rig.reports) >= spoken + 3, "answers instead of frames")
    assert {report.running for _, report, _ in rig.reports[spoken:]} == {7}
    assert watch.counts[CHANNEL, LoadOutcome.TIMEOUT] == 1

    socket.send(tools.record(2))
    await until(lambda: rig.reports[-1][1].running == 2)
    asked = server.calls["/v1/loads"]
    await asyncio.sleep(0.25)  # the time in which silence is looked for again, and ten questions would be asked
    assert server.calls["/v1/loads"] <= asked + 1, "one may have been under way"
    clock.now += 0.21
    await until(lambda: watch.counts[CHANNEL, LoadOutcome.TIMEOUT] == 2, "the second silence is counted")


async def test_only_the_silent_rank_is_reported_from_answers(
    rig: Rig, server: Any, open_socket: Any, until: Any, tools: Any
) -> None:
    server.answers["/v1/loads"] = tools.loads(7, 7, 7)  # and a rank the worker was not known to have
    first, clock = open_socket(), Clock()
    rig.watch(clock=clock)
    worker = tools.worker(server.url, dp_size=2, load_port=first.port)
    rig.registry.add(worker)
    await first.subscribed()
    clock.now += 0.15
    first.send(tools.record(1))
    await until(lambda: rig.last(worker, 0))
    clock.now += 0.1
    await until(lambda: len(rig.reports) >= 4)
    assert [(target.dp_rank, report.running) for target, report, _ in rig.reports[:4]] == [(0, 1), *[(1, 7)] * 3]


async def test_nothing_is_reported_of_a_removed_worker(
    rig: Rig, server: Any, open_socket: Any, until: Any, tools: Any
) -> None:
    server.answers["/v1/loads"] = tools.loads(7)
    socket = open_socket()
    watch = rig.watch()
    asked, heard = tools.worker(server.url), tools.worker("http://127.0.0.1:9", load_port=socket.port)
    rig.registry.add(asked)
    rig.registry.add(heard)
    await socket.subscribed()
    socket.send(tools.record(1))
    await until(lambda: rig.last(asked) and rig.last(heard))
    assert len(watch) == 2
    for worker in (asked, heard):
        rig.registry.remove(worker.url)
    assert len(watch) == 0
    await socket.unsubscribed()
    rig.reports.clear()
    successor = tools.worker(server.url)
    rig.registry.add(successor)
    socket.send(tools.record(1))
    await until(lambda: len(rig.reports) >= 3)
    assert {target.worker for target, _, _ in rig.reports} == {successor}


async def test_a_listener_that_removes_the_worker_hears_no_more_of_it(
    rig: Rig, server: Any, until: Any, tools: Any
) -> None:
    server.answers["/v1/loads"] = tools.loads(7, 7)
    heard: list[Target] = []

    def listener(target: Target, report: LoadReport, at: float) -> None:
        heard.append(target)
        rig.registry.remove(target.worker.url)

    watch = LoadWatch(listener, wants=lambda model: True, interval_secs=0.01)
    rig.watches.append(watch)
    rig.registry.add_listener(watch)
    rig.registry.add(tools.worker(server.url, dp_size=2))
    await until(lambda: heard)
    await watch.stop()
    assert len(heard) == 1


async def test_a_failing_listener_costs_its_report_only(rig: Rig, server: Any, until: Any, tools: Any) -> None:
    server.answers["/v1/loads"] = tools.loads(7, 7)
    heard: list[int] = []

    def listener(target: Target, report: LoadReport, at: float) -> None:
        heard.append(target.dp_rank)
        if target.dp_rank == 0:
            raise RuntimeError("no")

    watch = LoadWatch(listener, wants=lambda model: True, interval_secs=0.01)
    rig.watches.append(watch)
    watch.worker_added(tools.worker(server.url, dp_size=2))
    await until(lambda: len(heard) >= 6)
    assert heard[:6] == [0, 1] * 3


async def test_a_rank_that_is_not_known_costs_its_report_only(rig: Rig, server: Any, until: Any, tools: Any) -> None:
    status, body = tools.loads(5, 6, 7)
    server.answers["/v1/loads"] = status, {**body, "loads": body["loads"][::-1]}
    rig.watch()
    worker = tools.worker(server.url)
    rig.registry.add(worker)
    await until(lambda: len(rig.reports) >= 2)
    assert {(target.dp_rank, report.running) for target, report, _ in rig.reports} == {(0, 5)}


async def test_nothing_is_started_for_a_model_that_wants_no_reports(
    rig: Rig, server: Any, open_socket: Any, until: Any, tools: Any
) -> None:
    server.answers["/v1/loads"] = tools.loads(7)
    watch = rig.watch(wants=lambda model: model == "wanted")
    rig.registry.add(tools.worker("http://127.0.0.1:9", load_port=open_socket().port, model="other"))
    assert len(watch) == 0
    assert (watch._session, watch._context) == (None, None)
    assert len(asyncio.all_tasks()) == 1
    worker = tools.worker(server.url, model="wanted")
    rig.registry.add(worker)
    await until(lambda: rig.last(worker))
    assert watch._context is None, "no channel, no context"


async def test_after_the_end_nobody_is_followed(rig: Rig, server: Any, tools: Any) -> None:
    watch = rig.watch()
    rig.registry.add(tools.worker(server.url))
    await watch.stop()
    assert len(watch) == 0
    watch.worker_added(tools.worker("http://127.0.0.1:9"))
    assert len(watch) == 0


FAILING, AGAIN = "no worker reports its load", "workers report their load again"


def said(logs: list[Any], event: str) -> list[Any]:
    return [line for line in logs if line["event"] == event]


@pytest.mark.parametrize("status", [500, 401, "hangs", "nonsense"])
async def test_that_no_worker_tells_its_load_is_said_once_and_taken_back(
    rig: Rig, server: Any, until: Any, tools: Any, status: Any
) -> None:
    clock = Clock()
    server.hang = status == "hangs"
    server.answers["/v1/loads"] = (status, {}) if isinstance(status, int) else (200, {"loads": "?"})
    watch = rig.watch(clock=clock, failing_secs=30.0, timeout_secs=0.05)
    workers = [tools.worker(server.url), tools.worker(server.url.replace("127.0.0.1", "localhost"))]

    def failed() -> int:
        return sum(watch.counts[POLL, one] for one in (LoadOutcome.BAD, LoadOutcome.TIMEOUT))

    with structlog.testing.capture_logs() as logs:
        for worker in workers:
            rig.registry.add(worker)
        await until(lambda: failed() >= 4, "questions that fail")
        assert not said(logs, FAILING), "not for long yet"
        clock.now += 31
        await until(lambda: said(logs, FAILING), "the warning")
        before = failed()
        await until(lambda: failed() >= before + 4, "more of them")
        (line,) = said(logs, FAILING)
        assert (line["log_level"], line["workers"], line["secs"]) == ("warning", 2, 31)
        server.hang = False
        server.answers["/v1/loads"] = tools.loads(1)
        await until(lambda: said(logs, AGAIN), "it is taken back")
        await until(lambda: len(rig.reports) >= 4)
    assert len(said(logs, AGAIN)) == 1
    assert len(said(logs, FAILING)) == 1


async def test_one_worker_that_tells_its_load_is_enough_and_one_that_cannot_is_no_failure(
    rig: Rig, server: Any, until: Any, tools: Any
) -> None:
    clock = Clock()
    server.answers["/v1/loads"] = (500, {})
    watch = rig.watch(clock=clock, failing_secs=30.0)
    good = await _second(tools)
    with structlog.testing.capture_logs() as logs:
        rig.registry.add(tools.worker(server.url))
        rig.registry.add(tools.worker(good.url))
        await until(lambda: rig.reports, "a report")
        for _ in range(4):
            clock.now += 10
            before = watch.counts[POLL, LoadOutcome.BAD]
            await until(lambda: rig.reports[-1][2] == clock.now, "a report of now")
            await until(lambda before=before: watch.counts[POLL, LoadOutcome.BAD] > before + 1, "more failures")
        assert not said(logs, FAILING)
        server.answers.clear()  # 404: it has no such endpoint
        await until(lambda: watch.counts[POLL, LoadOutcome.UNSUPPORTED] == 1, "it is not asked any more")
        assert not said(logs, FAILING)
    await good.close()


async def _second(tools: Any) -> Any:
    made = tools.scripted()
    made.url = await made.start()
    made.answers["/v1/loads"] = tools.loads(1)
    return made
