"""Reading what workers answer about their load: /v1/loads (0.5.8 and later) and /get_load (up to 0.5.20). Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from sgl_router.load.reports.report import LoadReport, LoadReportError, RankLoad, amount

__all__ = ["parse_get_load", "parse_v1_loads"]


class _Entry(msgspec.Struct):
    """Typed loosely: each field is checked where it is read."""

    dp_rank: Any = None
    timestamp: Any = None
    num_running_reqs: Any = None
    num_waiting_reqs: Any = None
    num_used_tokens: Any = None
    max_total_num_tokens: Any = None
    num_waiting_uncached_tokens: Any = None
    max_running_requests: Any = None
    total_prefill_uncached_tokens: Any = None
    total_prefill_busy_us: Any = None


class _Loads(msgspec.Struct):
    loads: list[_Entry]
    timestamp: Any = None


class _OldEntry(msgspec.Struct):
    dp_rank: Any = None
    num_reqs: Any = None
    num_waiting_reqs: Any = None
    num_tokens: Any = None


_loads = msgspec.json.Decoder(_Loads)
_get_load = msgspec.json.Decoder(list[_OldEntry])


def parse_v1_loads(body: bytes) -> list[RankLoad]:
    """One entry per rank that has reported to the HTTP process. Raises LoadReportError.

    From 0.5.13 on the answer is what each scheduler last wrote down, which in a long prefill is old. Both times in the
    body come from the worker's machine, so their difference is the age whatever this machine's clock says.
    """
    try:
        answer = _loads.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise LoadReportError("/v1/loads answered something else than loads") from None
    answered = _moment(answer.timestamp)
    several = len(answer.loads) > 1
    return [
        RankLoad(
            dp_rank=_rank(entry.dp_rank, several),
            report=LoadReport(
                running=amount(entry.num_running_reqs, "num_running_reqs"),
                waiting=amount(entry.num_waiting_reqs, "num_waiting_reqs"),
                used_tokens=_given(entry.num_used_tokens, "num_used_tokens"),
                max_tokens=_given(entry.max_total_num_tokens, "max_total_num_tokens") or None,
                waiting_uncached_tokens=_given(entry.num_waiting_uncached_tokens, "num_waiting_uncached_tokens"),
                max_running=_given(entry.max_running_requests, "max_running_requests") or None,
                prefilled_tokens=_given(entry.total_prefill_uncached_tokens, "total_prefill_uncached_tokens"),
                prefill_busy_secs=_secs(_given(entry.total_prefill_busy_us, "total_prefill_busy_us")),
            ),
            age_secs=_age(answered, entry.timestamp),
        )
        for entry in answer.loads
    ]


def parse_get_load(body: bytes) -> list[RankLoad]:
    """One entry per rank. Raises LoadReportError.

    `num_reqs` counts waiting requests too, and `num_tokens` their prompts, cached or not: with a queue, what the
    running ones hold is not told.
    """
    try:
        answer = _get_load.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise LoadReportError("/get_load answered something else than loads") from None
    several = len(answer) > 1
    return [_old(entry, several) for entry in answer]


def _old(entry: _OldEntry, several: bool) -> RankLoad:
    waiting = amount(entry.num_waiting_reqs, "num_waiting_reqs")
    tokens = _given(entry.num_tokens, "num_tokens")
    return RankLoad(
        dp_rank=_rank(entry.dp_rank, several),
        report=LoadReport(
            running=amount(amount(entry.num_reqs, "num_reqs") - waiting, "num_reqs"),
            waiting=waiting,
            used_tokens=None if waiting else tokens,
        ),
    )


def _rank(value: Any, several: bool) -> int:
    """Versions up to 0.5.14 leave the rank of a worker that has only one empty."""
    return 0 if value is None and not several else amount(value, "dp_rank")


def _given(value: Any, what: str) -> int | None:
    return None if value is None else amount(value, what)


def _secs(micros: int | None) -> float | None:
    return None if micros is None else micros / 1e6


def _moment(value: Any) -> float | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
        return moment.timestamp() if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _age(answered: float | None, written: Any) -> float:
    if answered is None or isinstance(written, bool) or not isinstance(written, (int, float)):
        return 0.0
    return max(0.0, answered - written)
