"""Refusals, repeated failures and streams that go on, where another process decides."""

from __future__ import annotations

from typing import Any

from sgl_router.outcome import Outcome
from sgl_router.routing import RouteRequest
from sgl_router.workers import BreakerState, HealthState

A, B = "http://a:1", "http://b:1"


async def test_a_refusal_is_heard_by_the_process_that_decides_and_by_the_fallback(rig: Any) -> None:
    routing = await rig.routing(A, B)
    one, two = await rig.side(), await rig.side()
    lease = await one.choose(tried={one.worker(B)})
    lease.end(Outcome.BACK_PRESSURE, status=503, retry_after_secs=50.0)
    refusals = routing.worker(A).targets[0].refusals
    await rig.until(lambda: refusals.until is not None, "the refusal was told")
    assert 40 < refusals.until - one.routing.clock() <= 50
    for side in (one, two):
        leases = [await side.choose() for _ in range(4)]
        assert {lease.placement.prefill.target.worker.url for lease in leases} == {B}
        for lease in leases:
            lease.end(Outcome.COMPLETED, status=200)
    await routing.server.close()
    await rig.until(lambda: one.routing.away, "the routing process is away")
    leases = [await one.choose() for _ in range(4)]
    assert {lease.placement.prefill.target.worker.url for lease in leases} == {B}
    assert len(one.fell_back) == 4


async def test_a_run_of_4xx_is_added_up_over_data_processes(rig: Any) -> None:
    routing = await rig.routing(A, B)
    sides = [await rig.side(), await rig.side()]
    for number in range(3):
        side = sides[number % 2]
        (await side.choose(tried={side.worker(B)})).end(Outcome.CLIENT_ERROR, status=401)
    await rig.until(lambda: routing.worker(A).backed_off == 1, "found out")
    assert routing.worker(A).breaker.failures == 0


async def test_one_request_repeated_through_several_processes_is_one_failure(rig: Any) -> None:
    routing = await rig.routing(A)
    sides = [await rig.side(), await rig.side()]

    async def fail(number: int, fingerprint: int, **end: Any) -> None:
        lease = await sides[number % 2].routing.choose(RouteRequest(model_id="m", fingerprint=fingerprint), set())
        assert lease is not None
        lease.end(Outcome.WORKER_ERROR, status=500, **end)

    breaker = routing.worker(A).breaker
    for number in range(6):
        await fail(number, 2**64 - 1)
    for number in range(6):
        await fail(number, number, unrenderable=True)
    requests = routing.worker(A).stats.requests
    await rig.until(lambda: requests.get("worker_error") == 12, "all were told")
    assert (breaker.state, breaker.failures) == (BreakerState.CLOSED, 1)
    for number in range(2):
        await fail(number, number)
    await rig.until(lambda: breaker.state is BreakerState.OPEN, "different requests")


async def test_bytes_of_streams_are_told_and_a_busy_worker_is_mirrored(rig: Any) -> None:
    routing = await rig.routing(A)
    side = await rig.side()
    lease = await side.choose()
    there, here = routing.worker(A), side.worker(A)
    side.routing.send_heard()
    here.heard = True  # as a piece of the response does
    side.routing.send_heard()
    await rig.until(lambda: there.heard, "told")
    assert not here.heard
    lease.end(Outcome.COMPLETED, status=200)
    there.busy_until = routing.server.clock() + 60
    there.health = HealthState.UNHEALTHY
    await rig.until(lambda: here.health is HealthState.UNHEALTHY and here.busy(0.0), "mirrored")
    await routing.server.close()
    await rig.until(lambda: side.routing.away, "the routing process is away")
    lease = await side.choose()
    assert lease is not None and side.fell_back == ["m"]
    lease.end(Outcome.COMPLETED)


async def test_a_declared_lease_ends_like_any_other(rig: Any) -> None:
    routing = await rig.routing(A, start=False)
    side = await rig.side(join=False)
    await rig.start(routing)
    assert await side.routing.joined(10.0)
    lease = await side.choose()
    await routing.server.close()
    await rig.until(lambda: side.routing.away, "away")
    again = await rig.routing(A)
    await rig.until(lambda: len(again.load) == 1, "declared")
    lease.end(Outcome.BACK_PRESSURE, status=429, retry_after_secs=9.0)
    await rig.until(lambda: again.worker(A).backed_off == 1, "its refusal counts there")
