from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.load.decode_estimate import DecodeEstimate


def test_answers_grow_with_time() -> None:
    answers = DecodeEstimate()
    assert answers.tokens(5.0) == 0.0
    answers.begin(0.0)
    answers.begin(1.0)
    assert answers.count == 2
    assert answers.tokens(1.0) == pytest.approx(30)
    assert answers.tokens(3.0) == pytest.approx(90 + 60)
    answers.end(0.0, 3.0, None)
    assert answers.tokens(3.0) == pytest.approx(60)
    answers.end(1.0, 3.0, None)
    assert (answers.count, answers.tokens(9.0)) == (0, 0.0)


def test_how_fast_is_learned_from_those_that_ended() -> None:
    answers = DecodeEstimate()
    for number in range(200):
        answers.begin(10.0 * number)
        answers.end(10.0 * number, 10.0 * number + 2.0, 200)
    assert answers.tokens_per_sec == pytest.approx(100.0, rel=0.01)
    answers.begin(0.0)
    answers.end(0.0, 0.1, 1_000)  # too short to tell
    answers.begin(0.0)
    answers.end(0.0, 5.0, None)  # nobody counted
    assert answers.tokens_per_sec == pytest.approx(100.0, rel=0.01)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.floats(0, 100)), max_size=60))
def test_never_below_nothing_and_back_to_it(ops: list[tuple[bool, int, float]]) -> None:
    answers, now, out = DecodeEstimate(), 0.0, []
    for begins, which, passed in ops:
        now += passed
        if begins or not out:
            answers.begin(now)
            out.append(now)
        else:
            answers.end(out.pop(which % len(out)), now, which)
        assert answers.tokens(now) >= 0.0
        assert answers.count == len(out)
    for began in out:
        answers.end(began, now, None)
    assert (answers.count, answers.tokens(now + 100)) == (0, 0.0)
