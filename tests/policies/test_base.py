from __future__ import annotations

from collections import Counter

from sgl_router.policies import least_loaded


def test_fewest_in_flight_wins(fleet, rng) -> None:
    targets = fleet(3, 1, 2)
    assert least_loaded(targets, rng) is targets[1]


def test_ties_go_to_the_fewest_processed_then_the_longest_not_chosen(fleet, rng) -> None:
    targets = fleet(1, 1, 1)
    for target, processed, last in zip(targets, (5, 4, 4), (1, 3, 2), strict=True):
        target.processed, target.last_selected = processed, last
    assert least_loaded(targets, rng) is targets[2]


def test_complete_ties_are_drawn_by_lot(fleet, rng) -> None:
    targets = fleet(0, 0, 0)
    drawn = Counter(id(least_loaded(targets, rng)) for _ in range(600))
    assert len(drawn) == 3
    assert min(drawn.values()) > 120
