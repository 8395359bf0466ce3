"""What is printed."""

from __future__ import annotations

from array import array
from typing import Any

from sgl_router.lab.replay.call import Call, Result
from sgl_router.lab.replay.measure import rows_of, summarise
from sgl_router.lab.replay.study import Reading, Replay, as_json
from sgl_router.lab.replay.table import format_comparison, format_replay
from sgl_router.lab.simulate.trace import TraceRow


def call(number: int, result: Result = Result.ANSWERED, **over: Any) -> Call:
    fields = {
        "sent_at": number + 0.001,
        "first_event_at": number + 0.101,
        "first_text_at": number + 0.101,
        "finished_at": number + 0.501,
        "status": 200,
        "prompt_tokens": 1000,
        "cached_tokens": 250,
        "completion_tokens": 5,
        "predicted_tokens": 250,
        "worker": "w-1",
        "reason": "cache_hit",
    }
    return Call(number, TraceRow(0.0, 1000, 5, (1, 2)), float(number), result=result, **{**fields, **over})


def replay(*calls: Call, expected: int = 1000, **over: Any) -> Replay:
    settings: dict[str, Any] = {
        "workload": "t.jsonl",
        "url": "http://host",
        "model": "m",
        "rate": 2.0,
        "seed": 0,
        "block_tokens": 32,
        "scale": "1/16",
        "interrupted": False,
        "summary": summarise(calls, array("d", [0.02]), [expected] * len(calls)),
        "rows": rows_of(calls),
    }
    return Replay(**{**settings, **over})


def reading(other: Replay, **over: Any) -> Reading:
    found = as_json(other, per_request=True)
    asked = {name: found[name] for name in ("workload", "rate", "seed", "block_tokens", "token_scale")}
    return Reading("other", {**asked, **over}, found["summary"], found["requests"])


def test_a_replay_in_full() -> None:
    text = format_replay(replay(call(0), call(1)))
    assert text.startswith(
        "t.jsonl to http://host, model m: rate 2x, blocks of 32 tokens, lengths times 1/16, seed 0; 1.5 s\n"
    )
    assert "requests   2 due, 2 answered, no errors" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["milliseconds", "mean", "p50", "p90", "p99", "longest"] in lines
    assert ["TTFT", "100", "100", "100", "100", "100"] in lines
    assert ["sender", "lag", "1.0", "1.0", "1.0", "1.0", "1.0"] in lines
    assert "as many as meant in 100.0% of requests" in text
    assert "answers    10 tokens of 10 asked for" in text
    assert "hit rate   25.0% of prompt tokens were cached; exactly as the router foresaw in 100.0%" in text
    assert ["w-1", "2", "2,000", "25.0%", "100"] in lines
    assert "reasons    cache_hit 2" in text
    assert "warning" not in text


def test_what_went_wrong_is_said() -> None:
    text = format_replay(
        replay(
            call(0, Result.STATUS, status=503, error="full\nup"),
            call(1, Result.DROPPED),
            call(2, Result.UNFINISHED),
            call(3, cached_tokens=None),
            expected=900,
            interrupted=True,
        )
    )
    assert "s, interrupted\n" in text
    assert "4 due, 1 answered, 1 dropped (--max-in-flight), 1 unfinished\n  1 x status 503: full up" in text
    assert "in 0.0% of requests, up to 100 off in the others (is --tokenizer the server's?)" in text
    assert "hit rate   not reported (SGLang: --enable-cache-report)" in text


def test_a_late_sender_is_pointed_out() -> None:
    assert "warning: the sender was late by 200 ms at p99" in format_replay(replay(call(0, sent_at=0.2)))


def test_a_server_that_tells_no_worker_has_no_placement() -> None:
    text = format_replay(replay(call(0, worker=None, reason=None)))
    assert "reasons" not in text and "worker" not in text


def test_two_replays_side_by_side() -> None:
    slower = replay(call(0, first_text_at=0.201, cached_tokens=500), call(1, worker="w-2"))
    text = format_comparison(replay(call(0), call(1)), reading(slower))
    lines = [line.split() for line in text.splitlines()]
    assert ["TTFT", "mean", "100", "150", "0.67"] in lines
    assert ["TTFT", "longest", "100", "200", "0.50"] in lines
    assert ["hit", "rate", "25.0%", "37.5%", "0.67"] in lines
    assert ["answered", "2", "2", "-"] in lines
    assert "same worker for 1 of 2 requests (50.0%), workers renamed for best agreement" in text
    assert "not the same question" not in text


def test_unlike_questions_are_pointed_out() -> None:
    text = format_comparison(replay(call(0)), reading(replay(call(0)), rate=1.0, workload="x"))
    assert "not the same question: workload t.jsonl here, x there; rate 2.0 here, 1.0 there" in text


def test_a_simulation_beside_a_replay() -> None:
    figures = {"ttft": {"mean": 0.2}, "hit_rate": None, "requests": 5, "refused": 1}
    text = format_comparison(replay(call(0)), Reading("sim", {"rate": 2.0}, figures, None))
    lines = [line.split() for line in text.splitlines()]
    assert ["TTFT", "mean", "100", "200", "0.50"] in lines
    assert ["ITL", "mean", "20.0", "-", "-"] in lines
    assert ["hit", "rate", "25.0%", "-", "-"] in lines
    assert ["answered", "1", "4", "-"] in lines
    assert "same worker" not in text
