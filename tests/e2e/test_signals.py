"""What signals do to a router that starts, serves, and stops."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import MODEL, MakeRouter, MakeWorkers, Router, settles

pytestmark = pytest.mark.timeout(400)

HARMLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE)


def pids(line: dict[str, Any]) -> list[int]:
    return [line["pid"], *([line["routing_pid"], *line["data_pids"]] if "data_pids" in line else [])]


@pytest.fixture
def folders() -> Iterator[pathlib.Path]:
    """With a path short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield pathlib.Path(name)


async def answers(router: Router) -> int | None:
    reply = await router.chat()
    return None if reply is None else reply.status


@pytest.mark.parametrize("processes", [1, 2])
async def test_signals_that_mean_nothing_break_nothing(
    make_router: MakeRouter, make_workers: MakeWorkers, processes: int
) -> None:
    [worker] = await make_workers(1)
    router = await make_router([worker.url], processes=processes, shutdown_drain_secs=1)
    line = await router.listening()
    worker.gate.close()
    client = await router.open()
    client.send_chat(stream=True)
    await worker.gate.arrived(1, timeout=120)
    for pid in pids(line):
        for number in HARMLESS:
            os.kill(pid, number)
    await router.until(lambda: router.said("signal ignored", signal="SIGHUP"), "told of")
    await router.until(lambda: router.said("signal ignored", signal="SIGUSR2"), "told of")
    worker.gate.open()
    reply = await client.read()
    assert reply is not None
    assert reply.body.endswith(b"data: [DONE]\n\n")
    # While it drains as well.
    router.process.send_signal(signal.SIGQUIT)
    await router.until(lambda: router.said("signal received, draining", signal="SIGQUIT"), "draining")
    for number in HARMLESS:
        router.process.send_signal(number)
    assert await answers(router) == 200
    assert await router.ends() == 0
    assert "Traceback" not in router.text
    assert not router.said("process died, restarting it")


@pytest.mark.parametrize("processes", [1, 2])
async def test_sigusr1_tells_where_every_process_stands(
    make_router: MakeRouter, make_workers: MakeWorkers, processes: int
) -> None:
    [worker] = await make_workers(1)
    router = await make_router([worker.url], processes=processes)
    line = await router.listening()
    worker.gate.close()
    held = [asyncio.create_task(router.chat(f"question {number}")) for number in range(20)]
    await worker.gate.arrived(20, timeout=120)
    router.process.send_signal(signal.SIGUSR1)
    dumps = len(pids(line))
    await router.until(lambda: len(router.said("SIGUSR1: where tasks")) == dumps, "each process has told")

    def carrying() -> list[dict[str, Any]]:
        return [one for one in router.said("where the tasks are") if "sgl_router.upstream.pool:" in one["stack"]]

    await router.until(lambda: sum(one["tasks"] for one in carrying()) == 20, "the requests are among it")
    assert all("sgl_router.api.pipeline:" in one["stack"] for one in carrying())
    await router.until(lambda: len(router.said("where a thread is", name="MainThread")) == dumps, "threads too")
    if processes > 1:
        assert {one["process"] for one in router.said("SIGUSR1: where tasks")} == {
            "supervisor", "routing", "data-0", "data-1",
        }  # fmt: skip
    worker.gate.open()
    assert {reply.status for reply in await asyncio.gather(*held) if reply is not None} == {200}
    assert await answers(router) == 200


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("pause", [0.3, 1.0])
async def test_a_router_that_starts_is_not_ended_by_them_and_ends_cleanly_by_sigterm(
    make_router: MakeRouter, make_workers: MakeWorkers, processes: int, pause: float, folders: pathlib.Path
) -> None:
    """Whatever it is doing meanwhile: importing, loading the tokenizer, waiting for its processes."""
    [worker] = await make_workers(1)
    environment = {**os.environ, "TMPDIR": str(folders)}
    router = await make_router([worker.url], processes=processes, environment=environment)
    await until_python_handles(router.process.pid, signal.SIGTERM)
    for _ in range(3):
        for number in HARMLESS:
            router.process.send_signal(number)
        await asyncio.sleep(pause / 3)  # at several moments of the start, whichever they are
    assert router.process.returncode is None, router.text
    router.process.send_signal(signal.SIGTERM)
    assert await router.ends() == 0
    assert list(folders.glob("sgl-router-*")) == []
    assert "Traceback" not in router.text


async def until_python_handles(pid: int, number: signal.Signals) -> None:
    """Until the process has a handler for the signal."""

    async def handles() -> bool:
        try:
            lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return False
        masks = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt")]
        return any(mask >> (number - 1) & 1 for mask in masks)

    await settles(handles, True)


async def test_what_a_killed_supervisor_leaves_is_removed_by_the_next(
    make_router: MakeRouter, make_workers: MakeWorkers, folders: pathlib.Path
) -> None:
    environment = {**os.environ, "TMPDIR": str(folders)}
    [worker] = await make_workers(1)
    first = await make_router([worker.url], processes=2, environment=environment)
    await first.listening()
    [left] = folders.glob("sgl-router-*")
    first.process.kill()
    await first.process.wait()
    assert left.is_dir()
    second = await make_router([worker.url], processes=2, environment=environment)
    await second.listening()
    assert not left.exists()
    assert second.said("removed files left behind by killed routers", folders=1)
    [own] = folders.glob("sgl-router-*")
    third = await make_router([worker.url], processes=2, environment=environment)
    await third.until(lambda: third.said("router listening"), "listening")
    assert own.is_dir()
    assert not third.said("removed what routers")


@pytest.mark.parametrize("arguments", [("mock-worker", "--model-id", MODEL), ("demo", "--port", "0", "--workers", "1")])
async def test_what_is_tried_in_a_terminal_ends_with_it(arguments: tuple[str, ...]) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sgl_router", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said = b""
        assert process.stdout is not None
        while b"Ctrl-C stops" not in said and b"mock worker ready" not in said:
            line = await process.stdout.readline()
            assert line, said
            said += line
        await asyncio.sleep(0)
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGHUP)
        rest, _ = await process.communicate()
        assert process.returncode == 0
        assert b"where tasks and threads stand" in rest
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
