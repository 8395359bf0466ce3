from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from sgl_router.workers.breaker import BreakerState, CircuitBreaker, Permit

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def take(breaker: CircuitBreaker, now: float) -> Permit:
    permit = breaker.acquire(now)
    assert permit is not None
    return permit


def opened(threshold: int = 2, cool_down: float = 10.0, at: float = 100.0) -> CircuitBreaker:
    breaker = CircuitBreaker(threshold, cool_down)
    for _ in range(threshold):
        take(breaker, at).failure(at)
    assert breaker.state is OPEN
    return breaker


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("", CLOSED),
        ("f", CLOSED),
        ("ff", CLOSED),
        ("fff", OPEN),
        ("ffsff", CLOSED),
        ("ffrf", OPEN),  # back-pressure neither adds to the failures nor forgives them
        ("rrrr", CLOSED),
        ("ssss", CLOSED),
    ],
)
def test_consecutive_failures_open_the_circuit(outcomes: str, state: BreakerState) -> None:
    breaker = CircuitBreaker(threshold=3, cool_down_secs=30)
    for outcome in outcomes:
        permit = take(breaker, 0.0)
        {"f": permit.failure, "s": permit.success, "r": permit.release}[outcome](0.0)
    assert breaker.state is state


def test_an_open_circuit_lets_nobody_in_until_the_cool_down_is_over() -> None:
    breaker = opened(cool_down=10, at=100)
    assert not breaker.would_allow(109.9) and breaker.acquire(109.9) is None
    assert breaker.would_allow(110)
    assert breaker.state is OPEN, "asking commits to nothing"


@pytest.mark.parametrize(("outcome", "state"), [("success", CLOSED), ("failure", OPEN), ("release", HALF_OPEN)])
def test_one_probe_decides(outcome: str, state: BreakerState) -> None:
    breaker = opened(cool_down=10, at=100)
    probe = take(breaker, 110)
    assert breaker.state is HALF_OPEN
    assert not breaker.would_allow(110) and breaker.acquire(110) is None
    assert not breaker.would_allow(10_000), "the probe is exclusive however long it takes"
    getattr(probe, outcome)(115)
    assert breaker.state is state


def test_a_failed_probe_starts_a_new_cool_down() -> None:
    breaker = opened(cool_down=10, at=100)
    take(breaker, 110).failure(117)
    assert not breaker.would_allow(126.9)
    assert breaker.would_allow(127)


def test_a_released_probe_gives_its_slot_back() -> None:
    breaker = opened(cool_down=10, at=100)
    take(breaker, 110).release(111)
    assert breaker.would_allow(111)
    take(breaker, 111).success(112)
    assert breaker.state is CLOSED


def test_a_circuit_that_closed_again_needs_the_whole_threshold_to_open() -> None:
    breaker = opened(threshold=2, cool_down=10, at=100)
    take(breaker, 110).success(111)
    take(breaker, 112).failure(112)
    assert breaker.state is CLOSED
    take(breaker, 113).failure(113)
    assert breaker.state is OPEN
    assert breaker.transitions == 4


@pytest.mark.parametrize("outcome", ["success", "failure", "release"])
def test_a_permit_settles_once(outcome: str) -> None:
    breaker = CircuitBreaker(threshold=2, cool_down_secs=10)
    permit = take(breaker, 0)
    permit.failure(0)
    for _ in range(3):
        getattr(permit, outcome)(1)
    assert breaker.state is CLOSED and breaker.failures == 1


@pytest.mark.parametrize("outcome", ["success", "failure", "release"])
def test_late_results_do_not_touch_an_open_circuit(outcome: str) -> None:
    breaker = CircuitBreaker(threshold=2, cool_down_secs=10)
    late = [take(breaker, 0) for _ in range(3)]
    for _ in range(2):
        take(breaker, 5).failure(5)
    for permit in late:
        getattr(permit, outcome)(14)
    assert breaker.state is OPEN and breaker.would_allow(15), "the cool-down counts from the opening"


@pytest.mark.parametrize("outcome", ["success", "failure", "release"])
def test_late_results_do_not_decide_for_the_probe(outcome: str) -> None:
    breaker = CircuitBreaker(threshold=1, cool_down_secs=10)
    late = take(breaker, 0)
    take(breaker, 0).failure(0)
    probe = take(breaker, 10)
    getattr(late, outcome)(11)
    assert breaker.state is HALF_OPEN and not breaker.would_allow(11)
    probe.success(12)
    assert breaker.state is CLOSED


