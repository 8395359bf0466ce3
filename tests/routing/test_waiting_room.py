"""Waiting, as far as no daemon is needed for it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from sgl_router.config import KvCostConfig, QueueConfig
from sgl_router.errors import QueueTimeout
from sgl_router.load import ActiveLoad
from sgl_router.outcome import Outcome
from sgl_router.policies import KvCost, PolicyInput
from sgl_router.routing import RouteRequest
from sgl_router.routing.dispatcher import Dispatcher
from sgl_router.workers import Target, Worker, WorkerInfo


class Metrics:
    """Swallows what is counted."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *arguments: Any) -> Any:
        return self


class Lease:
    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def end(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


class Scene:
    """One target that is busy, and a room before it. `failing`: what is raised where the room asks for something."""

    def __init__(self, **queue: Any) -> None:
        loop = asyncio.get_running_loop()
        load = ActiveLoad({"m": 1_000.0}, clock=loop.time)
        worker = Worker("http://a:1", WorkerInfo(served_model_name="m", block_size=16))
        load.worker_added(worker)
        self.targets: list[Target] = list(worker.targets)
        self.prompt = load.acquire(self.targets[0], prefill_tokens=10**6, decode_blocks=0, now=loop.time())
        self.failing: set[str] = set()
        self.skipped = self.look_up_secs = 0.0
        self.leases: list[Lease] = []
        self.room = Dispatcher(
            "m",
            KvCost(random.Random(1), KvCostConfig(), clock=loop.time),
            QueueConfig(enabled=True, **queue),
            Metrics(),  # type: ignore[arg-type]
            candidates=lambda: self._answer("candidates", lambda: self.targets),
            look_up=lambda request, facts: self._answer("look_up", self._facts),
            admit=lambda request, leg, facts: self._answer("admit", self._lease),
            clock=lambda: loop.time() + self.skipped,
        )

    def _facts(self) -> PolicyInput:
        self.skipped += self.look_up_secs
        return PolicyInput(prompt_tokens=100)

    def _answer(self, name: str, answer: Callable[[], Any]) -> Any:
        if name in self.failing:
            raise RuntimeError(name)
        return answer()

    def _lease(self) -> Lease:
        self.leases.append(Lease())
        return self.leases[-1]

    def enter(self, *names: str) -> list[asyncio.Task[Any]]:
        facts = PolicyInput(prompt_tokens=100)
        requests = [RouteRequest(model_id="m", request_id=name) for name in names]
        return [asyncio.create_task(self.room.wait(one, facts), name=one.request_id) for one in requests]


@pytest.fixture
async def errors() -> list[dict[str, Any]]:
    """What the loop was left to report."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: found.append(context))
    return found


@pytest.mark.parametrize("where", ["candidates", "look_up"])
async def test_a_failure_in_the_turn_of_dispatch_does_not_stop_the_clock(
    where: str, errors: list[dict[str, Any]]
) -> None:
    scene = Scene(max_wait_secs=0.3)
    (one,) = scene.enter("one")
    await asyncio.sleep(0)
    scene.prompt.release()
    scene.failing.add(where)
    with pytest.raises(QueueTimeout):
        await asyncio.wait_for(one, 120)
    assert errors
    assert not len(scene.room)


async def test_it_goes_on_when_the_failure_is_over(errors: list[dict[str, Any]]) -> None:
    scene = Scene()
    tasks = scene.enter("one", "two")
    await asyncio.sleep(0)
    scene.failing.add("look_up")
    scene.prompt.release()
    while not errors:
        await asyncio.sleep(0.002)
    scene.failing.clear()
    assert await asyncio.wait_for(asyncio.gather(*tasks), 120) == scene.leases


async def test_who_cannot_be_admitted_is_told_and_the_others_go_on() -> None:
    scene = Scene()
    tasks = scene.enter("one", "two")
    await asyncio.sleep(0)
    scene.failing.add("admit")
    scene.prompt.release()
    for task in tasks:
        with pytest.raises(RuntimeError, match="admit"):
            await asyncio.wait_for(task, 120)
    assert not len(scene.room)
    scene.failing.clear()
    (three,) = scene.enter("three")
    assert await asyncio.wait_for(three, 120) is scene.leases[0]


async def test_who_is_cancelled_in_the_turn_of_dispatch_gives_the_lease_back() -> None:
    scene = Scene()
    (one,) = scene.enter("one")
    await asyncio.sleep(0)
    scene.prompt.release()
    scene.room._look()
    one.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await one
    assert one.cancelled()
    assert [lease.outcomes for lease in scene.leases] == [[Outcome.CLIENT_GONE]]


async def test_who_is_cancelled_in_the_turn_before_dispatch_takes_nobodys_place_and_is_counted() -> None:
    scene = Scene()
    one, two = scene.enter("one", "two")
    await asyncio.sleep(0)
    counted: list[str] = []
    scene.room._count = counted.append  # type: ignore[method-assign]
    scene.prompt.release()
    scene.room.changed()  # its look comes before the cancelled task's own step
    one.cancel()
    assert await asyncio.wait_for(two, 120) is scene.leases[0]
    assert one.cancelled()
    assert len(scene.leases) == 1 and sorted(counted) == ["dispatched", "left"]


async def test_who_waits_while_nobody_can_be_chosen_goes_when_somebody_can() -> None:
    scene = Scene()
    targets, scene.targets = scene.targets, []
    (one,) = scene.enter("one")
    await asyncio.sleep(0.02)
    assert len(scene.room) == 1
    scene.prompt.release()
    scene.targets = targets
    assert await asyncio.wait_for(one, 120) is scene.leases[0]


async def test_the_loop_is_not_held_where_many_may_go_at_once() -> None:
    scene = Scene()
    tasks = scene.enter(*map(str, range(50)))
    await asyncio.sleep(0)
    scene.prompt.release()  # and nobody who goes makes the target busy: all of them may
    scene.look_up_secs = 0.001
    scene.room._look()
    assert 1 <= len(scene.leases) < 10
    await asyncio.wait_for(asyncio.gather(*tasks), 120)
    assert len(scene.leases) == 50
