from __future__ import annotations

import asyncio

import pytest

from sgl_router.errors import StaleRequestExpired, UpstreamTimeout
from sgl_router.upstream import Deadline


def late() -> UpstreamTimeout:
    return UpstreamTimeout("late")


async def test_it_ends_the_block_with_its_error() -> None:
    with pytest.raises(UpstreamTimeout), Deadline() as deadline:
        deadline.arm(0.01, late)
        await asyncio.Event().wait()
    await asyncio.sleep(0)  # no cancellation is left over


async def test_a_later_arming_replaces_the_earlier() -> None:
    with Deadline() as deadline:
        deadline.arm(0.02, late)
        deadline.arm(30, late)
        await asyncio.sleep(0.05)
    with pytest.raises(StaleRequestExpired), Deadline() as deadline:
        deadline.arm(30, late)
        deadline.arm(0.01, lambda: StaleRequestExpired("old"))
        await asyncio.Event().wait()


async def test_disarmed_it_does_nothing() -> None:
    with Deadline() as deadline:
        deadline.arm(0.01, late)
        deadline.disarm()
        await asyncio.sleep(0.03)
        deadline.arm(30, late)


async def test_it_can_be_fired_by_hand_and_not_after_the_block() -> None:
    with pytest.raises(StaleRequestExpired), Deadline() as deadline:
        asyncio.get_running_loop().call_soon(lambda: deadline.fire(StaleRequestExpired("old")))
        await asyncio.Event().wait()
    with Deadline() as deadline:
        pass
    deadline.fire(StaleRequestExpired("too late"))
    await asyncio.sleep(0.01)


async def test_a_cancellation_from_outside_stays_one() -> None:
    async def job() -> None:
        with Deadline() as deadline:
            deadline.arm(30, late)
            await asyncio.Event().wait()

    task = asyncio.create_task(job())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_other_errors_pass() -> None:
    with pytest.raises(ValueError), Deadline() as deadline:
        deadline.arm(30, late)
        raise ValueError


async def test_a_thousand_deadlines_fire_each_in_its_time() -> None:
    loop = asyncio.get_running_loop()

    async def job(seconds: float) -> float:
        began = loop.time()
        with pytest.raises(UpstreamTimeout), Deadline() as deadline:
            deadline.arm(30, late)
            deadline.arm(seconds, late)
            await asyncio.Event().wait()
        return loop.time() - began - seconds

    async def plain(seconds: float) -> float:
        began = loop.time()
        await asyncio.sleep(seconds)
        return loop.time() - began - seconds

    waits = [0.02 + n % 10 / 50 for n in range(1000)]
    # A machine may be so busy that the loop itself is late.
    late_loop = asyncio.gather(*[plain(wait) for wait in waits])
    lateness = await asyncio.gather(*[job(wait) for wait in waits])
    assert min(lateness) >= 0
    assert sorted(lateness)[500] < 0.1 + sorted(await late_loop)[500]


async def test_after_the_block_nothing_is_kept() -> None:
    with Deadline() as deadline:
        deadline.arm(30, late)
        wheel = deadline._wheel
        assert any(deadline in group for group in wheel.slots.values())
    assert not any(deadline in group for group in wheel.slots.values())
