from __future__ import annotations

import random

import pytest

from sgl_router.workers.odd_one_out import OddOneOut


class One:
    def __init__(self) -> None:
        self.client_errors = 0


def fleet(size: int = 4) -> list[One]:
    return [One() for _ in range(size)]


@pytest.mark.parametrize(("status", "needed"), [(401, 3), (403, 3), (404, 3), (400, 8), (422, 8), (0, 8)])
def test_a_run_that_no_peer_has_counts_against_the_worker(status: int, needed: int) -> None:
    odd, workers = OddOneOut(), fleet()
    said = [odd.failed(workers[0], workers, status, 0.0) for _ in range(needed + 2)]
    assert said == [False] * (needed - 1) + [True] * 3


def test_two_of_four_with_the_wrong_key_are_both_told() -> None:
    odd, workers = OddOneOut(), fleet()
    said = [[odd.failed(worker, workers, 401, 0.0) for worker in workers[:2]] for _ in range(3)]
    assert said == [[False, False], [False, False], [True, True]]


def test_where_every_worker_answers_so_it_is_the_clients() -> None:
    odd, workers = OddOneOut(), fleet()
    said = [odd.failed(worker, workers, 401, 0.0) for _ in range(30) for worker in workers]
    assert not any(said)


def test_the_only_worker_is_never_the_odd_one() -> None:
    odd, workers = OddOneOut(), fleet(1)
    assert not any(odd.failed(workers[0], workers, 404, 0.0) for _ in range(50))


def test_a_run_that_a_good_response_ended_explains_twice_its_length_for_a_minute() -> None:
    odd, workers = OddOneOut(), fleet()
    for _ in range(5):
        odd.failed(workers[1], workers, 400, 0.0)
    assert odd.succeeded(workers[1], 0.0)
    assert [odd.failed(workers[0], workers, 401, 1.0) for _ in range(10)] == [False] * 9 + [True]
    assert odd.needed(401, 60.0) == 10 and odd.needed(401, 60.1) == 3


def test_only_a_longer_run_is_news() -> None:
    odd, [worker, *others] = OddOneOut(), fleet()
    assert not odd.succeeded(worker, 0.0)
    for length, news in ((2, True), (2, False), (1, False), (3, True)):
        for _ in range(length):
            odd.failed(worker, [worker, *others], 400, 0.0)
        assert odd.succeeded(worker, 0.0) is news
        assert worker.client_errors == 0


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_clients_mistakes_spread_over_a_fleet_blame_nobody_for_long(share: float) -> None:
    """Random traffic with a share of mistakes: once runs have been seen, hardly any counts."""
    rng, odd, workers = random.Random(5), OddOneOut(), fleet()
    blamed = 0
    for number in range(20_000):
        worker, now = rng.choice(workers), number / 1000
        if rng.random() < share:
            blamed += odd.failed(worker, workers, 401, now)
        else:
            odd.succeeded(worker, now)
    assert blamed < 20
