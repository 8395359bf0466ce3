"""Who goes next out of the line, and where to."""

from __future__ import annotations

import random
import time
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.config import KvCostConfig, QueueConfig
from sgl_router.kv_events import MatchedPrefix, PromptMatch
from sgl_router.load import ActiveLoad, LoadGuard
from sgl_router.policies import KvCost, PolicyInput
from sgl_router.routing.request_queue import RequestQueue, Waiting
from sgl_router.workers import Target, Worker, WorkerInfo

PAGE = 100
HOUR = 3_600.0


class Scene:
    """Targets that compute a token in a millisecond, and a line before them. Time is in seconds from 0."""

    def __init__(self, count: int = 1, *, others_weight: float = 1.0, bonus: float = 0.0, **queue) -> None:
        cost = KvCostConfig(
            prefill_tokens_per_sec=1_000.0,
            decode_ms_per_1k_tokens=0.0,
            others_weight=others_weight,
            session_bonus_ms=bonus,
        )
        self.now = 0.0
        self.load = ActiveLoad({"m": 1_000.0}, clock=lambda: self.now)
        self.targets: list[Target] = []
        for number in range(count):
            worker = Worker(f"http://w{number}:1", WorkerInfo(served_model_name="m", block_size=PAGE))
            self.load.worker_added(worker)
            self.targets += worker.targets
        self.policy = KvCost(random.Random(1), cost, clock=lambda: self.now, bound_late=True)
        self.line = RequestQueue(self.policy, QueueConfig(**({"enabled": True, "max_wait_secs": HOUR} | queue)))
        self.names: dict[Waiting, str] = {}

    def busy(self, *targets: Target, tokens: int = 100_000) -> list[LoadGuard]:
        return [self.load.acquire(each, prefill_tokens=tokens, decode_blocks=0, now=self.now) for each in targets]

    def facts(self, tokens: int, held: dict[Target, int] | None = None, **more) -> PolicyInput:
        prefixes = {target: MatchedPrefix(n, n, n, n, PAGE) for target, n in (held or {}).items()}
        return PolicyInput(
            match=PromptMatch.stated(prefixes, dict.fromkeys(self.targets, 99)), prompt_tokens=tokens, **more
        )

    def enter(
        self, name: str, tokens: int = 1_000, held: dict[Target, int] | None = None, *, priority: int = 0, **more
    ) -> Waiting:
        item = Waiting(self.facts(tokens, held, **more), self.now, priority)
        self.line.enter(item, self.targets, self.now)
        self.names[item] = name
        return item

    def next(self, refresh=lambda item: item.facts) -> tuple[str, Target] | None:
        found = self.line.next(self.targets, self.now, refresh)
        if found is None:
            return None
        item, position, costs = found
        return self.names[item], self.policy.decide(position, costs, item.facts).target

    def order(self) -> str:
        """Everybody's names, in the order in which they go."""
        found = []
        while (went := self.next()) is not None:
            found.append(went[0])
        return "".join(found)


# --- room -----------------------------------------------------------------------------------------------------------


def test_nobody_goes_while_every_target_has_enough_to_compute() -> None:
    scene = Scene(2, release_below_ms=20.0)
    one, two = scene.targets
    guard, _ = scene.busy(one, two, tokens=500)
    scene.enter("a")
    assert scene.next() is None
    assert len(scene.line) == scene.policy.waiting == 1
    scene.now = 0.479
    assert not scene.line.has_room(scene.targets, scene.now)
    assert scene.next() is None
    scene.now = 0.481
    assert scene.line.has_room(scene.targets, scene.now)
    assert scene.next() in (("a", one), ("a", two))
    assert len(scene.line) == scene.policy.waiting == 0
    assert scene.next() is None
    guard.release()


def test_a_first_byte_makes_room() -> None:
    scene = Scene(2)
    guards = scene.busy(*scene.targets)
    scene.enter("a")
    guards[1].first_byte()
    assert scene.next() == ("a", scene.targets[1])


