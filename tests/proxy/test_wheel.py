from __future__ import annotations

import asyncio

import pytest
import uvloop

from sgl_router.upstream.timer_wheel import HORIZON_SECS, SLOTS_PER_SEC, TimerWheel, wheel_of


class Clock:
    """As much of an event loop as a wheel needs; `turn_to` lets time pass."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, object]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, call):  # type: ignore[no-untyped-def]
        timer = (at, call)
        self.timers.append(timer)
        clock = self

        class Handle:
            def cancel(self) -> None:
                if timer in clock.timers:
                    clock.timers.remove(timer)

        return Handle()

    def turn_to(self, now: float) -> None:
        while self.timers and min(self.timers, key=lambda timer: timer[0])[0] <= now:
            timer = min(self.timers, key=lambda timer: timer[0])
            self.timers.remove(timer)
            self.now = max(self.now, timer[0])
            timer[1]()
        self.now = now


class Item:
    def __init__(self) -> None:
        self.looks: list[float] = []

    def look(self, now: float) -> None:
        self.looks.append(now)


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.03, 0.5, 1.0, 7.99])
def test_a_look_comes_in_time_and_never_early(delay: float) -> None:
    clock, item = Clock(), Item()
    TimerWheel(clock).put(item, clock.now + delay, clock.now)  # type: ignore[arg-type]
    clock.turn_to(clock.now + 20)
    assert len(item.looks) == 1
    assert delay <= item.looks[0] - 100.0 <= delay + 1 / SLOTS_PER_SEC


def test_the_earlier_comes_first_whatever_the_order_of_putting() -> None:
    clock, first, second = Clock(), Item(), Item()
    wheel = TimerWheel(clock)  # type: ignore[arg-type]
    wheel.put(second, clock.now + 5, clock.now)
    wheel.put(first, clock.now + 1, clock.now)
    clock.turn_to(103.0)
    assert (len(first.looks), len(second.looks)) == (1, 0)


def test_far_times_are_looked_at_on_the_way_so_that_slots_stay_few() -> None:
    clock, wheel = Clock(), None
    wheel = TimerWheel(clock)  # type: ignore[arg-type]
    items = [Item() for _ in range(2000)]
    for item in items:
        slot = wheel.put(item, clock.now + 300, clock.now)
        wheel.slots[slot].discard(item)
        clock.turn_to(clock.now + 0.05)
    assert len(wheel.slots) <= HORIZON_SECS * SLOTS_PER_SEC + 1
    assert not any(item.looks for item in items)


def test_with_nothing_to_look_at_no_timer_runs() -> None:
    clock = Clock()
    wheel = TimerWheel(clock)  # type: ignore[arg-type]
    wheel.put(Item(), clock.now + 1, clock.now)
    assert len(clock.timers) == 1
    clock.turn_to(110.0)
    assert not clock.timers and not wheel.slots


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_each_loop_has_its_own(new_loop) -> None:  # type: ignore[no-untyped-def]
    one, two = new_loop(), new_loop()
    try:
        assert wheel_of(one) is wheel_of(one)
        assert wheel_of(two).loop is two
    finally:
        one.close()
        two.close()
