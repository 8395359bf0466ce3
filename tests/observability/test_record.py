from __future__ import annotations

import logging
from typing import Any

import pytest
from structlog.testing import capture_logs

from sgl_router.errors import BadRequest
from sgl_router.kv_events import KvIndex
from sgl_router.observability import Metrics, RequestRecord, logs
from sgl_router.observability import record as record_module
from sgl_router.observability.lines import JsonLines
from sgl_router.outcome import Outcome
from sgl_router.placement import Placement
from sgl_router.workers import WorkerRegistry


class Sink:
    def __init__(self, fail: bool = False) -> None:
        self.lines: list[str] = []
        self.fail = fail

    def add(self, line: str, now: float) -> None:
        if self.fail:
            raise OSError("closed")
        self.lines.append(line)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(WorkerRegistry(), KvIndex())


def finished(metrics: Metrics, outcome: Outcome, **fields: Any) -> RequestRecord:
    record = RequestRecord("req-1")
    record.model_id = "m"
    record.outcome = outcome
    for name, value in fields.items():
        setattr(record, name, value)
    record.finish(metrics)
    return record


@pytest.mark.parametrize("outcome", Outcome)
def test_the_level_follows_the_outcome(monkeypatch: pytest.MonkeyPatch, metrics: Metrics, outcome: Outcome) -> None:
    quiet = outcome in (Outcome.COMPLETED, Outcome.CLIENT_ERROR, Outcome.CLIENT_GONE, Outcome.REJECTED)
    for level, spoken in ((logging.INFO, True), (logging.WARNING, not quiet), (logging.ERROR, False)):
        sink: Any = Sink()
        monkeypatch.setattr(logs, "requests", JsonLines(sink, level))
        finished(metrics, outcome)
        assert len(sink.lines) == spoken
        if spoken:
            assert f'"level":"{"info" if quiet else "warning"}"' in sink.lines[0]
            assert f'"outcome":"{outcome.value}"' in sink.lines[0]


def test_without_our_own_log_it_goes_through_structlog(monkeypatch: pytest.MonkeyPatch, metrics: Metrics) -> None:
    monkeypatch.setattr(logs, "requests", None)
    with capture_logs() as seen:
        finished(metrics, Outcome.REJECTED, error=BadRequest("no"))
        finished(metrics, Outcome.TIMEOUT)
    assert [(line["event"], line["log_level"], line["outcome"]) for line in seen] == [
        ("request", "info", "rejected"),
        ("request", "warning", "timeout"),
    ]
    assert (seen[0]["code"], seen[0]["error"]) == ("bad_request", "no")


def test_times_go_to_their_histograms(monkeypatch: pytest.MonkeyPatch, metrics: Metrics) -> None:
    monkeypatch.setattr(logs, "requests", None)
    with capture_logs():
        for streamed in (False, True):
            record = RequestRecord("req-1")
            record.model_id = "m"
            record.decided_at = record.started_at + 0.002
            record.first_byte_at = record.started_at + 0.3
            record.streamed = streamed
            record.started_at -= 1.0
            record.finish(metrics)
        finished(metrics, Outcome.REJECTED)
        RequestRecord("req-2").finish(metrics)  # turned away before a model was known
    lines = metrics.render().decode().splitlines()
    assert 'sgl_router_request_duration_seconds_count{model_id="m"} 3.0' in lines
    assert 'sgl_router_request_duration_seconds_bucket{le="1.0",model_id="m"} 1.0' in lines
    assert 'sgl_router_decision_seconds_count{model_id="m"} 2.0' in lines
    assert 'sgl_router_decision_seconds_bucket{le="2.5",model_id="m"} 2.0' in lines
    assert 'sgl_router_ttft_seconds_count{model_id="m"} 1.0' in lines
    assert 'sgl_router_ttft_seconds_bucket{le="1.0",model_id="m"} 0.0' in lines


def test_what_deciding_took_ends_before_a_connection_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(record_module, "perf_counter", lambda: now)
    record = RequestRecord("req-1")
    decision: Any = object()
    now = 102.5
    record.decided(Placement((decision,)), waited_secs=2.0)
    now = 107.5  # five seconds of connecting to a host that is gone
    record.decided(Placement((decision,)))
    assert (record.attempts, record.decided_at) == (2, 100.5)


def test_what_cannot_be_logged_is_counted_and_raises_nothing(monkeypatch: pytest.MonkeyPatch, metrics: Metrics) -> None:
    sink: Any = Sink(fail=True)
    monkeypatch.setattr(logs, "requests", JsonLines(sink, logging.INFO))
    finished(metrics, Outcome.COMPLETED)
    assert metrics.records_lost.labels().value == 1
