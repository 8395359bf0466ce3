"""Requests that wait in the router until a worker can take them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

LONG = "a prompt of its own for every request, so that each has something to compute " * 6


@pytest.fixture
def queued(rig) -> Any:
    async def make(workers: int = 1, **queue: Any) -> Any:
        model = {"policy": "kv_cost", "queue": {"enabled": True, "release_below_ms": 0, **queue}}
        return await rig(workers=workers, model=model)

    return make


def room(fleet: Any) -> Any:
    (found,) = fleet.daemon.routing.rooms.values()
    return found


async def asked(fleet: Any, text: str, waiting: int | None = None, **extra: Any) -> asyncio.Task[Any]:
    """A request under way: sent off, or waiting as the `waiting`-th."""
    before = len(fleet.services.load)
    task = asyncio.create_task(fleet.ask(text, stream=True, **extra))
    if waiting is None:
        await fleet.until(lambda: len(fleet.services.load) == before + 1, "the request is on its way")
    else:
        await fleet.until(lambda: len(room(fleet)) == waiting, f"{waiting} requests wait")
    return task


async def test_a_request_waits_until_a_worker_has_room_and_then_goes(queued) -> None:
    fleet = await queued()
    fleet.workers[0].gate.close()
    first = await asked(fleet, f"one {LONG}")
    second = await asked(fleet, f"two {LONG}", waiting=1)
    assert len(fleet.services.load) == 1, "what waits is charged to nobody"
    assert "sgl_router_queue_waiting{" in (metrics := (await fleet.get("/metrics")).body.decode())
    assert 'sgl_router_queue_waiting{model_id="mock-model"} 1.0' in metrics
    fleet.workers[0].gate.open()
    assert [(await one).status for one in (first, second)] == [200, 200]
    assert not len(room(fleet))
    metrics = (await fleet.get("/metrics")).body.decode()
    assert 'sgl_router_queue_outcomes_total{model_id="mock-model",outcome="dispatched"} 1.0' in metrics
    assert 'sgl_router_queue_wait_seconds_count{model_id="mock-model"} 1.0' in metrics
    await fleet.until(fleet.idle_load, "nothing is left of them")


async def test_the_least_work_goes_first_and_a_class_before_that(queued) -> None:
    fleet = await queued(ageing=0)
    fleet.workers[0].gate.close()
    tasks = [await asked(fleet, f"one {LONG}", headers={"x-request-id": "one"})]
    for waiting, (name, length, extra, header) in enumerate(
        [
            ("long", 3, {}, {}),
            ("short", 1, {}, {}),
            ("urgent", 4, {"priority": 1}, {}),
            ("system", 5, {}, {"x-smg-priority": "system"}),
            ("bulk", 1, {"priority": -1}, {}),
        ],
        start=1,
    ):
        headers = {"x-request-id": name, **header}
        tasks.append(await asked(fleet, f"{name} {LONG * length}", waiting=waiting, headers=headers, **extra))
    fleet.workers[0].gate.open()
    await asyncio.gather(*tasks)
    entries = (await fleet.get("/internal/decisions")).json["decisions"]
    assert [entry["request_id"] for entry in reversed(entries)] == ["one", "system", "urgent", "short", "long", "bulk"]
    assert [entry["waited_ms"] > 0 for entry in reversed(entries)] == [False] + [True] * 5
    decision_secs = fleet.services.metrics.decision_time.labels("mock-model").total
    assert decision_secs < sum(entry["waited_ms"] for entry in entries) / 1e3, "waiting is no part of deciding"


async def test_a_full_queue_says_when_to_come_again(queued) -> None:
    fleet = await queued(max_waiting=1)
    fleet.workers[0].gate.close()
    tasks = [await asked(fleet, f"one {LONG}"), await asked(fleet, f"two {LONG}", waiting=1)]
    refused = await fleet.ask(f"three {LONG}")
    assert (refused.status, refused.error["code"], refused.error["type"]) == (429, "queue_full", "rate_limit_error")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    fleet.workers[0].gate.open()
    assert [answer.status for answer in await asyncio.gather(*tasks)] == [200, 200]


async def test_nobody_waits_for_ever(queued) -> None:
    fleet = await queued(max_wait_secs=0.2)
    fleet.workers[0].gate.close()
    first = await asked(fleet, f"one {LONG}")
    late = await fleet.ask(f"two {LONG}")
    assert (late.status, late.error["code"]) == (503, "queue_timeout")
    assert "0.2 s" in late.error["message"]
    assert "retry-after" in late.headers
    fleet.workers[0].gate.open()
    assert (await first).status == 200


async def test_a_client_that_leaves_while_waiting_costs_nothing(queued) -> None:
    fleet = await queued()
    fleet.workers[0].gate.close()
    first = await asked(fleet, f"one {LONG}")
    second = await asked(fleet, f"two {LONG}", waiting=1)
    third = await asked(fleet, f"three {LONG}", waiting=2)
    second.cancel()
    await fleet.until(lambda: len(room(fleet)) == 1, "the one who left does not wait any more")
    fleet.workers[0].gate.open()
    assert [(await one).status for one in (first, third)] == [200, 200]
    await fleet.until(fleet.idle_load, "nothing is left of them")
    entries = (await fleet.get("/internal/decisions")).json["decisions"]
    assert len(entries) == 2, "it was never sent"


async def test_a_model_without_a_queue_never_makes_wait(rig) -> None:
    fleet = await rig(workers=1, model={"policy": "kv_cost"})
    assert not fleet.daemon.routing.rooms
    fleet.workers[0].gate.close()
    tasks = [asyncio.create_task(fleet.ask(f"{number} {LONG}")) for number in range(3)]
    await fleet.until(lambda: len(fleet.services.load) == 3, "all three are on their way")
    fleet.workers[0].gate.open()
    assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}


async def test_refusals_are_counted_and_recorded_as_the_routers_own(queued) -> None:
    fleet = await queued(max_waiting=1, max_wait_secs=0.2)
    fleet.workers[0].gate.close()
    first = await asked(fleet, f"one {LONG}")
    second = await asked(fleet, f"two {LONG}", waiting=1)
    assert (await fleet.ask(f"three {LONG}")).status == 429
    assert (await second).status == 503
    fleet.workers[0].gate.open()
    assert (await first).status == 200
    await fleet.until(fleet.idle_load, "nothing is left of them")
    metrics = (await fleet.get("/metrics")).body.decode()
    told = [line for line in metrics.splitlines() if line.startswith("sgl_router_responses_total{")]
    for status in ("200", "429", "503"):
        (line,) = [line for line in told if "/v1/chat/completions" in line and f'"{status}"' in line]
        assert line.endswith(" 1.0")
    for code in ("queue_full", "queue_timeout"):
        assert f'{{code="{code}"}} 1.0' in metrics
    assert fleet.worker(0).stats.requests == {"completed": 1}


async def test_a_worker_that_goes_while_requests_wait_for_it(queued) -> None:
    fleet = await queued(workers=2)
    for worker in fleet.workers:
        worker.gate.close()
    busy = [await asked(fleet, f"{number} {LONG}") for number in range(2)]
    waits = await asked(fleet, f"two {LONG}", waiting=1)
    fleet.services.registry.remove(fleet.workers[0].url)
    fleet.workers[1].gate.open()
    answer = await waits
    assert answer.status == 200
    assert answer.worker == fleet.worker(1).id
    fleet.workers[0].gate.open()
    assert [(await one).status for one in busy] == [200, 200], "what it was working on is not cut off"


async def test_a_number_of_any_length_is_a_priority(queued) -> None:
    fleet = await queued()
    for number in (10**30, -(10**30)):
        assert (await fleet.ask("hello", priority=number)).status in (200, 400), "whatever the engine says"


async def test_fast_refusals_do_not_look_like_speed(rig) -> None:
    fleet = await rig(workers=1, model={"policy": "kv_cost"})
    fleet.workers[0].faults.status(503, times=6)
    for number in range(6):
        assert (await fleet.ask(f"{number} {LONG}")).status == 503
    (target,) = fleet.worker(0).targets
    assert target.forecast.prompts.speed.observations == 0
