"""What is expected of whom, against a count kept the plain way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sgl_router.kv_events.index.expected import STRIDE, ExpectedBlocks, landmarks

_KEYS = list(range(1, 20))
_runs = st.tuples(st.integers(0, 18), st.integers(1, 8)).map(lambda run: _KEYS[run[0] : run[0] + run[1]])
_others = st.lists(st.sampled_from(_KEYS), min_size=1, max_size=8, unique=True)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 2), st.one_of(_runs, _runs, _others)),
        st.tuples(st.just("take"), st.integers(0, 50), st.just([])),
    ),
    max_size=40,
)


@given(_steps)
def test_the_masks_are_what_is_still_expected(steps: list[tuple[str, int, list[int]]]) -> None:
    expected = ExpectedBlocks()
    live: list[tuple[int, list[int]]] = []
    for step, number, keys in steps:
        if step == "add":
            expected.add(number, keys)
            live.append((number, keys))
        elif live:
            expected.take(*live.pop(number % len(live)))
        masks: dict[int, int] = {}
        for slot, of_one in live:
            for key in of_one:
                masks[key] = masks.get(key, 0) | 1 << slot
        assert expected.masks == masks
    for slot, of_one in live:
        expected.take(slot, of_one)
    assert not expected.masks


@given(first=st.integers(0, 30), count=st.integers(0, 200))
def test_landmarks_are_where_strides_end_and_both_ends(first: int, count: int) -> None:
    blocks = list(range(first, first + count))
    marks = landmarks(blocks, first)
    assert list(marks) == sorted(set(marks))
    assert set(marks) <= set(blocks)
    assert set(marks) >= {block for block in blocks if block % STRIDE == STRIDE - 1}
    assert set(marks) >= {*blocks[:STRIDE], *blocks[-STRIDE:]}
    assert len(marks) <= 3 * STRIDE + count // STRIDE
