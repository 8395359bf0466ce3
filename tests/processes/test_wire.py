from __future__ import annotations

import msgspec
import pytest

from sgl_router.errors import ErrorCode
from sgl_router.outcome import Outcome
from sgl_router.placement import CandidateCost, DecisionReason, Leg, Placement, Unmatched
from sgl_router.routing.remote.messages import (
    Choose,
    Chosen,
    Counts,
    Declare,
    End,
    Expired,
    Explain,
    Explained,
    FirstByte,
    Fleet,
    Hashing,
    Held,
    Hello,
    Message,
    NobodyLeft,
    Readiness,
    Refused,
    WorkerGone,
    WorkerState,
    encode_into,
    from_routing,
    to_routing,
)
from sgl_router.workers import HealthState, Target, Worker, WorkerInfo, WorkerMode

TARGET = Worker("http://a:1", WorkerInfo(served_model_name="m", dp_size=2)).targets[1]
COST = CandidateCost(TARGET, *(0.5 * number for number in range(8)), uncached_tokens=7, queued_tokens=0)


def target(generation: int, dp_rank: int) -> Target:
    assert (generation, dp_rank) == (TARGET.worker.generation, TARGET.dp_rank)
    return TARGET


WORKER = WorkerState(1, "http://a:1", "m", WorkerMode.PLAIN, 2, 16, "t0", HealthState.HEALTHY)
UP = [
    Hello(1, 2),
    Choose(1, "m", 5, {1 << 63: b"12345678"}, ("salt", None), None, "req-1", "chat-1", [3], True, 2),
    Choose(2, "m", None, {}, None, Unmatched.MEDIA, "req-2", None, [], False, -1),
    Explain(3, "m", 5, {7: b"12345678"}, (None, "adapter"), None, "req-3", "chat-1"),
    FirstByte(1, 200),
    End(1, Outcome.COMPLETED, 5, 7),
    End(1, Outcome.CLIENT_GONE, None),
    Declare(1, "http://a:1", "m", 0, 10, 2, True, False),
    Counts(b"\0\xff"),
]
DOWN = [
    Fleet([WORKER, WORKER]),
    WORKER,
    Hashing((1 << 64) - 1, {"m": [(16, False), (1, True)]}),
    Readiness(["no worker registered for model 'm'"], 1.5e9),
    WorkerGone(4),
    Chosen(
        1,
        Placement(
            (
                Leg(TARGET, DecisionReason.CACHE_HIT, 2, 0, 1, 3, 4, 16, 70, None, 9, 3, 1.5, (COST,)),
                Leg(TARGET, DecisionReason.POWER_OF_TWO, 2, 0, 1, unmatched=Unmatched.NOT_ASKED),
            )
        ),
    ),
    NobodyLeft(1),
    Held(1),
    Refused(1, ErrorCode.QUEUE_FULL, "full", 3),
    Explained(1, {"decision": None, "waiting": 0, "candidates": [{"worker": "w-1", "cost": {"total_ms": 0.125}}]}),
    Expired(1),
]


@pytest.mark.parametrize("message", UP, ids=lambda one: type(one).__name__)
def test_what_goes_up_arrives(message: Message) -> None:
    buffer = bytearray(b"before")
    encode_into(message, buffer)
    assert int.from_bytes(buffer[6:10], "big") == len(buffer) - 10
    assert to_routing.decode(buffer[10:]) == message
    with pytest.raises(msgspec.ValidationError):
        from_routing(target).decode(buffer[10:])


@pytest.mark.parametrize("message", DOWN, ids=lambda one: type(one).__name__)
def test_what_comes_down_arrives(message: Message) -> None:
    buffer = bytearray()
    encode_into(message, buffer)
    assert from_routing(target).decode(buffer[4:]) == message


def test_what_cannot_be_encoded_leaves_nothing_behind() -> None:
    buffer = bytearray(b"before")
    with pytest.raises(OverflowError):
        encode_into(Choose(1, "m", 5, {}, None, None, "req-1", None, [], True, 10**30), buffer)
    assert buffer == b"before"
