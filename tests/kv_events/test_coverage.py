from __future__ import annotations

from sgl_router.kv_events.index.coverage import Coverage, CoverageChange


def test_what_was_known_is_no_news() -> None:
    coverage = Coverage()
    assert {coverage.report(True, 1) for _ in range(100)} == {CoverageChange.NONE}
    assert coverage.score == 1.0


def test_a_lasting_lack_is_told_once_and_its_end_too() -> None:
    coverage = Coverage()
    changes = [coverage.report(False, 1) for _ in range(100)]
    assert changes.count(CoverageChange.FELL) == 1
    assert changes.index(CoverageChange.FELL) == 15
    assert coverage.low
    assert not coverage.partial
    changes = [coverage.report(True, 1) for _ in range(100)]
    assert changes.count(CoverageChange.ROSE) == 1
    assert not coverage.low


def test_what_could_not_be_told_yet_is_told_later() -> None:
    coverage = Coverage()
    changes = []
    for _ in range(40):
        changes.append(coverage.report(False, 1))
        if len(changes) <= 30 and changes[-1] is CoverageChange.FELL:
            coverage.untold()
    assert changes[15:30] == [CoverageChange.FELL] * 15
    assert changes[30:].count(CoverageChange.FELL) == 1


def test_now_and_then_is_no_lack() -> None:
    coverage = Coverage()
    assert {coverage.report(number % 3 > 0, 1) for number in range(300)} == {CoverageChange.NONE}


def test_one_namespace_the_events_do_not_tell_is_told_apart() -> None:
    coverage = Coverage()
    changes = [coverage.report(number % 4 == 0, 1 if number % 4 == 0 else 2) for number in range(100)]
    assert CoverageChange.FELL in changes
    assert coverage.partial


def test_namespaces_are_remembered_in_bounds() -> None:
    coverage = Coverage()
    for number in range(1000):
        coverage.report(False, number)
    assert len(coverage._namespaces) <= 64
