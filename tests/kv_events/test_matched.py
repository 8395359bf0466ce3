"""What a look-up says of each target, against what was put in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sgl_router.kv_events import BlockTree, MatchedPrefix, PromptMatch, Tier
from sgl_router.kv_events.index.matched import Matched, MatchGroup
from sgl_router.kv_events.index.walk import Depths
from sgl_router.workers import Target, Worker, WorkerInfo


def targets(count: int, page: int = 16) -> list[Target]:
    info = WorkerInfo(served_model_name="m", block_size=page)
    return [Worker(f"http://w{number}:1", info).targets[0] for number in range(count)]


_depths = st.tuples(*[st.integers(0, 3)] * 4).map(lambda steps: [sum(steps[: i + 1]) for i in range(4)])


@given(
    small=st.lists(_depths, min_size=1, max_size=5),
    large=st.lists(_depths, max_size=3),
    asked=st.sets(st.integers(0, 7)),
    spread=st.sampled_from([1, 30]),
)
def test_all_answers_agree(small: list[list[int]], large: list[list[int]], asked: set[int], spread: int) -> None:
    """Two groups with unlike pages; slots in one word or several."""
    truth: dict[Target, MatchedPrefix] = {}
    parts, everyone = [], []
    for page, rows in ((16, small), (64, large)):
        group, depths = MatchGroup(page), Depths({}, {}, {}, {})
        for number, (target, row) in enumerate(zip(targets(len(rows), page), rows, strict=True)):
            slot = number * spread
            group.add(slot, target)
            everyone.append(target)
            device, host, held, expected = row
            for levels, depth in zip(depths, row, strict=True):
                if depth:
                    levels[depth] = levels.get(depth, 0) | 1 << slot
            if expected:
                truth[target] = MatchedPrefix(held, device, host, expected, page)
        parts.append(Matched(group, 40 * 16 // page, depths))
    match = PromptMatch(parts)
    assert {target: prefix for target in everyone if (prefix := match.of(target)) is not None} == truth
    assert match.by_target == truth
    candidates = [target for number, target in enumerate(everyone) if number in asked]
    tokens, reusable, deepest = match.deepest(candidates)
    held = {target: truth[target].expected_tokens for target in candidates if target in truth}
    assert tokens == max(held.values(), default=0)
    assert set(deepest) == {target for target in held if held[target] == tokens}
    assert len(deepest) == len(set(deepest))
    assert reusable == (40 * 16 if deepest else 0)
    (stranger,) = targets(1)
    assert (match.of(stranger), match.blocks_of(stranger), match.epoch_of(stranger)) == (None, 0, None)
    stated = PromptMatch.stated(match.by_target, {target: match.blocks_of(target) for target in everyone})
    assert stated.by_target == truth
    assert stated.deepest(candidates).tokens == tokens


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=5),
    st.integers(0, 12),
    st.sampled_from([0, 62]),
    st.sampled_from([None, *list(Tier)[1:]]),
)
def test_a_prompt_looked_up_at_once_or_in_pieces(
    rows: list[tuple[int, int]], length: int, first: int, tier: Tier | None
) -> None:
    """`depths` has a way of its own for what is simple; `walk` is the general one."""
    tree = BlockTree()
    slots = [tree.acquire() for _ in range(first + len(rows))][first:]
    keys = [number << 50 for number in range(1, 13)]
    for slot, (held, more) in zip(slots, rows, strict=True):
        tree.store(slot, Tier.GPU, keys[:held])
        if tier is None:
            tree.expect(slot, keys[max(held - 2, 0) : held + more])
        else:
            tree.store(slot, tier, keys[held : held + more])
    mask = sum(1 << slot for slot in slots)
    walk = tree.walk(mask)
    for key in keys[:length]:
        if not walk.feed([key]):
            break
    assert tree.depths(mask, keys[:length]) == walk.finish()
