"""Rows become jobs: keys of prompts and answers, arrival times."""

from __future__ import annotations

from sgl_router.lab.simulate.job import jobs_of
from sgl_router.lab.simulate.trace import TraceRow

PAGE = 4


def row(at: float, prompt: int, output: int, *ids: int) -> TraceRow:
    return TraceRow(at, prompt, output, ids)


def test_keys_name_prefixes_not_blocks() -> None:
    one, two, three = jobs_of([row(0, 12, 1, 1, 2, 3), row(0, 12, 1, 1, 9, 3), row(0, 12, 1, 1, 2, 3)], page_size=PAGE)
    assert one.keys[0] == two.keys[0]
    assert one.keys[2] != two.keys[2]
    assert one.keys == three.keys


def test_the_last_token_of_a_prompt_is_never_reused() -> None:
    whole, ragged = jobs_of([row(0, 8, 1, 1, 2), row(0, 9, 1, 1, 2, 3)], page_size=PAGE)
    assert (whole.reusable, len(whole.keys)) == (1, 2)
    assert (ragged.reusable, len(ragged.keys)) == (2, 2)
    assert whole.prompt_words.tolist() == list(whole.keys[:1])


def test_the_next_turn_tells_the_blocks_of_the_answer() -> None:
    # 6 tokens of prompt, 7 of answer of which 6 have KV: 3 pages, the second of them half prompt and half answer.
    first, other, turn, again = jobs_of(
        [row(0, 6, 7, 1, 2), row(1, 6, 7, 1, 3), row(2, 14, 1, 1, 4, 5, 6), row(3, 14, 1, 1, 7, 8, 9)],
        page_size=PAGE,
    )
    assert len(first.keys) == 3
    assert first.keys == turn.keys[:3]
    # Its last whole block was not new: it need not be that conversation's past.
    assert other.keys[0] == first.keys[0]
    assert not set(other.keys[1:]) & {*turn.keys, *again.keys}


def test_where_answers_are_not_fed_back_nothing_matches_them() -> None:
    rows = [row(0, 6, 7, 1, 2), row(2, 14, 1, 1, 4, 5, 6)]
    first, turn = jobs_of(rows, page_size=PAGE, answers_return=False)
    fed = jobs_of(rows, page_size=PAGE)
    assert (first.keys[0], len(first.keys)) == (turn.keys[0], len(fed[0].keys))
    assert not set(first.keys[1:]) & set(turn.keys)
    assert turn.keys == fed[1].keys


def test_an_answer_reaches_no_further_than_it_is_long() -> None:
    first, turn = jobs_of([row(0, 4, 3, 1), row(1, 14, 1, 1, 4, 5, 6)], page_size=PAGE)
    assert first.keys == turn.keys[:1]


def test_rate_divides_time_and_the_first_job_comes_at_once() -> None:
    assert [job.arrival for job in jobs_of([row(500, 4, 1, 1), row(2500, 4, 1, 2)], rate=2.0, page_size=PAGE)] == [0, 1]


def test_an_answer_has_at_least_one_token() -> None:
    assert jobs_of([row(0, 4, 0, 1)], page_size=PAGE)[0].output_tokens == 1
