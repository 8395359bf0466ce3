"""One rank's load channel over real sockets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sgl_router.load.reports.channel import LoadChannel
from sgl_router.load.reports.outcome import LoadOutcome
from sgl_router.load.reports.report import LoadReport
from sgl_router.upstream.zmq_subscriber import make_context


class Heard:
    def __init__(self) -> None:
        self.reports: list[LoadReport] = []
        self.counts: Counter[LoadOutcome] = Counter()

    def count(self, outcome: LoadOutcome) -> None:
        self.counts[outcome] += 1

    @property
    def running(self) -> list[int]:
        return [report.running for report in self.reports]


@pytest.fixture
async def listen() -> Any:
    context, made = make_context(), []

    def make(endpoint: str) -> tuple[Heard, LoadChannel]:
        heard = Heard()
        made.append(LoadChannel(context, endpoint, "load", report=heard.reports.append, count=heard.count))
        return heard, made[-1]

    yield make
    for one in made:
        one.close()
        one.close()
    context.term()


@pytest.fixture
def socket(open_socket: Callable[..., Any]) -> Iterator[Any]:
    return open_socket()


async def test_reports_come_as_they_are_published(socket: Any, listen: Any, until: Any, tools: Any) -> None:
    heard, _ = listen(socket.endpoint)
    await socket.subscribed()
    for running in range(3):
        socket.send(tools.record(running, 1, 55, 740, 8))
        await until(lambda running=running: len(heard.reports) == running + 1)
    assert heard.reports[-1] == LoadReport(2, 1, 100, 4096, 55, 8)
    assert heard.counts == {LoadOutcome.OK: 3}


async def test_a_bad_frame_costs_that_frame(socket: Any, listen: Any, until: Any, tools: Any) -> None:
    heard, _ = listen(socket.endpoint)
    await socket.subscribed()
    socket.send_frames(b"load", b"1", b"\xc1")
    socket.send(["LoadStat", "many"])
    socket.send(["GpuStat", 1])
    socket.send(tools.record(4))
    await until(lambda: heard.reports)
    assert heard.running == [4]
    assert heard.counts == {LoadOutcome.BAD: 2, LoadOutcome.UNSUPPORTED: 1, LoadOutcome.OK: 1}


async def test_of_a_burst_the_newest_report_counts(socket: Any, listen: Any, until: Any, tools: Any) -> None:
    heard, _ = listen(socket.endpoint)
    await socket.subscribed()
    for running in range(500):
        socket.send(tools.record(running))
        socket.send("no record")
    await until(lambda: heard.counts[LoadOutcome.BAD] == 500)
    assert heard.running == sorted(heard.running)
    assert heard.running[-1] == 499, "also where a bad frame came with it"
    assert len(heard.reports) < heard.counts[LoadOutcome.OK]


async def test_a_restarted_worker_counts_from_the_beginning(
    open_socket: Any, listen: Any, until: Any, tools: Any
) -> None:
    first = open_socket()
    heard, _ = listen(first.endpoint)
    await first.subscribed()
    first.sequence = 1000
    first.send(tools.record(1))
    await until(lambda: heard.reports)
    first.close()
    second = open_socket(first.port)
    await second.subscribed()
    second.send(tools.record(2))
    await until(lambda: len(heard.reports) == 2)
    assert heard.running == [1, 2]


async def test_a_closed_channel_is_silent(open_socket: Any, listen: Any, until: Any, tools: Any) -> None:
    socket = open_socket()
    closed, channel = listen(socket.endpoint)
    await socket.subscribed()
    heard, _ = listen(socket.endpoint)
    await socket.subscribed()
    channel.close()
    socket.send(tools.record(1))
    await until(lambda: heard.reports)
    assert not closed.reports
