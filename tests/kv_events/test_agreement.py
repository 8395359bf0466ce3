from __future__ import annotations

from sgl_router.kv_events.agreement import Agreement, Prediction


def test_exact_and_modest_predictions_are_never_suspect() -> None:
    agreement = Agreement()
    assert not any(agreement.report(160, reported) for reported in [160, 176] * 50)
    assert agreement.score == 1.0
    assert agreement.counts == {Prediction.EXACT: 50, Prediction.MORE: 50, Prediction.LESS: 0}


def test_predicting_nothing_proves_nothing() -> None:
    agreement = Agreement()
    assert not any(agreement.report(0, 0) for _ in range(100))
    assert agreement.counts[Prediction.EXACT] == 100
    agreement.report(16, 0)
    assert agreement.score < 1.0


def test_evictions_now_and_then_are_no_drift() -> None:
    agreement = Agreement()
    assert not any(agreement.report(160, 0 if number % 4 == 0 else 160) for number in range(200))


def test_sustained_overclaiming_is_drift_and_forgiven_once() -> None:
    agreement = Agreement()
    for _ in range(50):
        agreement.report(160, 160)
    results = [agreement.report(160, 0) for _ in range(20)]
    assert not any(results[:4])
    assert results[-1]
    agreement.forgive()
    assert not agreement.report(160, 0)


def test_a_fresh_rank_needs_some_answers_first() -> None:
    agreement = Agreement()
    results = [agreement.report(160, 0) for _ in range(9)]
    assert results.index(True) == 7
