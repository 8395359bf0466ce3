"""Decoding of load frames: (topic, 8-byte big-endian sequence, msgpack of one tagged record).

The record is `["LoadStat", running, waiting, used tokens, KV capacity, dp rank, ...]`. 0.5.19 ends there, 0.5.20 goes
on with: waiting uncached tokens, used plus queued tokens, limit of running requests, and more. The rank is that of the
socket: the one in the record counts attention groups for some workers and replicas for others. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from sgl_router.load.reports.report import LoadReport, LoadReportError, amount

__all__ = ["decode_frame"]

_TAG = "LoadStat"
_SHORTEST = 6
_decode = msgspec.msgpack.Decoder().decode
# The engine's KV events went from arrays to maps of the same fields: this is how its load would look then.
_POSITIONS = (
    "num_running_reqs",
    "num_waiting_reqs",
    "num_tokens",
    "max_total_num_tokens",
    "attn_dp_rank",
    "num_waiting_uncached_tokens",
    "num_total_tokens",
    "max_running_requests",
    "total_prefill_uncached_tokens",
    "total_prefill_busy_us",
)


def decode_frame(parts: Sequence[bytes | memoryview]) -> LoadReport | None:
    """None for a record of another kind. Raises LoadReportError."""
    if len(parts) != 3 or len(parts[1]) != 8:
        raise LoadReportError("a load frame is a topic, a sequence number and a record")
    try:
        record = _decode(parts[2])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise LoadReportError("the record is no msgpack") from None
    if isinstance(record, list) and record:
        tag, fields = record[0], dict(zip(_POSITIONS, record[1:], strict=False))
        if tag == _TAG and len(record) < _SHORTEST:
            raise LoadReportError(f"a record of {len(record)} elements")
    elif isinstance(record, dict):
        tag, fields = record.get("type"), record
    else:
        raise LoadReportError(f"the record is {type(record).__name__}")
    if not isinstance(tag, str):
        raise LoadReportError("a record without a tag")
    return _report(fields) if tag == _TAG else None


def _report(fields: dict[Any, Any]) -> LoadReport:
    def needed(name: str) -> int:
        return amount(fields.get(name), name)

    def given(name: str) -> int | None:
        value = fields.get(name)
        return None if value is None else amount(value, name)

    busy_us = given("total_prefill_busy_us")
    return LoadReport(
        running=needed("num_running_reqs"),
        waiting=needed("num_waiting_reqs"),
        used_tokens=needed("num_tokens"),
        max_tokens=needed("max_total_num_tokens") or None,
        waiting_uncached_tokens=given("num_waiting_uncached_tokens"),
        max_running=given("max_running_requests") or None,
        prefilled_tokens=given("total_prefill_uncached_tokens"),
        prefill_busy_secs=None if busy_us is None else busy_us / 1e6,
    )
