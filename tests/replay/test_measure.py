"""Calls, counted."""

from __future__ import annotations

import math
from array import array

import pytest

from sgl_router.lab.replay.call import Call, Result
from sgl_router.lab.replay.measure import rows_of, summarise
from sgl_router.lab.simulate.measure import rows_of as simulated_rows
from sgl_router.lab.simulate.simulation import FleetSettings, simulate
from sgl_router.lab.simulate.trace import TraceRow


def call(number: int, result: Result = Result.ANSWERED, **over: object) -> Call:
    made = Call(number, TraceRow(0.0, 100, 5, (1,)), due_at=float(number), result=result)
    if result not in (Result.DROPPED,):
        made.sent_at = number + 0.01
    if result is Result.ANSWERED:
        made.first_event_at = made.first_text_at = number + 0.11
        made.finished_at = number + 0.51
        made.prompt_tokens, made.completion_tokens, made.cached_tokens = 100, 5, 40
        made.status, made.worker, made.reason, made.predicted_tokens = 200, "w-1", "cache_hit", 40
    for name, value in over.items():
        setattr(made, name, value)
    return made


def test_answered_requests_are_measured_from_when_they_were_sent() -> None:
    calls = [call(0), call(1, first_text_at=1.31, finished_at=2.01), call(2, Result.STATUS, status=503, error="full")]
    found = summarise(calls, array("d", [0.02, 0.04]), [100, 100, 100])
    assert found.ttft.mean == pytest.approx(0.2) and found.ttft.longest == pytest.approx(0.3)
    assert found.end_to_end.longest == pytest.approx(1.0)
    assert found.itl.mean == pytest.approx(0.03)
    assert found.lag.mean == pytest.approx(0.01)
    assert found.secs == pytest.approx(2.01)


def test_failures_are_told_apart() -> None:
    calls = [
        call(0, Result.STATUS, status=503, error="full"),
        call(1, Result.STATUS, status=503, error="still full"),
        call(2, Result.STATUS, status=400, error="wrong"),
        call(3, Result.TRANSPORT, error="reset"),
        call(4, Result.BROKEN, error="broke"),
        call(5, Result.DROPPED),
        call(6, Result.UNFINISHED),
        call(7),
    ]
    found = summarise(calls, array("d"), [100] * 8)
    assert found.errors == {"status 503": 2, "status 400": 1, "transport": 1, "stream_broken": 1}
    assert found.first_errors["status 503"] == "full"
    assert (found.requests, found.answered, found.dropped, found.unfinished) == (8, 1, 1, 1)


def test_tokens_are_held_against_what_was_meant() -> None:
    calls = [call(0), call(1, prompt_tokens=107, completion_tokens=3), call(2, prompt_tokens=None)]
    calls.append(call(3, Result.BROKEN, prompt_tokens=900))
    found = summarise(calls, array("d"), [100, 104, 100, 100])
    assert (found.counted, found.same_prompt_tokens, found.most_tokens_off) == (2, 1, 3)
    assert (found.prompt_tokens, found.trace_prompt_tokens) == (207, 300)
    assert (found.output_tokens, found.wanted_output_tokens) == (13, 15)


def test_hit_rate_and_foresight_are_of_those_that_tell() -> None:
    calls = [call(0), call(1, cached_tokens=None), call(2, cached_tokens=80), call(3, predicted_tokens=None)]
    found = summarise(calls, array("d"), [100] * 4)
    assert found.hit_rate == pytest.approx(160 / 300)
    assert found.foreseen == pytest.approx(0.5)
    silent = summarise([call(0, cached_tokens=None, worker=None, reason=None)], array("d"), [100])
    assert (silent.hit_rate, silent.foreseen, silent.workers, silent.reasons) == (None, None, [], {})


def test_workers_are_told_by_the_router_s_names() -> None:
    calls = [call(0), call(1, worker="w-2", reason="no_match", cached_tokens=0), call(2)]
    found = summarise(calls, array("d"), [100] * 3)
    assert [(worker.id, worker.requests, worker.cached_tokens) for worker in found.workers] == [
        ("w-1", 2, 80),
        ("w-2", 1, 0),
    ]
    assert found.reasons == {"cache_hit": 2, "no_match": 1}


def test_nothing_sent_is_no_mistake() -> None:
    found = summarise([], array("d"), [])
    assert (found.requests, found.secs, found.ttft.mean) == (0, 0.0, 0.0)


def test_rows_have_everything_a_simulation_s_have() -> None:
    outcome = simulate("random", [], FleetSettings(workers=1))
    assert simulated_rows(outcome) == []
    from sgl_router.lab.simulate.job import jobs_of

    rows = [TraceRow(0.0, 600, 3, (1, 2))]
    (theirs,) = simulated_rows(simulate("random", jobs_of(rows, page_size=512), FleetSettings(workers=1)))
    ours = rows_of([call(0), call(1, worker="w-9"), call(2), call(3, Result.DROPPED)])
    assert set(theirs) <= set(ours[0])
    assert [row["worker"] for row in ours] == [0, 1, 0, None]
    assert ours[3]["dispatched_at"] is None and not any(value != value for row in ours for value in row.values())
    assert math.isnan(call(3, Result.DROPPED).sent_at)
