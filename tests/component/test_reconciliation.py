"""The worker's own count of cached tokens keeps the index honest."""

from __future__ import annotations

from typing import Any

import pytest
import structlog

from sgl_router.kv_events.index import witness
from sgl_router.kv_events.index.agreement import Prediction, Verdict

PROMPT = "a prefix worth remembering, long enough for several pages of the cache " * 4


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests report last has been applied when they go on."""
    monkeypatch.setattr(witness, "_SETTLE_SECS", 0.0)


def rank(fleet: Any) -> Any:
    return fleet.services.index.status(fleet.worker(0))[0]


async def test_answers_buffered_and_streamed_confirm_predictions(rig) -> None:
    fleet = await rig()
    for number in range(6):
        options = {"stream_options": {"include_usage": True}} if number % 2 else {}
        await fleet.ask(PROMPT, stream=bool(number % 2), **options)
        await fleet.settled()
    text = (await fleet.get("/metrics")).body.decode()
    assert 'result="exact"' in text
    view = (await fleet.get("/workers")).json["workers"][0]["ranks"][0]["stream"]
    assert view["predictions"] == {"exact": 6, "more": 0, "less": 0}
    assert view["agreement"] == 1.0


async def test_a_worker_that_reports_nothing_is_not_judged(rig) -> None:
    fleet = await rig(worker={"enable_cache_report": False})
    for _ in range(3):
        await fleet.ask(PROMPT)
        await fleet.settled()
    assert sum(rank(fleet).agreement.counts.values()) == 0


async def test_a_cache_lost_without_a_word_is_found_out(rig) -> None:
    """The engine's cache is emptied and its event never leaves it: only its answers can tell."""
    fleet = await rig()
    for number in range(4):
        await fleet.ask(f"{number} {PROMPT}")
    await fleet.settled()
    worker = fleet.workers[0]
    worker.publishers[0].faults.drop = 10_000
    reasons = []
    for number in range(30):
        await worker.idle()
        worker.cache.clear()
        answer = await fleet.ask(f"{number % 4} {PROMPT}")
        reasons.append(answer.decision["reason"])
        if fleet.services.index.totals.resyncs or rank(fleet).stream.untrusted_for is not None:
            break
    assert reasons[0] == "cache_hit"
    await fleet.until(lambda: fleet.services.index.totals.resyncs == 1, "the index starts over")
    # The replay buffer has what was never sent: after it, the index is the cache again.
    worker.publishers[0].faults.drop = 0
    await fleet.ask("something to publish " * 20)
    await worker.idle()
    await fleet.until(
        lambda: (
            rank(fleet).stream.state.value == "live"
            and rank(fleet).stream.blocks_held == len(list(worker.cache.blocks()))
        ),
        "the index holds what the cache holds",
    )


async def test_prefixes_of_salts_that_the_events_do_not_tell_cost_no_others_their_trust(rig) -> None:
    """What a tenant's prompt stored looks like everybody's: half of the answers contradict the index, each of them for
    another prefix."""
    fleet = await rig(worker={"dialect": "array17"})
    for number in range(8):
        await fleet.ask(f"{number} healthy {PROMPT}")
    await fleet.settled()
    states = set()
    for number in range(40):
        await fleet.ask(f"{number} tenant {PROMPT}", cache_salt="tenant")
        await fleet.settled()
        assert (await fleet.ask(f"{number} tenant {PROMPT}")).decision["reason"] == "cache_hit"
        healthy = await fleet.ask(f"{number % 8} healthy {PROMPT}")
        states.add((rank(fleet).state.value, healthy.decision["reason"]))
    assert states == {("live", "cache_hit")}
    assert rank(fleet).agreement.counts[Prediction.LESS] == 40
    assert fleet.services.index.totals.resyncs == 0


async def test_one_conversation_that_never_comes_true_loses_its_own_claims(rig) -> None:
    """The engine drops it between its turns, and says nothing of it; what others ask for it has."""
    fleet = await rig()
    worker = fleet.workers[0]
    for number in range(4):
        await fleet.ask(f"{number} {PROMPT}")
    await fleet.settled()
    publisher, reasons = worker.publishers[0], []
    for _ in range(12):
        for number in range(2, 4):
            await fleet.ask(f"{number} {PROMPT}")
        await worker.idle()
        publisher.faults.muted = True
        worker.cache.clear()
        reasons.append((await fleet.ask(f"0 {PROMPT}")).decision["reason"])
        for number in range(1, 4):
            await worker_only(worker, fleet, f"{number} {PROMPT}")
        await worker.idle()
        publisher.faults.muted = False
    assert rank(fleet).state.value == "live"
    assert fleet.services.index.totals.resyncs == 0
    assert reasons[0] == "cache_hit"
    assert "no_match" in reasons, "its claims have gone"
    view = (await fleet.get("/workers")).json["workers"][0]["ranks"][0]["stream"]
    assert view["given_up"]["prefix"] >= 1
    assert view["given_up"]["rank"] == 0
    text = (await fleet.get("/metrics")).body.decode()
    assert 'sgl_router_kv_claims_given_up_total{dp_rank="0",of="prefix"' in text


async def worker_only(worker: Any, fleet: Any, content: str) -> None:
    """Past the router."""
    body = {"model": "mock-model", "messages": [{"role": "user", "content": content}], "max_tokens": 4}
    async with fleet.session.post(worker.url + "/v1/chat/completions", json=body) as response:
        assert response.status == 200
        await response.read()


async def test_an_index_that_misses_what_the_worker_has_is_told_and_filled_up_again(rig) -> None:
    """What it gave up by mistake is in the replay buffer still."""
    fleet = await rig()
    worker = fleet.workers[0]
    for number in range(20):
        await fleet.ask(f"{number} {PROMPT}")
    await fleet.settled()
    stream = rank(fleet).stream
    for _, key in list(stream._blocks.items()):
        stream.disclaim(key)
    with structlog.testing.capture_logs() as logs:
        for number in range(20):
            await fleet.ask(f"{number} {PROMPT}", max_tokens=1)
            await worker.idle()
        (line,) = [line for line in logs if line["event"] == "kv index misses blocks that the worker has cached"]
    assert (line["log_level"], line["refilling"]) == ("warning", True)
    await fleet.until(
        lambda: (
            stream.complete
            and rank(fleet).state.value == "live"
            and stream.blocks_held == len(list(worker.cache.blocks()))
        ),
        "the index holds what the cache holds",
    )
    assert (await fleet.ask(f"3 {PROMPT}")).decision["reason"] == "cache_hit"
    assert rank(fleet).agreement.given_up[Verdict.RANK] == 0
    assert "sgl_router_kv_coverage{" in (await fleet.get("/metrics")).body.decode()


async def test_an_index_that_cannot_learn_is_told_once_and_stays_in_use(rig) -> None:
    """One beginning of all prompts was stored without a word: everything below it has no name."""
    fleet = await rig()
    publisher = fleet.workers[0].publishers[0]
    publisher.faults.muted = True
    await fleet.ask(PROMPT, max_tokens=1)
    await fleet.workers[0].idle()
    publisher.faults.muted = False
    with structlog.testing.capture_logs() as logs:
        for number in range(60):
            await fleet.ask(f"{PROMPT} and then number {number} asks something of its own, a page or more of it")
            await fleet.settled()
    lines = [line for line in logs if line["event"] == "kv index misses blocks that the worker has cached"]
    assert [(line["log_level"], line["orphans"] > 0) for line in lines] == [("warning", True)]
    assert rank(fleet).state.value == "live"
    assert not rank(fleet).witness.silent
