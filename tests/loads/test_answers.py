"""What workers of each version answer to questions about their load."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.load.reports.answers import parse_get_load, parse_v1_loads
from sgl_router.load.reports.report import LoadReport, LoadReportError, RankLoad

# 2023-11-14T22:13:20Z
MOMENT = 1_700_000_000.0


def entry(**fields: Any) -> dict[str, Any]:
    """As 0.5.23 writes it, with one section."""
    return {
        "timestamp": MOMENT,
        "dp_rank": 0,
        "num_running_reqs": 3,
        "num_waiting_reqs": 2,
        "num_waiting_uncached_tokens": 55,
        "num_used_tokens": 640,
        "num_total_tokens": 740,
        "num_active_tokens": 740,
        "num_prealloc_ready_tokens": 0,
        "max_total_num_tokens": 4096,
        "max_running_requests": 8,
        "token_usage": 0.1563,
        "gen_throughput": 12.5,
        "cache_hit_rate": 0.5,
        "utilization": 0.0,
        "total_prefill_uncached_tokens": 9000,
        "total_prefill_busy_us": 1_250_000,
        "decode_moments": None,
        "queues": {"waiting": 2, "grammar": 0, "paused": 0, "retracted": 0, "prealloc_ready": 0},
        **fields,
    }


def answer(*entries: dict[str, Any], timestamp: Any = "2023-11-14T22:13:20.250000+00:00") -> bytes:
    return json.dumps({"timestamp": timestamp, "version": "0.5.23", "accelerator": None, "loads": entries}).encode()


def test_every_rank_of_0_5_23() -> None:
    first, second = parse_v1_loads(answer(entry(), entry(dp_rank=1, num_running_reqs=0, timestamp=MOMENT - 2)))
    assert first == RankLoad(0, LoadReport(3, 2, 640, 4096, 55, 8, 9000, 1.25), 0.25)
    assert (second.dp_rank, second.report.running, second.age_secs) == (1, 0, 2.25)


def test_0_5_8_leaves_out_the_rank_and_the_queued_tokens() -> None:
    old = {
        "dp_rank": None,
        "timestamp": MOMENT,
        "num_running_reqs": 1,
        "num_waiting_reqs": 0,
        "num_used_tokens": 64,
        "max_total_num_tokens": 4096,
        "max_running_requests": 8,
        "num_total_reqs": 1,
    }
    assert parse_v1_loads(answer(old)) == [RankLoad(0, LoadReport(1, 0, 64, 4096, None, 8), 0.25)]


def test_a_rank_that_is_not_told_is_not_guessed() -> None:
    with pytest.raises(LoadReportError):
        parse_v1_loads(answer(entry(dp_rank=None), entry(dp_rank=None)))


def test_before_any_rank_has_reported_there_is_nothing() -> None:
    assert parse_v1_loads(answer()) == []


@pytest.mark.parametrize(
    ("answered", "written", "age"),
    [
        ("2023-11-14T22:13:21Z", MOMENT, 1.0),
        ("2023-11-15T00:13:21+02:00", MOMENT, 1.0),
        ("2023-11-14T22:13:21Z", MOMENT + 5, 0.0),
        ("2023-11-14T22:13:21", MOMENT, 0.0),
        ("yesterday", MOMENT, 0.0),
        (12, MOMENT, 0.0),
        ("2023-11-14T22:13:21Z", None, 0.0),
        ("2023-11-14T22:13:21Z", "now", 0.0),
        ("2023-11-14T22:13:21Z", True, 0.0),
    ],
)
def test_the_age_is_told_by_the_workers_own_clock(answered: Any, written: Any, age: float) -> None:
    [load] = parse_v1_loads(answer(entry(timestamp=written), timestamp=answered))
    assert load.age_secs == age


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b'{"loads": 3}',
        b'{"loads": [3]}',
        b'{"loads": [{}]}',
        answer(entry(num_running_reqs=-1)),
        answer(entry(num_waiting_reqs="2")),
        answer(entry(num_used_tokens=1.5)),
        answer(entry(dp_rank=-1)),
        b"[" * 100_000,
        b'{"loads": [{"num_running_reqs": "\x80"}]}',
    ],
)
def test_what_is_no_load_is_refused(body: bytes) -> None:
    with pytest.raises(LoadReportError):
        parse_v1_loads(body)


def test_get_load_counts_waiting_requests_among_all() -> None:
    body = json.dumps(
        [
            {"dp_rank": 0, "num_reqs": 5, "num_waiting_reqs": 2, "num_tokens": 900},
            {"dp_rank": 1, "num_reqs": 1, "num_waiting_reqs": 0, "num_tokens": 70, "ts_tic": 1.5},
        ]
    ).encode()
    assert parse_get_load(body) == [
        RankLoad(0, LoadReport(running=3, waiting=2)),
        RankLoad(1, LoadReport(running=1, waiting=0, used_tokens=70)),
    ]
    only = b'[{"dp_rank": null, "num_reqs": 0, "num_waiting_reqs": 0, "num_tokens": 0}]'
    assert parse_get_load(only) == [RankLoad(0, LoadReport(0, 0, 0))]


@pytest.mark.parametrize(
    "body", [b"{}", b"[3]", b"[{}]", b'[{"num_reqs": 1, "num_waiting_reqs": 2}]', b'{"detail": "Not Found"}']
)
def test_what_is_no_old_load_is_refused(body: bytes) -> None:
    with pytest.raises(LoadReportError):
        parse_get_load(body)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
entries = st.lists(st.dictionaries(st.sampled_from([*entry(), "num_reqs", "num_tokens"]), values), max_size=3)


@given(entries, values)
def test_any_answer_is_read_or_refused(loads: Any, timestamp: Any) -> None:
    for body, parse in ((answer(*loads, timestamp=timestamp), parse_v1_loads), (json.dumps(loads), parse_get_load)):
        try:
            parsed = parse(body if isinstance(body, bytes) else body.encode())
        except LoadReportError:
            continue
        assert all(load.dp_rank >= 0 and load.age_secs >= 0 and load.report.running >= 0 for load in parsed)
