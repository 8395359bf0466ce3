"""The event connection breaks and comes back, with the same process behind it or another."""

from __future__ import annotations

PROMPT = "a prefix worth remembering, long enough for several pages of the cache " * 4


async def test_the_same_process_is_trusted_again_after_its_next_event(rig) -> None:
    fleet = await rig(health={"interval_secs": 30})
    await fleet.ask(PROMPT)
    await fleet.settled()
    assert (await fleet.ask(PROMPT)).decision["reason"] == "cache_hit"
    stream = fleet.services.index.status(fleet.worker(0))[0].stream
    generation = fleet.worker(0).generation

    stream.suspend()  # as on a broken connection that was re-established at once
    stream.reconnected()
    fleet.services.manager.recheck(fleet.workers[0].url)
    assert (await fleet.ask(PROMPT)).decision["reason"] == "no_match"
    await fleet.until(lambda: stream._confirmed, "the worker is found unchanged, long before the next probe is due")
    assert stream.state.value == "suspended"

    await fleet.ask("another prompt, so that the worker has something to publish " * 4)
    await fleet.until(lambda: stream.state.value == "live", "nothing was missed")
    assert fleet.worker(0).generation == generation
    assert (await fleet.ask(PROMPT)).decision["reason"] == "cache_hit"


async def test_another_process_on_the_same_ports_is_noticed_by_its_event_connection(rig) -> None:
    """Far sooner than by a health probe, and although its sequence numbers might by chance fit."""
    fleet = await rig(health={"interval_secs": 30})
    await fleet.ask(PROMPT)
    await fleet.settled()
    before = fleet.worker(0)
    await fleet.workers[0].restart_in_place()
    await fleet.until(lambda: fleet.worker(0) is not before, "a new incarnation is registered", within=120)
    await fleet.ready()
    answer = await fleet.ask(PROMPT)
    assert answer.decision["reason"] == "no_match"
    assert answer.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
