from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.workers.refusals import INITIAL_SECS, MAX_RETRY_AFTER_SECS, MAX_SECS, Refusals

LEAST, MOST = 0.8, 1.2  # of a back-off, by its jitter


class Scene:
    def __init__(self) -> None:
        self.moves: list[bool] = []
        self.refusals = Refusals(self.moves.append)
        self.rng = random.Random(1)

    def refuse(self, now: float, retry_after: float | None = None) -> float:
        """Send one request that is refused; how long nothing may be sent then."""
        token = self.refusals.sent(now)
        self.refusals.refused(token, now, self.rng, retry_after)
        assert self.refusals.until is not None
        return self.refusals.until - now


def test_a_refusal_takes_the_target_out_of_selection_until_a_probe_is_accepted() -> None:
    scene = Scene()
    refusals = scene.refusals
    assert refusals.willing(0.0)
    pause = scene.refuse(0.0)
    assert INITIAL_SECS * LEAST <= pause <= INITIAL_SECS * MOST
    assert not refusals.willing(pause * 0.99) and refusals.willing(pause)
    probe = refusals.sent(pause)
    assert not refusals.willing(pause), "one at a time"
    refusals.accepted(probe)
    assert refusals.willing(pause)
    assert scene.moves == [True, False]


def test_the_back_off_doubles_up_to_its_bound_and_shrinks_with_what_is_accepted() -> None:
    scene = Scene()
    now, pauses = 0.0, []
    for _ in range(8):
        pauses.append(scene.refuse(now))
        now += pauses[-1]
    for number, pause in enumerate(pauses):
        wanted = min(INITIAL_SECS * 2**number, MAX_SECS)
        assert wanted * LEAST <= pause <= wanted * MOST
    for _ in range(10):
        scene.refusals.accepted(scene.refusals.sent(now))
    assert scene.refuse(now) <= INITIAL_SECS * MOST


def test_a_target_that_takes_every_other_request_is_not_always_tried_at_once() -> None:
    scene = Scene()
    now = 0.0
    for _ in range(3):
        now += scene.refuse(now)
    scene.refusals.accepted(scene.refusals.sent(now))
    assert scene.refuse(now) >= 2 * INITIAL_SECS * LEAST


@pytest.mark.parametrize(
    ("stated", "least", "most"),
    [(7.0, 7.0, 7.0), (3600.0, MAX_RETRY_AFTER_SECS, MAX_RETRY_AFTER_SECS), (0.0, 0.2, 0.3), (-5.0, 0.2, 0.3)],
)
def test_retry_after_is_heeded_within_bounds(stated: float, least: float, most: float) -> None:
    assert least <= Scene().refuse(0.0, stated) <= most


def test_a_burst_in_flight_at_the_first_refusal_counts_as_one() -> None:
    scene = Scene()
    refusals = scene.refusals
    tokens = [refusals.sent(0.0) for _ in range(50)]
    for token in tokens:
        refusals.refused(token, 0.0, scene.rng)
    assert refusals.until is not None and refusals.until <= INITIAL_SECS * MOST
    refusals.refused(tokens[0], 0.1, scene.rng, 9.0)
    assert refusals.until == 9.1, "what the worker says of itself counts whenever it is said"


@pytest.mark.parametrize("late", ["accepted", "released"])
def test_results_of_requests_from_before_the_refusal_change_nothing(late: str) -> None:
    scene = Scene()
    refusals = scene.refusals
    before = refusals.sent(0.0)
    pause = scene.refuse(0.0)
    getattr(refusals, late)(before)
    assert not refusals.willing(pause / 2)
    refusals.sent(pause)
    getattr(refusals, late)(before)
    assert not refusals.willing(pause), "the probe is still under way"


def test_what_is_sent_as_no_other_target_is_left_frees_it_or_changes_nothing() -> None:
    scene = Scene()
    refusals = scene.refusals
    pause = scene.refuse(0.0)
    refusals.refused(refusals.sent(pause / 2), pause / 2, scene.rng)
    assert refusals.until == pause, "a fleet that refuses everything is not locked out by its traffic"
    refusals.accepted(refusals.sent(pause / 2))
    assert refusals.willing(pause / 2)


def test_a_probe_that_ends_without_a_word_gives_its_place_back() -> None:
    scene = Scene()
    pause = scene.refuse(0.0)
    probe = scene.refusals.sent(pause)
    scene.refusals.released(probe)
    assert scene.refusals.willing(pause)


def test_a_probe_that_says_nothing_for_long_does_not_keep_the_target_out() -> None:
    scene = Scene()
    pause = scene.refuse(0.0)
    first = scene.refusals.sent(pause)
    assert not scene.refusals.willing(pause + MAX_SECS - 0.1)
    assert scene.refusals.willing(pause + MAX_SECS)
    second = scene.refusals.sent(pause + MAX_SECS)
    assert not scene.refusals.willing(pause + MAX_SECS), "again one"
    scene.refusals.released(first)
    assert not scene.refusals.willing(pause + MAX_SECS), "the second is under way"
    scene.refusals.accepted(second)
    assert scene.refusals.willing(pause + MAX_SECS)


def test_forgiven_it_is_free_at_once() -> None:
    scene = Scene()
    scene.refuse(0.0)
    scene.refusals.forgive()
    assert scene.refusals.willing(0.0)
    assert scene.refuse(0.0) <= INITIAL_SECS * MOST


@given(
    st.lists(
        st.tuples(st.sampled_from(["sent", "refused", "accepted", "released"]), st.floats(0, 3), st.integers(0, 9)),
        max_size=60,
    )
)
def test_whatever_happens_it_returns(steps: list[tuple[str, float, int]]) -> None:
    """Moves alternate, and silence makes the target willing within the longest bounds there are."""
    scene = Scene()
    refusals, now = scene.refusals, 0.0
    tokens = [refusals.sent(now)]
    for what, later, which in steps:
        now += later
        token = tokens[which % len(tokens)]
        if what == "sent":
            tokens.append(refusals.sent(now))
        elif what == "refused":
            refusals.refused(token, now, scene.rng, later * 50)
        else:
            getattr(refusals, what)(token)
    assert scene.moves == [number % 2 == 0 for number in range(len(scene.moves))]
    assert (refusals.until is not None) is (len(scene.moves) % 2 == 1)
    assert refusals.willing(now + MAX_RETRY_AFTER_SECS + MAX_SECS * MOST)
