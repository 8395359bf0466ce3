from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from sgl_router.kv_events import Namespace
from sgl_router.kv_events.follow.pump import EventPump, Feed
from sgl_router.kv_events.index.eviction import MemoryBound
from sgl_router.kv_events.index.prompt_keys import PromptKeys
from sgl_router.prompt import Prompt

encode = msgspec.msgpack.encode


def chain(start: int, count: int) -> dict[str, object]:
    return {
        "type": "BlockStored",
        "block_hashes": list(range(start + 1, start + count + 1)),
        "parent_block_hash": None,
        "token_ids": list(range(start, start + count)),
        "block_size": 1,
        "medium": "GPU",
    }


def prompt(start: int, count: int) -> list[int]:
    return [*range(start, start + count), 0]


@pytest.fixture
def rig(make_follower: Any) -> Any:
    follower = make_follower(1)
    return follower, MemoryBound(100, lambda: [follower.stream])


def match(follower: Any, bound: MemoryBound, start: int, count: int) -> int:
    ids = np.array(prompt(start, count), dtype=np.uint32)
    keys = PromptKeys(Prompt(ids), follower.stream.hasher, Namespace())
    bound.matched(keys.slice(0, keys.blocks))
    return int(follower.depth(prompt(start, count)))


def test_under_half_of_the_bound_nothing_is_watched(rig: Any) -> None:
    follower, bound = rig
    follower.send(chain(0, 40))
    assert not bound.enforce()
    assert not bound.watching
    follower.send(chain(1000, 20))
    assert not bound.enforce()
    assert bound.watching


def test_the_longest_unmatched_is_forgotten_first(rig: Any) -> None:
    follower, bound = rig
    for start in range(0, 9000, 1000):
        follower.send(chain(start, 10))
    bound.enforce()
    for start in (0, 2000):
        match(follower, bound, start, 10)
    follower.send(chain(9000, 30))
    while bound.enforce():
        pass
    assert bound.blocks <= 100
    assert bound.forgotten == 20
    assert not follower.stream.complete
    kept = {start for start in range(0, 9000, 1000) if follower.depth(prompt(start, 10)) == 10}
    assert {0, 2000} <= kept
    assert 1000 not in kept
    assert follower.depth(prompt(9000, 30)) == 30


def test_counts_stay_true_and_later_events_do_no_harm(rig: Any) -> None:
    follower, bound = rig
    for start in range(0, 15_000, 1000):
        follower.send(chain(start, 10))
    while bound.enforce():
        pass
    stream = follower.stream
    assert stream.blocks_held == 100
    assert len(follower.held) == sum(stream.held.values()) == 100
    follower.send({"type": "BlockRemoved", "block_hashes": list(range(1, 20_000))})
    assert follower.held == set()
    assert stream.blocks_held == 0
    assert sum(stream.held.values()) == 0


def test_the_bound_holds_though_everything_was_matched(rig: Any) -> None:
    follower, bound = rig
    follower.send(chain(0, 90))
    bound.enforce()
    match(follower, bound, 0, 90)
    follower.send(chain(1000, 90))
    match(follower, bound, 1000, 90)
    for _ in range(500):
        if not bound.enforce():
            break
    assert bound.blocks <= 100


def test_the_largest_stream_pays(make_follower: Any) -> None:
    small, large = make_follower(1), make_follower(1)
    bound = MemoryBound(100, lambda: [small.stream, large.stream])
    small.send(chain(0, 20))
    large.send(chain(0, 120))
    while bound.enforce():
        pass
    assert small.stream.blocks_held == 20
    assert large.stream.blocks_held == 80


async def test_the_bound_holds_however_fast_events_come(make_follower: Any) -> None:
    """Publishers that always have more: the index is over its bound by what one turn applies at most."""
    follower = make_follower(1)
    stream, tree = follower.stream, follower.tree
    bound = MemoryBound(2_000, lambda: [stream], retired=lambda: tree.retired_blocks, sweep=tree.sweep)
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.25
        return now

    pump = EventPump(tree, turn_budget_secs=1.0, max_message_bytes=1 << 20, clock=clock)
    pump.chore = bound.chore
    left = iter(range(100))

    class Endless:
        def receive(self) -> list[bytes] | None:
            number = next(left, None)
            if number is None:
                return None
            return [b"kv", number.to_bytes(8, "big"), encode([1.0, [chain(number * 1_000, 1_000)], 0])]

    pump.wake(Feed(Endless(), stream))
    highest = 0
    for _ in range(10_000):
        more = pump.run_once()
        highest = max(highest, stream.blocks_held + tree.retired_blocks)
        if not more:
            break
    assert stream.counters.frames == 100, "every event was applied in the end"
    assert stream.counters.stored == 100_000
    assert highest <= 2_000 + 5 * 512
    assert bound.blocks <= 2_000
    assert len(follower.held) == bound.blocks


async def test_blocks_given_up_count_until_they_are_swept(make_follower: Any) -> None:
    follower = make_follower(1)
    stream, tree = follower.stream, follower.tree
    bound = MemoryBound(1_000, lambda: [stream], retired=lambda: tree.retired_blocks, sweep=tree.sweep)
    for start in range(0, 6_000, 3_000):
        follower.send(chain(start, 3_000), {"type": "AllBlocksCleared"})
    follower.send(chain(9_000, 500))
    assert tree.retired_blocks == 6_000
    while bound.chore(True):
        pass
    assert stream.blocks_held + tree.retired_blocks <= 1_000
    assert stream.blocks_held == 500, "what is claimed is not forgotten for what is not"


def test_a_stream_that_is_looked_at_keeps_its_blocks(make_follower: Any) -> None:
    small, large = make_follower(1), make_follower(1)
    pinned = {large.stream}
    bound = MemoryBound(100, lambda: [small.stream, large.stream], pinned=lambda stream: stream in pinned)
    small.send(chain(0, 60))
    large.send(chain(0, 120))
    while bound.chore(True):
        pass
    assert (small.stream.blocks_held, large.stream.blocks_held) == (0, 120), "and events go on meanwhile"
    pinned.clear()
    while bound.chore(True):
        pass
    assert large.stream.blocks_held == 100
