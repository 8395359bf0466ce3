"""The budget of all bodies, and where its default comes from."""

from __future__ import annotations

import asyncio
import pathlib

import pytest

from sgl_router.config import ServerConfig
from sgl_router.errors import Overloaded
from sgl_router.http.memory import (
    SMALL_BODY_BYTES,
    BodyBudget,
    Trimmer,
    body_budget,
    default_budget,
    usable_memory,
)

GIB = 1 << 30


def test_large_bodies_leave_an_eighth_to_small_ones() -> None:
    budget = BodyBudget(8 << 20, 1 << 20)
    for _ in range(7):
        budget.take(1 << 20, 1 << 20)
    with pytest.raises(Overloaded) as refused:
        budget.take(1 << 20, 1 << 20)
    assert (refused.value.status, refused.value.retry_after, budget.held) == (503, 1, 7 << 20)
    for _ in range(4):
        budget.take(SMALL_BODY_BYTES, SMALL_BODY_BYTES)
    with pytest.raises(Overloaded):
        budget.take(1, 1)
    budget.give(1 << 20)
    budget.take(1, 1)


def test_one_body_always_fits() -> None:
    budget = BodyBudget(1000, 4 << 20)
    budget.take(4 << 20, 4 << 20)
    assert budget.limit == 4 << 20


def test_a_process_has_its_share() -> None:
    assert body_budget(ServerConfig(max_buffered_bytes=GIB, processes=4)).limit == GIB // 4
    assert body_budget(ServerConfig(processes=256)).limit >= ServerConfig().max_body_bytes


@pytest.mark.parametrize(("memory", "budget"), [(2 * GIB, GIB // 2), (64 * GIB, GIB), (512 << 20, 128 << 20)])
def test_the_default_is_a_quarter_of_the_memory_and_1_gib_at_most(memory: int, budget: int) -> None:
    assert default_budget(memory) == budget


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({}, None),
        ({"sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"sys/fs/cgroup/memory.max": "1000000\n"}, 1_000_000),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000\n"}, 2_000_000),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "3000000\n"}, 3_000_000),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.max": "4000000\n",
            },
            4_000_000,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/pod\n",
                "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "5000000\n",
            },
            5_000_000,
        ),
        ({"sys/fs/cgroup/memory.max": "rubbish\n", "proc/self/cgroup": "0::/../..\n"}, None),
    ],
)
def test_a_containers_limit_counts(tmp_path: pathlib.Path, files: dict[str, str], memory: int | None) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = usable_memory(tmp_path)
    assert found == memory if memory is not None else found > GIB // 4


async def test_the_heap_is_trimmed_once_after_large_bodies() -> None:
    trimmed: list[int] = []
    trimmer = Trimmer(lambda: trimmed.append(1), delay_secs=0.01)
    trimmer.freed(1000)
    assert trimmer._timer is None
    for _ in range(5):
        trimmer.freed(8 << 20)
    for _ in range(2_000):
        if trimmed:
            break
        await asyncio.sleep(0.005)
    assert (trimmed, trimmer._timer) == ([1], None)
    trimmer.freed(8 << 20)
    trimmer.close()
    assert trimmer._timer is None
