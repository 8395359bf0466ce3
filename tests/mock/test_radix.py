"""The prefix cache: what it finds, what it keeps, what it lets go."""

from __future__ import annotations

from typing import Any

import pytest

from sgl_router.lab.mock_worker.namespace import Namespace
from sgl_router.lab.mock_worker.ops import BlocksRemoved, BlocksStored, CacheCleared, CacheOp, Medium
from sgl_router.lab.mock_worker.radix import RadixCache


def build(**settings: Any) -> tuple[RadixCache, list[CacheOp]]:
    """A cache of 4-token pages and its operations after the initial clear."""
    ops: list[CacheOp] = []
    cache = RadixCache(**{"page_size": 4, "listener": ops.append, **settings})
    assert ops == [CacheCleared()]
    ops.clear()
    return cache, ops


def test_only_full_pages_are_kept() -> None:
    cache, ops = build()
    assert cache.insert(range(3)) == 0
    assert not ops
    assert cache.insert(range(11)) == 8
    assert [op.units for op in ops if isinstance(op, BlocksStored)] == [tuple(range(8))]


@pytest.mark.parametrize(("prompt", "hit"), [(64, 60), (65, 64), (66, 64), (4, 0), (5, 4), (1, 0), (0, 0)])
def test_a_hit_leaves_the_last_token_to_compute(prompt: int, hit: int) -> None:
    cache, _ = build()
    cache.insert(range(64))
    assert cache.peek(range(prompt)) == hit
    assert cache.match(range(prompt)).device_tokens == hit


def test_page_size_one_hits_all_but_the_last_token() -> None:
    cache, _ = build(page_size=1)
    cache.insert(range(10))
    assert cache.match(range(10)).device_tokens == 9


def test_a_fork_shares_pages_up_to_the_difference_and_splits_silently() -> None:
    cache, ops = build()
    cache.insert([*range(8), 100, 101, 102, 103])
    ops.clear()
    cache.insert([*range(6), 200, 201, 202, 203])
    assert [(op.parent is None, op.units) for op in ops if isinstance(op, BlocksStored)] == [(False, (4, 5, 200, 201))]
    assert cache.device_tokens == 16


def test_versions_with_the_split_bug_announce_removals_that_did_not_happen() -> None:
    cache, ops = build(removes_on_split=True)
    cache.insert(range(12))
    ops.clear()
    cache.insert([*range(8), 100, 101, 102, 103])
    assert [type(op) for op in ops] == [BlocksRemoved, BlocksStored]
    assert isinstance(ops[0], BlocksRemoved)
    assert len(ops[0].hashes) == 3
    assert cache.peek(range(13)) == 12


def test_namespaces_do_not_share() -> None:
    cache, _ = build()
    cache.insert(range(8))
    for other in (Namespace(extra_key="a"), Namespace(cache_salt="a"), Namespace(lora_name="a", lora_id="1")):
        assert cache.peek(range(9), other) == 0
        cache.insert(range(8), other)
        assert cache.peek(range(9), other) == 8


def test_the_oldest_leaf_is_evicted_first_with_all_its_pages() -> None:
    cache, ops = build(capacity=16)
    cache.insert([*range(4), *range(10, 14)])
    cache.insert([*range(4), *range(20, 24)])
    cache.match([*range(4), *range(10, 14), 0])
    ops.clear()
    cache.insert(range(40, 48))
    assert cache.peek([*range(4), *range(20, 24), 0]) == 4
    assert cache.peek([*range(4), *range(10, 14), 0]) == 8
    assert [type(op) for op in ops] == [BlocksRemoved, BlocksStored]


def test_a_parent_is_evicted_only_after_its_children() -> None:
    cache, _ = build()
    cache.insert(range(4))
    cache.insert(range(8))
    assert cache.evict(1) == 4
    assert cache.peek(range(9)) == 4
    assert cache.evict(100) == 4
    assert cache.evict(1) == 0


def test_locked_nodes_stay() -> None:
    cache, _ = build(capacity=8)
    cache.insert(range(8))
    held = cache.match(range(9)).device_node
    cache.lock(held)
    assert cache.insert(range(50, 58)) == 0
    assert cache.evictable_tokens == 0
    with pytest.raises(RuntimeError, match="in use"):
        cache.clear()
    cache.unlock(held)
    assert cache.insert(range(50, 58)) == 8


def test_an_insert_keeps_what_fits() -> None:
    cache, _ = build(capacity=8)
    assert cache.insert(range(40)) == 8
    assert cache.peek(range(40)) == 8


