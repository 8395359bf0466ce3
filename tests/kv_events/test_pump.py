from __future__ import annotations

import msgspec
import pytest

from sgl_router.kv_events import (
    BlockHasher,
    BlockTree,
    DecodeFailure,
    DistrustReason,
    EventStream,
    FrameOutcome,
    StreamState,
)
from sgl_router.kv_events.follow.opening import PIECE_BLOCKS
from sgl_router.kv_events.follow.pump import EventPump, Feed
from sgl_router.kv_events.follow.wire import Frame


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
    assert 6 * usual <= applied_in_a_turn() <= 10 * usual, "eight budgets at most"


# --- frames that cannot be decoded ----------------------------------------------------------------------------------


class Mender:
    """Stands for the repairer: what the replay buffer has is put into the inbox when the test says so."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.feed, self.asked = rig, rig.feeds[0], 0
        self.feed.repair = self.repair

    def repair(self, outcome: FrameOutcome) -> None:
        self.asked += 1
        self.feed.stream.repair()

    def bring(self, *frames: Frame, contiguous: bool = True) -> None:
        self.feed.inbox.extend(frames)
        self.rig.wake()
        self.rig.pump.run_once()
        self.feed.stream.repaired(contiguous=contiguous)
        self.feed.paused = False
        self.rig.wake()
        self.rig.pump.run_once()


def payload_of(*events: object) -> bytes:
    return msgspec.msgpack.encode([1.0, list(events), 0])


GARBLED = [
    b"\xc1",
    payload_of("no event"),
    payload_of(chain(2) | {"token_ids": [1]}),
    # The first event is sound, and must not have been applied when the second turns out bad.
    payload_of({"type": "BlockRemoved", "block_hashes": [1, 2]}, chain(1, start=9) | {"token_ids": [-1]}),
]


def raw(seq: int, payload: bytes) -> list[bytes]:
    return [b"kv", seq.to_bytes(8, "big"), payload]


@pytest.mark.parametrize("garbled", GARBLED)
async def test_a_garbled_frame_is_asked_for_once_and_the_stream_goes_on(make_rig, garbled: bytes) -> None:
    rig = make_rig(1)
    mender, stream = Mender(rig), rig.feeds[0].stream
    original = payload_of(chain(2, start=3, parent=3))
    rig.queue().put(chain(3))
    rig.queue().frames += [raw(1, garbled), raw(2, payload_of(chain(1, start=5, parent=5)))]
    rig.wake()
    rig.pump.run_once()
    assert (mender.asked, stream.expected, stream.blocks_held) == (1, 1, 3)
    assert stream.state is StreamState.REPAIRING
    mender.bring(Frame(1, original))
    assert stream.state is StreamState.LIVE
    assert stream.complete
    assert stream.blocks_held == 6
    assert (mender.asked, len(rig.failures)) == (1, 1)
    # What follows changes nothing: the garbled bytes again, the original again, both out of order.
    rig.queue().frames += [raw(1, garbled), raw(1, original), raw(1, b"\xc1other"), raw(0, b"\xc1")]
    rig.wake()
    rig.pump.run_once()
    assert (stream.state, stream.blocks_held, mender.asked) == (StreamState.LIVE, 6, 1)
    assert stream.counters.restarts == 0


async def test_a_frame_without_a_number_is_asked_for_too(make_rig) -> None:
    rig = make_rig(1)
    mender, stream = Mender(rig), rig.feeds[0].stream
    rig.queue().put(chain(3))
    rig.queue().frames.append([b"kv", b"\0" * 7, b"x"])
    rig.wake()
    rig.pump.run_once()
    mender.bring(Frame(1, payload_of(chain(2, start=3, parent=3))))
    assert (stream.state, stream.blocks_held, stream.expected) == (StreamState.LIVE, 5, 2)


@pytest.mark.parametrize("replayed", [[Frame(1, b"\xc1")], [Frame(1, b"\xc1other")], []])
async def test_where_the_original_does_not_decode_either_the_rank_goes_cold(make_rig, replayed: list[Frame]) -> None:
    rig = make_rig(1)
    mender, stream = Mender(rig), rig.feeds[0].stream
    rig.queue().put(chain(3))
    rig.queue().frames.append(raw(1, b"\xc1"))
    rig.wake()
    rig.pump.run_once()
    mender.bring(*replayed, contiguous=bool(replayed))
    assert stream.state is StreamState.UNTRUSTED
    assert stream.untrusted_for is DistrustReason.DECODE
    assert stream.expected == 2
    assert sum(stream.counters.failures.values()) == 1 + len(replayed)
    rig.queue().frames += [raw(number, b"\xc1") for number in range(2, 50)]
    rig.wake()
    rig.pump.run_once()
    assert mender.asked == 1, "a stream that is cold already is not repaired for every frame"
    assert stream.expected == 50
    rig.queue().put({"type": "AllBlocksCleared"}, chain(2), seq=50)
    rig.wake()
    rig.pump.run_once()
    assert (stream.state, stream.blocks_held) == (StreamState.LIVE, 2)


async def test_a_message_too_large_is_not_asked_for_again(make_rig) -> None:
    rig = make_rig(1)
    mender, stream = Mender(rig), rig.feeds[0].stream
    rig.queue().put(chain(3))
    rig.queue().frames.append(raw(1, b"x" * (1 << 21)))
    rig.wake()
    rig.pump.run_once()
    assert rig.failures == [DecodeFailure.TOO_LARGE]
    assert (mender.asked, stream.state, stream.expected) == (0, StreamState.UNTRUSTED, 2)


async def test_a_replayed_message_too_large_is_refused_as_well(make_rig) -> None:
    rig = make_rig(1)
    rig.feeds[0].inbox.append(Frame(0, b"x" * (1 << 21)))
    rig.wake()
    rig.pump.run_once()
    assert rig.failures == [DecodeFailure.TOO_LARGE]
    assert rig.feeds[0].stream.expected == 1


async def test_a_garbled_first_frame_of_another_process_does_not_hide_it(make_rig) -> None:
    rig = make_rig(1)
    rig.queue().put(chain(3))
    rig.queue().put(chain(3))
    rig.queue().frames += [raw(0, b"\xc1"), raw(1, payload_of(chain(1, start=8)))]
    rig.wake()
    rig.pump.run_once()
    assert rig.outcomes == [(FrameOutcome.RESTART, 0)]
    assert rig.feeds[0].stream.blocks_held == 1
    assert not rig.feeds[0].stream.complete


async def test_what_is_dropped_while_it_is_opened_is_not_applied(make_rig) -> None:
    rig = make_rig(1)
    rig.clock.step = 1.0
    rig.queue().put(*[chain(600, start=n * 600) for n in range(200)])
    rig.wake()
    rig.pump.run_once()
    feed = rig.feeds[0]
    assert feed.opening is not None
    feed.discard()
    while rig.pump.run_once():
        pass
    assert feed.stream.blocks_held == 0
    assert feed.stream.expected is None


# --- upkeep ---------------------------------------------------------------------------------------------------------


async def test_nothing_is_applied_before_the_upkeep_is_done(make_rig) -> None:
    rig = make_rig(1)
    rig.clock.step = 0.3
    left = 12

    def chore(busy: bool) -> bool:
        nonlocal left
        left -= left > 0
        return left > 0

    rig.pump.chore = chore
    rig.queue().put(chain(1))
    rig.wake()
    while left:
        assert rig.feeds[0].stream.blocks_held == 0
        assert rig.pump.run_once()
    while rig.pump.run_once():
        pass
    assert rig.feeds[0].stream.blocks_held == 1