def test_a_target_without_own_prompts_has_room_whatever_others_send_it() -> None:
    scene = Scene(1)
    (target,) = scene.targets
    assert target.forecast is not None
    target.forecast.prompts.reported(9, 90_000, idle=False, at=0.0)
    assert scene.line.has_room(scene.targets, 0.0)
    scene.busy(target, tokens=1)
    assert not scene.line.has_room(scene.targets, 0.0)


def test_a_prompt_that_does_not_tell_makes_room_when_it_must_be_computed() -> None:
    scene = Scene(1, release_below_ms=0)
    (target,) = scene.targets
    scene.load.acquire(target, prefill_tokens=2_000, decode_blocks=0, now=0.0, streamed=False)
    scene.enter("a")
    scene.now = 1.9
    assert scene.next() is None
    scene.now = 2.1  # its answer may take minutes
    assert scene.line.has_room(scene.targets, scene.now)
    assert scene.next() == ("a", target)


def test_a_target_of_which_nothing_is_known_has_room() -> None:
    scene = Scene(1)
    scene.busy(*scene.targets)
    scene.targets[0].forecast = None
    assert scene.line.has_room(scene.targets, 0.0)
    assert not scene.line.has_room([], 0.0)


def test_without_candidates_one_can_enter_and_wait() -> None:
    scene = Scene(1)
    item = Waiting(scene.facts(1_000), 0.0)
    scene.line.enter(item, [], 0.0)
    assert scene.line.next([], 0.0, lambda item: item.facts) is None
    found = scene.line.next(scene.targets, 0.0, lambda item: item.facts)
    assert found is not None
    assert found[0] is item


# --- order ----------------------------------------------------------------------------------------------------------


def test_the_least_work_goes_first() -> None:
    scene = Scene(2)
    one, _ = scene.targets
    scene.enter("c", 3_000)
    scene.enter("a", 500)
    scene.enter("b", 9_000, {one: 80})
    scene.enter("d", 4_000)
    assert scene.order() == "abcd"


def test_waiting_makes_up_for_work() -> None:
    scene = Scene(1, ageing=0.5)
    scene.busy(*scene.targets)
    scene.enter("a", 2_000)
    scene.now = 1.9
    scene.enter("b", 1_000)  # 0.95 s of work made up for, where 1 s is wanting
    scene.now = 2.1
    scene.enter("c", 1_000)
    scene.targets[0].forecast = None
    assert scene.order() == "bac"


def test_without_ageing_only_work_counts() -> None:
    scene = Scene(1, ageing=0.0)
    scene.enter("a", 2_000)
    scene.now = 600.0
    scene.enter("b", 1_999)
    assert scene.order() == "ba"


def test_first_come_first_served() -> None:
    scene = Scene(2, order="fcfs")
    for name, tokens in zip("abcd", (4_000, 100, 9_000, 10), strict=True):
        scene.now += 0.001
        scene.enter(name, tokens)
    assert scene.order() == "abcd"


@pytest.mark.parametrize("order", ["shortest_work_first", "fcfs"])
def test_a_higher_class_goes_first_whatever_its_work(order: str) -> None:
    scene = Scene(1, order=order)
    scene.enter("c", 10, priority=-1)
    scene.enter("b", 10)
    scene.enter("a", 9_000, priority=5)
    scene.enter("d", 5, priority=-2)
    assert scene.order() == "abcd"


def test_classes_hold_though_they_are_weighed_together() -> None:
    """A cheap one of a lower class must not slip in among the first that are weighed."""
    scene = Scene(2)
    scene.enter("b", 900, priority=0)
    scene.enter("a", 90_000, priority=1)
    assert scene.order() == "ab"


@pytest.mark.parametrize("order", ["shortest_work_first", "fcfs"])
def test_who_has_waited_for_half_of_the_bound_goes_before_all_classes(order: str) -> None:
    scene = Scene(1, order=order, max_wait_secs=60.0)
    scene.enter("b", 50_000, priority=-3)
    scene.now = 10.0
    scene.enter("c", 40_000, priority=-3)
    scene.now = 29.9
    scene.enter("a", 100, priority=9)
    assert scene.next() == ("a", scene.targets[0])
    scene.now = 30.0
    scene.enter("d", 100, priority=9)
    assert scene.next() == ("b", scene.targets[0])
    scene.now = 39.9
    assert scene.next() == ("d", scene.targets[0])
    assert scene.order() == "c"


