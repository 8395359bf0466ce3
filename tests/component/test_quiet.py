"""Frames lost at the end of a busy time, and nothing published after them: the index still comes to equal the cache."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sgl_router.kv_events.follow import tail_gap as quiet
from sgl_router.kv_events.follow.tail_gap import QuietOutcome

PROMPT = "a prefix worth remembering, long enough for several pages of the cache " * 4
SOON = {"quiet_check_secs": 0.1}
NOTHING = msgspec.msgpack.encode([1.0, [], 0])


def followed(fleet: Any) -> Any:
    (rank,) = fleet.services.index._ranks[fleet.worker(0)]
    return rank


def outcomes(fleet: Any, outcome: QuietOutcome) -> int:
    return int(fleet.services.index.quiet.outcomes[outcome])


def states(fleet: Any) -> list[str]:
    """The stream's states from now on, as they change."""
    stream, seen = followed(fleet).stream, []
    changed = stream._changed

    def note(changing: Any) -> None:
        seen.append(changing.state.value)
        changed(changing)

    stream._changed = note
    return seen


async def verified(fleet: Any) -> None:
    """The worker was asked since the last frame, and has no more."""
    rank = followed(fleet)
    watch = rank.quiet._watch
    await fleet.until(
        lambda: watch._verified and watch._frames == rank.stream.counters.frames, "the stream is verified"
    )


async def equal(fleet: Any) -> None:
    """The index has taken all that was published, and holds as many blocks as the cache."""
    cache, publisher = fleet.workers[0].caches[0], fleet.workers[0].publishers[0]
    stream = followed(fleet).stream
    await fleet.until(
        lambda: (
            stream.expected == publisher.next_sequence
            and stream.state.value == "live"
            and stream.blocks_held == len({block.hash for block in cache.blocks()})
        ),
        "the index equals the cache",
    )


@pytest.mark.parametrize("dialect", ["legacy", "map_lora"])
async def test_what_was_lost_last_is_found_without_another_event(rig, dialect: str) -> None:
    fleet = await rig(worker={"dialect": dialect}, kv_events=SOON)
    await fleet.ask("first " * 60)
    await fleet.settled()
    publisher, stream, watched = fleet.workers[0].publishers[0], followed(fleet).stream, followed(fleet).quiet
    watched.due = lambda now: False  # however slow the machine: all of them are lost before it is asked
    publisher.faults.drop = 1000
    for number in range(3):
        await fleet.ask(f"{number} {PROMPT}")
    await fleet.workers[0].idle()
    del watched.due
    assert publisher.next_sequence > stream.expected
    await equal(fleet)
    assert (stream.complete, stream.counters.gaps) == (True, 0)
    await verified(fleet)
    assert (await fleet.ask(f"2 {PROMPT}")).decision["reason"] == "cache_hit"
    text = (await fleet.get("/metrics")).body.decode()
    assert 'sgl_router_kv_event_quiet_checks_total{outcome="lost"} 1.0' in text
    assert 'sgl_router_kv_event_repairs_total{outcome="repaired"} 2.0' in text  # at subscribing, and now


async def test_what_was_lost_while_subscribing_is_found(rig) -> None:
    """Published after the replay was answered, and before the subscription took effect."""
    fleet = await rig(wait=False, kv_events=SOON)
    index, publisher, lost = fleet.services.index, fleet.workers[0].publishers[0], []
    repaired = index._repaired

    def subscribed(rank: Any, outcome: Any) -> None:
        if not lost:
            publisher.faults.drop = 1
            publisher.publish_payload(NOTHING)
            lost.append(publisher.next_sequence - 1)
        repaired(rank, outcome)

    index._repaired = subscribed
    await fleet.ready()
    await equal(fleet)
    assert lost == [publisher.next_sequence - 1]
    assert outcomes(fleet, QuietOutcome.LOST) == 1


