"""Events lost, late, repeated, and histories older than the router: what the index holds afterwards is the truth."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
import pytest

from sgl_router.kv_events import DecodeFailure, Namespace
from sgl_router.kv_events.follow.replay import ReplayEnd

PROMPT = "a prefix worth remembering, long enough for several pages of the cache " * 4


def truth(fleet: Any, rank: int = 0) -> set[tuple[int, str]]:
    """What the mock's cache holds, under the router's keys."""
    hasher = stream(fleet, rank).hasher
    keys: dict[Any, int] = {}
    found = set()
    for block in fleet.workers[0].caches[rank].blocks():
        salt = block.namespace.cache_salt
        parent = hasher.root(Namespace(cache_salt=salt)) if block.parent is None else keys[salt, block.parent]
        units = [list(unit) if isinstance(unit, tuple) else unit for unit in block.units]
        (key,) = hasher.extend(parent, units, 1)
        keys[salt, block.hash] = key
        found |= {(key, tier.value) for tier in block.tiers}
    return found


def stream(fleet: Any, rank: int = 0) -> Any:
    return fleet.services.index.status(fleet.worker(0))[rank].stream


def held(fleet: Any, rank: int = 0) -> set[tuple[int, str]]:
    return {(key, tier.value) for key, tier in fleet.services.index.tree.holdings(stream(fleet, rank).slot)}


async def equal(fleet: Any) -> None:
    await fleet.workers[0].idle()
    await fleet.until(
        lambda: stream(fleet).state.value == "live" and held(fleet) == truth(fleet), "the index equals the cache"
    )


async def warm(worker: Any, session: Any, *prompts: str) -> None:
    for prompt in prompts:
        body = {"model": "mock-model", "messages": [{"role": "user", "content": prompt}], "max_tokens": 2}
        async with session.post(worker.url + "/v1/chat/completions", json=body) as response:
            assert response.status == 200
    await worker.idle()


async def test_a_router_started_after_its_workers_is_warm_at_once(rig) -> None:
    fleet = await rig(started=[PROMPT, "another prompt " * 30])
    await equal(fleet)
    assert stream(fleet).complete
    assert stream(fleet).counters.gaps == 0
    answer = await fleet.ask(PROMPT)
    assert answer.decision["reason"] == "cache_hit"


@pytest.mark.parametrize("dialect", ["map", "map_lora"])
async def test_lost_frames_are_replayed(rig, dialect: str) -> None:
    fleet = await rig(worker={"dialect": dialect})
    await fleet.ask("first " * 60)
    await equal(fleet)
    fleet.workers[0].publishers[0].faults.drop = 3
    for number in range(4):
        await fleet.ask(f"{number} {PROMPT}")
        await fleet.workers[0].idle()
    await equal(fleet)
    counters = stream(fleet).counters
    assert counters.gaps == 1
    assert stream(fleet).complete
    text = (await fleet.get("/metrics")).body.decode()
    assert 'sgl_router_kv_event_repairs_total{outcome="repaired"} 2.0' in text  # at subscribing, and the gap


async def test_repeated_and_reordered_frames_do_no_harm(rig) -> None:
    fleet = await rig()
    faults = fleet.workers[0].publishers[0].faults
    for number in range(6):
        faults.duplicate = number % 2
        faults.reorder = number % 3 == 2
        await fleet.ask(f"{number} {PROMPT}")
        await fleet.workers[0].idle()
    faults.reorder = False
    await fleet.ask("last " * 40)
    await equal(fleet)
    assert stream(fleet).counters.restarts == 0


async def test_a_replay_with_a_hole_is_asked_again(rig) -> None:
    fleet = await rig()
    publisher = fleet.workers[0].publishers[0]
    await fleet.ask("first " * 60)
    await equal(fleet)
    publisher.faults.drop = 4
    publisher.faults.replay_drop = 1
    for number in range(5):
        await fleet.ask(f"{number} {PROMPT}")
        await fleet.workers[0].idle()
    await equal(fleet)
    assert stream(fleet).complete


async def test_a_replay_that_never_ends_is_given_up_and_the_stream_starts_over(rig) -> None:
    fleet = await rig(kv_events={"replay_idle_secs": 0.1, "resync_secs": 0.2})
    publisher = fleet.workers[0].publishers[0]
    await fleet.ask("first " * 60)
    await equal(fleet)
    publisher.faults.replay_no_end, publisher.faults.replay_drop = 1000, 1000
    publisher.faults.drop = 1
    await fleet.ask(PROMPT)
    await fleet.ask("second " * 60)
    await fleet.until(lambda: stream(fleet).state.value == "untrusted", "the gap is final")
    assert held(fleet) == set()
    publisher.faults.replay_no_end = publisher.faults.replay_drop = 0
    await fleet.until(lambda: fleet.services.index.totals.resyncs >= 1, "it starts over")
    await equal(fleet)


async def test_history_the_buffer_dropped_is_not_claimed(rig) -> None:
    fleet = await rig(started=[f"{number} {PROMPT}" for number in range(8)], worker={"buffer_steps": 3})
    await fleet.workers[0].idle()
    await fleet.until(lambda: stream(fleet).counters.replayed > 0, "what is left was replayed")
    await fleet.until(lambda: stream(fleet).state.value == "live", "the stream is live")
    assert not stream(fleet).complete
    assert held(fleet) < truth(fleet)
    assert stream(fleet).counters.history_lost == 1
    text = (await fleet.get("/metrics")).body.decode()
    assert 'sgl_router_kv_event_repairs_total{outcome="partial"} 1.0' in text
    assert (await fleet.get("/workers")).json["workers"][0]["ranks"][0]["stream"]["complete"] is False


async def test_a_gap_older_than_the_buffer_costs_what_was_claimed(rig) -> None:
    fleet = await rig(worker={"buffer_steps": 2})
    await fleet.ask("first " * 60)
    await equal(fleet)
    fleet.workers[0].publishers[0].faults.drop = 6
    for number in range(8):
        await fleet.ask(f"{number} {PROMPT}")
        await fleet.workers[0].idle()
    await fleet.until(lambda: stream(fleet).counters.history_lost == 1, "the gap is noticed")
    await fleet.until(lambda: stream(fleet).state.value == "live", "the stream is live")
    assert not stream(fleet).complete
    assert held(fleet) <= truth(fleet)


async def test_a_worker_without_replay_relearns_after_a_while(rig) -> None:
    fleet = await rig(worker={"replay": False}, kv_events={"resync_secs": 0.2})
    await fleet.ask("first " * 60)
    await fleet.settled()
    fleet.workers[0].publishers[0].faults.drop = 1
    await fleet.ask("lost " * 60)
    await fleet.workers[0].idle()
    await fleet.ask(PROMPT)
    await fleet.until(lambda: stream(fleet).counters.gaps == 1, "the gap is noticed")
    assert held(fleet) == set()
    await fleet.until(lambda: fleet.services.index.totals.resyncs == 1, "it starts over")
    await fleet.ask("new " * 60)
    await fleet.workers[0].idle()
    await fleet.until(lambda: bool(held(fleet)), "it learns anew")
    assert held(fleet) <= truth(fleet)
    assert not stream(fleet).complete


async def test_a_stalled_subscriber_misses_nothing_in_the_end(rig) -> None:
    """As under SIGSTOP: hundreds of batches pass while the router reads nothing, more than its queue holds."""
    fleet = await rig(kv_events={"receive_high_water_mark": 50}, worker={"cache_tokens": 8192})
    await fleet.ask("first " * 60)
    await equal(fleet)
    (rank,) = fleet.services.index._ranks[fleet.worker(0)]
    rank.feed.paused = True
    async with asyncio.TaskGroup() if hasattr(asyncio, "TaskGroup") else _Tasks() as group:
        for number in range(300):
            group.create_task(fleet.ask(f"{number} {PROMPT}"))
    await fleet.workers[0].idle()
    rank.feed.paused = False
    fleet.services.index.pump.wake(rank.feed)
    await fleet.ask("last " * 60)
    await equal(fleet)
    assert stream(fleet).complete


class _Tasks:
    """What Python 3.10 lacks, as far as it is needed here."""

    async def __aenter__(self) -> _Tasks:
        self.tasks: list[asyncio.Task[Any]] = []
        return self

    def create_task(self, job: Any) -> None:
        self.tasks.append(asyncio.create_task(job))

    async def __aexit__(self, *error: object) -> None:
        await asyncio.gather(*self.tasks)


async def test_a_reconnect_is_repaired_without_waiting_for_an_event(rig) -> None:
    fleet = await rig(health={"interval_secs": 30})
    await fleet.ask(PROMPT)
    await equal(fleet)
    (rank,) = fleet.services.index._ranks[fleet.worker(0)]
    rank.stream.suspend()
    assert stream(fleet).state.value == "suspended"
    assert (await fleet.ask(PROMPT)).decision["reason"] == "no_match"
    fleet.services.index._connection(rank, True)
    await equal(fleet)
    assert (await fleet.ask(PROMPT)).decision["reason"] == "cache_hit"
    assert stream(fleet).counters.gaps == 0


async def test_a_long_replay_that_lost_its_tail_is_asked_for_the_rest(rig) -> None:
    """The engine's replay socket drops what it cannot hold, even the last messages, and sends the end marker all the
    same: nothing is skipped, and nothing tells."""
    fleet = await rig(wait=False)
    await fleet.ready()
    publisher = fleet.workers[0].publishers[0]
    await fleet.ask(PROMPT)
    await equal(fleet)
    (rank,) = fleet.services.index._ranks[fleet.worker(0)]
    fetch, asked = rank.repairer._fetch, []

    async def losing(start: int) -> Any:
        asked.append(start)
        async with contextlib.aclosing(fetch(start)) as frames:
            async for number, item in enumerate_async(frames):
                if len(asked) == 1 and number >= 950 and not isinstance(item, ReplayEnd):
                    continue
                yield item

    rank.repairer._fetch = losing
    publisher.faults.drop = 1_500
    for number in range(1_500):
        publisher.publish_payload(msgspec.msgpack.encode([float(number), [], 0]))
    await fleet.ask(f"shows the gap {PROMPT}")
    await equal(fleet)
    assert stream(fleet).complete
    assert len(asked) == 2
    assert stream(fleet).expected == publisher.next_sequence


async def enumerate_async(items: Any) -> Any:
    number = 0
    async for item in items:
        yield number, item
        number += 1


# --- frames that cannot be used -------------------------------------------------------------------------------------


def count_replays(fleet: Any) -> list[int]:
    """From which number on each replay was asked for, from now on."""
    (rank,) = fleet.services.index._ranks[fleet.worker(0)]
    fetch, asked = rank.repairer._fetch, []

    async def counted(start: int) -> Any:
        asked.append(start)
        async with contextlib.aclosing(fetch(start)) as frames:
            async for item in frames:
                yield item

    rank.repairer._fetch = counted
    return asked


async def test_a_frame_garbled_in_transit_is_asked_for_again_and_nothing_is_lost(rig) -> None:
    fleet = await rig(kv_events={"quiet_check_secs": 0})
    faults = fleet.workers[0].publishers[0].faults
    await fleet.ask("first " * 60)
    await equal(fleet)
    asked = count_replays(fleet)
    faults.corrupt = faults.duplicate = 1  # garbled, twice
    await fleet.ask(PROMPT)
    await equal(fleet)
    assert stream(fleet).complete
    faults.corrupt, faults.reorder = 1, 1  # garbled, and behind its successor
    for number in range(4):
        await fleet.ask(f"{number} {PROMPT}")
        await fleet.workers[0].idle()
    faults.reorder = 0
    await fleet.ask("last " * 60)
    await equal(fleet)
    assert stream(fleet).complete
    assert stream(fleet).counters.restarts == 0
    assert len(asked) <= 4
    assert fleet.services.index.totals.resyncs == 0
    assert (await fleet.ask(PROMPT)).decision["reason"] == "cache_hit"


async def test_a_frame_whose_original_is_garbled_makes_the_rank_cold_and_is_asked_for_once(rig) -> None:
    fleet = await rig(kv_events={"quiet_check_secs": 0, "resync_secs": 0.5})
    publisher = fleet.workers[0].publishers[0]
    await fleet.ask("first " * 60)
    await equal(fleet)
    asked = count_replays(fleet)
    publisher.publish_payload(b"\xc1no dialect of ours")
    await fleet.until(lambda: stream(fleet).untrusted_for is not None, "the stream is untrusted")
    assert held(fleet) == set()
    for number in range(5):
        publisher.publish_payload(b"\xc1%d" % number)
    await fleet.until(lambda: stream(fleet).counters.failures.get(DecodeFailure.MSGPACK, 0) >= 7, "all were refused")
    assert len(asked) == 1
    await fleet.until(lambda: fleet.services.index.totals.resyncs >= 1, "it starts over")
    await fleet.ask(PROMPT)
    await fleet.workers[0].idle()
    await fleet.until(lambda: bool(held(fleet)), "it learns anew")
    assert len(asked) == 1, "what cannot be read is not replayed again"
    text = (await fleet.get("/metrics")).body.decode()
    assert 'sgl_router_kv_event_decode_failures_total{reason="msgpack"} 7.0' in text


def oversized(size: int) -> bytes:
    payload: bytes = msgspec.msgpack.encode([1.0, [["InventedLater", b"x" * size]], 0])
    return payload


@pytest.mark.parametrize("factor", [1.5, 3])
async def test_a_message_too_large_is_counted_and_not_asked_for_for_ever(rig, factor: float) -> None:
    """Somewhat larger than `max_message_bytes`, it arrives and is dropped. Much larger, and libzmq closes the
    connection: the replay breaks off twice in the same place, and that place is given up."""
    limit = 200_000
    fleet = await rig(
        kv_events={
            "quiet_check_secs": 0,
            "max_message_bytes": limit,
            "resync_secs": 0.2,
            "replay_idle_secs": 0.3,
        }
    )
    publisher = fleet.workers[0].publishers[0]
    await fleet.ask("first " * 60)
    await equal(fleet)
    asked = count_replays(fleet)
    number = publisher.next_sequence
    publisher.publish_payload(oversized(int(limit * factor)))
    await fleet.until(lambda: stream(fleet).counters.failures == {DecodeFailure.TOO_LARGE: 1}, "it is counted")
    await fleet.until(lambda: fleet.services.index.totals.resyncs >= 1, "the stream starts over")
    await fleet.until(lambda: fleet.services.index.status(fleet.worker(0))[0].connected, "the connection is back")
    await fleet.until(lambda: not running(fleet), "no repair is under way")
    await fleet.ask(PROMPT)
    await fleet.workers[0].idle()
    await fleet.ask(f"more {PROMPT}")
    await fleet.workers[0].idle()
    await fleet.until(lambda: stream(fleet).state.value == "live" and bool(held(fleet)), "it learns anew")
    assert held(fleet) <= truth(fleet)
    assert sum(start <= number for start in asked) <= 2
    text = (await fleet.get("/metrics")).body.decode()
    assert 'sgl_router_kv_event_decode_failures_total{reason="too_large"} 1.0' in text


def running(fleet: Any) -> bool:
    (rank,) = fleet.services.index._ranks[fleet.worker(0)]
    return bool(rank.repairer.running)
