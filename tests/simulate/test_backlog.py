"""The reckoned backlog, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from sgl_router.lab.simulate.backlog import DrainingBacklog
from sgl_router.lab.simulate.clock import SimClock

TARGET: Any = object()


class Sent:
    target = TARGET

    def __init__(self, tokens: int) -> None:
        self.uncached_tokens = tokens


def test_the_first_prompt_drains_and_the_others_wait_their_turn() -> None:
    clock = SimClock()
    backlog = DrainingBacklog(clock, 100.0)
    one, two, three = Sent(1_000), Sent(500), Sent(200)
    assert backlog.tokens(TARGET) == 0.0
    for sent in (one, two):
        backlog.dispatched(sent, 0.0)
    assert backlog.tokens(TARGET) == 1_500.0
    clock.now = 4.0
    assert backlog.tokens(TARGET) == 1_100.0
    clock.now = 60.0
    assert backlog.tokens(TARGET) == 500.0, "the second has not begun, however long the first takes"
    backlog.first_byte(one, 60.0)
    clock.now = 62.0
    backlog.dispatched(three, 62.0)
    assert backlog.tokens(TARGET) == 500.0
    backlog.first_byte(three, 62.0)  # out of order: the head goes on as before
    assert backlog.tokens(TARGET) == 300.0
    backlog.first_byte(two, 63.0)
    assert backlog.tokens(TARGET) == 0.0
    backlog.ended(two, 0, 63.0)
    backlog.load_reported(TARGET, SimpleNamespace(), 63.0)
    clock.now = 70.0
    backlog.dispatched(Sent(100), 70.0)
    assert backlog.tokens(TARGET) == 100.0
