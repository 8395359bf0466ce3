"""A client that goes away takes its request with it, on the router and in the engine."""

from __future__ import annotations

import threading
import time

from kit.client import Stream
from lane.answers import WORKER_HEADER
from lane.fleet import Fleet
from lane.waiting import until

TOKENS = 1500


def test_streams_left_by_their_clients_are_aborted(fleet: Fleet, numbers: list[str]) -> None:
    streams = [
        fleet.router.stream(
            {"messages": fleet.prompts.user(("left", n), 4 * fleet.page), "max_tokens": TOKENS, "ignore_eos": True}
        )
        for n in range(3)
    ]
    try:
        for stream in streams:
            events = stream.events()
            assert len([next(events) for _ in range(10)]) == 10
        assert _inflight(fleet) == 3
        until(lambda: _unfinished(fleet) == 3, "three requests in the engines", timeout=10)
        served = [fleet.by_id(stream.headers[WORKER_HEADER]) for stream in streams]
    finally:
        for stream in streams:
            stream.drop()
    left = time.monotonic()
    until(lambda: _inflight(fleet) == 0, "no request in flight at the router", timeout=3)
    router_secs = time.monotonic() - left
    until(lambda: _unfinished(fleet) == 0, "no request in the engines", timeout=10)
    engine_secs = time.monotonic() - left

    fleet.settle()
    for worker in set(served):
        # Pages of an aborted request are kept. Fewer than half of what was asked for: it did not run to its end.
        assert fleet.held(worker) < served.count(worker) * TOKENS // fleet.page // 2
    numbers.append(f"clients gone: router free after {router_secs:.2f} s, engines after {engine_secs:.2f} s")


def test_buffered_request_left_by_its_client_frees_the_router(fleet: Fleet) -> None:
    """The engine looks for a lost client every four seconds only; the router must not wait for that."""
    waiting = threading.Thread(target=_give_up, args=(fleet,))
    waiting.start()
    until(lambda: _inflight(fleet) == 1, "the request in flight")
    waiting.join()
    until(lambda: _inflight(fleet) == 0, "no request in flight at the router", timeout=3)
    until(lambda: _unfinished(fleet) == 0, "no request in the engines", timeout=15)


def _give_up(fleet: Fleet) -> None:
    body = {"model": fleet.router.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": TOKENS}
    try:
        Stream(f"{fleet.router.url}/v1/chat/completions", {**body, "ignore_eos": True}, timeout=2.0).drop()
    except TimeoutError:
        return
    raise AssertionError("the answer came before the client gave up")


def _inflight(fleet: Fleet) -> int:
    return sum(view.inflight for view in fleet.router.workers().values())


def _unfinished(fleet: Fleet) -> int:
    return sum(worker.unfinished() for worker in fleet.workers)
