"""The backlog of one target: what is added goes, by first bytes, by time, by reports, and never below nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.load.prefill_backlog import PrefillBacklog
from sgl_router.load.prefill_speed import PrefillSpeed


def queue(speed: float = 1_000.0, **settings: float) -> PrefillBacklog:
    return PrefillBacklog(PrefillSpeed(speed), **settings)


def test_a_prompt_drains_and_goes_with_its_first_byte() -> None:
    prompts = queue()
    prompts.add("a", 2_000, streamed=True, now=10.0)
    assert (len(prompts), prompts.length(10.0), prompts.tokens(10.0)) == (1, 1, 2_000)
    assert prompts.tokens(10.5) == pytest.approx(1_500)
    prompts.computed("a", 11.0)
    assert (len(prompts), prompts.tokens(11.0)) == (0, 0)


def test_one_that_is_overdue_drains_to_nothing_and_no_further() -> None:
    prompts = queue()
    prompts.add("a", 2_000, streamed=True, now=0.0)
    prompts.add("b", 500, streamed=True, now=0.0)
    assert prompts.tokens(1.0) == pytest.approx(1_500)
    assert prompts.tokens(60.0) == pytest.approx(500)  # not idle: a prompt is out, and its turn has not come
    assert len(prompts) == 2


def test_the_next_begins_when_the_one_before_is_through() -> None:
    prompts = queue()
    prompts.add("a", 1_000, streamed=True, now=0.0)
    prompts.add("b", 1_000, streamed=True, now=0.0)
    prompts.computed("a", 3.0)
    assert prompts.tokens(3.0) == pytest.approx(1_000)
    assert prompts.tokens(3.4) == pytest.approx(600)


def test_one_that_overtakes_leaves_the_head_draining() -> None:
    prompts = queue()
    prompts.add("long", 4_000, streamed=True, now=0.0)
    prompts.add("short", 300, streamed=True, now=0.0)
    prompts.computed("short", 1.0)
    assert prompts.tokens(1.0) == pytest.approx(3_000)


def test_a_whole_answers_prompt_is_presumed_computed_in_its_time() -> None:
    prompts = queue()
    prompts.add("a", 1_000, streamed=False, now=0.0)
    prompts.add("b", 1_000, streamed=False, now=0.2)
    prompts.add("c", 1_000, streamed=True, now=0.2)
    assert prompts.tokens(0.5) == pytest.approx(2_500)
    assert prompts.tokens(1.5) == pytest.approx(1_500)
    assert len(prompts) == 2
    assert prompts.tokens(9.0) == pytest.approx(0.0)  # the one that tells is overdue
    assert len(prompts) == 1
    prompts.remove("a", 9.0)  # the answer itself comes later, and changes nothing
    assert len(prompts) == 1


def test_a_first_byte_tells_of_those_before_that_do_not_tell() -> None:
    prompts = queue()
    prompts.add("silent", 5_000, streamed=False, now=0.0)
    prompts.add("told", 1_000, streamed=True, now=0.0)
    prompts.computed("told", 2.0)
    assert (len(prompts), prompts.tokens(2.0)) == (0, 0)
    assert prompts.speed.observations == 1
    prompts = queue(3_000.0)
    for number in range(30):
        prompts.add((number, "silent"), 50_000, streamed=False, now=100.0 * number)
        prompts.add((number, "told"), 10_000, streamed=True, now=100.0 * number)
        prompts.computed((number, "told"), 100.0 * number + 15.0)
    assert prompts.speed.tokens_per_sec == pytest.approx(4_000)  # the silent one's tokens were computed as well


def test_who_gives_up_leaves_nothing_to_compute() -> None:
    prompts = queue()
    for name in "abc":
        prompts.add(name, 1_000, streamed=True, now=0.0)
    prompts.remove("b", 0.5)
    assert prompts.tokens(0.5) == pytest.approx(1_500)
    prompts.remove("a", 0.5)
    assert prompts.tokens(0.5) == pytest.approx(1_000)
    prompts.remove("a", 0.6)
    prompts.computed("a", 0.6)
    assert prompts.tokens(0.6) == pytest.approx(900)
    prompts.remove("c", 0.7)
    assert prompts.tokens(0.7) == 0.0
    assert prompts.speed.observations == 0


def test_the_speed_is_learned_from_busy_time_alone() -> None:
    prompts = queue(1_000.0)
    now = 0.0
    for number in range(12):
        prompts.add(number, 1_000, streamed=True, now=now)
        prompts.computed(number, now + 0.5)
        now += 60.0
    assert prompts.speed.observations == 12
    assert prompts.speed.tokens_per_sec == pytest.approx(2_000)


def test_batches_are_learned_from_as_a_whole() -> None:
    """Two prompts to a batch, first bytes at once: the second one's alone would look as if it took no time."""
    prompts = queue(1_000.0)
    now = 0.0
    for number in range(40):
        prompts.add((number, 1), 1_000, streamed=True, now=now)
        prompts.add((number, 2), 1_000, streamed=True, now=now)
        prompts.computed((number, 1), now + 1.0)
        prompts.computed((number, 2), now + 1.001)
        now += 5.0
    assert prompts.speed.tokens_per_sec == pytest.approx(2_000, rel=0.01)


