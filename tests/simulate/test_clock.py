"""Simulated time."""

from __future__ import annotations

from sgl_router.lab.simulate.clock import SimClock


def test_callbacks_come_in_order_and_equal_times_in_the_order_asked_for() -> None:
    clock, heard = SimClock(), []
    for name, when in (("c", 2.0), ("a", 1.0), ("b", 1.0)):
        clock.at(when, lambda name=name: heard.append((name, clock.now)))
    clock.at(1.0, lambda: clock.at(0.5, lambda: heard.append(("late", clock()))))
    clock.run()
    assert heard == [("a", 1.0), ("b", 1.0), ("late", 1.0), ("c", 2.0)]


def test_a_cancelled_one_does_not_come() -> None:
    clock, heard = SimClock(), []
    timer = clock.later(1.0, lambda: heard.append("x"))
    clock.later(0.5, timer.cancel)
    clock.run()
    assert heard == []
    assert clock.now == 0.5
