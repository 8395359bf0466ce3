"""Made-up workloads are traces, the same for the same seed, and what their names say."""

from __future__ import annotations

import json

import pytest

from sgl_router.lab.simulate.bounds import floor
from sgl_router.lab.simulate.job import jobs_of
from sgl_router.lab.simulate.simulation import FleetSettings
from sgl_router.lab.simulate.trace import parse_trace
from sgl_router.lab.simulate.workload import WORKLOADS, make_workload


@pytest.mark.parametrize("name", WORKLOADS)
def test_it_is_a_trace_and_the_seed_decides(name: str) -> None:
    rows = make_workload(name, requests=300, per_sec=5.0, seed=3)
    lines = [
        json.dumps(
            {
                "timestamp": row.timestamp_ms,
                "input_length": row.input_length,
                "output_length": row.output_length,
                "hash_ids": row.hash_ids,
            }
        )
        for row in rows
    ]
    assert parse_trace(lines, name=name) == rows
    assert len(rows) == 300
    assert rows == make_workload(name, requests=300, per_sec=5.0, seed=3)
    assert rows != make_workload(name, requests=300, per_sec=5.0, seed=4)
    parents: dict[int, int] = {}
    for row in rows:
        for parent, block in zip((-1, *row.hash_ids), row.hash_ids, strict=False):
            assert parents.setdefault(block, parent) == parent, "a block after two different prefixes"


@pytest.mark.parametrize("name", sorted(set(WORKLOADS) - {"chats", "bursts"}))
def test_requests_come_at_the_rate_asked_for(name: str) -> None:
    rows = make_workload(name, requests=2_000, per_sec=5.0, seed=1)
    assert 2_000 / (rows[-1].timestamp_ms / 1e3) == pytest.approx(5.0, rel=0.1)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("unique", 0.0, 0.0),
        ("hot_prefix", 0.8, 0.95),
        ("shared_prompt", 0.6, 0.9),
        ("chats", 0.6, 0.95),
        ("bursts", 0.7, 0.9),
        ("bimodal", 0.1, 0.6),
    ],
)
def test_there_is_as_much_to_reuse_as_the_name_says(name: str, least: float, most: float) -> None:
    jobs = jobs_of(make_workload(name, requests=1_000, per_sec=5.0, seed=1), page_size=512)
    assert least <= floor(jobs, FleetSettings()).hit_rate <= most


def test_chats_go_on_where_they_stopped() -> None:
    rows = make_workload("chats", requests=500, per_sec=5.0, seed=1)
    jobs = jobs_of(rows, page_size=512)
    starts = {job.keys[2] for job in jobs if len(job.keys) > 2}
    assert len(starts) < len(jobs) / 3
    # Turns contain the answers before them: most answers' pages are met again.
    prompts = {key for job in jobs for key in job.keys[: job.input_tokens // 512]}
    answered = [job for job in jobs if len(job.keys) > job.input_tokens // 512]
    assert sum(job.keys[-1] in prompts for job in answered) > len(answered) / 2


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        make_workload("best", requests=1, per_sec=1.0, seed=0)
