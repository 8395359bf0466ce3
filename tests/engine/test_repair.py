"""Histories the router did not hear, or heard late: afterwards it claims what the engine holds, and nothing else.

The workers of the session publish as they do in production. The worker `narrow` drops events early (`hwm`) and
remembers few (`buffer_steps`), so that a router that stops reading for a while does miss some.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Serving
from kit.engine import MODEL, Engine, running
from kit.provision import Environment
from lane.fleet import Fleet
from lane.load import churn, probe
from lane.router import Router
from lane.waiting import until

MISSED = 2000
BUFFER_STEPS = 2200
own_workers = pytest.mark.own_workers("starts a worker of its own, with a short memory for events")


@pytest.fixture
def another(serving: Serving, log_dir: Path) -> Iterator[Callable[[str], Router]]:
    """`another(name)`: a second router in front of the session's workers, not started."""
    made: list[Router] = []

    def make(name: str) -> Router:
        folder = log_dir / name
        folder.mkdir()
        urls = [worker.url for worker in serving.workers]
        made.append(
            Router(folder, model=serving.model, tokenizer=serving.tokenizer, urls=urls, api_key=serving.api_key)
        )
        return made[-1]

    yield make
    for router in made:
        router.close()


@pytest.fixture(scope="module")
def _narrow(environment: Environment, log_dir: Path) -> Iterator[Fleet]:
    folder = log_dir / "narrow"
    folder.mkdir()
    publisher = {"hwm": 100, "buffer_steps": BUFFER_STEPS}
    engine = Engine(environment, page_size=1, max_total_tokens=8192, publisher=publisher, log_dir=folder)
    with running(engine):
        router = Router(folder, model=MODEL, tokenizer=str(environment.model), urls=[engine.url])
        try:
            router.start()
            made = Fleet(router, [engine], engine.page_size)
            try:
                yield made
            finally:
                made.close()
        finally:
            router.close()


@pytest.fixture
def narrow(_narrow: Fleet) -> Fleet:
    """One worker with pages of one token, idle and empty, behind a router of its own."""
    _narrow.reset()
    return _narrow


@pytest.fixture
def keeping(narrow: Fleet, tmp_path: Path) -> Iterator[Callable[[], Fleet]]:
    """`keeping()`: start another router over `narrow`, each with the same snapshot file."""
    made: list[Router] = []
    path = tmp_path / "index.kv"

    def start() -> Fleet:
        folder = tmp_path / f"router-{len(made)}"
        folder.mkdir()
        urls = [worker.url for worker in narrow.workers]
        tokenizer = str(narrow.workers[0].environment.model)  # type: ignore[attr-defined]
        router = Router(
            folder, model=MODEL, tokenizer=tokenizer, urls=urls, kv_events={"snapshot": {"path": str(path)}}
        )
        made.append(router)
        router.start()
        return narrow.behind(router)

    yield start
    for router in made:
        router.close()


def test_router_started_after_its_workers_is_warm_at_once(
    fleet: Fleet, another: Callable[[str], Router], numbers: list[str]
) -> None:
    prompts = []
    for number, worker in enumerate(fleet.workers):
        churn(fleet, worker, 60, seed=("before the router", number))
        prompts.append(fleet.prompts.user(("before the router", number), 20 * fleet.page))
        fleet.warm(worker, prompts[-1])
    late = another("late")
    late.start()
    ready = time.monotonic()
    seen = fleet.behind(late)
    for worker in seen.workers:
        seen.await_healthy(worker)
    for number in reversed(range(len(prompts))):
        routed = seen.ask(prompts[number])
        took = time.monotonic() - ready
        assert routed.worker is fleet.workers[number], str(routed)
        assert routed.decision.hit and routed.exact, str(routed)
        assert routed.cached == (routed.prompt - 1) // fleet.page * fleet.page, str(routed)
        if number == len(prompts) - 1:
            numbers.append(f"late router: first answer, a hit, {took:.2f} s after it was ready")
    for worker in seen.workers:
        seen.await_witnessed(worker)
    seen.settle()
    assert late.stop() == 0


