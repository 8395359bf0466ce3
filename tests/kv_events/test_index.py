"""The index with workers whose sockets lead nowhere: lifecycle, matching, trust."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np
import pytest
import structlog

from sgl_router.kv_events import BlockHasher, DecodeFailure, DistrustReason, KvIndex, StreamState, Tier
from sgl_router.kv_events.follow.wire import Frame, decode_batch
from sgl_router.prompt import Prompt, SharedPrefix, TokenIds
from sgl_router.workers import KvEventSource, Worker, WorkerInfo

PROMPT = np.arange(5000, dtype=np.uint32)


@pytest.fixture
async def index():
    index = KvIndex()
    yield index
    index.close()


def worker(number: int, *, page: int = 4, dp_size: int = 1, model: str = "m", events: bool = True) -> Worker:
    source = KvEventSource(host="127.0.0.1", port_base=1 + number, topic="kv") if events else None
    info = WorkerInfo(served_model_name=model, block_size=page, dp_size=dp_size, kv_source=source)
    return Worker(f"http://w{number}:1", info)


def feed(index: KvIndex, target: object, blocks: int, *, seq: int = 0, page: int = 4, ids: TokenIds = PROMPT) -> None:
    """As if the target's engine had published that it stored the prompt's first blocks."""
    worker = target.worker  # type: ignore[attr-defined]
    stream = next(s.stream for s in index.status(worker) if s.dp_rank == target.dp_rank)  # type: ignore[attr-defined]
    stored = {
        "type": "BlockStored",
        "block_hashes": list(range(1, blocks + 1)),
        "parent_block_hash": None,
        "token_ids": ids[: blocks * page].tolist(),
        "block_size": page,
        "medium": "GPU",
    }
    payload = msgspec.msgpack.encode([1.0, [stored] if blocks else [], 0])
    stream.observe(Frame(seq, payload))
    for event in decode_batch(payload).events:
        stream.apply(event)


async def test_each_target_is_matched_by_its_own_depth(index) -> None:
    first, second = worker(0), worker(1, dp_size=2)
    for one in (first, second):
        index.worker_added(one)
    feed(index, first.targets[0], 3)
    feed(index, second.targets[1], 5)
    match = await index.match("m", PROMPT[:100])
    assert {target: prefix.blocks for target, prefix in match.by_target.items()} == {
        first.targets[0]: 3,
        second.targets[1]: 5,
    }
    assert match.by_target[first.targets[0]].tokens == 12
    assert match.blocks_of(first.targets[0]) == 24
    assert second.targets[0] not in match.by_target  # it has not said a word yet


async def test_long_prompts_match_across_pieces(index) -> None:
    one = worker(0)
    index.worker_added(one)
    feed(index, one.targets[0], 1200)
    match = await index.match("m", PROMPT)
    assert match.by_target[one.targets[0]].blocks == 1200


async def test_unlike_page_sizes_are_matched_side_by_side(index) -> None:
    small, large = worker(0, page=4), worker(1, page=16)
    for one in (small, large):
        index.worker_added(one)
    feed(index, small.targets[0], 6, page=4)
    feed(index, large.targets[0], 2, page=16)
    match = await index.match("m", PROMPT[:100])
    assert match.by_target[small.targets[0]].tokens == 24
    assert match.by_target[large.targets[0]].tokens == 32
    assert (match.blocks_of(small.targets[0]), match.blocks_of(large.targets[0])) == (24, 6)


async def test_models_do_not_meet(index) -> None:
    ours, theirs = worker(0), worker(1, model="other")
    for one in (ours, theirs):
        index.worker_added(one)
        feed(index, one.targets[0], 3)
    assert set((await index.match("m", PROMPT[:100])).by_target) == {ours.targets[0]}
    assert (await index.match("none", PROMPT[:100])).by_target == {}


async def test_an_untrusted_stream_claims_nothing(index) -> None:
    one = worker(0)
    index.worker_added(one)
    feed(index, one.targets[0], 3)
    feed(index, one.targets[0], 3, seq=7)
    (status,) = index.status(one)
    assert status.state is StreamState.UNTRUSTED
    assert (await index.match("m", PROMPT[:100])).by_target == {}


async def test_a_suspended_stream_claims_nothing_until_confirmed(index) -> None:
    one = worker(0)
    index.worker_added(one)
    feed(index, one.targets[0], 3)
    stream = index.status(one)[0].stream
    stream.suspend()
    assert (await index.match("m", PROMPT[:100])).by_target == {}
    stream.reconnected()
    stream.confirm(same_process=True)
    feed(index, one.targets[0], 0, seq=1)
    assert (await index.match("m", PROMPT[:100])).by_target[one.targets[0]].blocks == 3


async def test_nothing_of_a_removed_worker_leaks_into_its_successor(index) -> None:
    old = worker(0)
    index.worker_added(old)
    feed(index, old.targets[0], 3)
    index.worker_removed(old)
    new = worker(0)
    index.worker_added(new)
    assert (await index.match("m", PROMPT[:100])).by_target == {}
    assert index.status(old) == []
    while index.pump.run_once():
        pass
    feed(index, new.targets[0], 1)
    assert (await index.match("m", PROMPT[:100])).by_target == {
        new.targets[0]: (await index.match("m", PROMPT[:100])).by_target[new.targets[0]]
    }
    assert (await index.match("m", PROMPT[:100])).by_target[new.targets[0]].blocks == 1


async def test_a_worker_without_events_is_not_followed(index) -> None:
    one = worker(0, events=False)
    index.worker_added(one)
    assert index.status(one) == []
    index.worker_removed(one)


async def test_a_stream_lost_while_a_long_prompt_is_walked_claims_nothing(index) -> None:
    one = worker(0, page=1)
    index.worker_added(one)
    feed(index, one.targets[0], 4900, page=1)
    stream = index.status(one)[0].stream
    walking = asyncio.create_task(index.match("m", PROMPT))
    await asyncio.sleep(0)  # the first piece is done
    stream.distrust(DistrustReason.GAP)
    assert (await walking).by_target == {}


async def test_short_prompts_are_matched_without_a_turn_of_the_loop(index) -> None:
    one = worker(0)
    index.worker_added(one)
    feed(index, one.targets[0], 1200)
    asyncio.get_running_loop().call_soon(index.status(one)[0].stream.distrust, DistrustReason.GAP)
    assert (await index.match("m", PROMPT)).by_target[one.targets[0]].blocks == 1200


async def test_only_what_is_not_held_is_expected(index) -> None:
    one, other = worker(0), worker(1)
    for each in (one, other):
        index.worker_added(each)
    feed(index, one.targets[0], 20)
    asked = await index.match("m", Prompt(PROMPT[:161]))
    made = index.expect(one.targets[0], asked)
    assert made is not None
    assert len(made.keys) == index.status(one)[0].expected_blocks == 20
    match = await index.match("m", PROMPT[:161])
    assert match.by_target[one.targets[0]].expected_blocks == 40
    assert match.by_target[one.targets[0]].blocks == 20
    elsewhere = index.expect(other.targets[0], asked)
    assert elsewhere is not None
    assert len(elsewhere.keys) == 40
    for expectation in (made, elsewhere):
        expectation.end()
    assert not index.tree.expects


async def test_what_was_held_when_it_was_matched_and_is_gone_is_expected(index) -> None:
    one = worker(0)
    index.worker_added(one)
    feed(index, one.targets[0], 20)
    asked = await index.match("m", Prompt(PROMPT[:161]))
    feed(index, one.targets[0], 0, seq=0)  # the numbers begin again: another process, with nothing cached
    feed(index, one.targets[0], 1, seq=1)
    made = index.expect(one.targets[0], asked)
    assert made is not None
    assert len(made.keys) == 40


async def test_a_stream_that_is_trusted_since_the_match_is_expected_to_hold_the_prompt(index) -> None:
    one = worker(0)
    asked = await index.match("m", Prompt(PROMPT[:161]))
    assert asked.parts == []
    index.worker_added(one)
    made = index.expect(one.targets[0], asked)
    assert made is not None
    assert len(made.keys) == 40
    assert (await index.match("m", PROMPT[:161])).by_target[one.targets[0]].expected_blocks == 40


async def test_what_takes_no_turn_of_the_loop_is_matched_now(index) -> None:
    one = worker(0)
    index.worker_added(one)
    feed(index, one.targets[0], 1200)
    now = index.match_now("m", PROMPT)
    assert now is not None
    assert now.by_target == (await index.match("m", PROMPT)).by_target
    assert now.by_target[one.targets[0]].blocks == 1200


async def test_a_long_prompt_is_not_matched_now(index) -> None:
    one = worker(0)
    index.worker_added(one)
    long = np.arange(4 * 6_000 + 1, dtype=np.uint32)
    feed(index, one.targets[0], 6_000, ids=long)
    assert index.match_now("m", Prompt(long)) is None
    assert (await index.match("m", Prompt(long))).by_target[one.targets[0]].blocks == 6_000


async def test_the_next_turn_of_a_chat_is_hashed_from_where_the_last_one_ended(index, monkeypatch) -> None:
    one = worker(0)
    index.worker_added(one)
    feed(index, one.targets[0], 1200)
    shared = SharedPrefix(4_000)
    await index.match("m", Prompt(PROMPT[:4_100], shared))
    hasher = index.status(one)[0].stream.hasher
    assert len(shared.keys[hasher.root()]) == 1_000
    asked = []
    chain = BlockHasher.chain
    monkeypatch.setattr(BlockHasher, "chain", lambda self, *args: asked.append(args[3]) or chain(self, *args))
    match = await index.match("m", Prompt(PROMPT, shared))
    assert match.by_target[one.targets[0]].blocks == 1200
    assert sum(asked) == 249


async def test_a_conversation_is_first_looked_for_where_it_was_found_last(index, monkeypatch) -> None:
    one = worker(0)
    index.worker_added(one)
    feed(index, one.targets[0], 1200)
    shared = SharedPrefix(4_000)
    for tokens in (4_050, 4_100):  # a prompt that begins with what is known says where that is
        await index.match("m", Prompt(PROMPT[:tokens], shared))
    known = shared.keys[index.status(one)[0].stream.hasher.root()]
    assert len(known.seen.rows) == len(known) == 1_000
    looked_up = []
    monkeypatch.setattr(type(index.tree._held), "lookup", lambda self, keys: looked_up.append(len(keys)) or 1 / 0)
    match = await index.match("m", Prompt(PROMPT[:4_100], shared))
    assert match.by_target[one.targets[0]].blocks == 1024
    assert not looked_up
    monkeypatch.undo()
    index.tree.remove_many(index.status(one)[0].stream.slot, Tier.GPU, known[500:])
    match = await index.match("m", Prompt(PROMPT[:4_100], shared))
    assert match.by_target[one.targets[0]].blocks == 500
    known = shared.keys[index.status(one)[0].stream.hasher.root()]
    assert len(known.seen.rows) == 500


async def test_what_a_conversation_leaves_behind_does_not_keep_the_whole_prompts_rows(index) -> None:
    one = worker(0)
    index.worker_added(one)
    feed(index, one.targets[0], 1200)
    shared = SharedPrefix(400)
    for _ in range(3):
        await index.match("m", Prompt(PROMPT, shared))
    rows = shared.keys[index.status(one)[0].stream.hasher.root()].seen.rows
    assert len(rows) == 100
    assert rows.base is None or rows.base.nbytes == rows.nbytes


# --- what operators are told ----------------------------------------------------------------------------------------


def said(logs: list[dict[str, object]], text: str) -> list[dict[str, object]]:
    return [line for line in logs if text in str(line["event"])]


async def test_refused_frames_are_logged_once_a_minute_for_each_stream(index, monkeypatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    first, second = worker(0), worker(1)
    index.worker_added(first)
    index.worker_added(second)
    with structlog.testing.capture_logs() as logs:
        for one in (first, second):
            (rank,) = index._ranks[one]
            rank.feed.paused = False
            for number in range(20):
                rank.feed.inbox.append(Frame(number, b"\xc1"))
            index.pump.wake(rank.feed)
            while index.pump.run_once():
                pass
        assert [line["worker"] for line in said(logs, "refused")] == [first.id, second.id]
        assert index.totals.failures == {DecodeFailure.MSGPACK: 40}
        now += 61.0
        (rank,) = index._ranks[first]
        rank.feed.inbox.append(Frame(20, b"\xc1"))
        index.pump.wake(rank.feed)
        while index.pump.run_once():
            pass
        assert said(logs, "refused")[-1]["unlogged"] == 19
        assert len(said(logs, "refused")) == 3


async def test_blocks_of_another_size_than_announced_are_told_once(index) -> None:
    one = worker(0, page=16)
    index.worker_added(one)
    with structlog.testing.capture_logs() as logs:
        for number in range(3):
            feed(index, one.targets[0], 5, seq=number, page=4)
        feed(index, one.targets[0], 5, seq=3, page=16)
    (line,) = said(logs, "another size")
    assert (line["announced"], line["found"], line["worker"]) == (16, 4, one.id)
    match = await index.match("m", PROMPT[:100])
    assert match.by_target[one.targets[0]].blocks == 5


async def test_two_workers_that_name_one_endpoint_claim_nothing_until_one_goes(index) -> None:
    first, second = worker(0, dp_size=2), worker(1)  # the first's ranks listen on ports 1 and 2, the second on 2
    index.worker_added(first)
    feed(index, first.targets[0], 3)
    feed(index, first.targets[1], 3)
    with structlog.testing.capture_logs() as logs:
        index.worker_added(second)
    (line,) = said(logs, "named by several workers")
    assert set(line["workers"]) == {first.url, second.url}
    assert line["endpoint"] == "tcp://127.0.0.1:2"
    match = await index.match("m", PROMPT[:100])
    assert list(match.by_target) == [first.targets[0]]
    for target in (first.targets[1], second.targets[0]):
        status = next(one for one in index.status(target.worker) if one.dp_rank == target.dp_rank)
        assert (status.state, status.untrusted_for) == (StreamState.UNTRUSTED, DistrustReason.SHARED)
        assert not status.connected
        assert status.endpoint == "tcp://127.0.0.1:2"
        assert index.expect(target, match) is None
    index.confirm(first)
    index.confirm(second)
    assert [target for target, _ in index.followed()] == [first.targets[0]]

    index.worker_removed(first)
    (status,) = index.status(second)
    assert status.state is StreamState.WAITING
    assert [target for target, _ in index.followed()] == [second.targets[0]]
    feed(index, second.targets[0], 2)
    assert (await index.match("m", PROMPT[:100])).by_target[second.targets[0]].blocks == 2


async def test_a_shared_endpoint_is_not_tried_again_and_again(index, monkeypatch) -> None:
    index = KvIndex(resync_secs=0.0)
    try:
        first, second = worker(0), worker(0)
        index.worker_added(first)
        index._ranks[first][0].stream.distrust(DistrustReason.GAP)  # a resync is due
        index.worker_added(second)
        for _ in range(5):
            await asyncio.sleep(0)
        assert [index.status(one)[0].untrusted_for for one in (first, second)] == [DistrustReason.SHARED] * 2
        assert index.totals.resyncs == 0
    finally:
        index.close()
