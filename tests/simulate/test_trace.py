"""Traces: what is read, and what a wrong line is told."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest

from sgl_router.lab.simulate.trace import TraceError, TraceRow, parse_trace, read_trace, scale_rows

GOOD = {"timestamp": 7, "input_length": 600, "output_length": 3, "hash_ids": [4, 5]}


def lines(*changes: dict[str, Any]) -> list[str]:
    return [json.dumps({key: value for key, value in {**GOOD, **change}.items() if value != "-"}) for change in changes]


def test_a_file_is_read_in_order_of_time(tmp_path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join([*lines({"timestamp": 9.5}), "", *lines({}, {"timestamp": 0})]))
    rows = read_trace(path)
    assert [row.timestamp_ms for row in rows] == [0.0, 7.0, 9.5]
    assert rows[1].input_length == 600 and rows[1].output_length == 3 and rows[1].hash_ids == (4, 5)
    assert len(read_trace(path, limit=2)) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"timestamp": "-"}, "timestamp: missing"),
        ({"timestamp": -1}, "timestamp: expected milliseconds, 0 or more, got -1"),
        ({"timestamp": "x"}, 'timestamp: expected milliseconds, 0 or more, got "x"'),
        ({"input_length": 0}, "input_length: expected an integer, 1 or more, got 0"),
        ({"input_length": True}, "input_length: expected an integer, 1 or more, got true"),
        ({"output_length": 1.5}, "output_length: expected an integer, 0 or more, got 1.5"),
        ({"output_length": "-"}, "output_length: missing"),
        ({"hash_ids": 3}, "hash_ids: expected a list, got 3"),
        ({"hash_ids": [4, -5]}, "hash_ids[1]: expected an integer, 0 or more, got -5"),
        ({"hash_ids": [4, 5, 6]}, "hash_ids: 3 blocks for an input_length of 600, expected 2 of 512 tokens"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(change: dict[str, Any], says: str) -> None:
    with pytest.raises(TraceError) as caught:
        parse_trace([*lines({}), "", *lines(change)], name="t.jsonl")
    assert str(caught.value) == f"t.jsonl:3: {says}"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "t:1: not JSON"),
        ("[1]", "t:1: expected an object, got [1]"),
        (b'{"who": "\xff"}', "t:1: not JSON"),
        ("[" * 100_000, "t:1: not JSON"),
    ],
)
def test_a_line_that_is_no_request_is_named(line: str | bytes, says: str) -> None:
    with pytest.raises(TraceError) as caught:
        parse_trace([line], name="t")
    assert str(caught.value).startswith(says)


def test_an_empty_trace_is_an_error() -> None:
    with pytest.raises(TraceError, match="no requests"):
        parse_trace(["", "\n"], name="t")


def test_blocks_may_be_named_without_the_last_partial_one() -> None:
    assert parse_trace(lines({"hash_ids": [4]}), name="t")[0].hash_ids == (4,)
    assert parse_trace(lines({"input_length": 20, "hash_ids": [1, 2]}), name="t", block_tokens=16)


def test_scaling_keeps_the_number_of_blocks() -> None:
    rows = [TraceRow(0.0, tokens, 2, tuple(range(-(-tokens // 512)))) for tokens in (1, 511, 512, 513, 1024, 5000)]
    for before, after in zip(rows, scale_rows(rows, Fraction(1, 16)), strict=True):
        assert -(-after.input_length // 32) == len(before.hash_ids)
        assert after.output_length == 1
    assert scale_rows(rows, Fraction(1)) == rows
