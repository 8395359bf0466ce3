"""Whole runs: nothing is lost, nothing stays, equal seeds give equal runs, and small cases come out as by hand."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from msgspec import structs

from sgl_router.config import KvCostConfig, ModelConfig, QueueConfig
from sgl_router.lab.simulate import catalogue
from sgl_router.lab.simulate.brain import PolicyAdapter, PolicyContext, RouterHandle
from sgl_router.lab.simulate.catalogue import BASELINES, QUEUED, make_brain, policy_names
from sgl_router.lab.simulate.job import Job, jobs_of
from sgl_router.lab.simulate.measure import rows_of, summarise
from sgl_router.lab.simulate.simulation import FleetSettings, Outcome, simulate
from sgl_router.lab.simulate.trace import TraceRow
from sgl_router.lab.simulate.workload import make_workload

SMALL = FleetSettings(workers=2, prefill_tokens_per_sec=1_000.0, decode_ms_per_token=10.0, decode_ms_per_running=0.0)


def row(at_secs: float, prompt: int, output: int, *ids: int) -> TraceRow:
    return TraceRow(at_secs * 1e3, prompt, output, ids)


def run(rows: list[TraceRow], policy: str, settings: FleetSettings = SMALL, seed: int = 0) -> Outcome:
    return simulate(policy, jobs_of(rows, page_size=settings.page_size), settings, seed=seed)


def mixed(count: int = 200) -> list[TraceRow]:
    return make_workload("chats", requests=count, per_sec=3.0, seed=5)


@pytest.mark.parametrize("policy", policy_names())
def test_every_request_ends_once_and_nothing_stays(policy: str) -> None:
    settings = replace(SMALL, workers=3, cache_tokens=60_000, routers=2, event_delay=0.05, load_report_interval=1.0)
    rows = mixed()
    outcome = run(rows, policy, settings)
    assert [record.job.number for record in outcome.records] == list(range(len(rows)))
    for record in outcome.records:
        assert record.endings == 1
        assert record.worker >= 0
        assert record.job.arrival <= record.dispatched_at <= record.started_at
        assert record.started_at < record.first_token_at <= record.finished_at
        assert 0 <= record.cached_tokens < record.job.input_tokens
    for router in outcome.routers:
        assert len(router.load) == 0
        assert not router.tree.expects
        for target in router.candidates:
            assert (target.inflight, target.prefill_tokens, target.decode_blocks) == (0, 0, 0)
    computed = sum(record.job.input_tokens - record.cached_tokens for record in outcome.records)
    assert sum(worker.computed_tokens for worker in outcome.workers) == computed


@pytest.mark.parametrize("policy", ["random", "cache_aware_zmq", "late_shortest_work"])
def test_equal_seeds_give_equal_runs(policy: str) -> None:
    settings = replace(SMALL, workers=3, routers=2)
    one, same, other = (rows_of(run(mixed(120), policy, settings, seed)) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_the_index_ends_up_as_the_caches() -> None:
    settings = replace(SMALL, workers=3, cache_tokens=40_000, event_delay=0.3, routers=2)
    outcome = run(mixed(), "cache_aware_zmq", settings)
    assert summarise(outcome).hit_rate > 0
    one, two = outcome.routers
    for slot in range(3):
        held = {key for key, _ in one.tree.holdings(slot)}
        assert held == {key for key, _ in two.tree.holdings(slot)}
        assert 0 < len(held) <= 40_000 // 512


def test_a_fleet_of_one_by_hand() -> None:
    rows = [row(0, 1024, 3, 1, 2), row(0.5, 2048, 1, 1, 2, 3, 4), row(9, 600, 1, 1, 9), row(9, 512, 1, 1)]
    outcome = run(rows, "round_robin", replace(SMALL, workers=1))
    first, second, third, fourth = outcome.records
    assert (first.started_at, first.first_token_at) == (0.0, pytest.approx(1.024))
    # The second prompt waits, finds two pages of the first, and goes before the first's answer.
    assert second.cached_tokens == 1024
    assert (second.started_at, second.first_token_at) == (pytest.approx(1.024), pytest.approx(2.048))
    assert first.finished_at == pytest.approx(2.048 + 2 * 0.010)
    assert (third.cached_tokens, third.ttft) == (512, pytest.approx(0.088))
    # All of the fourth prompt is cached, but its last token must be computed, and so must its only page.
    assert (fourth.cached_tokens, fourth.queued) == (0, pytest.approx(0.088))
    assert fourth.first_token_at == pytest.approx(9.088 + 0.512)


def test_a_prefix_draws_its_next_turn_and_a_stranger_goes_elsewhere() -> None:
    rows = [row(0, 2048, 1, 1, 2, 3, 4), row(3, 2560, 1, 1, 2, 3, 4, 5), row(3.1, 1024, 1, 7, 8)]
    first, second, third = run(rows, "cache_aware_zmq").records
    assert second.worker == first.worker
    assert (second.reason, second.predicted_tokens, second.cached_tokens) == ("cache_hit", 2048, 2048)
    assert third.worker != first.worker


def test_late_events_are_made_up_for_by_expectations() -> None:
    rows = [row(0, 2048, 1, 1, 2, 3, 4), row(0.1, 2560, 1, 1, 2, 3, 4, 5)]
    late = replace(SMALL, event_delay=5.0)
    first, second = run(rows, "cache_aware_zmq", late).records
    assert (second.worker, second.reason) == (first.worker, "expected_hit")
    assert (second.predicted_tokens, second.cached_tokens) == (0, 2048)
    first, second = run(rows, "cache_aware_zmq", replace(late, expect_ttl_secs=0.0)).records
    assert (second.worker == first.worker, second.reason) == (False, "no_match")


def test_an_expectation_lasts_as_long_as_the_products() -> None:
    """Ten seconds from dispatch, 0.3 from the first byte: then only events count."""
    rows = [row(0, 2048, 1, 1, 2, 3, 4), row(2.1, 2560, 1, 1, 2, 3, 4, 5), row(2.3, 2560, 1, 1, 2, 3, 4, 6)]
    late = replace(SMALL, event_delay=60.0)
    records = run(rows, "cache_aware_zmq", late).records
    assert records[0].first_token_at == pytest.approx(2.048)
    assert [record.reason for record in records] == ["no_match", "expected_hit", "expected_hit"]
    records = run([rows[0], replace(rows[1], timestamp_ms=2_400.0)], "cache_aware_zmq", late).records
    assert [record.reason for record in records] == ["no_match", "no_match"]


def test_two_routers_do_not_see_each_others_load() -> None:
    rows = [row(0.001 * number, 4096, 1, *range(10 * number, 10 * number + 8)) for number in range(40)]
    alone = summarise(run(rows, "min_uncached_half_queue", replace(SMALL, workers=8)))
    blind = summarise(run(rows, "min_uncached_half_queue", replace(SMALL, workers=8, routers=8)))
    assert alone.ttft.mean < blind.ttft.mean
    assert alone.imbalance < blind.imbalance


def test_the_line_moves_when_a_queue_must_have_drained_not_only_when_something_is_told() -> None:
    early = ModelConfig(
        id="m",
        tokenizer_path="t",
        kv_cost=KvCostConfig(prefill_tokens_per_sec=1_000.0),
        queue=QueueConfig(release_below_ms=500.0),
    )
    rows = [row(0, 4096, 1, *range(8)), row(0.1, 4096, 1, *range(10, 18))]
    jobs = jobs_of(rows, page_size=512)
    _, second = simulate(QUEUED, jobs, replace(SMALL, workers=1), model=early).records
    assert second.dispatched_at == pytest.approx(3.596)
    late = structs.replace(early, kv_cost=KvCostConfig(prefill_tokens_per_sec=4_000.0))
    _, second = simulate(QUEUED, jobs, replace(SMALL, workers=1), model=late).records
    assert second.dispatched_at == pytest.approx(0.524), "as thought, not as it is"


def test_late_binding_holds_what_cannot_start_and_lets_short_work_pass() -> None:
    rows = [row(0, 4096, 1, *range(8)), row(0.1, 4096, 1, *range(10, 18)), row(0.2, 512, 1, 30)]
    long, waiting, short = run(rows, "late_shortest_work", replace(SMALL, workers=1)).records
    assert long.held == 0
    assert (short.dispatched_at, waiting.dispatched_at) == (pytest.approx(4.096), pytest.approx(4.608))
    assert summarise(run(rows, "late_shortest_work", replace(SMALL, workers=1))).held.longest == pytest.approx(4.508)


def test_ageing_brings_everybodys_turn() -> None:
    rows = [row(0.0, 4096, 1, *range(8))]
    rows += [row(0.4 * number, 512, 1, 100 + number) for number in range(1, 200)]
    rows.insert(1, row(0.1, 4096, 1, *range(10, 18)))
    records = run(rows, "late_shortest_work", replace(SMALL, workers=1)).records
    long = records[1]
    overtook = [record.job.arrival for record in records[2:] if record.dispatched_at < long.dispatched_at]
    # Half a second of work per second waited: only those may pass that came so much later as they are shorter, twice.
    assert max(overtook) - long.job.arrival == pytest.approx(2 * (4.096 - 0.512), abs=0.4)


def test_a_request_that_fits_nowhere_is_refused_and_leaves_nothing() -> None:
    rows = [row(0, 30_000, 1, *range(59)), row(1, 512, 1, 99)]
    outcome = run(rows, "cache_aware_zmq", replace(SMALL, cache_tokens=20_480))
    long, short = outcome.records
    assert (long.worker, long.reason) == (-1, "too_long")
    assert (short.worker >= 0, short.reason) == (True, "no_match")
    assert summarise(outcome).refused == 1
    assert all(not target.inflight for target in outcome.routers[0].candidates)
    assert not outcome.routers[0].tree.expects


class Ears:
    """An observer that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, float]] = []
        self.loads: list[int] = []

    def dispatched(self, sent, now: float) -> None:
        self.heard.append((f"dispatched {sent.uncached_tokens}", now))

    def first_byte(self, sent, now: float) -> None:
        self.heard.append((f"first byte after {now - sent.at:.3f}", round(now, 3)))

    def ended(self, sent, cached_tokens: int, now: float) -> None:
        self.heard.append((f"ended {cached_tokens}", round(now, 3)))

    def load_reported(self, target, load, now: float) -> None:
        self.loads.append(load.running)


