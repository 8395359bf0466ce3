"""Waiting for a worker where the decision is made in another process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sgl_router.config import ModelConfig, PolicyName, QueueConfig
from sgl_router.errors import QueueFull, QueueTimeout
from sgl_router.observability import Outcome
from sgl_router.policies import DecisionReason

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
    assert lease.decision.reason is not DecisionReason.ROUTING_AWAY
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