def test_stopped_router_catches_up(fleet: Fleet, numbers: list[str]) -> None:
    """Nothing is lost on the way: the events wait in the sockets, as many as there are."""
    worker = fleet.workers[0]
    ledger = fleet.ledger(worker)
    before = ledger.frames, ledger.events, ledger.removed
    started = time.monotonic()
    with fleet.router.stopped():
        chats = churn(fleet, worker, MISSED, seed="while stopped")
    published, resumed = time.monotonic() - started, time.monotonic()
    fleet.await_healthy(worker)
    fleet.await_witnessed(worker)
    caught_up = time.monotonic() - resumed
    frames, events, removed = (
        now - then for now, then in zip((ledger.frames, ledger.events, ledger.removed), before, strict=True)
    )
    assert frames >= MISSED and ledger.gaps == 0
    if isinstance(worker, Engine):
        assert removed > 0, "the load was to overflow the cache"
    probes = probe(fleet, chats)
    assert sum(one.worker is worker and one.decision.hit for one in probes) > len(probes) // 2
    numbers.append(
        f"router stopped: {frames} batches ({events} events, {removed} blocks evicted) in {published:.0f} s, level "
        f"{caught_up:.2f} s after SIGCONT, {fleet.view(worker).streams()[0].count('gaps')} gaps, "
        f"{len(probes)} of {len(probes)} probes equal"
    )


@own_workers
def test_engine_restarted_behind_the_routers_back(narrow: Fleet) -> None:
    """The router sleeps through the restart, and through as many batches of the new process as the old one published:
    the numbers alone would go on where they were."""
    (worker,) = narrow.workers
    assert isinstance(worker, Engine)
    ledger = narrow.ledger(worker)
    old = churn(narrow, worker, 40, seed="old process")
    probe(narrow, old, count=4)
    before = narrow.view(worker)
    (cursor,) = ledger.next_seq()
    assert cursor is not None
    with narrow.router.stopped():
        worker.kill()
        worker.start()
        new = churn(narrow, worker, cursor + 20, seed="new process")
    until(lambda: narrow.view(worker).generation > before.generation, "the new process noticed", timeout=30)
    narrow.await_healthy(worker)
    narrow.await_witnessed(worker)
    probe(narrow, new)
    gone = probe(narrow, old, count=4)
    shared = 100  # what the chat template begins with
    assert all(one.cached < shared for one in gone), "\n".join(map(str, gone))


@own_workers
def test_engine_restarted_in_place_is_a_stranger(narrow: Fleet, numbers: list[str]) -> None:
    (worker,) = narrow.workers
    assert isinstance(worker, Engine)
    old = churn(narrow, worker, 40, seed="before the restart")
    assert probe(narrow, old, count=2)[0].decision.hit
    before = narrow.view(worker)
    worker.stop()
    worker.start()
    started = time.monotonic()

    def replaced() -> bool:
        view = narrow.router.workers().get(worker.url)
        return view is not None and view.healthy and view.generation > before.generation

    until(replaced, "a new generation of the restarted worker", timeout=30)
    numbers.append(f"engine restarted in place: a new generation {time.monotonic() - started:.1f} s after it was ready")
    assert sum(narrow.view(worker).blocks()) == 0, "the cache of the process before must not be remembered"
    narrow.await_witnessed(worker)
    first = narrow.ask(old[-1], max_tokens=1)
    assert first.predicted == first.cached == 0, str(first)
    probe(narrow, churn(narrow, worker, 60, seed="after the restart"))


@own_workers
def test_stopped_router_repairs_what_it_lost(narrow: Fleet, numbers: list[str]) -> None:
    """More is published than the sockets between them hold: the publisher drops, and the replay buffer brings it back.

    What it dropped last shows with the next batch, whatever that is.
    """
    (worker,) = narrow.workers
    ledger = narrow.ledger(worker)
    before, gaps, events = narrow.view(worker).streams()[0], ledger.gaps, ledger.events
    first = ledger.frames
    started = time.monotonic()
    with narrow.router.stopped():
        chats = churn(narrow, worker, MISSED, seed="lost", tokens=120)
    published = time.monotonic() - started
    narrow.await_healthy(worker)
    frames, events = ledger.frames - first, ledger.events - events
    assert frames >= MISSED and ledger.gaps == gaps
    chats += churn(narrow, worker, 1, seed="the next batch")
    resumed = time.monotonic()
    after = narrow.await_witnessed(worker).streams()[0]
    repaired = time.monotonic() - resumed
    missing, replayed = (after.count(what) - before.count(what) for what in ("missing", "replayed"))
    assert after.count("gaps") > before.count("gaps") and missing > 0 and replayed >= missing, dict(after.raw)
    probes = probe(narrow, chats, count=24)
    assert sum(one.cached > 100 for one in probes) > len(probes) // 2, "no probe met anything cached"
    numbers.append(
        f"router stopped and starved: {frames} batches ({events} events) in {published:.0f} s, {missing} lost on the "
        f"way, {replayed} replayed, whole {repaired:.2f} s after the next batch, {len(probes)} of {len(probes)} equal"
    )


