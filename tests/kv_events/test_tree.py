from __future__ import annotations

import random
from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.kv_events import BlockTree, Tier
from sgl_router.kv_events.index.expected import STRIDE
from sgl_router.kv_events.index.walk import by_slot, depth_of


def depths(tree: BlockTree, keys: list[int], slots: int, piece: int = 2) -> tuple[dict[int, int], dict[int, int]]:
    walk = tree.walk(slots)
    for start in range(0, len(keys), piece):
        if not walk.feed(keys[start : start + piece]):
            break
    found = walk.finish()
    return by_slot(found.held), by_slot(found.device)


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
    keys = list(range(1, 11))
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
        st.integers(1, 7),
    ),
    max_size=60,
)


@settings(max_examples=200)
@given(_ops, st.lists(st.integers(1, 7), max_size=8, unique=True), st.integers(1, 3))
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


def reached(prompt: list[int], depth: int, marked: set[int]) -> int:
    """How far a run that ends at `depth` is expected to go: stride by stride, in the last one to its last mark."""
    while True:
        stride = range(depth, min((depth // STRIDE + 1) * STRIDE, len(prompt)))
        marks = [at for at in stride if prompt[at] in marked]
        if not marks:
            return depth
        depth = marks[-1] + 1
        if depth % STRIDE or depth == len(prompt):
            return depth


def leading(prompt: list[int], held: set[int]) -> int:
    return next((i for i, key in enumerate(prompt) if key not in held), len(prompt))


@settings(max_examples=120, deadline=None)
@given(
    length=st.integers(1, 260),
    slots=st.lists(st.integers(0, 200), min_size=1, max_size=6, unique=True),
    piece=st.sampled_from([1, 7, 32, 39, 40, 64, 300]),
    data=st.data(),
)
def test_long_walks_equal_a_set_per_slot(length: int, slots: list[int], piece: int, data: st.DataObject) -> None:
    """Runs with holes, in tiers and expected, on slots in several words; blocks nobody holds among them."""
    seed = data.draw(st.integers(0, 2**32))
    rng = random.Random(seed)
    prompt = [rng.randrange(1, 2**64 - 1) for _ in range(length)]
    tree = BlockTree()
    for _ in range(max(slots) + 1):
        tree.acquire()
    on_device: dict[int, set[int]] = {}
    near: dict[int, set[int]] = {}
    anywhere: dict[int, set[int]] = {}
    expectable: dict[int, list[int]] = {}
    soon: dict[int, set[int]] = {}
    for slot in slots:
        kinds = data.draw(st.sampled_from(["prefix", "holes", "tiers", "host", "all", "expected", "none"]))
        depth = data.draw(st.integers(0, length))
        device = set(prompt[:depth])
        if kinds == "holes":
            device -= set(rng.sample(prompt, min(len(prompt), rng.randrange(4))))
            device |= set(rng.sample(prompt, rng.randrange(len(prompt) + 1)))
        elif kinds == "none":
            device = set()
        tree.store(slot, Tier.GPU, list(device))
        tiered = {"tiers": (Tier.DISK,), "host": (Tier.CPU_PINNED,), "all": tuple(Tier)[1:]}.get(kinds, ())
        slower = {tier: set(rng.sample(prompt, rng.randrange(len(prompt) + 1))) for tier in tiered}
        for tier, keys in slower.items():
            tree.store(slot, tier, list(keys))
        first = max(depth - data.draw(st.integers(0, 40)), 0)
        expected = prompt[first : depth + 60] if kinds == "expected" else []
        marked = set(tree.expect(slot, expected, first))
        on_device[slot], near[slot] = device, device | slower.get(Tier.CPU_PINNED, set())
        anywhere[slot] = near[slot].union(*slower.values())
        expectable[slot] = expected
        soon[slot] = marked
    asked = [slot for slot in slots if rng.random() < 0.9]
    walk = tree.walk(sum(1 << slot for slot in asked))
    for start in range(0, length, piece):
        if not walk.feed(prompt[start : start + piece]):
            assert all(leading(prompt, anywhere[slot]) < start + piece for slot in asked)
            break
    depths = walk.finish()
    for found, truth in zip(depths[:3], (on_device, near, anywhere), strict=True):
        naive = {slot: leading(prompt, truth[slot]) for slot in asked}
        assert by_slot(found) == {slot: depth for slot, depth in naive.items() if depth}
        assert [depth_of(found, slot) for slot in asked] == [naive[slot] for slot in asked]
    for slot in asked:
        depth = leading(prompt, anywhere[slot])
        assert depth_of(depths.expected, slot) == reached(prompt, depth, soon[slot])
        if expectable[slot]:
            exactly = leading(prompt, anywhere[slot] | set(expectable[slot]))
            assert depth_of(depths.expected, slot) == exactly, "the prompt that is expected is recognised in full"


def test_512_slots_on_a_staircase() -> None:
    tree = BlockTree()
    rng = random.Random(1)
    keys = [rng.randrange(1, 2**64 - 1) for _ in range(2_000)]
    for _ in range(512):
        slot = tree.acquire()
        tree.store(slot, Tier.GPU, keys[: 2_000 * (slot + 1) // 512])
    walk = tree.walk((1 << 512) - 1)
    assert not walk.feed([*keys, 5])
    assert by_slot(walk.finish().held) == {slot: 2_000 * (slot + 1) // 512 for slot in range(512)}


def test_two_requests_that_expect_the_same_blocks_are_two() -> None:
    tree = BlockTree()
    slot = tree.acquire()
    keys = list(range(1, 101))
    whole = tree.expect(slot, keys)
    half = tree.expect(slot, keys[:50])
    again = tree.expect(slot, keys[:50])

    def depth() -> int:
        walk = tree.walk(1 << slot)
        walk.feed(keys)
        return depth_of(walk.finish().expected, slot)

    assert depth() == 100
    tree.unexpect(slot, half)
    assert depth() == 100
    tree.unexpect(slot, whole)
    assert depth() == 50
    assert tree.expects
    tree.unexpect(slot, again)
    assert depth() == 0
    assert not tree.expects


@settings(max_examples=200, deadline=None)
@given(
    held=st.integers(0, 100),
    length=st.integers(1, 200),
    shared=st.integers(0, 300),
    first=st.integers(0, 100),
    piece=st.sampled_from([1, 5, 8, 32, 400]),
)
def test_a_prompt_that_shares_a_beginning_with_an_expected_one(
    held: int, length: int, shared: int, first: int, piece: int
) -> None:
    """Less than a stride of what it shares goes unnoticed, and nothing else is taken for it."""
    rng = random.Random(held)
    keys = [rng.randrange(1, 2**64 - 1) for _ in range(held + length)]
    tree = BlockTree()
    slot = tree.acquire()
    tree.store(slot, Tier.GPU, keys[:held])
    first = min(first, held)
    tree.expect(slot, keys[first:], first)
    asked = keys[:shared] + [rng.randrange(1, 2**64 - 1) for _ in range(40)]
    walk = tree.walk(1 << slot)
    for start in range(0, len(asked), piece):
        if not walk.feed(array("Q", asked[start : start + piece])):
            break
    shared = min(shared, len(keys))
    depth = depth_of(walk.finish().expected, slot)
    assert max(min(held, shared), shared - STRIDE + 1) <= depth <= shared
    assert depth_of(tree.depths(1 << slot, asked).expected, slot) == depth


@settings(max_examples=100, deadline=None)
@given(
    length=st.integers(2, 200),
    held=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 200)), min_size=1, max_size=4),
    piece=st.sampled_from([50, 130, 500]),
    change=st.sampled_from(["nothing", "evict", "evict and others come", "all anew", "grow"]),
    cut=st.integers(0, 200),
    seed=st.integers(0, 2**32),
)
def test_rows_seen_before_are_believed_where_the_keys_still_are(
    length: int, held: list[tuple[int, int]], piece: int, change: str, cut: int, seed: int
) -> None:
    rng = random.Random(seed)
    prompt, others = ([rng.randrange(1, 2**64 - 1) for _ in range(count)] for count in (length, 45_000))
    tree = BlockTree()
    holdings: dict[int, int] = dict(held)
    for slot, depth in holdings.items():
        tree.store(slot, Tier.GPU, prompt[:depth])
    mask = sum(1 << slot for slot in holdings)
    walk = tree.walk(mask, learn=True)
    for start in range(0, length, piece):
        if not walk.feed(prompt[start : start + piece]):
            break
    seen = walk.seen
    known = 0 if seen is None else len(seen.rows)
    assert known <= max(min(depth, length) for depth in holdings.values())
    if change in ("evict", "evict and others come", "all anew"):
        for slot in holdings:
            tree.remove_many(slot, Tier.GPU, prompt[0 if change == "all anew" else cut :])
            holdings[slot] = 0 if change == "all anew" else min(holdings[slot], cut)
    if change != "nothing":
        tree.store(71, Tier.GPU, others if change == "grow" else [key ^ 1 for key in prompt])
    if change == "all anew":
        for slot in holdings:
            tree.store(slot, Tier.GPU, prompt)
            holdings[slot] = length
    walk = tree.walk(mask, learn=True)
    if walk.feed(prompt[:known], seen) or not known:
        walk.feed(prompt[known:])
    assert by_slot(walk.finish().held) == {slot: min(depth, length) for slot, depth in holdings.items() if depth}


def test_where_all_keys_were_seen_nothing_is_searched(monkeypatch) -> None:
    tree = BlockTree()
    slot = tree.acquire()
    prompt = [number << 44 | 1 for number in range(1, 200)]
    tree.store(slot, Tier.GPU, prompt)
    walk = tree.walk(1, learn=True)
    walk.feed(prompt)
    seen = walk.seen
    assert seen is not None
    assert len(seen.rows) == len(prompt)
    monkeypatch.setattr("sgl_router.kv_events.index.table_space.Space.rows", lambda *_: 1 / 0)
    walk = tree.walk(1)
    assert walk.feed(prompt, seen)
    assert depth_of(walk.finish().held, slot) == len(prompt)
