"""Histories the router did not hear, or heard late: afterwards it claims what the engine holds, and nothing else.

The workers of the session publish as they do in production. The worker `narrow` drops events early (`hwm`) and
remembers few (`buffer_steps`), so that a router that stops reading for a while does miss some.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

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


class Keeping(Protocol):
    def __call__(self, *, snapshot: bool = True) -> Fleet: ...


@pytest.fixture
def keeping(narrow: Fleet, environment: Environment, tmp_path: Path) -> Iterator[Keeping]:
    """`keeping()`: start another router over `narrow`; those with a snapshot share the file."""
    made: list[Router] = []

    def start(*, snapshot: bool = True) -> Fleet:
        folder = tmp_path / f"router-{len(made)}"
        folder.mkdir()
        urls = [worker.url for worker in narrow.workers]
        events = {"snapshot": {"path": str(tmp_path / "index.kv")}} if snapshot else None
        router = Router(folder, model=MODEL, tokenizer=str(environment.model), urls=urls, kv_events=events)
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
        seen.await_witnessed(worker)
    warm = time.monotonic() - ready
    seen.settle()
    for number in reversed(range(len(prompts))):
        routed = seen.ask(prompts[number])
        assert routed.worker is fleet.workers[number], str(routed)
        assert routed.decision.hit and routed.exact, str(routed)
        assert routed.cached == (routed.prompt - 1) // fleet.page * fleet.page, str(routed)
    assert late.stop() == 0
    numbers.append(f"late router: live and complete {warm:.2f} s after it was ready, its first request a hit")


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
    gone = narrow.ask(old[-1], max_tokens=1)
    assert gone.exact and not gone.decision.hit, str(gone)


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
    until(lambda: narrow.view(worker).streams()[0].witnessed, "the stream of the new process live and complete")
    first = narrow.ask(old[-1], max_tokens=1)  # the ledger too hears of the new process only now
    assert first.predicted == first.cached == 0, str(first)
    probe(narrow, churn(narrow, worker, 60, seed="after the restart"))


@own_workers
def test_stopped_router_repairs_what_it_lost(narrow: Fleet, numbers: list[str]) -> None:
    """More is published than the sockets between them hold: the publisher drops, and the replay buffer brings it back,
    though nothing is published after what was dropped."""
    (worker,) = narrow.workers
    ledger = narrow.ledger(worker)
    checks = 'sgl_router_kv_event_quiet_checks_total{{outcome="{}"}}'.format
    found, verified = (narrow.router.metric(checks(outcome)) for outcome in ("lost", "verified"))
    before, gaps, events = narrow.view(worker).streams()[0], ledger.gaps, ledger.events
    first = ledger.frames
    started = time.monotonic()
    with narrow.router.stopped():
        chats = churn(narrow, worker, MISSED, seed="lost", tokens=120)
    published, resumed = time.monotonic() - started, time.monotonic()
    narrow.await_healthy(worker)
    frames, events = ledger.frames - first, ledger.events - events
    assert frames >= MISSED and ledger.gaps == gaps
    after = narrow.await_witnessed(worker).streams()[0]
    repaired = time.monotonic() - resumed
    missed, replayed = (after.count(what) - before.count(what) for what in ("gaps", "replayed"))
    found = narrow.router.metric(checks("lost")) - found
    assert missed + found > 0 and replayed > 0, dict(after.raw)
    probes = probe(narrow, chats, count=24)
    assert sum(one.decision.hit for one in probes) > len(probes) // 2, "the probes met nothing that was published"
    until(lambda: narrow.router.metric(checks("verified")) > verified, "the engine asked, and nothing more lost")
    numbers.append(
        f"router stopped and starved: {frames} batches ({events} events) in {published:.0f} s, {missed:.0f} gaps, "
        f"{found:.0f} times found by the quiet check, {replayed} replayed, whole {repaired:.2f} s after SIGCONT, "
        f"{len(probes)} of {len(probes)} equal"
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
def test_snapshot_knows_what_the_replay_buffer_has_forgotten(
    narrow: Fleet, keeping: Keeping, numbers: list[str]
) -> None:
    """More batches since the last clear than the buffer holds. A router with a snapshot knows all of them; one without
    knows a part, says so, and what it claims is there."""
    (worker,) = narrow.workers
    ledger = narrow.ledger(worker)
    first = keeping()
    first.await_witnessed(worker)
    chats = churn(first, worker, BUFFER_STEPS, seed="before the snapshot")
    first.await_witnessed(worker)
    probe(first, chats, count=2)
    cursor = first.await_witnessed(worker).streams()[0].next_seq
    assert first.router.stop() == 0
    chats += churn(first, worker, 60, seed="while no router ran")

    second = keeping()
    view = second.await_witnessed(worker)
    published = view.streams()[0].next_seq  # the engine may publish what a request left behind after it has answered
    assert cursor is not None and published is not None
    assert second.router.metric('sgl_router_kv_snapshot_ranks_total{outcome="warm"}') == 1
    replayed = view.streams()[0].count("replayed")
    assert replayed <= published - cursor, "the replay begins where the snapshot ends"
    second.settle()
    routed = second.ask(chats[-1], max_tokens=1)
    assert routed.decision.hit and routed.exact, str(routed)
    probes = probe(second, chats)
    assert second.router.stop() == 0

    third = keeping(snapshot=False)
    until(lambda: third.view(worker).streams()[0].raw["state"] == "live", "the stream live")
    assert not third.view(worker).streams()[0].raw["complete"]
    known, held = third.held(worker), sum(ledger.blocks())
    assert 0 < known < held
    partly = [third.ask(chat, max_tokens=1) for chat in reversed(chats[-24:])]
    assert all(one.predicted <= one.cached for one in partly), "\n".join(map(str, partly))
    third.reset()
    third.await_witnessed(worker)
    probe(third, churn(third, worker, 20, seed="after the flush"), count=4)
    assert third.router.stop() == 0
    numbers.append(
        f"router restarted: warm from its snapshot, {replayed} batches replayed, {len(probes)} of {len(probes)} probes "
        f"equal; without it {known} of {held} blocks known, {sum(one.exact for one in partly)} of {len(partly)} equal, "
        "none predicted too much"
    )


@own_workers
def test_snapshot_of_a_cache_flushed_since_claims_nothing(narrow: Fleet, keeping: Keeping) -> None:
    (worker,) = narrow.workers
    first = keeping()
    first.reset()
    chats = churn(first, worker, 40, seed="flushed meanwhile")
    first.await_witnessed(worker)
    assert first.router.stop() == 0
    worker.flush()
    second = keeping()
    assert second.await_witnessed(worker).blocks() == [0]
    routed = second.ask(chats[-1], max_tokens=1)
    assert routed.predicted == routed.cached == 0, str(routed)
    probe(second, chats, count=6)
    assert second.router.stop() == 0
