"""What is shown of a placement: the header, the log line and the operators' view, of one leg and of two."""

from __future__ import annotations

from enum import Enum

import msgspec

from sgl_router.placement import LOG_FIELDS, LOG_FIRST, CandidateCost, DecisionReason, Leg, Placement, Unmatched
from sgl_router.workers import Target, Worker, WorkerInfo, WorkerMode


def target(url: str, mode: WorkerMode = WorkerMode.PLAIN, dp_size: int = 1) -> Target:
    return Worker(url, WorkerInfo(served_model_name="m", mode=mode, dp_size=dp_size)).targets[-1]


A = target("http://a:1")
LEG = Leg(A, DecisionReason.CACHE_HIT, 3, 0, 2, 4, 6, 16, 97, None, 8, 4, 1.23456)


def headers(placement: Placement) -> dict[str, str]:
    lines = placement.header_lines().decode().split("\r\n")
    assert lines[0] == ""
    return dict(line.split(": ", 1) for line in lines[1:])


def test_the_header_names_the_worker_and_why() -> None:
    assert headers(Placement((LEG,))) == {
        "x-sgl-router-worker": A.worker.id,
        "x-sgl-router-decision": "reason=cache_hit; matched=4; total=6; page=16",
    }


def test_the_header_says_more_where_there_is_more() -> None:
    leg = Leg(target("http://b:1", dp_size=4), DecisionReason.SPREAD, 4, 0, 0, 1, 9, 16, expected_blocks=3)
    assert headers(Placement((leg,)))["x-sgl-router-decision"] == (
        "reason=spread; matched=1; total=9; page=16; expected=3; dp_rank=3"
    )
    leg = msgspec.structs.replace(LEG, unmatched=Unmatched.MEDIA)
    assert headers(Placement((leg,)))["x-sgl-router-decision"].endswith("; unmatched=media")


def test_the_view_has_every_field_that_is_data() -> None:
    view = Placement((LEG,)).view()
    assert view == {
        "worker": A.worker.id,
        "dp_rank": 0,
        "reason": "cache_hit",
        "candidates": 3,
        "min_load": 0,
        "max_load": 2,
        "matched_blocks": 4,
        "total_blocks": 6,
        "page_size": 16,
        "prompt_tokens": 97,
        "unmatched": None,
        "expected_blocks": 4,
        "cost_ms": 1.235,
    }
    assert set(Leg.__struct_fields__) - set(view) == {"target", "epoch", "costs"}
    msgspec.json.encode(view)


def test_two_legs_are_both_shown() -> None:
    prefill = msgspec.structs.replace(LEG, target=target("http://p:1", WorkerMode.PREFILL))
    decode = Leg(target("http://d:1", WorkerMode.DECODE, 2), DecisionReason.POWER_OF_TWO, 2, 1, 1)
    pair = Placement((prefill, decode))
    assert (pair.prefill, pair.decode) == (prefill, decode)
    assert headers(pair) == {
        "x-sgl-router-worker": decode.target.worker.id,
        "x-sgl-router-decision": "reason=cache_hit; matched=4; total=6; page=16",
    }
    fields = pair.log_fields(LOG_FIRST) | pair.log_fields(LOG_FIELDS)
    assert fields["worker"] == prefill.target.worker.id
    assert (fields["decode_worker"], fields["decode_dp_rank"]) == (decode.target.worker.id, 1)
    assert (fields["reason"], fields["decode_reason"]) == ("cache_hit", "power_of_two")
    view = pair.view()
    assert view["worker"] == prefill.target.worker.id
    assert [leg["worker"] for leg in view["legs"]] == [prefill.target.worker.id, decode.target.worker.id]


def test_what_a_leg_comes_to() -> None:
    assert (LEG.matched_tokens, LEG.uncached_tokens, LEG.prompt_blocks) == (64, 33, 7)
    bare = Leg(A, DecisionReason.RANDOM, 1, 0, 0)
    assert (bare.matched_tokens, bare.uncached_tokens, bare.prompt_blocks, bare.match_rate) == (0, 0, 0, 0.0)


def test_values_in_headers_and_lines_need_no_quoting() -> None:
    for kind in (DecisionReason, Unmatched):
        assert issubclass(kind, Enum)
        assert all(one.value.replace("_", "").isalnum() for one in kind)
    assert CandidateCost.__struct_fields__[0] == "target"
