"""Load frames of every version, and of none."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.load.reports.report import LoadReport, LoadReportError
from sgl_router.load.reports.wire import decode_frame

WHOLE = ["LoadStat", 3, 2, 640, 4096, 1, 55, 740, 8, 9_000, 1_250_000]
SEQ = (7).to_bytes(8, "big")


def decode(record: Any) -> LoadReport | None:
    return decode_frame([b"load", SEQ, msgspec.msgpack.encode(record)])


def test_the_record_of_0_5_20_and_later() -> None:
    assert decode(WHOLE) == LoadReport(
        running=3,
        waiting=2,
        used_tokens=640,
        max_tokens=4096,
        waiting_uncached_tokens=55,
        max_running=8,
        prefilled_tokens=9000,
        prefill_busy_secs=1.25,
    )


def test_the_record_of_0_5_19_ends_after_the_rank() -> None:
    expected = LoadReport(running=3, waiting=2, used_tokens=640, max_tokens=4096)
    assert decode(WHOLE[:6]) == expected
    assert decode([*WHOLE[:5], None]) == expected


@pytest.mark.parametrize("length", range(6, 16))
def test_every_length_tells_what_it_has(length: int) -> None:
    report = decode([*WHOLE, "new", {"of": "later"}, None, []][:length])
    assert report is not None
    assert (report.running, report.waiting, report.used_tokens, report.max_tokens) == (3, 2, 640, 4096)
    assert report.waiting_uncached_tokens == (55 if length > 6 else None)
    assert report.max_running == (8 if length > 8 else None)


def test_zero_stands_for_an_unknown_limit() -> None:
    report = decode(["LoadStat", 0, 0, 0, 0, 0, 0, 0, 0])
    assert report == LoadReport(running=0, waiting=0, used_tokens=0, waiting_uncached_tokens=0)


def test_a_tagged_map_is_read_by_name() -> None:
    record = {
        "type": "LoadStat",
        "num_running_reqs": 1,
        "num_waiting_reqs": 2,
        "num_tokens": 3,
        "max_total_num_tokens": 4,
        "num_waiting_uncached_tokens": 5,
        "later": [],
    }
    assert decode(record) == LoadReport(running=1, waiting=2, used_tokens=3, max_tokens=4, waiting_uncached_tokens=5)


def test_a_record_of_another_kind_is_none() -> None:
    assert decode(["GpuStat", "whatever"]) is None
    assert decode({"type": "GpuStat"}) is None


@pytest.mark.parametrize(
    "record",
    [
        WHOLE[:5],
        ["LoadStat"],
        [],
        {},
        [3, 2, 640, 4096, 1, 55],
        None,
        "LoadStat",
        ["LoadStat", -1, 0, 0, 0, 0],
        ["LoadStat", True, 0, 0, 0, 0],
        ["LoadStat", 1.5, 0, 0, 0, 0],
        ["LoadStat", "1", 0, 0, 0, 0],
        ["LoadStat", 1, None, 0, 0, 0],
        ["LoadStat", 1, 2, 3, 2**63, 0],
        ["LoadStat", 1, 2, 3, 4, 0, "many"],
        {"type": "LoadStat", "num_running_reqs": 1},
    ],
)
def test_what_is_no_load_is_refused(record: Any) -> None:
    with pytest.raises(LoadReportError):
        decode(record)


@pytest.mark.parametrize("parts", [[], [b"load"], [b"load", SEQ], [b"load", b"7", b"\x90"], [b"load", SEQ, b"", b""]])
def test_other_frames_are_refused(parts: list[bytes]) -> None:
    with pytest.raises(LoadReportError):
        decode_frame(parts)


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
anything = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)
records = (
    anything
    | st.lists(scalars, max_size=14).map(lambda rest: ["LoadStat", *rest])
    | st.dictionaries(st.sampled_from(["num_running_reqs", "num_waiting_reqs", "num_tokens"]), scalars).map(
        lambda fields: {"type": "LoadStat", "max_total_num_tokens": 1, **fields}
    )
)


def check(parts: list[bytes]) -> None:
    try:
        report = decode_frame(parts)
    except LoadReportError:
        return
    for name in report.__struct_fields__ if report is not None else ():
        value = getattr(report, name)
        kind = float if name == "prefill_busy_secs" else int
        assert value is None or (type(value) is kind and value >= 0)


@given(records)
def test_any_record_is_a_report_or_refused(record: Any) -> None:
    check([b"load", SEQ, msgspec.msgpack.encode(record)])


@given(st.lists(st.binary(), max_size=4) | st.binary().map(lambda payload: [b"load", SEQ, payload]))
def test_any_bytes_are_a_report_or_refused(parts: list[bytes]) -> None:
    check(parts)


@given(st.lists(st.integers(0, 2**40), min_size=10, max_size=10), st.integers(0, 10))
def test_numbers_arrive_as_they_were_sent(numbers: list[int], tail: int) -> None:
    report = decode(["LoadStat", *numbers, *range(tail)])
    assert report == LoadReport(
        running=numbers[0],
        waiting=numbers[1],
        used_tokens=numbers[2],
        max_tokens=numbers[3] or None,
        waiting_uncached_tokens=numbers[5],
        max_running=numbers[7] or None,
        prefilled_tokens=numbers[8],
        prefill_busy_secs=numbers[9] / 1e6,
    )


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x96", b"\xa1\x80", b"\x91" * 15_000])
def test_payloads_that_are_no_msgpack_are_refused(payload: bytes) -> None:
    with pytest.raises(LoadReportError):
        decode_frame([b"load", SEQ, payload])
