"""However much one frame holds, the loop goes on: the time it is held is measured as the lag metric does, but in
processor time, so that other programs on the machine do not count."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest

from sgl_router.kv_events import BlockHasher, BlockTree, EventStream, StreamState
from sgl_router.kv_events.follow.pump import EventPump, Feed

LONGEST_STEP_SECS = 0.020
MILLION = 1_000_000
RNG = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """As the daemon sets it up."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1_000)
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


class Rig:
    def __init__(self) -> None:
        hasher = BlockHasher(1, secret=1)
        self.tree = BlockTree()
        self.stream = EventStream(self.tree, lambda page, bigram: hasher, page_size=1)
        self.pump = EventPump(self.tree, turn_budget_secs=0.002, max_message_bytes=64 << 20)
        self.feed = Feed(self, self.stream)
        self.frames: list[list[bytes | memoryview]] = []
        self.seq = 0

    def receive(self) -> list[bytes | memoryview] | None:
        return self.frames.pop() if self.frames else None

    async def longest_step(self, payload: bytes) -> float:
        """CPU seconds of the longest turn of the loop until the frame is applied and swept."""
        self.frames.append([b"kv", self.seq.to_bytes(8, "big"), memoryview(payload)])
        self.seq += 1
        self.pump.wake(self.feed)
        longest = 0.0
        while not self.pump.idle:
            before = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - before)
        return longest


def hashes(count: int) -> list[int]:
    found: list[int] = RNG.integers(-(2**63), 2**63, count).tolist()
    return found


def tokens(count: int) -> list[int]:
    found: list[int] = RNG.integers(0, 150_000, count).tolist()
    return found


def batch(*events: object) -> bytes:
    return msgspec.msgpack.encode([1.0, list(events), 0])


def a_map(names: list[int], parent: int | None, ids: list[int]) -> dict[str, object]:
    return {
        "type": "BlockStored",
        "block_hashes": names,
        "parent_block_hash": parent,
        "token_ids": ids,
        "block_size": 1,
        "lora_id": None,
        "medium": "GPU",
    }


def an_array(names: list[int], parent: int | None, ids: list[int]) -> list[object]:
    return ["BlockStored", names, parent, ids, 1, None, "GPU"]


@pytest.mark.timeout(300)
async def test_a_frame_of_a_million_blocks_does_not_hold_the_loop() -> None:
    rig = Rig()
    names = hashes(MILLION)
    stored = batch(a_map(names, None, tokens(MILLION)))
    removed = batch({"type": "BlockRemoved", "block_hashes": names[: MILLION // 2], "medium": "GPU"})
    del names
    assert await rig.longest_step(stored) < LONGEST_STEP_SECS
    assert rig.stream.blocks_held == MILLION
    assert await rig.longest_step(removed) < LONGEST_STEP_SECS
    assert rig.stream.blocks_held == MILLION // 2
    assert await rig.longest_step(batch({"type": "AllBlocksCleared"})) < LONGEST_STEP_SECS
    assert rig.tree.retired_blocks == 0
    assert rig.stream.state is StreamState.LIVE


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("shape", "count"), [(a_map, 50_000), (an_array, 200_000)])
async def test_a_frame_of_many_events_does_not_hold_the_loop(
    shape: Callable[[list[int], int | None, list[int]], object], count: int
) -> None:
    rig = Rig()
    names, ids = hashes(count), tokens(count)
    payload = batch(*(shape([one], names[at - 1] if at % 100 else None, [ids[at]]) for at, one in enumerate(names)))
    del names, ids
    assert await rig.longest_step(payload) < LONGEST_STEP_SECS
    assert rig.stream.blocks_held == count


async def test_a_frame_that_ends_badly_does_not_hold_the_loop_and_changes_nothing() -> None:
    rig = Rig()
    await rig.longest_step(batch(a_map([1, 2], None, [5, 6])))
    rig.feed.repair = lambda outcome: None
    payload = batch(a_map(hashes(MILLION), None, [*tokens(MILLION - 1), -1]))
    assert await rig.longest_step(payload) < LONGEST_STEP_SECS
    assert rig.feed.doubt is not None
    assert rig.stream.blocks_held == 2
