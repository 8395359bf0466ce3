"""Warm starts without sockets: what is taken over, when it counts, and when it is dropped."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from sgl_router.kv_events import DistrustReason, KvIndex, SnapshotOutcome, StreamState, decode_snapshot, encode_snapshot
from sgl_router.kv_events.follow.wire import Frame, decode_batch
from sgl_router.kv_events.snapshot.records import Snapshot
from sgl_router.kv_events.snapshot.restore import WarmStart
from sgl_router.workers import KvEventSource, Worker, WorkerInfo

PAGE = 4
URL = "http://w:1"
BLOCKS = 3_000


def worker(url: str = URL, *, started_at: Any = "then", model: str = "m", **info: Any) -> Worker:
    fields = {"served_model_name": model, "block_size": PAGE, "started_at": started_at, **info}
    return Worker(url, WorkerInfo(kv_source=KvEventSource(host="127.0.0.1", port_base=1), **fields))


def batch(*hashes: int) -> bytes:
    event = {
        "type": "BlockStored",
        "block_hashes": list(hashes),
        "parent_block_hash": None,
        "token_ids": list(range(hashes[0] * PAGE, (hashes[-1] + 1) * PAGE)),
        "block_size": PAGE,
        "medium": "GPU",
    }
    return msgspec.msgpack.encode([1.0, [event], 0])


def tell(stream: Any, seq: int, data: bytes, *, repairable: bool = False) -> Any:
    outcome = stream.observe(Frame(seq, data), repairable=repairable)
    for event in decode_batch(data).events:
        stream.apply(event)
    return outcome


def stream_of(index: KvIndex, one: Worker, rank: int = 0) -> Any:
    return index.status(one)[rank].stream


def held(index: KvIndex, one: Worker) -> int:
    return len(list(index.tree.holdings(stream_of(index, one).slot)))


def outcomes(index: KvIndex) -> dict[str, int]:
    return {outcome.value: count for outcome, count in index.warm.outcomes.items() if count}


async def settle(index: KvIndex) -> None:
    while not index.pump.idle:
        await asyncio.sleep(0)


@pytest.fixture
async def snapshot() -> Snapshot:
    """Of one rank that held blocks when frame 1 was due."""
    index, one = KvIndex(), worker()
    index.worker_added(one)
    tell(stream_of(index, one), 0, batch(*range(BLOCKS)))
    data = [chunk async for chunk in encode_snapshot(index)]
    index.close()
    return decode_snapshot(data)


@pytest.fixture
async def index(snapshot: Snapshot):
    index = KvIndex()
    index.adopt(snapshot)
    yield index
    index.close()


@pytest.fixture
async def grafted(index):
    """The index with the worker back, its blocks in place, its connection made, nothing proven."""
    one = worker()
    index.worker_added(one)
    assert stream_of(index, one).state is StreamState.SUSPENDED
    await settle(index)
    assert held(index, one) == BLOCKS
    stream_of(index, one).reconnected()
    return index, one, stream_of(index, one)


async def test_the_exact_next_frame_of_the_same_process_makes_it_warm(grafted) -> None:
    index, one, stream = grafted
    stream.confirm(same_process=True)
    assert stream.state is StreamState.SUSPENDED
    assert outcomes(index) == {}
    tell(stream, 1, batch(BLOCKS))
    assert stream.state is StreamState.LIVE
    assert held(index, one) == stream.blocks_held == BLOCKS + 1
    assert stream.complete
    assert outcomes(index) == {"warm": 1}


async def test_the_next_frame_proves_nothing_of_a_process_that_is_not_known(grafted) -> None:
    index, _, stream = grafted
    tell(stream, 1, batch(BLOCKS))
    assert stream.state is StreamState.SUSPENDED
    assert outcomes(index) == {}
    stream.confirm(same_process=True)
    assert stream.state is StreamState.LIVE
    assert outcomes(index) == {"warm": 1}


async def test_an_empty_replay_from_the_cursor_makes_it_warm(grafted) -> None:
    index, _, stream = grafted
    stream.repair()
    stream.repaired(contiguous=True)
    assert stream.state is StreamState.SUSPENDED
    stream.confirm(same_process=True)
    assert outcomes(index) == {"warm": 1}


async def test_a_replay_that_fails_proves_nothing(grafted) -> None:
    index, _, stream = grafted
    stream.repair()
    stream.repaired(contiguous=False)
    stream.confirm(same_process=True)
    assert stream.state is StreamState.SUSPENDED
    assert outcomes(index) == {}


async def test_a_skipped_frame_drops_everything_and_a_new_stream_begins(grafted) -> None:
    index, one, stream = grafted
    stream.confirm(same_process=True)
    tell(stream, 2, batch(0, 1))
    await settle(index)
    assert held(index, one) == stream.blocks_held == 2
    assert stream.held[next(iter(stream.held))] == 2
    assert not stream.complete
    assert stream.untrusted_for is None
    assert outcomes(index) == {"gap": 1}


async def test_a_frame_that_can_be_repaired_decides_nothing_yet(grafted) -> None:
    index, one, stream = grafted
    data = batch(7)
    stream.observe(Frame(2, data), repairable=True)
    assert stream.grafted
    stream.repair()
    tell(stream, 1, batch(BLOCKS))
    tell(stream, 2, data)
    stream.repaired(contiguous=True)
    stream.confirm(same_process=True)
    assert stream.state is StreamState.LIVE
    assert held(index, one) == BLOCKS + 1
    assert outcomes(index) == {"warm": 1}


LOSSES = {
    "a replay that begins later": lambda stream: stream.history_lost(5),
    "another process": lambda stream: stream.confirm(same_process=False),
    "numbers that begin again": lambda stream: tell(stream, 0, batch(9)),
    "an unreadable frame": lambda stream: stream.distrust(DistrustReason.DECODE),
    "a resync": lambda stream: stream.resync(),
}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
async def test_nothing_of_it_outlives(grafted, lose: Any) -> None:
    index, one, stream = grafted
    lose(stream)
    await settle(index)
    assert held(index, one) <= 1
    assert stream.blocks_held <= 1
    assert not stream.grafted
    assert outcomes(index) == {"gap": 1}


async def test_a_loss_while_blocks_are_still_added_stops_that(index) -> None:
    one = worker()
    index.worker_added(one)
    stream = stream_of(index, one)
    while not stream.blocks_held:
        await asyncio.sleep(0)
    stream.history_lost(5)
    await settle(index)
    assert held(index, one) == stream.blocks_held == 0
    assert stream.expected == 5
    assert outcomes(index) == {"gap": 1}


async def test_no_frame_is_taken_before_every_block_is_in_place(index) -> None:
    one = worker()
    index.worker_added(one)
    ((_, feed),) = index.followed()
    feed.inbox.append(Frame(1, batch(BLOCKS)))
    feed.stream.reconnected()
    feed.stream.confirm(same_process=True)
    feed.drained.clear()
    index.pump.wake(feed)
    while not feed.drained.is_set():
        assert (feed.stream.state is StreamState.LIVE) <= (feed.stream.blocks_held >= BLOCKS)
        await asyncio.sleep(0)
    await settle(index)
    assert feed.stream.state is StreamState.LIVE
    assert held(index, one) == BLOCKS + 1


async def test_a_broken_connection_before_the_proof_takes_another(grafted) -> None:
    index, _, stream = grafted
    stream.confirm(same_process=True)
    stream.suspend()
    tell(stream, 1, batch(BLOCKS))  # it was queued
    assert stream.state is StreamState.SUSPENDED
    stream.reconnected()
    stream.confirm(same_process=True)
    assert stream.state is StreamState.SUSPENDED
    tell(stream, 2, batch(BLOCKS + 1))
    assert stream.state is StreamState.LIVE
    assert outcomes(index) == {"warm": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"started_at": "now"},
        {"started_at": None},
        {"model": "other"},
        {"block_size": PAGE * 2},
        {"bigram": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_another_process_or_setup_takes_over_nothing(index, changes: dict[str, Any]) -> None:
    one = worker(**changes)
    index.worker_added(one)
    await settle(index)
    assert stream_of(index, one).state is StreamState.WAITING
    assert held(index, one) == 0
    assert outcomes(index) == {"abandoned": 1}
    index.worker_removed(one)
    index.worker_added(worker())
    assert outcomes(index) == {"abandoned": 1}


async def test_a_rank_the_snapshot_does_not_have_is_uncovered_once(index) -> None:
    for _ in range(2):
        one = worker(dp_size=2)
        index.worker_added(one)
        index.worker_removed(one)
    index.worker_added(worker("http://other:1"))
    assert outcomes(index) == {"uncovered": 2}


async def test_a_worker_that_goes_before_the_proof_may_come_back(grafted) -> None:
    index, one, stream = grafted
    index.worker_removed(one)
    assert outcomes(index) == {}
    again = worker()
    index.worker_added(again)
    await settle(index)
    assert held(index, again) == BLOCKS
    assert stream_of(index, again) is not stream


async def test_what_is_not_settled_is_passed_on(index, snapshot: Snapshot) -> None:
    """A router that stops again before its workers came must not destroy what it was given."""
    for _ in range(2):  # waiting, then grafted
        data = [chunk async for chunk in encode_snapshot(index)]
        assert decode_snapshot(data).ranks == snapshot.ranks
        assert decode_snapshot(data).secret == snapshot.secret
        if not index.followed():
            index.worker_added(worker())


async def test_workers_that_do_not_come_are_given_up(snapshot: Snapshot) -> None:
    index = KvIndex()
    index.warm = WarmStart(index.pump, keep_secs=0.02)
    index.adopt(snapshot)
    for _ in range(1_000):
        if index.warm.outcomes[SnapshotOutcome.ABANDONED]:
            break
        await asyncio.sleep(0.005)
    assert index.warm.unsettled() == []
    index.worker_added(worker())
    index.worker_added(worker("http://other:1"))
    assert outcomes(index) == {"abandoned": 1}
    index.close()


async def test_a_snapshot_is_adopted_before_the_first_worker_or_not_at_all(snapshot: Snapshot) -> None:
    index = KvIndex()
    index.worker_added(worker())
    with pytest.raises(ValueError, match="before the first worker"):
        index.adopt(snapshot)
    index.close()


async def test_only_a_new_stream_takes_over_anything(grafted) -> None:
    _, _, stream = grafted
    with pytest.raises(ValueError, match="heard nothing"):
        stream.graft(5, complete=True, settled=lambda kept: None)
