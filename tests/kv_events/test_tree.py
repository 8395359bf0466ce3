from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.kv_events import BlockTree, Tier


def depths(tree: BlockTree, keys: list[int], slots: int, piece: int = 2) -> tuple[dict[int, int], dict[int, int]]:
    walk = tree.walk(slots)
    for start in range(0, len(keys), piece):
        if not walk.feed(keys[start : start + piece]):
            break
    walk.finish()
    return walk.depth, walk.device_depth


def test_each_slot_has_its_own_depth() -> None:
    tree = BlockTree()
    a, b, c = tree.acquire(), tree.acquire(), tree.acquire()
    tree.store(a, Tier.GPU, [1, 2, 3, 4, 5])
    tree.store(b, Tier.GPU, [1, 2])
    tree.store(c, Tier.GPU, [2, 3])
    assert depths(tree, [1, 2, 3, 4], 0b111)[0] == {a: 4, b: 2}


def test_only_asked_slots_are_matched() -> None:
    tree = BlockTree()
    a, b = tree.acquire(), tree.acquire()
    tree.store(a, Tier.GPU, [1])
    tree.store(b, Tier.GPU, [1])
    assert depths(tree, [1], 1 << b)[0] == {b: 1}
    assert depths(tree, [1], 0)[0] == {}
    assert depths(tree, [], 0b11)[0] == {}


def test_a_hole_ends_the_match() -> None:
    tree = BlockTree()
    slot = tree.acquire()
    tree.store(slot, Tier.GPU, [1, 3])
    assert depths(tree, [1, 2, 3], 1)[0] == {slot: 1}


def test_tiers_count_together_and_the_device_alone() -> None:
    tree = BlockTree()
    slot = tree.acquire()
    tree.store(slot, Tier.GPU, [1, 2])
    tree.store(slot, Tier.CPU_PINNED, [2, 3, 4])
    tree.store(slot, Tier.DISK, [5])
    assert depths(tree, [1, 2, 3, 4, 5, 6], 1) == ({slot: 5}, {slot: 2})
    assert tree.remove(slot, Tier.GPU, 2)
    assert depths(tree, [1, 2, 3], 1) == ({slot: 3}, {slot: 1})
    assert not tree.remove(slot, Tier.GPU, 2)


def test_a_retired_slot_is_swept_before_it_is_handed_out_again() -> None:
    tree = BlockTree()
    slot = tree.acquire()
    keys = list(range(10))
    tree.store(slot, Tier.GPU, keys)
    tree.store(slot, Tier.CPU_PINNED, keys[:3])
    tree.retire(slot, dict(zip(keys, keys, strict=True)))
    assert tree.acquire() != slot
    assert tree.sweep(4)
    assert tree.acquire() != slot
    assert not tree.sweep(100)
    assert list(tree.holdings(slot)) == []
    assert tree.block_count(Tier.GPU) == 0
    assert tree.acquire() == slot


_ops = st.lists(
    st.tuples(
        st.sampled_from(["store", "remove", "retire"]),
        st.integers(0, 3),
        st.sampled_from(list(Tier)),
        st.integers(0, 6),
    ),
    max_size=60,
)


@settings(max_examples=200)
@given(_ops, st.lists(st.integers(0, 6), max_size=8, unique=True), st.integers(1, 3))
def test_the_walk_equals_a_set_per_slot(ops: list[tuple[str, int, Tier, int]], prompt: list[int], piece: int) -> None:
    tree = BlockTree()
    slots = [tree.acquire() for _ in range(4)]
    model: dict[int, set[tuple[int, Tier]]] = {index: set() for index in range(4)}
    for op, who, tier, key in ops:
        if op == "store":
            fresh = (key, tier) not in model[who]
            assert tree.store(slots[who], tier, [key]) == fresh
            model[who].add((key, tier))
        elif op == "remove":
            assert tree.remove(slots[who], tier, key) == ((key, tier) in model[who])
            model[who].discard((key, tier))
        else:
            tree.retire(slots[who], {held: held for held, _ in model[who]})
            slots[who] = tree.acquire()
            model[who] = set()
            tree.sweep(2)
    mask = sum(1 << slot for slot in slots)
    depth, device = depths(tree, prompt, mask, piece)
    for index, slot in enumerate(slots):
        assert set(tree.holdings(slot)) == model[index]
        anywhere = {key for key, _ in model[index]}
        on_device = {key for key, tier in model[index] if tier is Tier.GPU}
        assert depth.get(slot, 0) == _leading(prompt, anywhere)
        assert device.get(slot, 0) == _leading(prompt, on_device)


def _leading(prompt: list[int], held: set[int]) -> int:
    count = 0
    for key in prompt:
        if key not in held:
            break
        count += 1
    return count
