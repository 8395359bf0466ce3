"""A worker that crashes costs at most what the breaker allows, and comes back as a stranger with nothing cached."""

from __future__ import annotations

import http.client
import json
import time

import pytest
from kit.client import Stream
from kit.engine import Engine
from lane.answers import ERROR_HEADER, WORKER_HEADER
from lane.fleet import Fleet
from lane.router import BREAKER_THRESHOLD
from lane.waiting import until


@pytest.mark.own_workers("kills a worker")
def test_killed_worker_loses_its_traffic_and_returns_empty(fleet: Fleet, numbers: list[str]) -> None:
    victim, survivor = fleet.workers
    assert isinstance(victim, Engine)
    messages = fleet.prompts.user("held by the victim", 12 * fleet.page)
    fleet.warm(victim, messages)
    before = fleet.ask(messages)
    assert before.worker is victim and before.decision.hit, str(before)
    generation = fleet.view(victim).generation

    with fleet.router.stream({"messages": messages, "max_tokens": 1500, "ignore_eos": True}) as stream:
        assert fleet.by_id(stream.headers[WORKER_HEADER]) is victim
        events = stream.events()
        assert len([next(events) for _ in range(5)]) == 5
        killed_at = time.monotonic()
        victim.kill()
        assert _ends_unfinished(stream), "a stream whose worker died must not look complete"

    failures = 0
    while True:
        reply = fleet.router.chat({"messages": messages, "max_tokens": 2})
        if reply.status == 200:
            break
        failures += 1
        assert reply.status in (502, 503, 504), str(reply)
        assert reply.headers[ERROR_HEADER] and reply.json()["error"]["code"], str(reply)
        assert victim.url not in reply.body.decode(), "a client must not learn a worker's address"
        assert failures <= BREAKER_THRESHOLD, f"{failures} failures, and the breaker lets more through"
    moved = time.monotonic() - killed_at
    for number in range(6):
        routed = fleet.ask(fleet.prompts.user(("after the kill", number), 4 * fleet.page))
        assert routed.worker is survivor, str(routed)
    until(lambda: not _healthy(fleet, victim), "the victim seen as down", timeout=15)

    victim.start()
    back = fleet.await_healthy(victim)
    assert back.generation > generation
    assert sum(back.blocks()) == 0, "the cache of the process that died must not be remembered"
    fleet.await_live(victim)
    fleet.reset()
    again = fleet.prompts.user("held by the victim again", 12 * fleet.page)
    fleet.warm(victim, again)
    routed = fleet.ask(again)
    assert routed.worker is victim and routed.decision.hit and routed.exact, str(routed)
    numbers.append(
        f"killed worker: {failures} failed requests, traffic moved {moved:.1f} s after the kill, "
        f"worker back {victim.startup_secs:.0f} s after its start"
    )


def _healthy(fleet: Fleet, worker: Engine) -> bool:
    view = fleet.router.workers().get(worker.url)
    return view is not None and view.healthy


def _ends_unfinished(stream: Stream) -> bool:
    """Read to the end: cut off, or an error event. Raises TimeoutError when it hangs."""
    finished = failed = False
    try:
        for data in stream.events():
            if data == "[DONE]":
                finished = True
            else:
                failed = failed or "error" in json.loads(data)
    except (http.client.HTTPException, ConnectionError):
        failed = True
    return failed or not finished
