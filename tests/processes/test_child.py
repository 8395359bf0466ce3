"""A process as the supervisor holds it, where the system refuses one and where it says nothing."""

from __future__ import annotations

import asyncio
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from sgl_router.config import Config, DiscoveryConfig
from sgl_router.runtime import supervisor
from sgl_router.runtime.child import Child
from sgl_router.runtime.heartbeat import Watch
from sgl_router.runtime.paths import Paths
from sgl_router.runtime.supervisor import Supervisor

CONFIG = Config(models=[], discovery=DiscoveryConfig())


def refused(*arguments: Any, **more: Any) -> None:
    raise BlockingIOError(11, "Resource temporarily unavailable")


def descriptors() -> set[str]:
    return {entry.name for entry in pathlib.Path("/proc/self/fd").iterdir()}


async def test_a_process_that_cannot_be_had_leaves_nothing_behind(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = Child("routing", ["routing"], tmp_path, Watch())
    monkeypatch.setattr(subprocess, "Popen", refused)
    before = descriptors()
    with pytest.raises(OSError, match="unavailable"):
        await child.live()
    assert descriptors() == before
    assert child.pid is None


async def test_what_lies_in_the_working_directory_is_not_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("socket", "argparse", "sgl_router"):
        (tmp_path / f"{name}.py").write_text("import os; os._exit(77)")
    monkeypatch.chdir(tmp_path)
    assert "" not in sys.path
    child = Child("routing", ["routing"], tmp_path, Watch())  # where there is no configuration
    assert await asyncio.wait_for(child.live(), 120) == 1


async def test_a_process_that_cannot_be_had_is_tried_for_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one whose place it takes has died: nobody else would ever start it."""
    made = Supervisor(CONFIG, Paths(tmp_path), [])
    child, ends = made._routing, asyncio.Queue[int]()
    tries: list[str] = []

    async def live() -> int:
        tries.append("")
        if len(tries) in (2, 3):
            refused()
        return await ends.get()

    monkeypatch.setattr(child, "live", live)
    monkeypatch.setattr(supervisor, "_RESTART_SECS", (0.001, 0.002))
    made._started = True
    keeping = asyncio.create_task(made._keep(child))
    ends.put_nowait(-9)
    for _ in range(2_000):
        if len(tries) == 4:
            break
        await asyncio.sleep(0.005)
    assert len(tries) == 4 and not keeping.done()
    made._stopping = True
    ends.put_nowait(0)
    assert await keeping == 0
    assert sum(made._restarts.values()) == 1


async def test_at_the_start_it_is_an_error(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Supervisor(CONFIG, Paths(tmp_path), [])
    monkeypatch.setattr(subprocess, "Popen", refused)
    assert await made._keep(made._routing) > 0


def test_only_who_has_been_ready_can_hang(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child("routing", ["routing"], tmp_path, Watch(1.0, 2))
    killed: list[str] = []
    monkeypatch.setattr(child, "kill", lambda: killed.append(child.name))
    for _ in range(100):  # it loads tokenizers, or replays
        child.end_if_it_hangs()
    assert not killed and not child.hung
    child.ready.set()
    for turn in range(5):
        child.end_if_it_hangs()
        assert len(killed) == (turn >= 2), "once"
    assert child.hung
