"""A flush past the router empties the index: the next request is not taken for a hit."""

from __future__ import annotations

from lane.fleet import Fleet
from lane.waiting import until


def test_flush_empties_the_index(fleet: Fleet) -> None:
    flushed, other = fleet.workers[:2]
    messages = fleet.prompts.user("flushed", 12 * fleet.page)
    elsewhere = fleet.prompts.user("kept", 12 * fleet.page)
    fleet.warm(flushed, messages)
    fleet.warm(other, elsewhere)
    before = fleet.ask(messages)
    assert before.worker is flushed and before.decision.hit and before.exact, str(before)
    fleet.settle()
    kept = fleet.held(other)

    flushed.flush()
    until(lambda: fleet.held(flushed) == 0, "an empty index for the flushed worker")
    assert fleet.held(other) == kept > 0

    after = fleet.ask(messages)
    assert not after.decision.hit, str(after)
    assert after.predicted == after.cached == 0, str(after)
    still = fleet.ask(elsewhere)
    assert still.worker is other and still.decision.hit and still.exact, str(still)
