"""Workers that serve and publish nothing that can be indexed: told once, shown, and over with the next store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog

from sgl_router.kv_events.index import silence

LONG = "a prompt that is longer than a page of the cache, with words that no other prompt has "
WARNING = "worker serves prompts and publishes no cache events"
OVER = "worker publishes cache events again"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told as soon as there are enough prompts, however fast they come."""
    monkeypatch.setattr(silence, "_LEAST_SECS", 0.0)


async def gauge(fleet: Any) -> float:
    text = (await fleet.get("/metrics")).body.decode()
    lines = [line for line in text.splitlines() if line.startswith("sgl_router_kv_events_silent{")]
    assert len(lines) == 1
    return float(lines[0].rpartition(" ")[2])


async def view(fleet: Any) -> Any:
    return (await fleet.get("/workers")).json["workers"][0]["ranks"][0]["stream"]


async def ask(fleet: Any, count: int, start: int = 0, **extra: Any) -> None:
    for number in range(start, start + count):
        answer = await fleet.ask(f"{number} {LONG * 2}{number}", **extra)
        assert answer.status == 200
    await fleet.workers[0].idle()


@pytest.mark.parametrize("fault", ["never", "dies", "medium"])
async def test_a_rank_whose_stores_do_not_come_is_told_once_and_shown(rig, fault: str) -> None:
    fleet = await rig()
    faults = fleet.workers[0].publishers[0].faults
    if fault == "dies":
        await ask(fleet, 3, start=1000)
        await fleet.settled()
    if fault == "medium":
        faults.medium = "TAPE"
    else:
        faults.muted = True
    with structlog.testing.capture_logs() as logs:
        await ask(fleet, 80)
        assert await gauge(fleet) == 1
        assert (await view(fleet))["silent"] is True
        told = [line for line in logs if line["event"] == WARNING]
        assert len(told) == 1, [line["event"] for line in logs]
        assert told[0]["log_level"] == "warning"
        assert (told[0]["worker"], told[0]["dp_rank"]) == (fleet.worker(0).id, 0)
        assert ("medium" in told[0]["check"]) == (fault == "medium"), told[0]
        faults.clear()
        await ask(fleet, 1, start=500)
        await fleet.settled()
        assert await gauge(fleet) == 0
        assert (await view(fleet))["silent"] is False
        assert [line["log_level"] for line in logs if line["event"] == OVER] == ["info"]


async def test_without_cache_reports_and_without_a_replay_endpoint_too(rig) -> None:
    fleet = await rig(worker={"enable_cache_report": False, "replay": False})
    fleet.workers[0].publishers[0].faults.muted = True
    await ask(fleet, 80)
    assert (await view(fleet))["state"] == "waiting"
    assert await gauge(fleet) == 1


@pytest.mark.parametrize(
    "case", ["publishes", "repeated", "tiny", "page_64", "failing", "no_prefix_cache", "growing", "at_once"]
)
async def test_what_is_no_silence_is_not_told(rig, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    worker: dict[str, Any] = {"page_64": {"page_size": 64}, "no_prefix_cache": {"radix_cache": False}}.get(case, {})
    fleet = await rig(worker=worker)
    with structlog.testing.capture_logs() as logs:
        if case == "publishes":
            await ask(fleet, 80)
        elif case == "repeated":  # the engine has it from before the router: nothing new is stored
            for _ in range(80):
                await fleet.ask(LONG * 3, max_tokens=1)
        elif case == "tiny":
            for number in range(80):
                await fleet.ask(str(number % 10), max_tokens=1)
        elif case == "page_64":
            for number in range(80):
                assert int((await fleet.ask(f"{number} {LONG[:60]}", max_tokens=1)).decision["total"]) == 0
        elif case == "failing":
            fleet.workers[0].publishers[0].faults.muted = True
            for number in range(80):
                fleet.workers[0].faults.status(400, times=1)
                await fleet.ask(f"{number} {LONG}")
        elif case == "growing":
            text = LONG
            for number in range(40):
                text += f"and {number} "
                await fleet.ask(text, max_tokens=1)
        elif case == "at_once":  # all are answered before the events of the first are here
            monkeypatch.undo()
            await asyncio.gather(*(fleet.ask(f"{number} {LONG}") for number in range(80)))
            await fleet.settled()
        else:
            await ask(fleet, 80)
        assert await gauge(fleet) == 0
        assert not [line for line in logs if line["event"] == WARNING]


async def test_a_worker_without_events_is_never_silent(rig) -> None:
    fleet = await rig(worker={"kv_events": False})
    with structlog.testing.capture_logs() as logs:
        await ask(fleet, 60)
        assert "sgl_router_kv_events_silent{" not in (await fleet.get("/metrics")).body.decode()
        assert not [line for line in logs if line["event"] == WARNING]


async def test_ranks_are_told_apart(rig) -> None:
    fleet = await rig(worker={"dp_size": 2})
    fleet.workers[0].publishers[1].faults.muted = True
    await ask(fleet, 160)
    ranks = (await fleet.get("/workers")).json["workers"][0]["ranks"]
    assert [rank["stream"]["silent"] for rank in ranks] == [False, True]