def test_reserved_space_is_not_available() -> None:
    cache, _ = build(capacity=16)
    cache.insert(range(8))
    assert cache.reserve(12)
    assert cache.device_tokens == 0
    assert not cache.reserve(8)
    cache.release(12)
    with pytest.raises(ValueError, match="releasing"):
        cache.release(1)


def test_bigram_keys_hold_one_unit_less() -> None:
    cache, ops = build(bigram=True)
    assert cache.insert(range(9)) == 8
    assert isinstance(ops[0], BlocksStored)
    assert ops[0].units[0] == (0, 1)
    assert cache.match(range(9)).device_tokens == 4
    assert cache.match(range(10)).device_tokens == 8


def test_clear_says_so_once() -> None:
    cache, ops = build(host_capacity=64)
    cache.insert(range(8))
    ops.clear()
    cache.clear()
    assert ops == [CacheCleared()]
    assert not list(cache.blocks())
    assert cache.device_tokens == cache.host_tokens == 0


def test_a_disabled_cache_remembers_nothing() -> None:
    cache, ops = build(enabled=False)
    cache.extend(cache.page_units(range(8)), Namespace())
    assert not ops
    assert cache.match(range(9)).tokens == 0


def media(ops: list[CacheOp]) -> list[tuple[str, str]]:
    return [(type(op).__name__, op.medium.value) for op in ops if not isinstance(op, CacheCleared)]


def test_write_through_stores_on_both_tiers() -> None:
    cache, ops = build(capacity=8, host_capacity=16)
    cache.insert(range(8))
    assert media(ops) == [("BlocksStored", "GPU"), ("BlocksStored", "CPU_PINNED")]
    assert isinstance(ops[0], BlocksStored)
    assert isinstance(ops[1], BlocksStored)
    assert ops[0].hashes == ops[1].hashes


def test_a_device_eviction_leaves_the_host_copy_and_a_hit_loads_it_back() -> None:
    cache, ops = build(capacity=8, host_capacity=64)
    cache.insert(range(8))
    cache.insert(range(50, 58))
    assert (cache.device_tokens, cache.host_tokens) == (8, 16)
    found = cache.match(range(9))
    assert (found.device_tokens, found.host_tokens) == (0, 8)
    ops.clear()
    loaded = cache.load_back(found)
    assert (loaded.device_tokens, loaded.host_tokens) == (8, 0)
    assert media(ops) == [("BlocksRemoved", "GPU"), ("BlocksStored", "GPU")]


def test_nothing_is_loaded_back_without_room() -> None:
    cache, _ = build(capacity=8, host_capacity=64)
    cache.insert(range(8))
    assert cache.reserve(8)
    found = cache.match(range(9))
    assert cache.load_back(found) is found
    assert cache.locked_tokens == 0


def test_the_host_evicts_what_is_nowhere_else_in_use() -> None:
    cache, ops = build(capacity=8, host_capacity=8)
    cache.insert(range(8))
    cache.insert(range(50, 58))
    assert media(ops)[-3:] == [
        ("BlocksStored", "GPU"),
        ("BlocksRemoved", "CPU_PINNED"),
        ("BlocksStored", "CPU_PINNED"),
    ]
    assert {block.tiers for block in cache.blocks()} == {frozenset(Medium)}


def test_no_host_copy_without_its_parent() -> None:
    cache, ops = build(host_capacity=8)
    cache.insert(range(12))
    cache.insert(range(16))
    assert media(ops) == [("BlocksStored", "GPU")] * 2


def test_blocks_lists_paths_with_their_parents() -> None:
    cache, ops = build()
    cache.insert(range(12))
    cache.insert([*range(4), *range(30, 34)])
    blocks = {block.hash: block for block in cache.blocks()}
    assert len(blocks) == 4
    assert sorted(block.depth for block in blocks.values()) == [0, 1, 1, 2]
    for op in ops:
        assert isinstance(op, BlocksStored)
        parent = op.parent
        for index, block in enumerate(op.hashes):
            assert blocks[block].parent == parent
            assert blocks[block].units == op.units[index * 4 : index * 4 + 4]
            parent = block


def test_recency_survives_many_touches() -> None:
    cache, _ = build(capacity=40)
    prompts = [[base, *range(3)] for base in range(100, 110)]
    for prompt in prompts:
        cache.insert(prompt)
    for _ in range(200):
        for prompt in prompts[1:]:
            cache.match([*prompt, 0])
    cache.insert([999, 0, 1, 2])
    assert cache.peek([*prompts[0], 0]) == 0
    assert all(cache.peek([*prompt, 0]) == 4 for prompt in prompts[1:])
