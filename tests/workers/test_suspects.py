from __future__ import annotations

from sgl_router.workers.suspects import Blame, Suspects


def test_failures_of_different_requests_are_the_workers() -> None:
    suspects = Suspects()
    assert [suspects.failed(number, 1, 0.0) for number in range(5)] == [Blame.WORKER] * 5


def test_a_request_that_fails_again_at_the_same_worker_is_no_news_of_it() -> None:
    suspects = Suspects()
    assert [suspects.failed(7, 1, 0.0) for _ in range(3)] == [Blame.WORKER, Blame.REPEATED, Blame.REPEATED]


def test_a_request_that_fails_at_every_worker_is_at_fault_itself() -> None:
    suspects = Suspects()
    assert [suspects.failed(7, worker, 0.0) for worker in (1, 2, 2, 3, 3, 1)] == [
        Blame.WORKER,
        Blame.REQUEST,
        Blame.REPEATED,
        Blame.REQUEST,
        Blame.REQUEST,
        Blame.REQUEST,
    ]


def test_a_request_that_succeeds_elsewhere_is_cleared() -> None:
    suspects = Suspects()
    suspects.failed(7, 1, 0.0)
    assert suspects.failed(7, 1, 0.0) is Blame.REPEATED
    suspects.succeeded(7)
    suspects.succeeded(8)
    assert [suspects.failed(7, 1, 0.0) for _ in range(3)] == [Blame.WORKER] * 3
    assert len(suspects) == 1


def test_a_minute_without_a_failure_is_forgotten() -> None:
    suspects = Suspects()
    suspects.failed(7, 1, 0.0)
    assert suspects.failed(7, 1, 60.0) is Blame.REPEATED
    assert suspects.failed(7, 1, 120.1) is Blame.WORKER


def test_it_is_bounded_and_forgets_the_oldest() -> None:
    suspects = Suspects()
    for number in range(10_000):
        suspects.failed(number, 1, 0.0)
    assert len(suspects) == 256
    assert suspects.failed(9_999, 1, 0.0) is Blame.REPEATED
    assert suspects.failed(0, 1, 0.0) is Blame.WORKER