def test_so_are_batches_that_end_within_a_prompt() -> None:
    """Batches of 3,000 tokens a second over prompts of 2,000, never idle."""
    prompts = queue(3_000.0)
    for number in range(400):
        prompts.add(number, 2_000, streamed=True, now=0.0)
    for number in range(399):
        prompts.computed(number, -(-(number + 1) * 2_000 // 3_000) + 0.001 * number)
    assert prompts.speed.observations > 40
    assert prompts.speed.tokens_per_sec == pytest.approx(3_000, rel=0.2)


def test_what_was_presumed_computed_counts_as_work_done() -> None:
    prompts = queue(1_000.0)
    for number in range(12):
        now = 10.0 * number
        prompts.add((number, "silent"), 1_000, streamed=False, now=now)
        prompts.add((number, "told"), 3_000, streamed=True, now=now)
        prompts.tokens(now + 1.5)
        prompts.computed((number, "told"), now + 2.0)
    assert prompts.speed.tokens_per_sec == pytest.approx(2_000)


def test_whole_answers_behind_others_are_no_measure_of_speed() -> None:
    prompts = queue(1_000.0)
    prompts.add("stuck", 1_000, streamed=True, now=0.0)
    for number in range(20):
        prompts.add(number, 1_000, streamed=False, now=0.0)
    for number in range(20):
        prompts.computed(number, 50.0 + number)
    assert prompts.speed.observations == 0
    assert len(prompts) == 1


def test_a_whole_answer_that_comes_early_shows_a_higher_speed() -> None:
    prompts = queue(1_000.0)
    for number in range(8):
        prompts.add(number, 10_000, streamed=False, now=20.0 * number)
        prompts.computed(number, 20.0 * number + 2.5)
    assert prompts.speed.tokens_per_sec == pytest.approx(4_000)


def test_reports_add_what_others_sent() -> None:
    prompts = queue(1_000.0)
    prompts.add("mine", 1_000, streamed=True, now=0.0)
    prompts.reported(4, 8_000, idle=False, at=0.0)
    assert prompts.tokens(0.0) == pytest.approx(1_000 + 3 * 2_000)
    assert prompts.length(0.0) == pytest.approx(1 + 6)
    assert prompts.tokens(0.5) == pytest.approx(500 + 5_500)
    prompts.reported(1, 900, idle=False, at=1.0)
    assert prompts.tokens(1.0) == pytest.approx(0.0)


def test_without_token_counts_others_prompts_are_as_long_as_ones_own() -> None:
    prompts = queue(1_000.0)
    for number in range(200):
        prompts.add(number, 400, streamed=True, now=0.0)
        prompts.remove(number, 0.0)
    prompts.reported(5, None, idle=False, at=0.0)
    assert prompts.tokens(0.0) == pytest.approx(2_000)
    assert prompts.length(0.0) == pytest.approx(5)


def test_what_is_presumed_computed_does_not_wait_there() -> None:
    prompts = queue(1_000.0)
    prompts.add("mine", 1_000, streamed=False, now=0.0)
    prompts.reported(1, 700, idle=False, at=5.0)
    assert prompts.tokens(5.0) == pytest.approx(700)


def test_an_old_report_says_nothing() -> None:
    prompts = queue(1.0, stale_secs=10.0)
    prompts.reported(3, 9_000, idle=False, at=0.0)
    assert prompts.tokens(10.0) == pytest.approx(8_990)
    assert prompts.tokens(10.1) == 0.0
    assert prompts.length(10.1) == 0


def test_while_others_are_served_nothing_is_learned() -> None:
    prompts = queue(1_000.0)
    prompts.reported(3, 90_000, idle=False, at=0.0)
    prompts.add("mine", 1_000, streamed=True, now=0.0)
    prompts.computed("mine", 8.0)
    assert prompts.speed.observations == 0


def test_a_target_that_is_idle_has_computed_what_is_long_due() -> None:
    prompts = queue(1_000.0)
    prompts.add("lost", 500, streamed=True, now=0.0)
    prompts.add("next", 500, streamed=True, now=0.0)
    for at, left in ((1.9, 2), (2.1, 1), (3.0, 1), (4.2, 0)):
        prompts.reported(0, 0, idle=True, at=at)
        assert len(prompts) == left
    assert prompts.tokens(4.2) == 0.0


def test_idle_may_mean_busy_with_a_prompt() -> None:
    """Engines leave the batch they prefill out of what runs: a long prompt that is being computed stays."""
    prompts = queue(1_000.0)
    prompts.add("long", 30_000, streamed=True, now=0.0)
    for second in range(1, 60):
        prompts.reported(0, 0, idle=True, at=float(second))
    assert len(prompts) == 1
    prompts.reported(0, 0, idle=False, at=70.0)
    assert len(prompts) == 1
    prompts.reported(0, 0, idle=True, at=71.0)
    assert len(prompts) == 0


OPS = st.tuples(
    st.sampled_from(["add", "add", "computed", "remove", "report", "look"]),
    st.integers(0, 30),
    st.integers(0, 5_000),
    st.booleans(),
    st.floats(0, 3),
)


@given(st.lists(OPS, max_size=80))
def test_whatever_happens_it_is_never_below_nothing_and_comes_back_to_it(
    ops: list[tuple[str, int, int, bool, float]],
) -> None:
    prompts = queue(1_000.0, stale_secs=2.0)
    now, serial, out = 0.0, 0, []
    for op, which, tokens, flag, passed in ops:
        now += passed
        if op == "add":
            out.append(serial)
            prompts.add(serial, tokens, streamed=flag, now=now)
            serial += 1
        elif op == "report":
            prompts.reported(which % 6, tokens if flag else None, idle=not which, at=now - passed / 2)
        elif op == "look" or not out:
            prompts.length(now)
        elif op == "computed":
            prompts.computed(out[which % len(out)], now)
        else:
            prompts.remove(out.pop(which % len(out)), now)
        if flag:  # not looking must not change what comes of it either
            assert prompts.tokens(now) >= -1e-6
            assert prompts.tokens(now) == prompts.tokens(now)
        assert prompts.length(now) >= 0
        assert len(prompts) <= len(out)
        assert prompts.speed.tokens_per_sec > 0
    for prompt in out:
        prompts.remove(prompt, now)
    assert len(prompts) == 0
    now += 3.0  # what others sent is stale by then
    assert (prompts.tokens(now), prompts.length(now)) == (0.0, 0)
    prompts.add("again", 1_000, streamed=True, now=now)
    assert prompts.tokens(now) == 1_000


@given(st.lists(st.tuples(st.integers(0, 5_000), st.booleans()), max_size=20), st.floats(0, 40))
def test_only_time_and_work_count_not_how_often_one_looks(prompts: list[tuple[int, bool]], until: float) -> None:
    seen, unseen = queue(), queue()
    for number, (tokens, streamed) in enumerate(prompts):
        seen.add(number, tokens, streamed=streamed, now=0.0)
        unseen.add(number, tokens, streamed=streamed, now=0.0)
    for step in range(10):
        seen.tokens(until * step / 10)
    assert seen.tokens(until) == pytest.approx(unseen.tokens(until), abs=1e-6)
