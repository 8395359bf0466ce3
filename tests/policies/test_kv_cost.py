"""The cost policy: each term moves the choice when it should, and its weight at 0 switches it off."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from sgl_router.config import KvCostConfig
from sgl_router.kv_events import MatchedPrefix, PromptMatch
from sgl_router.load import ActiveLoad, LoadGuard
from sgl_router.load.reports import LoadReport
from sgl_router.placement import CandidateCost, DecisionReason, Unmatched
from sgl_router.policies import KvCost, PolicyInput
from sgl_router.workers import Target, Worker, WorkerInfo

PAGE = 100


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Stage:
    """Targets that compute 1,000 tokens a second, a millisecond for each, and a policy over them."""

    def __init__(self, **settings: float) -> None:
        defaults = {"prefill_tokens_per_sec": 1_000.0, "decode_ms_per_1k_tokens": 0.0}
        self.settings = KvCostConfig(**(defaults | settings))  # type: ignore[arg-type]
        self.clock = Clock()
        self.held: dict[Target, int] = {}
        self.load = ActiveLoad({"m": 1_000.0}, clock=self.clock)
        self.policy = KvCost(
            random.Random(1), self.settings, clock=self.clock, held_tokens=lambda target: self.held.get(target, 0)
        )
        self.targets: list[Target] = []

    def add(self, count: int = 1, *, capacity: int | None = None) -> list[Target]:
        for _ in range(count):
            info = WorkerInfo(served_model_name="m", block_size=PAGE, max_total_tokens=capacity)
            worker = Worker(f"http://w{len(self.targets)}:1", info)
            self.load.worker_added(worker)
            self.targets += worker.targets
        return self.targets

    def busy(self, target: Target, *tokens: int, decode_blocks: int = 0) -> list[LoadGuard]:
        return [
            self.load.acquire(target, prefill_tokens=each, decode_blocks=decode_blocks, now=self.clock.now)
            for each in tokens
        ]

    def facts(self, prompt: int = 2_000, held: dict[Target, MatchedPrefix | int] | None = None, **more) -> PolicyInput:
        by_target = {
            target: MatchedPrefix(found, found, found, found, PAGE) if isinstance(found, int) else found
            for target, found in (held or {}).items()
        }
        totals = dict.fromkeys(self.targets, (prompt - 1) // PAGE)
        return PolicyInput(match=PromptMatch.stated(by_target, totals), prompt_tokens=prompt, **more)

    def choose(self, prompt: int = 2_000, held: dict[Target, MatchedPrefix | int] | None = None, **more) -> Target:
        return self.policy.select(self.targets, self.facts(prompt, held, **more)).target

    def costs(self, prompt: int = 2_000, held=None, **more) -> list[CandidateCost]:
        decision = self.policy.select(self.targets, self.facts(prompt, held, explain=True, dry=True, **more))
        assert decision.costs is not None
        return list(decision.costs)


# --- computing and queues -------------------------------------------------------------------------------------------


def test_who_holds_most_computes_least() -> None:
    stage = Stage()
    one, two, three = stage.add(3)
    decision = stage.policy.select(stage.targets, stage.facts(2_000, {one: 5, two: 15}))
    assert (decision.target, decision.reason) == (two, DecisionReason.CACHE_HIT)
    assert (decision.matched_blocks, decision.expected_blocks, decision.total_blocks) == (15, 15, 19)
    assert (decision.cost_ms, decision.costs, decision.uncached_tokens) == (pytest.approx(500.0), None, 500)
    assert [cost.compute_ms for cost in stage.costs(2_000, {one: 5, two: 15})] == [1_500.0, 500.0, 2_000.0]
    assert [cost.uncached_tokens for cost in stage.costs(2_000, {one: 5, two: 15})] == [1_500, 500, 2_000]
    assert three is not decision.target


def test_a_queue_that_is_longer_than_the_prefix_saves_sends_it_elsewhere() -> None:
    stage = Stage(others_weight=0.0)
    owner, idle = stage.add(2)
    stage.busy(owner, 1_000)
    assert stage.choose(2_000, {owner: 15}) is owner
    (late,) = stage.busy(owner, 1_000)
    decision = stage.policy.select(stage.targets, stage.facts(2_000, {owner: 15}))
    assert (decision.target, decision.reason) == (idle, DecisionReason.SPREAD)
    assert (decision.matched_blocks, decision.total_blocks) == (0, 19)
    assert [cost.queue_ms for cost in stage.costs()] == [pytest.approx(2_000.0), 0.0]
    assert [cost.queued_tokens for cost in stage.costs()] == [2_000, 0]
    late.release()
    assert stage.choose(2_000, {owner: 15}) is owner


def test_a_queue_gets_shorter_with_time_and_with_first_bytes() -> None:
    stage = Stage(others_weight=0.0)
    owner, idle = stage.add(2)
    first, _ = stage.busy(owner, 1_400, 600)
    assert stage.choose(2_000, {owner: 15}) is idle
    stage.clock.now += 0.6
    assert stage.choose(2_000, {owner: 15}) is owner
    stage.busy(owner, 700)
    assert stage.choose(2_000, {owner: 15}) is idle
    first.first_byte()
    assert stage.choose(2_000, {owner: 15}) is owner


def test_a_hot_prefix_spreads_to_as_many_as_its_load_needs() -> None:
    stage = Stage()
    targets = stage.add(8)
    holders: dict[Target, int] = {targets[0]: 15}
    for _ in range(40):
        target = stage.choose(2_000, holders)
        left = 2_000 - 100 * holders.get(target, 0)
        stage.busy(target, left)
        holders[target] = 15
        stage.clock.now += 0.05
    spread = Counter(target for target in targets if target.inflight)
    assert len(spread) == 8
    assert max(target.inflight for target in targets) <= 8
    # In peace one is enough.
    calm = Stage()
    (home, *_) = calm.add(8)
    for _ in range(20):
        (guard,) = calm.busy(calm.choose(2_000, {home: 15}), 500)
        guard.first_byte()
        guard.release()
        calm.clock.now += 1.0
    assert home.processed == 20


def test_a_fast_target_may_have_the_longer_queue() -> None:
    stage = Stage(others_weight=0.0)
    fast, slow = stage.add(2)
    for target, speed in ((fast, 4_000), (slow, 1_000)):
        assert target.forecast is not None
        for _ in range(16):
            target.forecast.prompts.speed.tell(10_000, 10_000 / speed, stage.clock())
    stage.busy(fast, 4_000)
    assert stage.choose(2_000) is fast
    stage.busy(fast, 4_000)
    assert stage.choose(2_000) is slow


def test_what_others_sent_counts_while_their_report_is_fresh() -> None:
    stage = Stage()
    one, two = stage.add(2)
    assert one.forecast is not None
    one.forecast.reported(LoadReport(running=1, waiting=3, waiting_uncached_tokens=90_000), stage.clock.now)
    assert {stage.choose(2_000, {one: 15}) for _ in range(5)} == {two}
    stage.clock.now += 10.1
    assert stage.choose(2_000, {one: 15}) is one


# --- pressure -------------------------------------------------------------------------------------------------------


def under_pressure(waiting: int, **settings: float) -> tuple[Stage, Target, Target]:
    """An owner of 1,000 tokens with 1,500 ms ahead, everyone else idle; and requests that wait in the router."""
    stage = Stage(**settings)
    owner, other = stage.add(2)
    stage.busy(owner, 1_500)
    stage.policy.waiting = waiting
    return stage, owner, other


def test_affinity_grows_with_the_pressure() -> None:
    chosen = []
    for waiting in (0, 1, 2, 8, 40):
        stage, owner, _ = under_pressure(waiting)
        chosen.append(stage.choose(2_000, {owner: 10}) is owner)
    assert chosen == [False, False, True, True, True]  # 1,000 x (1 + pressure) against 1,500


def test_at_weight_0_it_does_not() -> None:
    stage, owner, other = under_pressure(1_000, others_weight=0.0)
    assert stage.choose(2_000, {owner: 10}) is other
    assert {cost.others_ms for cost in stage.costs(2_000, {owner: 10})} == {0.0}


def test_it_has_a_limit() -> None:
    stage, owner, _ = under_pressure(1_000, max_pressure=2.0)
    assert [cost.others_ms for cost in stage.costs(2_000, {owner: 10})] == [2_000.0, 4_000.0]


def test_the_busy_half_of_the_fleet_makes_no_pressure() -> None:
    stage = Stage()
    targets = stage.add(4)
    stage.busy(targets[0], *[100] * 50)
    stage.busy(targets[1], *[100] * 50)
    assert {cost.others_ms for cost in stage.costs()} == {0.0}
    stage = Stage()
    for target in stage.add(4):
        stage.busy(target, *[100] * 3)
    assert [cost.others_ms for cost in stage.costs()] == [6_000.0] * 4


def test_a_burst_does_not_turn_the_fleet_round_at_once() -> None:
    stage = Stage(smoothing_secs=5.0)
    owner, other = stage.add(2)
    stage.choose()
    stage.busy(owner, 1_500)
    stage.policy.waiting = 40
    seen = []
    for _ in range(100):
        stage.clock.now += 0.1
        owner.forecast.prompts._head_since = stage.clock.now  # type: ignore[union-attr]  # the queue stays as it is
        seen.append(stage.choose(2_000, {owner: 10}) is owner)
    assert not seen[0]
    assert seen[-1]
    assert sum(one != two for one, two in pairwise(seen)) == 1  # over once, and never back
    assert other.inflight == 0


# --- tiers ----------------------------------------------------------------------------------------------------------


def test_tiers_cost_their_load_back() -> None:
    stage = Stage(host_load_back_ms_per_1k_tokens=100.0, disk_load_back_ms_per_1k_tokens=500.0)
    device, host, disk, mixed = stage.add(4)
    held = {
        device: MatchedPrefix(10, 10, 10, 10, PAGE),
        host: MatchedPrefix(10, 0, 10, 10, PAGE),
        disk: MatchedPrefix(10, 0, 0, 10, PAGE),
        mixed: MatchedPrefix(10, 2, 7, 10, PAGE),
    }
    costs = stage.costs(2_000, held)
    assert [cost.load_back_ms for cost in costs] == [0.0, *map(pytest.approx, (100.0, 500.0, 50.0 + 150.0))]
    assert [cost.compute_ms for cost in costs] == [1_000.0] * 4
    stage.busy(device, 150)
    assert stage.choose(2_000, held) is host
    assert stage.choose(2_000, held | {host: held[disk]}) is device


def test_loading_is_never_dearer_than_computing() -> None:
    stage = Stage(host_load_back_ms_per_1k_tokens=5_000.0, disk_load_back_ms_per_1k_tokens=400.0)
    host, mixed, _ = stage.add(3)
    held = {host: MatchedPrefix(10, 8, 10, 10, PAGE), mixed: MatchedPrefix(10, 5, 6, 10, PAGE)}
    costs = stage.costs(2_000, held)
    assert [cost.load_back_ms for cost in costs] == [pytest.approx(200.0), pytest.approx(100.0 + 160.0), 0.0]
    dear = Stage(disk_load_back_ms_per_1k_tokens=5_000.0)
    (disk,) = dear.add()
    assert dear.costs(2_000, {disk: MatchedPrefix(10, 0, 0, 10, PAGE)})[0].load_back_ms == pytest.approx(1_000.0)
    nothing = stage.costs(2_000)
    for cost, cold in zip(costs, nothing, strict=True):
        assert cost.compute_ms + cost.load_back_ms <= cold.compute_ms


def test_load_back_at_weight_0_is_as_good_as_the_device() -> None:
    stage = Stage(host_load_back_ms_per_1k_tokens=0.0, disk_load_back_ms_per_1k_tokens=0.0)
    device, disk = stage.add(2)
    held = {device: 10, disk: MatchedPrefix(10, 0, 0, 10, PAGE)}
    one, two = stage.costs(2_000, held)  # type: ignore[arg-type]
    assert one.total_ms == two.total_ms


def test_what_is_on_its_way_counts_as_there() -> None:
    stage = Stage()
    one, _ = stage.add(2)
    held = {one: MatchedPrefix(5, 5, 5, 12, PAGE)}
    decision = stage.policy.select(stage.targets, stage.facts(2_000, held))
    assert (decision.target, decision.reason) == (one, DecisionReason.EXPECTED_HIT)
    assert (decision.matched_blocks, decision.expected_blocks, decision.uncached_tokens) == (5, 12, 800)


# --- answers, eviction ----------------------------------------------------------------------------------------------


def test_answers_under_way_count_and_grow() -> None:
    stage = Stage(decode_ms_per_1k_tokens=100.0)
    one, two = stage.add(2)
    for guard in (*stage.busy(one, 0, decode_blocks=10), *stage.busy(two, 0, decode_blocks=10)):
        guard.first_byte()
    assert [cost.decode_ms for cost in stage.costs()] == [pytest.approx(100.0)] * 2
    stage.clock.now += 10.0  # 30 tokens a second each
    assert [cost.decode_ms for cost in stage.costs()] == [pytest.approx(130.0)] * 2
    (guard,) = stage.busy(one, 0)
    guard.first_byte()
    assert stage.choose() is two or stage.costs()[0].decode_ms == pytest.approx(130.0)
    stage.clock.now += 1.0
    assert stage.choose() is two


def test_at_weight_0_answers_do_not_count() -> None:
    stage = Stage(decode_ms_per_1k_tokens=0.0)
    one, two = stage.add(2)
    (guard,) = stage.busy(one, 0, decode_blocks=1_000)
    guard.first_byte()
    stage.clock.now += 10.0
    assert stage.choose(2_000, {one: 1}) is one
    assert {cost.decode_ms for cost in stage.costs()} == {0.0}
    assert two.inflight == 0


def test_who_would_have_to_forget_for_it_costs_more() -> None:
    stage = Stage(eviction_ms_per_1k_tokens=500.0)
    stage.add(2, capacity=10_000)
    full, roomy, unknown = stage.add(1)
    stage.held = {full: 9_000, roomy: 8_000, unknown: 99_000}
    assert [cost.eviction_ms for cost in stage.costs(2_000)] == [pytest.approx(500.0), 0.0, 0.0]
    # Only what must be computed needs new room, and no more than that is pushed out.
    assert [cost.eviction_ms for cost in stage.costs(2_000, {full: 15})] == [0.0, 0.0, 0.0]
    stage.held[full] = 30_000
    assert stage.costs(2_000, {full: 15})[0].eviction_ms == pytest.approx(250.0)
    assert full is not stage.choose(2_000)


def test_running_requests_and_reports_count_as_kept_too() -> None:
    stage = Stage(eviction_ms_per_1k_tokens=500.0)
    one, two = stage.add(2, capacity=10_000)
    stage.busy(one, 0, decode_blocks=95)
    assert two.forecast is not None
    two.forecast.reported(LoadReport(running=1, waiting=0, used_tokens=9_000), stage.clock.now)
    assert [cost.eviction_ms for cost in stage.costs(2_000)] == [pytest.approx(750.0), pytest.approx(500.0)]
    stage.clock.now += 11.0
    assert stage.costs(2_000)[1].eviction_ms == 0.0


def test_eviction_at_weight_0_is_not_looked_at() -> None:
    stage = Stage()
    (one,) = stage.add(1, capacity=10)
    stage.held = {one: 10}
    assert stage.costs()[0].eviction_ms == 0.0


# --- sessions, temperature, slow start ------------------------------------------------------------------------------


def test_a_session_stays_as_long_as_that_is_cheap_enough() -> None:
    stage = Stage(session_bonus_ms=300.0, others_weight=0.0)
    one, two = stage.add(2)
    home = stage.choose(session="a")
    away = two if home is one else one
    home.processed += 10  # ties would go the other way
    assert stage.choose(session="a") is home
    assert [cost.session_ms for cost in stage.costs(session="a")] == [-300.0 if t is home else 0.0 for t in (one, two)]
    assert {cost.session_ms for cost in stage.costs(session="b")} == {0.0}
    stage.busy(home, 299)
    assert stage.choose(session="a") is home
    stage.busy(home, 2)
    assert stage.choose(session="a") is away
    assert [cost.session_ms for cost in stage.costs(session="a")] == [-300.0 if t is away else 0.0 for t in (one, two)]


def test_a_dry_look_moves_no_session_and_its_target_may_be_gone() -> None:
    stage = Stage(session_bonus_ms=300.0)
    one, two = stage.add(2)
    stage.policy.select([one], stage.facts(session="a"))
    stage.policy.select([two], stage.facts(session="a", dry=True))
    assert stage.costs(session="a")[0].session_ms == -300.0
    assert stage.policy.select([two], stage.facts(session="a")).target is two


def test_at_bonus_0_sessions_are_not_even_remembered() -> None:
    stage = Stage()
    stage.add(2)
    stage.choose(session="a")
    assert len(stage.policy._sessions) == 0


def test_with_a_temperature_it_is_by_lot() -> None:
    stage = Stage(temperature_ms=500.0)
    one, two, three = stage.add(3)
    drawn = Counter(stage.choose(2_000, {one: 10, two: 5}) for _ in range(3_000))
    assert drawn[two] / drawn[one] == pytest.approx(0.37, abs=0.06)  # 500 ms dearer: e times less likely
    assert drawn[three] / drawn[one] == pytest.approx(0.135, abs=0.04)
    cold = Stage(temperature_ms=1e-9)
    one, two = cold.add(2)
    assert {cold.choose(2_000, {one: 10}) for _ in range(50)} == {one}


def test_a_newcomer_ramps_up() -> None:
    stage = Stage(slow_start_secs=30.0)
    old, _ = stage.add(2)
    assert [cost.compute_ms for cost in stage.costs(1_000)] == [1_000.0, 1_000.0]  # those that were there first do not
    for guard in stage.busy(old, 100):
        guard.release()
    stage.clock.now += 60.0
    newcomer = stage.add()[2]
    seen = []
    for _ in range(7):
        seen.append(stage.costs(1_000)[2].compute_ms)
        stage.clock.now += 5.0
    assert seen == [pytest.approx(each) for each in (10_000, 6_000, 3_000, 2_000, 1_500, 1_200, 1_000)]
    assert newcomer.forecast is not None


def test_a_newcomer_is_new_for_no_longer_than_the_others_were_there_before_it() -> None:
    stage = Stage(slow_start_secs=30.0)
    (old,) = stage.add()
    stage.busy(old, 0)
    stage.clock.now += 4.0
    stage.add()
    seen = []
    for _ in range(5):
        seen.append(stage.costs(1_000)[1].compute_ms)
        stage.clock.now += 1.0
    assert seen == [pytest.approx(each) for each in (10_000, 4_000, 2_000, 4_000 / 3, 1_000)]


def test_slow_start_at_0_is_none() -> None:
    stage = Stage(slow_start_secs=0.0)
    (old,) = stage.add()
    stage.busy(old, 0)
    stage.clock.now += 60.0
    stage.add()
    assert [cost.compute_ms for cost in stage.costs(1_000)] == [1_000.0, 1_000.0]


# --- ties, and what is not known ------------------------------------------------------------------------------------


def test_ties_go_to_the_least_loaded_then_the_least_used_then_the_longest_not_chosen() -> None:
    stage = Stage()
    one, two, three = stage.add(3)
    one.inflight = 1
    two.processed = 1
    assert stage.choose() is three
    two.processed = three.processed = 1
    two.last_selected, three.last_selected = 5, 4
    assert stage.choose() is three
    for target in (one, two, three):
        target.inflight = target.processed = target.last_selected = 0
    assert {stage.choose() for _ in range(60)} == {one, two, three}


def test_costs_that_differ_by_rounding_are_equal() -> None:
    stage = Stage(others_weight=0.0)
    one, two = stage.add(2)
    stage.busy(two, 1)
    stage.clock.now += 0.001 - 1e-10
    two.inflight, one.inflight = 0, 3
    assert stage.choose() is two


def test_targets_without_a_forecast_go_by_what_they_hold() -> None:
    stage = Stage()
    one, two = stage.add(2)
    one.forecast = two.forecast = None
    one.inflight = 9
    assert stage.choose(2_000, {one: 10}) is one
    assert stage.choose(2_000) is two
    assert [cost.compute_ms for cost in stage.costs(2_000, {one: 10})] == [1_000.0, 2_000.0]


@pytest.mark.parametrize("tokens", [None, 5_000])
def test_a_prompt_that_cannot_be_matched_goes_by_queues(tokens: int | None) -> None:
    stage = Stage()
    one, two = stage.add(2)
    stage.busy(one, 700)
    facts = PolicyInput(prompt_tokens=tokens, unmatched=Unmatched.MEDIA, explain=True)
    decision = stage.policy.select(stage.targets, facts)
    assert (decision.target, decision.reason) == (two, DecisionReason.UNMATCHABLE)
    assert (decision.unmatched, decision.prompt_tokens, decision.page_size) == (Unmatched.MEDIA, tokens, PAGE)
    assert (decision.matched_blocks, decision.total_blocks, decision.epoch) == (0, 0, None)
    assert decision.uncached_tokens == (tokens or 0)


def test_a_target_nothing_was_heard_of_is_cold() -> None:
    stage = Stage()
    one, two = stage.add(2)
    stage.busy(one, 9_000)
    by_target = {one: MatchedPrefix(19, 19, 19, 19, PAGE)}
    decision = stage.policy.select(
        stage.targets, PolicyInput(match=PromptMatch.stated(by_target, {one: 19}), prompt_tokens=2_000)
    )
    assert (decision.target, decision.total_blocks, decision.reason) == (two, 19, DecisionReason.SPREAD)


def test_what_nobody_holds_who_may_be_chosen_is_no_spread() -> None:
    stage = Stage()
    one, two = stage.add(2)
    decision = stage.policy.select([two], stage.facts(2_000, {one: 10}))
    assert (decision.target, decision.reason) == (two, DecisionReason.NO_MATCH)


def test_candidates_are_counted() -> None:
    stage = Stage()
    one, two, three = stage.add(3)
    one.inflight, two.inflight, three.inflight = 4, 2, 7
    decision = stage.policy.select(stage.targets, stage.facts())
    assert (decision.candidates, decision.min_load, decision.max_load) == (3, 2, 7)


@pytest.fixture
def crowd() -> Callable[[int], Stage]:
    def make(seed: int) -> Stage:
        rng = random.Random(seed)
        stage = Stage(
            eviction_ms_per_1k_tokens=rng.choice([0.0, 50.0]),
            session_bonus_ms=rng.choice([0.0, 100.0]),
            decode_ms_per_1k_tokens=3.0,
            temperature_ms=rng.choice([0.0, 10.0]),
        )
        stage.add(6, capacity=20_000)
        for target in stage.targets:
            stage.held[target] = rng.randrange(25_000)
            stage.busy(target, *[rng.randrange(3_000) for _ in range(rng.randrange(4))], decode_blocks=rng.randrange(9))
            if rng.random() < 0.2:
                target.forecast = None
        stage.policy.waiting = rng.randrange(20)
        stage.policy._sessions.went("a", rng.choice(stage.targets))
        return stage

    return make


@pytest.mark.parametrize("seed", range(40))
def test_totals_are_sums_and_the_least_is_taken(crowd, seed: int) -> None:
    stage, rng = crowd(seed), random.Random(seed)
    held: dict[Target, MatchedPrefix | int] = {}
    for target in rng.sample(stage.targets, rng.randrange(7)):
        depths = sorted(rng.randrange(1, 30) for _ in range(4))
        held[target] = MatchedPrefix(depths[2], depths[0], depths[1], depths[3], PAGE)
    decision = stage.policy.select(stage.targets, stage.facts(2_500, held, session="a", explain=True))
    assert decision.costs is not None
    for cost in decision.costs:
        terms = (cost.compute_ms, cost.load_back_ms, cost.queue_ms, cost.others_ms, cost.decode_ms, cost.eviction_ms)
        assert min(terms) >= -1e-9
        assert cost.total_ms == pytest.approx(sum(terms) + cost.session_ms)
        assert cost.session_ms in (0.0, -stage.settings.session_bonus_ms)
    assert [cost.target for cost in decision.costs] == stage.targets
    chosen = next(cost for cost in decision.costs if cost.target is decision.target)
    assert decision.cost_ms == chosen.total_ms
    if not stage.settings.temperature_ms:
        assert chosen.total_ms <= min(cost.total_ms for cost in decision.costs) + 1e-6