@own_workers
def test_flush_while_idle_leaves_nothing(narrow: Fleet) -> None:
    (worker,) = narrow.workers
    chats = churn(narrow, worker, 40, seed="flushed")
    probe(narrow, chats, count=4)
    narrow.settle()
    assert narrow.held(worker) > 0
    worker.flush()
    until(lambda: narrow.held(worker) == 0, "an empty index for the flushed worker")
    assert narrow.await_witnessed(worker).blocks() == [0]
    routed = narrow.ask(chats[-1], max_tokens=1)
    assert not routed.decision.hit and routed.predicted == routed.cached == 0, str(routed)
    probe(narrow, chats, count=6)


@own_workers
def test_router_restarted_from_its_snapshot_is_warm(
    narrow: Fleet, keeping: Callable[[], Fleet], numbers: list[str]
) -> None:
    """The replay buffer no longer reaches back to the beginning: only the snapshot can know what came before."""
    (worker,) = narrow.workers
    _outgrow_the_buffer(narrow)
    first = keeping()
    first.reset()
    held_before = churn(first, worker, 80, seed="before the snapshot")
    first.await_witnessed(worker)
    probe(first, held_before, count=2)
    assert first.router.stop() == 0
    (cursor,) = narrow.ledger(worker).next_seq()
    while_away = churn(first, worker, 80, seed="while no router ran")
    second = keeping()
    routed = second.ask(while_away[-1], max_tokens=1)
    assert routed.decision.hit and routed.exact, str(routed)
    view = second.await_witnessed(worker)
    (published,) = narrow.ledger(worker).next_seq()
    assert cursor is not None and published is not None
    assert second.router.metric('sgl_router_kv_snapshot_ranks_total{outcome="warm"}') == 1
    replayed = view.streams()[0].count("replayed")
    assert replayed <= published - cursor, "the snapshot's cursor is where the replay begins"
    probes = probe(second, [*held_before[-8:], *while_away], count=len(while_away) + 8)
    numbers.append(f"snapshot: warm, {replayed} batches replayed, {len(probes)} of {len(probes)} probes equal")
    assert second.router.stop() == 0


@own_workers
def test_snapshot_of_a_cache_flushed_since_claims_nothing(narrow: Fleet, keeping: Callable[[], Fleet]) -> None:
    (worker,) = narrow.workers
    first = keeping()
    first.reset()
    chats = churn(first, worker, 40, seed="flushed meanwhile")
    first.await_witnessed(worker)
    assert first.router.stop() == 0
    worker.flush()
    second = keeping()
    routed = second.ask(chats[-1], max_tokens=1)
    assert routed.predicted == routed.cached == 0, str(routed)
    second.await_witnessed(worker)
    probe(second, chats, count=6)
    assert second.router.stop() == 0


@own_workers
def test_history_out_of_the_buffers_reach_is_not_claimed(narrow: Fleet, tmp_path: Path) -> None:
    """A late router without a snapshot knows a part: it says so, and what it claims is there."""
    (worker,) = narrow.workers
    assert isinstance(worker, Engine)
    _outgrow_the_buffer(narrow)
    chats = churn(narrow, worker, 60, seed="in reach")
    router = Router(tmp_path, model=MODEL, tokenizer=str(worker.environment.model), urls=[worker.url])
    try:
        router.start()
        seen = narrow.behind(router)
        until(lambda: seen.view(worker).streams()[0].raw["state"] == "live", "the stream live")
        assert not seen.view(worker).streams()[0].raw["complete"]
        routed = [seen.ask(chat, max_tokens=1) for chat in reversed(chats)]
        assert all(one.predicted <= one.cached for one in routed), "\n".join(map(str, routed))
        seen.reset()
        seen.await_witnessed(worker)
        probe(seen, churn(seen, worker, 20, seed="after the flush"), count=4)
        assert router.stop() == 0
    finally:
        router.close()


def _outgrow_the_buffer(narrow: Fleet) -> None:
    (worker,) = narrow.workers
    (published,) = narrow.ledger(worker).next_seq()
    missing = BUFFER_STEPS + 50 - (published or 0)
    if missing > 0:
        churn(narrow, worker, missing, seed=("outgrow", missing))
    narrow.reset()
