"""Waiting for a worker where the decision is made in another process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sgl_router.config import ModelConfig, PolicyName, QueueConfig
from sgl_router.errors import QueueFull, QueueTimeout
from sgl_router.outcome import Outcome
from sgl_router.placement import DecisionReason, Unmatched
from sgl_router.routing import RouteRequest
from sgl_router.routing.remote import session as lease_side
from sgl_router.routing.remote.messages import Choose, End, Hello, encode_into

A = "http://a:1"


def config(**queue: Any) -> ModelConfig:
    return ModelConfig(
        id="m",
        tokenizer_path="unused",
        policy=PolicyName.KV_COST,
        queue=QueueConfig(enabled=True, release_below_ms=0, **queue),
    )


def waiting(routing: Any) -> int:
    return len(routing.routing.rooms["m"])


async def test_a_long_wait_is_announced_and_not_taken_for_silence(rig: Any) -> None:
    routing = await rig.routing(A, config=config())
    side = await rig.side(answer_secs=0.1)
    first = await side.choose()
    second = asyncio.create_task(side.choose(key=2))
    await rig.until(lambda: waiting(routing) == 1, "it waits")
    await asyncio.sleep(0.3)
    assert not second.done()
    assert not side.routing.away
    first.end(Outcome.COMPLETED)
    lease = await second
    assert lease.placement.prefill.reason is not DecisionReason.ROUTING_UNAVAILABLE
    assert lease.waited_secs >= 0.2
    lease.end(Outcome.COMPLETED)
    await rig.until(routing.idle, "nothing is left")
    assert side.fell_back == []


async def test_refusals_come_back_as_they_are(rig: Any) -> None:
    routing = await rig.routing(A, config=config(max_waiting=1, max_wait_secs=0.2))
    side = await rig.side()
    first = await side.choose()
    late = asyncio.create_task(side.choose(key=2))
    await rig.until(lambda: waiting(routing) == 1, "it waits")
    with pytest.raises(QueueFull) as full:
        await side.choose(key=3)
    assert full.value.retry_after == 1
    with pytest.raises(QueueTimeout, match=r"0\.2 s"):
        await late
    first.end(Outcome.COMPLETED)
    await rig.until(routing.idle, "nothing is left")


async def test_who_leaves_gives_up_the_place(rig: Any) -> None:
    routing = await rig.routing(A, config=config())
    side = await rig.side()
    first = await side.choose()
    second = asyncio.create_task(side.choose(key=2))
    await rig.until(lambda: waiting(routing) == 1, "it waits")
    second.cancel()
    await rig.until(lambda: waiting(routing) == 0, "it has left")
    first.end(Outcome.COMPLETED)
    await rig.until(routing.idle, "nothing is left")


async def test_those_of_a_process_that_dies_leave_too(rig: Any) -> None:
    routing = await rig.routing(A, config=config())
    side, other = await rig.side(), await rig.side()
    first = await side.choose()
    second = asyncio.create_task(other.choose(key=2))
    await rig.until(lambda: waiting(routing) == 1, "it waits")
    await other.stop()
    await rig.until(lambda: waiting(routing) == 0, "it has left")
    first.end(Outcome.COMPLETED)
    await rig.until(routing.idle, "nothing is left")
    second.cancel()
    await asyncio.wait((second,))


async def test_who_asks_and_leaves_in_one_breath_leaves_nothing_behind(rig: Any) -> None:
    routing = await rig.routing(A, config=config())
    side = await rig.side()
    first = await side.choose()
    messages = bytearray()
    encode_into(Hello(9, 1), messages)
    encode_into(Choose(1, "m", 160, {}, None, None, "", None, [], True, 0), messages)
    encode_into(End(1, Outcome.CLIENT_GONE, None), messages)
    _, writer = await asyncio.open_unix_connection(routing.path)
    writer.write(bytes(messages))
    await rig.until(lambda: routing.server.connected == 2, "it has been heard")
    await rig.until(lambda: waiting(routing) == 0, "it has left")
    await rig.until(lambda: not any(one._undecided for one in routing.server._sides), "it is forgotten")
    first.end(Outcome.COMPLETED)
    await rig.until(routing.idle, "nothing is left")
    writer.close()


async def test_however_many_wait_the_ends_of_others_are_heard(rig: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(lease_side, "_MAX_UNDECIDED", 4)
    routing = await rig.routing(A, config=config())
    side = await rig.side()
    first = await side.choose()
    tasks = [asyncio.create_task(side.choose(key=2 + number)) for number in range(6)]
    await rig.until(lambda: waiting(routing) == 6, "all of them wait")
    first.end(Outcome.COMPLETED)
    while tasks:
        done, _ = await asyncio.wait(tasks, timeout=120, return_when=asyncio.FIRST_COMPLETED)
        assert done, "an end was not heard"
        for task in done:
            tasks.remove(task)
            (await task).end(Outcome.COMPLETED)
    await rig.until(routing.idle, "nothing is left")


async def test_answers_lengths_are_told_across(rig: Any) -> None:
    routing = await rig.routing(A, config=config())
    side = await rig.side()
    lease = await side.choose()
    lease.first_byte(200)
    answers = routing.worker(A).targets[0].forecast.answers
    await rig.until(lambda: answers.count == 1, "it is under way")
    before = answers.tokens_per_sec
    await asyncio.sleep(0.25)
    lease.end(Outcome.COMPLETED, None, 10_000)
    await rig.until(lambda: answers.tokens_per_sec > before, "its length is known")
    await rig.until(routing.idle, "nothing is left")


async def test_what_was_in_flight_before_stands_in_nobodys_way(rig: Any) -> None:
    routing = await rig.routing(A, config=config())
    side = await rig.side()
    begun = await side.choose()
    begun.first_byte(200)
    await rig.until(lambda: not routing.worker(A).targets[0].prefill_tokens, "it was told")
    await routing.server.close()
    await rig.until(lambda: side.routing.away, "noticed")
    waiting = [await side.choose(8_000, key=key) for key in range(2, 10)]
    whole = await side.routing.choose(_whole(), set())
    successor = await rig.routing(A, config=config(), start=False)
    await rig.start(successor)
    await rig.until(lambda: len(successor.load) == 10, "all is declared")
    forecast = successor.worker(A).targets[0].forecast
    assert (len(forecast.prompts), forecast.answers.count) == (9, 1), "one of them has been computed"
    speed = forecast.prompts.speed.tokens_per_sec
    for lease in waiting:
        lease.first_byte(200)
    await rig.until(lambda: forecast.answers.count == 9, "told")
    assert forecast.prompts.speed.tokens_per_sec == speed, "it did not see them begin"
    second = await asyncio.wait_for(side.choose(key=20), 120)  # behind the answer that comes whole, computed long ago
    for lease in (begun, *waiting, whole, second):
        lease.end(Outcome.COMPLETED)
    await rig.until(successor.idle, "nothing is left")


def _whole() -> RouteRequest:
    return RouteRequest(model_id="m", unmatched=Unmatched.MEDIA, streamed=False)
