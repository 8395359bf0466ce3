from __future__ import annotations

import msgspec
import pytest

from sgl_router.kv_events import BlockHasher, BlockTree, DecodeFailure, EventStream, FrameOutcome
from sgl_router.kv_events.pump import PIECE_BLOCKS, EventPump, Feed


class Queue:
    """A source that gives what was put into it."""

    def __init__(self) -> None:
        self.frames: list[list[bytes]] = []
        self.seq = 0

    def put(self, *events: object, seq: int | None = None) -> None:
        number = self.seq if seq is None else seq
        self.seq = number + 1
        payload = msgspec.msgpack.encode([1.0, list(events), 0])
        self.frames.append([b"kv", number.to_bytes(8, "big"), payload])

    def receive(self) -> list[bytes] | None:
        return self.frames.pop(0) if self.frames else None


class Clock:
    """Advances by `step` at every look."""

    def __init__(self) -> None:
        self.now, self.step = 0.0, 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Rig:
    def __init__(self, streams: int) -> None:
        self.tree = BlockTree()
        self.clock = Clock()
        self.failures: list[DecodeFailure] = []
        self.outcomes: list[tuple[FrameOutcome, int]] = []
        hasher = BlockHasher(1, secret=1)
        self.pump = EventPump(
            self.tree,
            turn_budget_secs=1.0,
            max_message_bytes=1 << 20,
            clock=self.clock,
            on_failure=lambda stream, error: self.failures.append(error.reason),
            on_frame=lambda stream, outcome, missing: self.outcomes.append((outcome, missing)),
        )
        self.feeds = [
            Feed(Queue(), EventStream(self.tree, lambda page, bigram: hasher, page_size=1)) for _ in range(streams)
        ]

    def queue(self, number: int = 0) -> Queue:
        source = self.feeds[number].source
        assert isinstance(source, Queue)
        return source

    def wake(self) -> None:
        for feed in self.feeds:
            self.pump.wake(feed)


@pytest.fixture
async def make_rig():
    return Rig


def chain(count: int, start: int = 0, parent: int | None = None) -> dict[str, object]:
    return {
        "type": "BlockStored",
        "block_hashes": list(range(start + 1, start + count + 1)),
        "parent_block_hash": parent,
        "token_ids": list(range(start, start + count)),
        "block_size": 1,
        "medium": "GPU",
    }


async def test_it_applies_what_is_waiting(make_rig) -> None:
    rig = make_rig(1)
    rig.queue().put(chain(3))
    rig.queue().put({"type": "BlockRemoved", "block_hashes": [3]})
    rig.wake()
    assert not rig.pump.run_once()
    assert rig.feeds[0].stream.blocks_held == 2


async def test_a_long_chain_is_applied_in_pieces_and_ends_up_whole(make_rig) -> None:
    rig = make_rig(1)
    rig.clock.step = 1.0  # every look at the clock ends a turn: one piece per turn
    blocks = PIECE_BLOCKS * 2 + 5
    rig.queue().put(chain(blocks))
    rig.wake()
    held = []
    while rig.pump.run_once():
        held.append(rig.feeds[0].stream.blocks_held)
    assert held[:4] == [0, PIECE_BLOCKS, 2 * PIECE_BLOCKS, blocks]
    assert rig.feeds[0].stream.counters.orphans == 0


async def test_no_stream_waits_for_another_to_run_dry(make_rig) -> None:
    rig = make_rig(3)
    rig.clock.step = 0.05
    for number in range(50):
        rig.queue(0).put(chain(1, start=number))
    rig.queue(1).put(chain(1))
    rig.queue(2).put(chain(1))
    rig.wake()
    rig.pump.run_once()
    assert [feed.stream.blocks_held > 0 for feed in rig.feeds] == [True, True, True]
    assert rig.queue(0).frames, "the burst was not finished first"


async def test_a_turn_ends_when_its_time_is_up(make_rig) -> None:
    rig = make_rig(1)
    rig.clock.step = 0.3
    for number in range(20):
        rig.queue().put(chain(1, start=number))
    rig.wake()
    assert rig.pump.run_once()
    assert 0 < 20 - len(rig.queue().frames) < 6


async def test_bad_frames_and_odd_sequences_are_reported(make_rig) -> None:
    rig = make_rig(1)
    rig.queue().put(chain(1))
    rig.queue().frames.append([b"kv", b"\0" * 8])
    rig.queue().put(chain(1), seq=9)
    rig.queue().frames.append([b"kv", (10).to_bytes(8, "big"), b"\xc1"])
    rig.wake()
    rig.pump.run_once()
    assert rig.failures == [DecodeFailure.FRAME_SHAPE, DecodeFailure.MSGPACK]
    assert rig.outcomes == [(FrameOutcome.GAP, 7)]


async def test_the_rest_of_a_bad_frame_is_not_applied(make_rig) -> None:
    rig = make_rig(1)
    bad = chain(1, start=5) | {"token_ids": [-1]}
    rig.queue().put(chain(1), bad, {"type": "AllBlocksCleared"}, chain(1, start=8))
    rig.wake()
    rig.pump.run_once()
    assert rig.failures == [DecodeFailure.TOKEN_IDS]
    assert rig.feeds[0].stream.blocks_held == 0


async def test_a_dropped_feed_is_left_alone(make_rig) -> None:
    rig = make_rig(2)
    rig.queue(0).put(chain(1))
    rig.queue(1).put(chain(1))
    rig.wake()
    rig.pump.drop(rig.feeds[0])
    rig.pump.run_once()
    assert [feed.stream.blocks_held for feed in rig.feeds] == [0, 1]


async def test_retired_slots_are_swept_between_events(make_rig) -> None:
    rig = make_rig(1)
    stream = rig.feeds[0].stream
    rig.queue().put(chain(3000))
    rig.wake()
    rig.pump.run_once()
    slot = stream.slot
    rig.clock.step = 1.0
    rig.queue().put({"type": "AllBlocksCleared"})
    rig.wake()
    while stream.slot == slot:
        assert rig.pump.run_once()
    assert list(rig.tree.holdings(slot)), "the old slot is not swept in one go"
    while rig.pump.run_once():
        pass
    assert list(rig.tree.holdings(slot)) == []


async def test_an_end_marker_on_the_live_stream_resets_the_rank(make_rig) -> None:
    rig = make_rig(2)
    for number in range(2):
        rig.queue(number).put(chain(3))
    rig.queue(0).put(seq=2**64 - 1)
    rig.wake()
    rig.pump.run_once()
    assert [feed.stream.blocks_held for feed in rig.feeds] == [0, 3]
    assert rig.outcomes == [(FrameOutcome.RESTART, 0)]
    assert rig.feeds[0].stream.expected is None


async def test_events_left_waiting_get_as_long_as_everything_else_took(make_rig) -> None:
    rig = make_rig(streams=1)
    for number in range(200):
        rig.queue().put(chain(1, start=number, parent=number or None))
    rig.wake()
    rig.clock.step = 0.25

    def applied_in_a_turn() -> int:
        before = rig.feeds[0].stream.blocks_held
        assert rig.pump.run_once()
        return rig.feeds[0].stream.blocks_held - before

    usual = applied_in_a_turn()
    assert applied_in_a_turn() <= usual + 1, "nothing else took long"
    rig.clock.now += 4.0
    assert applied_in_a_turn() >= 3 * usual
    rig.clock.now += 1_000.0
    assert 8 * usual <= applied_in_a_turn() <= 12 * usual, "ten budgets at most"
