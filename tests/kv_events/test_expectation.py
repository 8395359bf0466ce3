"""What is told of expectations; what they do for routing is in test_index.py and tests/component."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import NoReturn

import pytest

from sgl_router.kv_events.index.expectation import Expectations
from sgl_router.kv_events.index.tree import BlockTree


class Counted(list[int]):
    """Keys that may be counted and cut, but not looked at one by one."""

    def __iter__(self) -> NoReturn:
        raise AssertionError("every block was looked at")


@pytest.fixture
async def book() -> AsyncIterator[Expectations]:
    book = Expectations(BlockTree(), 10.0)
    yield book
    book.close()


async def test_short_and_equal_prompts_are_counted_exactly(book: Expectations) -> None:
    book.make(3, [1, 2, 3], 0)
    book.make(3, [1, 2, 3, 4], 0)
    assert (book.blocks(3), book.blocks(4)) == (4, 0)
    keys = list(range(1, 4_001))
    for slot in (5, 5, 6):
        book.make(slot, keys, 0)
    assert (book.blocks(5), book.blocks(6)) == (4_000, 4_000)


async def test_long_prompts_are_counted_by_their_landmarks(book: Expectations) -> None:
    rng = random.Random(1)
    shared = [rng.getrandbits(64) for _ in range(7_000)]
    for _ in range(50):
        book.make(0, Counted(shared + [rng.getrandbits(64) for _ in range(1_000)]), 0)
    assert book.blocks(0) == pytest.approx(7_000 + 50 * 1_000, rel=0.05)
