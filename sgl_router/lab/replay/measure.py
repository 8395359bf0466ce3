"""From calls to numbers."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from sgl_router.lab.replay.call import Call, Result
from sgl_router.lab.simulate.measure import Spread, finite, spread

__all__ = ["Summary", "WorkerShare", "rows_of", "summarise"]


class WorkerShare(msgspec.Struct, frozen=True):
    """What one worker answered. `id` is the router's name for it."""

    id: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    ttft_mean: float


class Summary(msgspec.Struct, frozen=True):
    """One replay. Times are in seconds; `ttft`, `itl` (between one text of a stream and the next) and `end_to_end` are
    the answered requests'. `lag`: how late requests left the sender.

    `same_prompt_tokens`: answered requests of whose prompts the server counted as many tokens as were meant;
    `most_tokens_off`: the largest difference. `hit_rate`: cached of all prompt tokens where servers report that, else
    None. `foreseen`: share of requests for which the router named exactly the tokens that were cached, or None.
    """

    requests: int
    answered: int
    dropped: int
    unfinished: int
    errors: dict[str, int]
    first_errors: dict[str, str]
    secs: float
    ttft: Spread
    itl: Spread
    end_to_end: Spread
    lag: Spread
    trace_prompt_tokens: int
    prompt_tokens: int
    counted: int
    same_prompt_tokens: int
    most_tokens_off: int
    wanted_output_tokens: int
    output_tokens: int
    hit_rate: float | None
    foreseen: float | None
    reasons: dict[str, int]
    workers: list[WorkerShare]


def summarise(calls: Sequence[Call], gaps: array[float], expected_tokens: Sequence[int]) -> Summary:
    """`expected_tokens`: of each call's prompt, as its text was made."""
    answered = [call for call in calls if call.result is Result.ANSWERED]
    failed = [call for call in calls if call.result not in _NO_ERRORS]
    kinds = Counter(map(_kind, failed))
    pairs = [
        (call.prompt_tokens, expected)
        for call, expected in zip(calls, expected_tokens, strict=True)
        if call.result is Result.ANSWERED and call.prompt_tokens is not None
    ]
    ended = [call.finished_at for call in calls if not math.isnan(call.finished_at)]
    return Summary(
        requests=len(calls),
        answered=len(answered),
        dropped=sum(call.result is Result.DROPPED for call in calls),
        unfinished=sum(call.result is Result.UNFINISHED for call in calls),
        errors=dict(kinds.most_common()),
        first_errors={kind: next(call.error for call in failed if _kind(call) == kind) for kind in kinds},
        secs=max(ended, default=0.0),
        ttft=spread([call.ttft for call in answered if not math.isnan(call.ttft)]),
        itl=spread(gaps),
        end_to_end=spread([call.total for call in answered]),
        lag=spread([call.lag for call in calls if not math.isnan(call.lag)]),
        trace_prompt_tokens=sum(call.row.input_length for call in answered),
        prompt_tokens=sum(found for found, _ in pairs),
        counted=len(pairs),
        same_prompt_tokens=sum(found == expected for found, expected in pairs),
        most_tokens_off=max((abs(found - expected) for found, expected in pairs), default=0),
        wanted_output_tokens=sum(max(call.row.output_length, 1) for call in answered),
        output_tokens=sum(call.completion_tokens or 0 for call in answered),
        hit_rate=_hit_rate(answered),
        foreseen=_foreseen(answered),
        reasons=dict(Counter(call.reason for call in answered if call.reason is not None).most_common()),
        workers=_workers(answered),
    )


_NO_ERRORS = (Result.ANSWERED, Result.DROPPED, Result.UNFINISHED)


def _kind(call: Call) -> str:
    return f"{call.result.value} {call.status}" if call.result is Result.STATUS else call.result.value


def _hit_rate(answered: Sequence[Call]) -> float | None:
    told = [call for call in answered if call.cached_tokens is not None and call.prompt_tokens]
    prompt = sum(call.prompt_tokens or 0 for call in told)
    return sum(call.cached_tokens or 0 for call in told) / prompt if prompt else None


def _foreseen(answered: Sequence[Call]) -> float | None:
    told = [call for call in answered if call.cached_tokens is not None and call.predicted_tokens is not None]
    return sum(call.cached_tokens == call.predicted_tokens for call in told) / len(told) if told else None


def _workers(answered: Sequence[Call]) -> list[WorkerShare]:
    found: dict[str, list[Call]] = {}
    for call in answered:
        if call.worker is not None:
            found.setdefault(call.worker, []).append(call)
    return [
        WorkerShare(
            id=worker,
            requests=len(calls),
            prompt_tokens=sum(call.prompt_tokens or 0 for call in calls),
            cached_tokens=sum(call.cached_tokens or 0 for call in calls),
            ttft_mean=spread([call.ttft for call in calls if not math.isnan(call.ttft)]).mean,
        )
        for worker, calls in sorted(found.items(), key=lambda item: -len(item[1]))
    ]


def rows_of(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Every request, under the names that `simulate` gives them; `worker` counts workers as they first appear."""
    numbers: dict[str, int] = {}
    return [
        {
            "number": call.number,
            "arrival": call.due_at,
            "input_tokens": call.row.input_length,
            "output_tokens": call.row.output_length,
            "router": 0,
            "worker": None if call.worker is None else numbers.setdefault(call.worker, len(numbers)),
            "reason": call.reason,
            "dispatched_at": finite(call.sent_at),
            "started_at": None,
            "first_token_at": finite(call.first_token_at),
            "finished_at": finite(call.finished_at),
            "predicted_tokens": call.predicted_tokens,
            "cached_tokens": call.cached_tokens,
            "worker_id": call.worker,
            "result": call.result.value,
            "status": call.status,
            "error": call.error,
            "prompt_tokens": call.prompt_tokens,
            "completion_tokens": call.completion_tokens,
        }
        for call in calls
    ]
