"""A router with few file descriptors: what it refuses, what it does not blame on workers, and how it comes back."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from tests.e2e.conftest import MakeRouter, MakeWorkers, Reply, Router, settles

pytestmark = pytest.mark.timeout(400)

CLIENTS = 240
PROCESSES = [1, 2]


def kinds(replies: list[Reply | None]) -> Counter[Any]:
    return Counter(None if reply is None else (reply.status, reply.code) for reply in replies)


async def breakers(router: Router) -> set[tuple[str, int, str]]:
    return {(one["breaker"]["state"], one["breaker"]["failures"], one["health"]) for one in await router.workers()}


@pytest.mark.parametrize("processes", PROCESSES)
async def test_more_requests_than_descriptors(
    make_router: MakeRouter, make_workers: MakeWorkers, processes: int
) -> None:
    workers = await make_workers(2)
    router = await make_router([worker.url for worker in workers], files=256, processes=processes)
    await router.listening()
    for worker in workers:
        worker.gate.close()
    asked = [asyncio.create_task(router.chat(f"question {number}")) for number in range(CLIENTS)]
    # Some are refused while the others are held by the workers.
    await router.until(lambda: any(one.done() for one in asked), "requests refused")
    await router.until(lambda: sum(worker.gate.waiting for worker in workers) > 40, "workers hold some")
    held = await settles_down(workers)
    # The router itself can still be asked, and no worker is blamed.
    assert (await router.get("/healthz")).status == 200
    assert await breakers(router) == {("closed", 0, "healthy")}
    for worker in workers:
        worker.gate.open()
    found = kinds(await asyncio.gather(*asked))
    assert set(found) == {(200, None), (503, "overloaded")}, found
    assert all(reply.headers["retry-after"] == "1" for one in asked if (reply := one.result()) and reply.code)
    assert found[200, None] >= held

    # Afterwards everything is served, and nothing was remembered against anybody.
    again = await asyncio.gather(*(router.chat(f"later {number}") for number in range(16)))
    assert kinds(again) == {(200, None): 16}
    await settles(lambda: breakers(router), {("closed", 0, "healthy")})
    assert not router.said("circuit opened")
    assert not router.said("worker unhealthy")
    [line, *_] = router.said("the router has no file descriptor left")
    assert "ulimit -Hn 65536" in line["set"]
    assert "Traceback" not in router.text


async def settles_down(workers: list[Any]) -> int:
    """How many requests the workers hold, once that has stopped to change."""
    seen, same = -1, 0
    while same < 40:
        now = sum(worker.gate.waiting for worker in workers)
        same = same + 1 if now == seen else 0
        seen = now
        await asyncio.sleep(0.01)
    return seen


@pytest.mark.parametrize("processes", PROCESSES)
async def test_idle_clients_do_not_keep_others_out(
    make_router: MakeRouter, make_workers: MakeWorkers, processes: int
) -> None:
    """As many connections as there may be, all of them idle after one request: then those idle for longest close."""
    workers = await make_workers(1)
    router = await make_router([workers[0].url], files=128, processes=processes)
    await router.listening()
    replies = []
    for _ in range(100):
        client = await router.open()
        replies.append(await client.chat())
    assert kinds(replies) == {(200, None): 100}
    assert router.said("the router has no file descriptor left: new clients wait")


@pytest.mark.parametrize("processes", [1, 2])
async def test_more_ranks_than_descriptors(make_router: MakeRouter, make_workers: MakeWorkers, processes: int) -> None:
    workers = await make_workers(4, dp_size=32)
    router = await make_router([worker.url for worker in workers], files=256, processes=processes)
    await router.listening()
    left_out = router.said("too few file descriptors for the kv events")
    assert 1 <= len(left_out) <= 4
    assert "LimitNOFILE=" in left_out[0]["set"]
    ranks = [rank["stream"] is not None for worker in await router.workers() for rank in worker["ranks"]]
    assert 8 <= sum(ranks) < 64
    assert sum(ranks) == 128 - sum(line["left_out"] for line in left_out)
    replies = await asyncio.gather(*(router.chat(f"question {number}") for number in range(24)))
    assert kinds(replies) == {(200, None): 24}
    assert router.process.returncode is None


async def test_a_start_at_the_limit_ends_no_process(make_router: MakeRouter, make_workers: MakeWorkers) -> None:
    """Forty workers to ask at once, and event sockets to open."""
    workers = await make_workers(2, dp_size=2)
    refused = [f"http://127.0.0.1:{port}" for port in range(1, 38)]
    router = await make_router([*(worker.url for worker in workers), *refused], files=80)
    await router.listening()
    assert router.said("few file descriptors", limit=80)
    reply = await router.chat()
    assert reply is not None
    assert (reply.status, reply.code) in ((200, None), (503, "overloaded"))
    assert router.process.returncode is None