def test_a_learning_policy_hears_all(monkeypatch: pytest.MonkeyPatch) -> None:
    ears = Ears()

    def brain(around: PolicyContext) -> PolicyAdapter:
        return PolicyAdapter(make_brain("cache_aware_zmq", around).policy, observer=ears)

    monkeypatch.setitem(BASELINES, "ears", brain)
    run([row(0, 1024, 11, 1, 2)], "ears", replace(SMALL, workers=1, load_report_interval=0.5))
    assert ears.heard == [("dispatched 1024", 0.0), ("first byte after 1.024", 1.024), ("ended 0", 1.124)]
    assert ears.loads == [1, 1, 0]


class Picky:
    """A dispatcher that refuses what is long and sends the rest a second later."""

    def __init__(self, door: RouterHandle, policy) -> None:
        self.door, self.policy = door, policy

    def arrived(self, job: Job) -> None:
        if job.input_tokens > 600:
            self.door.refuse(job, "queue_full")
        else:
            self.door.clock.later(1.0, lambda: self.send(job))

    def send(self, job: Job) -> None:
        self.door.send(job, self.policy.select(self.door.candidates, self.door.facts(job)))

    def changed(self) -> None:
        pass


def test_a_dispatcher_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    picky = lambda around: PolicyAdapter(make_brain("cache_aware_zmq", around).policy, Picky)  # noqa: E731
    monkeypatch.setitem(catalogue.BASELINES, "picky", picky)
    short, long = run([row(0, 500, 1, 1), row(0, 700, 1, 2, 3)], "picky").records
    assert (short.held, short.queued) == (1.0, 1.0)
    assert (long.worker, long.reason) == (-1, "queue_full")


def test_an_unknown_policy_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        make_brain("best", PolicyContext(random.Random(0), lambda: 0.0, {}, 1.0))
