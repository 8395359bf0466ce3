"""Leases of several legs: all of them end, once, however it goes."""

from __future__ import annotations

from typing import Any

import pytest

from sgl_router.load import ActiveLoad
from sgl_router.outcome import Outcome
from sgl_router.placement import DecisionReason, Leg, Placement
from sgl_router.routing.conduct import Conduct
from sgl_router.routing.local_lease import LegLease, LocalLease
from sgl_router.workers import Permit, Worker, WorkerInfo, WorkerMode


class Routing:
    """As much of it as a lease uses."""

    def __init__(self) -> None:
        self.changes = 0

    def clock(self) -> float:
        return 5.0

    def changed(self, model_id: str) -> None:
        self.changes += 1


class Pair:
    def __init__(self) -> None:
        self.load = ActiveLoad()
        self.workers = [
            Worker(f"http://{mode.value}:1", WorkerInfo(served_model_name="m", mode=mode))
            for mode in (WorkerMode.PREFILL, WorkerMode.DECODE)
        ]
        self.routing: Any = Routing()
        conduct = Conduct(lambda: self.workers, None)  # type: ignore[arg-type]
        legs = [Leg(worker.targets[0], DecisionReason.NO_MATCH, 1, 0, 0, prompt_tokens=64) for worker in self.workers]
        self.legs = tuple(
            LegLease(
                conduct,
                leg,
                leg.target.worker.breaker.acquire(1.0) or Permit(leg.target.worker.breaker, -1),
                self.load.acquire(leg.target, prefill_tokens=64, decode_blocks=4, now=1.0),
            )
            for leg in legs
        )
        self.lease = LocalLease(self.routing, Placement(tuple(legs)), self.legs, "m", "req-1")

    def charged(self) -> list[int]:
        return [worker.targets[0].inflight for worker in self.workers]

    def counted(self, outcome: str) -> list[int]:
        return [worker.stats.requests.get(outcome, 0) for worker in self.workers]


@pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.TIMEOUT, Outcome.CLIENT_GONE])
def test_the_end_of_a_placement_ends_every_leg_once(outcome: Outcome) -> None:
    pair = Pair()
    assert pair.charged() == [1, 1]
    pair.lease.first_byte(200)
    assert [worker.targets[0].prefill_tokens for worker in pair.workers] == [0, 0]
    for _ in range(3):
        pair.lease.end(outcome)
    assert pair.charged() == [0, 0]
    assert pair.counted(outcome.value) == [1, 1]
    assert len(pair.load) == 0
    assert pair.routing.changes == 2


def test_a_leg_that_cannot_end_does_not_keep_the_others() -> None:
    pair = Pair()

    def broken(cached_tokens: int | None) -> None:
        raise ZeroDivisionError

    pair.legs[0].witnessed = type("Broken", (), {"completed": staticmethod(broken)})()
    with pytest.raises(ZeroDivisionError):
        pair.lease.end(Outcome.COMPLETED)
    assert pair.charged() == [0, 0]
    assert len(pair.load) == 0
    pair.lease.end(Outcome.COMPLETED)


def test_a_placement_expires_once() -> None:
    pair = Pair()
    ended: list[int] = []
    pair.lease.on_expire = lambda: ended.append(1)
    assert pair.load.expire(1_000.0, 600.0) == 2
    assert ended == [1]
    pair.lease.end(Outcome.EXPIRED)
    assert pair.charged() == [0, 0]