def test_late_results_of_an_earlier_closed_era_do_not_count_in_the_next() -> None:
    breaker = CircuitBreaker(threshold=2, cool_down_secs=10)
    late = [take(breaker, 0) for _ in range(2)]
    for _ in range(2):
        take(breaker, 0).failure(0)
    take(breaker, 10).success(10)
    for permit in late:
        permit.failure(11)
    assert breaker.state is CLOSED and breaker.failures == 0


def test_a_probe_praised_too_early_counts_as_a_failure_of_the_era_it_began() -> None:
    breaker = opened(threshold=2, cool_down=10, at=100)
    probe = take(breaker, 110)
    probe.success(110)
    probe.broke_off(115)
    assert breaker.state is CLOSED and breaker.failures == 1
    take(breaker, 116).failure(116)
    assert breaker.state is OPEN


def test_a_probe_praised_too_early_does_not_prolong_a_later_cool_down() -> None:
    breaker = opened(threshold=1, cool_down=10, at=100)
    first = take(breaker, 110)
    first.success(110)
    take(breaker, 120).failure(120)
    first.broke_off(131)
    assert breaker.state is OPEN and breaker.would_allow(131)
    second = take(breaker, 131)
    first.broke_off(132)
    second.success(133)
    assert breaker.state is CLOSED


def test_who_was_let_in_before_neither_decides_for_the_probe_nor_takes_its_place_by_breaking_off() -> None:
    breaker = CircuitBreaker(threshold=1, cool_down_secs=10)
    late = take(breaker, 0)
    take(breaker, 0).failure(0)
    probe = take(breaker, 10)
    late.success(11)  # its first byte
    probe.release(12)
    late.broke_off(13)
    assert breaker.state is HALF_OPEN and breaker.would_allow(13)


@dataclass
class Held:
    permit: Permit
    era: int  # of the model, when the permit was handed out


class BreakerMachine(RuleBasedStateMachine):
    """Against a model that keeps the whole history of the current era instead of counters."""

    permits = Bundle("permits")
    THRESHOLD, COOL_DOWN = 3, 10.0

    def __init__(self) -> None:
        super().__init__()
        self.breaker = CircuitBreaker(self.THRESHOLD, self.COOL_DOWN)
        self.now = 0.0
        self.state = CLOSED
        self.era = 0
        self.history = ""
        self.opened_at = 0.0
        self.probe: Held | None = None

    def enter(self, state: BreakerState) -> None:
        self.state, self.history, self.probe = state, "", None
        self.era += 1
        if state is OPEN:
            self.opened_at = self.now

    def allowed(self) -> bool:
        if self.state is OPEN:
            return self.now - self.opened_at >= self.COOL_DOWN
        return self.state is CLOSED or self.probe is None

    @rule(secs=st.sampled_from([0.0, 1.0, 4.0, 10.0, 25.0]))
    def time_passes(self, secs: float) -> None:
        self.now += secs

    @rule(target=permits)
    def acquire(self) -> Held | None:
        allowed = self.allowed()
        permit = self.breaker.acquire(self.now)
        assert (permit is not None) == allowed
        if permit is None:
            return None
        if self.state is OPEN:
            self.enter(HALF_OPEN)
        held = Held(permit, self.era)
        if self.state is HALF_OPEN:
            self.probe = held
        return held

    @rule(held=permits, outcome=st.sampled_from("sfr"))
    def settle(self, held: Held | None, outcome: str) -> None:
        if held is None:
            return
        counts = held.era == self.era and not held.permit.settled
        {"s": held.permit.success, "f": held.permit.failure, "r": held.permit.release}[outcome](self.now)
        if not counts:
            return
        if self.state is HALF_OPEN:
            if outcome == "r":
                self.probe = None
            else:
                self.enter(CLOSED if outcome == "s" else OPEN)
            return
        self.history += outcome.replace("r", "")
        if self.history.endswith("f" * self.THRESHOLD):
            self.enter(OPEN)

    @invariant()
    def agrees(self) -> None:
        assert self.breaker.state is self.state
        assert self.breaker.transitions == self.era
        assert self.breaker.would_allow(self.now) == self.allowed()


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
