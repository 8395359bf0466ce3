"""Departures by the clock, a bound on what is open, and giving up."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

import pytest

from sgl_router.lab.replay.call import Call, Result
from sgl_router.lab.replay.prompts import PromptMaker
from sgl_router.lab.replay.sender import Sender
from sgl_router.lab.simulate.trace import TraceRow


class Client:
    """Answers when told."""

    def __init__(self, *, failing: bool = False) -> None:
        self.asked: list[tuple[int, bytes]] = []
        self.answering = asyncio.Event()
        self._failing = failing

    def body(self, content: str, max_tokens: int) -> bytes:
        return f"{max_tokens}: {content}".encode()

    async def ask(self, call: Call, body: bytes) -> None:
        if self._failing:
            raise ZeroDivisionError("a mistake of ours")
        self.asked.append((call.number, body))
        call.sent_at = CLOCK()
        await self.answering.wait()
        call.result = Result.ANSWERED


CLOCK: Callable[[], float] = time.perf_counter


def calls(*secs: float) -> list[Call]:
    now = CLOCK()
    return [Call(number, TraceRow(0.0, 40, 7, (1, 2)), now + at) for number, at in enumerate(secs)]


@pytest.fixture
def maker(vocabulary) -> PromptMaker:
    return PromptMaker(vocabulary, block_tokens=32, seed=0)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_slow_answers_hold_nothing_back(maker: PromptMaker) -> None:
    client, due = Client(), calls(0.05, 0.05, 0.1, 0.15)
    sender = Sender(client, maker, due, max_in_flight=10)  # type: ignore[arg-type]
    running = asyncio.ensure_future(sender.run(CLOCK))
    await until(lambda: len(client.asked) == 4)
    assert (sender.in_flight, sender.ended) == (4, 0)
    assert [number for number, _ in client.asked] == [0, 1, 2, 3]
    assert client.asked[0][1] == f"7: {maker.text(due[0].row, 0)}".encode()
    assert all(call.lag >= 0 for call in due), "nobody leaves early"
    client.answering.set()
    await running
    assert (sender.in_flight, sender.ended) == (0, 4)
    assert sender.sent == due


async def test_beyond_the_bound_requests_are_dropped(maker: PromptMaker) -> None:
    client, due = Client(), calls(0.0, 0.0, 0.0, 0.1)
    sender = Sender(client, maker, due, max_in_flight=2)  # type: ignore[arg-type]
    running = asyncio.ensure_future(sender.run(CLOCK))
    await until(lambda: sender.ended == 1)
    client.answering.set()
    await running
    assert [call.result for call in due] == [Result.ANSWERED, Result.ANSWERED, Result.DROPPED, Result.ANSWERED]
    assert math.isnan(due[2].sent_at) and len(client.asked) == 3


async def test_cancelled_it_gives_up_what_is_open_and_sends_no_more(maker: PromptMaker) -> None:
    client, due = Client(), calls(0.0, 0.0, 60.0)
    sender = Sender(client, maker, due, max_in_flight=10)  # type: ignore[arg-type]
    running = asyncio.ensure_future(sender.run(CLOCK))
    await until(lambda: len(client.asked) == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sender.sent == due[:2] and sender.in_flight == 0
    assert [call.result for call in sender.sent] == [Result.UNFINISHED] * 2


async def test_a_mistake_of_the_client_is_not_swallowed(maker: PromptMaker) -> None:
    sender = Sender(Client(failing=True), maker, calls(0.0), max_in_flight=10)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        await sender.run(CLOCK)


async def test_a_burst_s_prompts_are_written_before_it(maker: PromptMaker) -> None:
    client, due = Client(), calls(*[0.3] * 50)
    written: list[float] = []
    body = client.body
    client.body = lambda *args: (written.append(CLOCK()), body(*args))[1]  # type: ignore[method-assign]
    client.answering.set()
    await Sender(client, maker, due, max_in_flight=100).run(CLOCK)  # type: ignore[arg-type]
    assert len(written) == 50 and max(written) < due[0].due_at