def test_classes_keep_every_second_turn_from_those_who_have_waited_long() -> None:
    scene = Scene(1, max_wait_secs=60.0)
    for name in "ace":
        scene.enter(name, 50_000, priority=-1)
    scene.now = 31.0
    for name in "bd":
        scene.enter(name, 100, priority=1)
    assert [scene.next()[0] for _ in range(5)] == list("abcde")


def test_an_idle_target_that_nobody_likes_does_not_empty_the_line_onto_the_others() -> None:
    scene = Scene(2, others_weight=0.0)
    good, bad = scene.targets
    for number in range(20):
        scene.enter(f"r{number}", 40_000, {good: 39_200 // PAGE})
    scene.busy(good, tokens=100)
    went = []
    while (found := scene.next()) is not None:
        went.append(found[1])
        scene.busy(found[1], tokens=800 if found[1] is good else 40_000)
    assert [went.count(target) for target in (good, bad)] == [4, 1]


def test_the_best_pair_goes_not_the_first() -> None:
    """Of two equal prompts the one whose prefix lies on a target that is free, not the one whose owner is busy."""
    scene = Scene(2, others_weight=0.0)
    one, two = scene.targets
    scene.enter("late", 2_000, {one: 10})
    scene.enter("early", 2_000, {two: 10})
    scene.busy(one, tokens=900)
    assert scene.next() == ("early", two)


def test_the_index_is_asked_again() -> None:
    scene = Scene(2)
    one, two = scene.targets
    scene.busy(one, two)
    slow, quick = scene.enter("slow", 2_000), scene.enter("quick", 1_500)
    known = {slow: scene.facts(2_000, {two: 19}), quick: quick.facts}
    two.inflight = 0
    two.forecast.prompts.remove(next(iter(two.forecast.prompts._prompts)), 0.0)  # type: ignore[union-attr]
    assert scene.next(known.__getitem__) == ("slow", two)
    assert slow.work_ms == pytest.approx(100.0)


def test_a_newcomer_gets_its_one_and_the_others_stay_bound_to_nobody() -> None:
    """Were it dear for being new, everything that waits would go to the busy ones before the first went to it."""
    scene = Scene(2, others_weight=0.0)
    for target in scene.targets:
        target.processed = 100
    scene.busy(*scene.targets, tokens=4_000)
    for number in range(100):
        scene.enter(str(number), 4_000)
    assert scene.next() is None
    worker = Worker("http://new:1", WorkerInfo(served_model_name="m", block_size=PAGE))
    scene.load.worker_added(worker)
    scene.targets += worker.targets
    scene.now = 0.01
    went = []
    while (found := scene.next()) is not None:
        went.append(found[1])
        scene.busy(found[1], tokens=4_000)
    assert worker.targets[0] in went
    assert len(went) <= len(scene.targets)


def test_a_session_follows_its_target() -> None:
    scene = Scene(2, bonus=50.0)
    _, two = scene.targets
    scene.enter("a", 1_000, {two: 1}, session="s")
    assert scene.next() == ("a", two)
    scene.enter("b", 1_000, session="s")
    two.inflight = 5
    assert scene.next() == ("b", two)


# --- leaving --------------------------------------------------------------------------------------------------------


def test_who_leaves_is_gone_from_everywhere() -> None:
    scene = Scene(1)
    scene.busy(*scene.targets)
    one, two = scene.enter("a"), scene.enter("b", 500)
    assert scene.line.leave(two)
    assert not scene.line.leave(two)
    assert scene.policy.waiting == len(scene.line) == 1
    scene.targets[0].forecast = None
    assert scene.order() == "a"
    assert not scene.line.leave(one)
    assert scene.policy.waiting == 0


def test_it_is_full_at_its_bound() -> None:
    scene = Scene(1, max_waiting=2)
    assert not scene.line.full
    scene.enter("a")
    assert not scene.line.full
    item = scene.enter("b")
    assert scene.line.full
    scene.line.leave(item)
    assert not scene.line.full


def test_the_overdue_are_told_until_they_leave() -> None:
    scene = Scene(1, max_wait_secs=10.0)
    one = scene.enter("a", priority=9)
    scene.now = 4.0
    two = scene.enter("b")
    assert scene.line.overdue(9.9) == []
    assert scene.line.overdue(10.0) == [one]
    assert scene.line.overdue(14.0) == [one, two]
    scene.line.leave(one)
    assert scene.line.overdue(14.0) == [two]


def test_who_waits_is_part_of_the_pressure() -> None:
    scene = Scene(2)
    scene.busy(*scene.targets)
    assert scene.policy.standing(scene.targets, 0.0).others == 1.0
    for name in "abcd":
        scene.enter(name)
    assert scene.policy.standing(scene.targets, 60.0).others == pytest.approx(3.0, abs=0.01)


# --- bounds ---------------------------------------------------------------------------------------------------------

ARRIVALS = st.lists(st.tuples(st.floats(0, 4), st.integers(100, 8_000), st.integers(0, 3)), min_size=2, max_size=40)


@given(ARRIVALS, st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([0.0, 1.0, 3.0]), st.integers(1, 3))
@settings(deadline=None)
def test_one_is_passed_only_by_such_as_come_later_by_what_they_are_shorter(
    arrivals: list[tuple[float, int, int]], ageing: float, others_weight: float, served: int
) -> None:
    """Over one target that always has room: every few arrivals somebody goes."""
    scene = Scene(1, ageing=ageing, others_weight=others_weight)
    gone: list[Waiting] = []
    for number, (passed, tokens, _) in enumerate(arrivals):
        scene.now += passed
        scene.enter(str(number), tokens)
        if number % (served + 1) == 0 and (found := scene.line.next(scene.targets, scene.now, lambda i: i.facts)):
            gone.append(found[0])
    while found := scene.line.next(scene.targets, scene.now, lambda item: item.facts):
        gone.append(found[0])
    assert len(gone) == len(arrivals)
    for place, item in enumerate(gone):
        for before in gone[:place]:
            if before.since > item.since:
                shorter_ms = item.work_ms - before.work_ms
                assert (before.since - item.since) * 1000 <= shorter_ms / ageing + 1e-3


@given(ARRIVALS, st.sampled_from(["fcfs", "shortest_work_first"]), st.integers(1, 4))
@settings(deadline=None)
def test_each_goes_or_leaves_once_and_no_class_passes_a_higher_one(
    arrivals: list[tuple[float, int, int]], order: str, count: int
) -> None:
    scene = Scene(count, order=order)
    ended: set[Waiting] = set()
    for number, (passed, tokens, priority) in enumerate(arrivals):
        scene.now += passed
        item = scene.enter(str(number), tokens, {scene.targets[tokens % count]: tokens // 200}, priority=priority)
        if tokens % 7 == 0:
            assert scene.line.leave(item)
            ended.add(item)
        if tokens % 3 == 0 and (found := scene.line.next(scene.targets, scene.now, lambda i: i.facts)):
            assert found[0] not in ended
            ended.add(found[0])
            assert all(other.priority <= found[0].priority for other in scene.line._waiting)
            assert 0 <= found[1] < count
        assert len(ended) + len(scene.line) == number + 1
        assert scene.policy.waiting == len(scene.line) == len(scene.line._order)
    while found := scene.line.next(scene.targets, scene.now, lambda item: item.facts):
        assert found[0] not in ended
        ended.add(found[0])
    assert len(ended) == len(arrivals)
    assert scene.policy.waiting == 0


def test_a_long_line_and_a_large_fleet_are_no_burden() -> None:
    """Below a millisecond at 64 targets and 1,000 who wait; ten times that here, for slow machines."""
    scene = Scene(64, release_below_ms=1e6)
    rng = random.Random(1)
    for target in scene.targets:
        scene.busy(*[target] * 3, tokens=rng.randrange(4_000))
    for number in range(1_000):
        held = {target: rng.randrange(1, 40) for target in rng.sample(scene.targets, 12)}
        scene.enter(str(number), 4_000, held)
    took = []
    for _ in range(30):
        before = time.process_time()
        assert scene.next() is not None
        took.append(time.process_time() - before)
    assert median(took) < 0.01
