"""The worker's own count of cached tokens keeps the index honest."""

from __future__ import annotations

from typing import Any

PROMPT = "a prefix worth remembering, long enough for several pages of the cache " * 4


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
        lambda: rank(fleet).stream.state.value == "live"
        and rank(fleet).stream.blocks_held == len(list(worker.cache.blocks())),
        "the index holds what the cache holds",
    )
