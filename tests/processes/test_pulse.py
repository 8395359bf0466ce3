from __future__ import annotations

from sgl_router.runtime.heartbeat import Heartbeat, Watch


def test_silence_is_counted_in_turns_of_the_watcher() -> None:
    pulse = Heartbeat(3)
    assert [pulse.turn() for _ in range(5)] == [False, False, False, True, True]


def test_any_word_is_enough_however_late() -> None:
    pulse = Heartbeat(3)
    for _ in range(10):
        assert not any(pulse.turn() for _ in range(3))
        pulse.beat()
    assert pulse.silent_turns == 0


def test_a_machine_that_was_suspended_costs_one_turn() -> None:
    """However far the clock has jumped: nothing here looks at one."""
    pulse = Heartbeat(Watch().patience)
    pulse.turn()
    assert not pulse.turn()


def test_the_bound_is_generous() -> None:
    watch = Watch()
    assert watch.patience >= 20
    assert watch.patience * watch.turn_secs >= 20
