"""Placements of two runs, side by side."""

from __future__ import annotations

from typing import Any

import pytest

from sgl_router.lab.replay.placement import Cause, compare_placements


def row(number: int, worker: int | None, *, at: float | None = None, secs: float = 0.5, **over: Any) -> dict[str, Any]:
    begun = float(number) if at is None else at
    return {
        "number": number,
        "worker": worker,
        "dispatched_at": begun,
        "finished_at": begun + secs,
        "reason": "cache_hit",
        "predicted_tokens": 0,
        **over,
    }


def rows(*workers: int | None) -> list[dict[str, Any]]:
    return [row(number, worker) for number, worker in enumerate(workers)]


def test_workers_are_renamed_for_best_agreement() -> None:
    found = compare_placements(rows(0, 0, 1, 2, 2), rows(2, 2, 0, 1, 1))
    assert (found.agreeing, found.compared, found.share) == (5, 5, 1.0)
    assert found.names == {0: 2, 1: 0, 2: 1} and found.disagreements == []


def test_greed_alone_is_not_enough() -> None:
    """0 and 1 meet most often (3), but 0 -> 2 and 3 -> 1 agree on four requests."""
    here, there = rows(0, 0, 0, 0, 0, 3, 3), rows(1, 1, 1, 2, 2, 1, 1)
    assert compare_placements(here, there).agreeing == 4


@pytest.mark.parametrize(("here", "there"), [((0, 1, 2), (0, 0, 0)), ((0, 0, 0), (0, 1, 2)), ((1, 0, 2), (5, 5, 7))])
def test_names_stay_one_to_one_where_one_run_used_fewer_workers(here, there) -> None:
    found = compare_placements(rows(*here), rows(*there))
    assert len(set(found.names.values())) == len(found.names) == len(set(here))


def test_what_was_sent_nowhere_is_left_out() -> None:
    found = compare_placements(rows(0, None, 1, 0), rows(0, 1, None, 0)[:3])
    assert (found.agreeing, found.compared) == (1, 1)
    assert compare_placements([], rows(1)).share == 0.0


def test_another_load_is_told_from_another_state_and_from_a_tie() -> None:
    same = (0, 1, 0, 1, 0, 1)
    here = [*rows(*same), row(6, 0, predicted_tokens=32), row(7, 0), row(8, 0), row(9, 0, reason="no_match")]
    there = [*rows(*same), row(6, 1), row(7, 1), row(8, 1), row(9, 1)]
    here[6]["finished_at"] = 7.2  # still in flight at worker 0 when request 7 is sent
    found = compare_placements(here, there)
    assert [one.number for one in found.disagreements] == [6, 7, 8, 9]
    assert [one.cause for one in found.disagreements] == [Cause.STATE, Cause.LOAD, Cause.TIE, Cause.STATE]
    assert found.disagreements[1].loads == ((1, 0), (0, 0))
    assert (found.disagreements[0].here, found.disagreements[0].there) == (0, 1)
    assert found.disagreements[0].predicted == (32, 0)


def test_loads_are_compared_under_the_other_run_s_names() -> None:
    here, there = rows(0, 0, 0, 1, 1, 1), rows(1, 1, 1, 0, 0, 0)
    for run, worker in ((here, 1), (there, 0)):
        run[5]["finished_at"] = 99.0
        run.append(row(6, worker))
    there[6]["worker"] = 1
    (one,) = compare_placements(here, there).disagreements
    assert one.loads == ((1, 0), (1, 0)) and one.cause is Cause.TIE


def test_where_two_runs_part_is_named() -> None:
    here, there = rows(0, 1, 0, 2, 0, 1), rows(2, 0, 2, 1, 0, 2)
    there[1]["finished_at"] = 3.99
    here[3]["finished_at"] = 99.0
    parting = compare_placements(here, there).parting
    assert parting is not None and (parting.number, parting.after) == (4, 4)
    assert parting.loads == ((0, 1, 0), (0, 0, 0))
    assert parting.nearest_end_secs == pytest.approx(0.01)


@pytest.mark.parametrize("there", [(2, 0, 2, 1), (0, 1, 0, 2)])
def test_runs_that_differ_in_names_only_never_part(there: tuple[int, ...]) -> None:
    assert compare_placements(rows(0, 1, 0, 2), rows(*there)).parting is None


def test_two_workers_are_not_one() -> None:
    parting = compare_placements(rows(0, 1), rows(0, 0)).parting
    assert parting is not None and parting.number == 1
