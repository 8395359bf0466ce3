from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from structlog.testing import capture_logs

from sgl_router.observability import standing
from sgl_router.observability.standing import log_standing, task_stands, thread_stands


async def inner(gate: asyncio.Event) -> None:
    await gate.wait()


async def outer(gate: asyncio.Event, secret: str) -> None:
    await asyncio.wait_for(inner(gate), 120)
    assert secret


@pytest.fixture
async def waiting() -> Any:
    gate = asyncio.Event()
    tasks = [asyncio.create_task(outer(gate, "a-key"), name=f"request {number}") for number in range(200)]
    lone = asyncio.create_task(inner(gate), name="janitor")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    yield [*tasks, lone]
    gate.set()
    await asyncio.gather(*tasks, lone)


async def test_tasks_at_one_place_are_told_together(waiting: list[asyncio.Task[None]]) -> None:
    stands = [stand for stand in task_stands(waiting) if "test_standing" in stand.stack]
    many, one = stands[0], stands[-1]
    assert many.tasks == 200
    assert many.names == ["request 0", "request 1", "request 2"]
    assert " outer > " in many.stack
    assert (one.tasks, one.names) == (1, ["janitor"])
    assert " inner > asyncio.locks:" in one.stack
    assert "a-key" not in str(stands)


async def test_the_lines_are_bounded(waiting: list[asyncio.Task[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "MAX_TASKS", 150)
    monkeypatch.setattr(standing, "MAX_LINES", 1)
    monkeypatch.setattr(standing, "MAX_THREADS", 1)
    with capture_logs() as lines:
        log_standing(asyncio.get_running_loop())
    assert [line["event"] for line in lines] == [
        "SIGUSR1: where tasks and threads stand",
        "where the tasks are",
        "where a thread is",
    ]
    assert lines[0]["tasks"] >= 201
    assert lines[0]["looked_at"] == 150
    assert all(len(str(line)) < 4_000 for line in lines)


async def test_a_deep_stack_keeps_its_ends() -> None:
    async def deep(left: int) -> None:
        await (deep(left - 1) if left else gate.wait())

    gate = asyncio.Event()
    task = asyncio.create_task(deep(50))
    await asyncio.sleep(0)
    [stand] = task_stands([task])
    steps = stand.stack.split(" > ")
    assert len(steps) == standing.MAX_FRAMES + 1
    assert steps[1] == "..."
    assert steps[-1].endswith(" wait")
    gate.set()
    await task


def test_threads_are_told_by_name() -> None:
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait, args=(30,), name="tokenizer")
    thread.start()
    try:
        [stand] = [stand for stand in thread_stands() if stand.names == ["tokenizer"]]
        assert "threading:" in stand.stack
    finally:
        gate.set()
        thread.join()
