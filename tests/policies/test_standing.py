from __future__ import annotations

import pytest

from sgl_router.config import KvCostConfig
from sgl_router.load import ActiveLoad
from sgl_router.policies.load_snapshot import LoadSnapshot
from sgl_router.workers import Target, Worker, WorkerInfo


@pytest.fixture
def targets() -> list[Target]:
    load = ActiveLoad({"m": 2_000.0}, clock=lambda: 0.0)
    workers = [Worker(f"http://w{number}:1", WorkerInfo(served_model_name="m", block_size=10)) for number in range(5)]
    for worker in workers:
        load.worker_added(worker)
    for number, worker in enumerate(workers):
        for _ in range(number):
            load.acquire(worker.targets[0], prefill_tokens=100, decode_blocks=3, now=0.0)
    return [worker.targets[0] for worker in workers]


def test_every_candidate_has_an_entry(targets: list[Target]) -> None:
    standing = LoadSnapshot(targets, KvCostConfig(decode_ms_per_1k_tokens=1_000.0), 0.0)
    assert standing.queued == [0.0, 100.0, 200.0, 300.0, 400.0]
    assert standing.resident == [0.0, 30.0, 60.0, 90.0, 120.0]
    assert standing.ms_per_token == [0.5] * 5
    assert standing.fixed_ms == [pytest.approx(number * (50.0 + 30.0)) for number in range(5)]
    assert standing.positions[targets[3]] == 3


def test_calm_is_the_mean_of_the_least_busy_quarter(targets: list[Target]) -> None:
    settings = KvCostConfig()
    assert LoadSnapshot(targets, settings, 0.0).calm() == 0.5  # two of five: 0 and 1
    assert LoadSnapshot(targets[1:], settings, 0.0).calm() == 1.0  # one of four
    assert LoadSnapshot([], settings, 0.0).calm() == 0.0
    targets[0].forecast = None
    assert LoadSnapshot(targets, settings, 0.0).calm() == 1.0
    assert LoadSnapshot(targets[:1], settings, 0.0).calm() == 0.0


def test_who_has_not_shown_its_speed_is_thought_to_be_like_the_others(targets: list[Target]) -> None:
    for target, speed in zip(targets, (10_000, 20_000, 20_000), strict=False):
        assert target.forecast is not None
        for _ in range(16):
            target.forecast.prompts.speed.tell(10_000, 10_000 / speed, 0.0)
    standing = LoadSnapshot(targets, KvCostConfig(decode_ms_per_1k_tokens=0.0), 0.0)
    assert standing.ms_per_token == [pytest.approx(each) for each in (0.1, 0.05, 0.05, 0.05, 0.05)]
    assert standing.ms_per_token[1:] == [standing.ms_per_token[1]] * 4, "exactly equal"
    assert standing.fixed_ms == [pytest.approx(each) for each in (0.0, 5.0, 10.0, 15.0, 20.0)]
    assert targets[4].forecast is not None
    targets[4].forecast.born, targets[4].forecast.behind_secs = -10.0, 100.0
    ramping = LoadSnapshot(targets, KvCostConfig(slow_start_secs=40.0), 0.0)
    assert ramping.ms_per_token[4] == pytest.approx(0.2)


def test_a_comparison_holds_for_a_moment(targets: list[Target]) -> None:
    settings = KvCostConfig()
    assert LoadSnapshot(targets, settings, 0.0).ms_per_token == [0.5] * 5
    for target in targets:
        assert target.forecast is not None
        for _ in range(16):
            target.forecast.prompts.speed.tell(10_000, 1.0, 0.1)
    assert LoadSnapshot(targets, settings, 0.4).ms_per_token == [0.5] * 5
    assert LoadSnapshot(targets, settings, 0.6).ms_per_token == [0.1] * 5


def test_a_speed_learned_long_ago_does_not_lock_a_target_out(targets: list[Target]) -> None:
    for target, (speed, at) in zip(targets, ((2_000, 0.0), (20_000, 300.0), (20_000, 300.0)), strict=False):
        assert target.forecast is not None
        for _ in range(16):
            target.forecast.prompts.speed.tell(10_000, 10_000 / speed, at)
    settings = KvCostConfig(decode_ms_per_1k_tokens=0.0)
    assert LoadSnapshot(targets, settings, 0.0).ms_per_token[0] == pytest.approx(0.5)
    assert LoadSnapshot(targets, settings, 300.0).ms_per_token == [pytest.approx(0.05)] * 5