async def test_nothing_lost_costs_nothing(rig) -> None:
    fleet = await rig(kv_events=SOON)
    seen, repairs = states(fleet), dict(fleet.services.index.totals.repairs)
    for number in range(3):
        await fleet.ask(f"{number} {PROMPT}")
        await fleet.settled()
        await verified(fleet)
    assert outcomes(fleet, QuietOutcome.VERIFIED) >= 3
    assert seen == []
    assert fleet.services.index.totals.repairs == repairs
    assert outcomes(fleet, QuietOutcome.LOST) == 0


async def test_an_answer_that_overtakes_live_frames_starts_no_repair(rig) -> None:
    fleet = await rig(kv_events=SOON)
    publisher, watched = fleet.workers[0].publishers[0], followed(fleet).quiet
    await fleet.ask("first " * 60)
    await fleet.settled()
    seen, repairs = states(fleet), dict(fleet.services.index.totals.repairs)
    fetch = watched._fetch

    async def overtaking(start: int) -> Any:
        async for item in fetch(start):
            publisher.clear_faults()  # now the live frame is sent, which the answer has brought already
            yield item

    watched._fetch = overtaking
    publisher.publish_payload(NOTHING)
    publisher.faults.reorder = 1
    publisher.publish_payload(NOTHING)
    await fleet.until(lambda: outcomes(fleet, QuietOutcome.OVERTAKEN) == 1, "the frame came by itself")
    await verified(fleet)
    await equal(fleet)
    assert (seen, fleet.services.index.totals.repairs) == ([], repairs)
    assert outcomes(fleet, QuietOutcome.LOST) == 0


async def test_an_endpoint_that_does_not_answer_is_asked_more_seldom(rig) -> None:
    fleet = await rig(kv_events={"quiet_check_secs": 0.05, "replay_idle_secs": 0.05})
    await fleet.ask(PROMPT)
    await fleet.settled()
    await verified(fleet)
    seen = states(fleet)
    publisher, watch, pauses = fleet.workers[0].publishers[0], followed(fleet).quiet._watch, []
    unanswered = watch.unanswered

    def note(now: float) -> None:
        unanswered(now)
        pauses.append(watch._not_before - now)

    watch.unanswered = note
    publisher.faults.replay_no_end = 1000
    await fleet.ask(f"another {PROMPT}")
    await fleet.settled()
    await fleet.until(lambda: len(pauses) == 4, "asked four times")
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert (seen, outcomes(fleet, QuietOutcome.UNANSWERED)) == ([], 4)
    publisher.faults.clear()
    await verified(fleet)
    assert seen == []


async def test_off_nobody_is_asked(rig) -> None:
    """The loss then shows with the next event."""
    fleet = await rig(kv_events={"quiet_check_secs": 0})
    await fleet.ask("first " * 60)
    await fleet.settled()
    assert fleet.services.index.quiet._timer is None
    fleet.workers[0].publishers[0].faults.drop = 1000
    await fleet.ask(PROMPT)
    await fleet.workers[0].idle()
    fleet.workers[0].publishers[0].faults.drop = 0
    await fleet.ask("second " * 60)
    await equal(fleet)
    assert followed(fleet).stream.counters.gaps == 1
    text = (await fleet.get("/metrics")).body.decode()
    for outcome in QuietOutcome:
        assert f'sgl_router_kv_event_quiet_checks_total{{outcome="{outcome.value}"}} 0.0' in text


async def test_a_worker_that_goes_while_it_is_asked(rig, monkeypatch) -> None:
    monkeypatch.setattr(quiet, "_GRACE_SECS", 30.0)
    fleet = await rig(kv_events=SOON)
    await fleet.ask("first " * 60)
    await fleet.settled()
    watched = followed(fleet).quiet
    fleet.workers[0].publishers[0].faults.drop = 1000
    await fleet.ask(PROMPT)
    await fleet.until(lambda: watched._task is not None, "it is asked")
    task = watched._task
    fleet.services.registry.remove(fleet.workers[0].url)
    await fleet.until(task.done, "nothing waits for it")
    assert fleet.services.index.quiet._timer is None
