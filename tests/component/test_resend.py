"""What was sent is not sent again: at most one execution for each request of a client, counted by the workers."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter

import pytest

from tests.component.scripted import GOOD, Scripted, fleet_of, hang_up, saying

RESETS = pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])


async def warmed(rig, workers: list[Scripted], connections: int = 4):
    """A router with several idle connections to each worker."""
    fleet = await rig(workers=0, urls=[worker.url for worker in workers], wait=False, health={"interval_secs": 60})
    await fleet.until(lambda: len(fleet.services.registry) == len(workers), "every worker is registered")
    await fleet.healthy()
    waiting = asyncio.Event()

    async def together(worker: Scripted, body: bytes, writer: asyncio.StreamWriter) -> None:
        if sum(len(worker.executed) for worker in workers) == connections * len(workers):
            waiting.set()
        await waiting.wait()
        writer.write(GOOD)

    scripts = [worker.script for worker in workers]
    for worker in workers:
        worker.script = together
    replies = await asyncio.gather(*(fleet.ask(f"warm {number}") for number in range(connections * len(workers))))
    assert {reply.status for reply in replies} == {200}
    for worker, script in zip(workers, scripts, strict=True):
        worker.script = script
        worker.executed.clear()
    assert all(fleet.services.pool._addresses[worker.url].idle for worker in workers)
    return fleet


def killed(secs: float, *, reset: bool):
    """A worker that a prompt kills after it has worked on it for some time."""

    async def script(worker: Scripted, body: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(secs)
        worker.die(reset=reset)

    return script


def closing(secs: float, *, reset: bool):
    """A worker that lives on, and drops a request that it has worked on."""

    async def script(worker: Scripted, body: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(secs)
        hang_up(writer, reset=reset)

    return script


def outcomes(fleet) -> Counter[str]:
    return sum((Counter(worker.stats.requests) for worker in fleet.services.registry.all()), Counter())


@RESETS
@pytest.mark.parametrize("secs", [0.0, 0.2])
async def test_a_request_that_kills_its_worker_is_not_handed_on(rig, reset: bool, secs: float) -> None:
    async with fleet_of(*[killed(secs, reset=reset)] * 4) as workers:
        fleet = await warmed(rig, workers)
        before = outcomes(fleet)
        reply = await fleet.ask("poison")
        assert (reply.status, reply.error["code"]) == (502, "upstream_unreachable")
        assert sum(len(worker.executed) for worker in workers) == 1
        assert outcomes(fleet) - before == {"no_response": 1}
        assert fleet.idle_load()


@RESETS
async def test_a_request_that_was_worked_on_is_not_sent_again(rig, reset: bool) -> None:
    async with fleet_of(closing(0.2, reset=reset), closing(0.2, reset=reset)) as workers:
        fleet = await warmed(rig, workers)
        reply = await fleet.ask("once")
        assert (reply.status, reply.error["code"]) == (502, "upstream_unreachable")
        assert "before it responded" in reply.error["message"]
        assert sum(len(worker.executed) for worker in workers) == 1


async def test_nor_is_a_large_one_of_which_the_worker_had_a_part(rig) -> None:
    async with fleet_of(saying(GOOD), saying(GOOD), saying(GOOD)) as workers:
        fleet = await warmed(rig, workers)
        for worker in workers:
            worker.dies_after = 1 << 20
        reply = await fleet.ask("x" * (12 << 20))
        assert (reply.status, reply.error["code"]) == (502, "upstream_unreachable")
        assert sum(not worker._server.is_serving() for worker in workers) == 1
        assert sum(len(worker.executed) for worker in workers) == 0


async def test_where_nothing_was_sent_the_next_worker_is_asked(rig) -> None:
    async with fleet_of(saying(GOOD), saying(GOOD)) as workers:
        fleet = await warmed(rig, workers)
        workers[0].die(reset=False)
        idle = fleet.services.pool._addresses[workers[0].url].idle
        await fleet.until(lambda: all(one.closed for one in idle), "the router knows")
        replies = [await fleet.ask(f"{number}") for number in range(4)]
        assert {reply.status for reply in replies} == {200}
        assert len(workers[1].executed) == 4
        assert outcomes(fleet)["unreachable"] > 0


@pytest.mark.parametrize("seed", range(3))
async def test_no_request_is_executed_twice_whatever_workers_do(rig, seed: int) -> None:
    """Workers that close idle connections at any moment, and drop what they have read at once or later."""
    chooser = random.Random(seed)

    async def moody(worker: Scripted, body: bytes, writer: asyncio.StreamWriter) -> None:
        mood = chooser.random()
        if mood < 0.1:
            hang_up(writer, reset=False)  # its FIN confirms the request
        elif mood < 0.2:
            await asyncio.sleep(0.1)
            hang_up(writer, reset=chooser.random() < 0.5)
        else:
            writer.write(GOOD)
            if mood < 0.7:
                await writer.drain()
                asyncio.get_running_loop().call_later(chooser.random() * 0.01, hang_up_later, writer)

    async def client(number: int) -> list[int]:
        return [(await fleet.ask(f"request {number}-{turn}.")).status for turn in range(15)]

    def hang_up_later(writer: asyncio.StreamWriter) -> None:
        hang_up(writer, reset=False)

    async with fleet_of(*[moody] * 3) as workers:
        fleet = await warmed(rig, workers)
        for worker in fleet.services.registry.all():
            worker.breaker.threshold = 10_000
        statuses = Counter(status for one in await asyncio.gather(*map(client, range(8))) for status in one)
        executed = Counter(json.loads(body)["messages"][0]["content"] for worker in workers for body in worker.executed)
        assert max(executed.values()) == 1
        assert set(statuses) == {200, 502}
        assert statuses[200] > 60
        assert statuses[200] <= len(executed)
