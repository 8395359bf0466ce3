"""Requests on their way count as cache to come."""

from __future__ import annotations

import asyncio

PROMPT = "a brand-new prefix that nobody holds yet, long enough for several pages of the cache " * 4


async def test_a_burst_with_one_new_prefix_converges(rig) -> None:
    fleet = await rig(workers=4)
    for worker in fleet.workers:
        worker.gate.close()
    tasks = []
    for number in range(8):
        tasks.append(asyncio.create_task(fleet.ask(f"{PROMPT}{number}")))
        await fleet.until(lambda n=number: len(fleet.services.load) == n + 1, "the request is on its way")
    view = (await fleet.get("/workers")).json["workers"]
    ranks = [worker["ranks"][0] for worker in view]
    assert sum(rank["expected_blocks"] > 0 for rank in ranks) == 1
    assert all(rank["blocks"] == {} for rank in ranks), "what is expected is never counted as held"
    for worker in fleet.workers:
        worker.gate.open()
    answers = await asyncio.gather(*tasks)
    assert len({answer.worker for answer in answers}) == 1
    assert [answer.decision["reason"] for answer in answers] == ["no_match"] + ["expected_hit"] * 7
    assert answers[-1].decision["matched"] == "0"
    assert int(answers[-1].decision["expected"]) > 0

    await fleet.settled()
    answer = await fleet.ask(PROMPT)
    assert answer.decision["reason"] == "cache_hit"
    await fleet.until(lambda: not fleet.services.index.tree.expects, "nothing is expected any more", within=120)


async def test_a_request_that_fails_leaves_no_expectation(rig) -> None:
    fleet = await rig()
    fleet.workers[0].faults.reset(times=2)
    assert (await fleet.ask(PROMPT)).status == 502
    assert not fleet.services.index.tree.expects
    assert (await fleet.ask(PROMPT)).decision["reason"] == "no_match"


async def test_an_expectation_has_its_time(rig) -> None:
    fleet = await rig(kv_events={"expect_ttl_secs": 1.0})
    fleet.workers[0].gate.close()
    task = asyncio.create_task(fleet.ask(PROMPT))
    await fleet.until(lambda: fleet.services.index.tree.expects, "it is expected")
    await fleet.until(lambda: not fleet.services.index.tree.expects, "its time is up")
    fleet.workers[0].gate.open()
    assert (await task).status == 200


async def test_zero_switches_it_off(rig) -> None:
    fleet = await rig(kv_events={"expect_ttl_secs": 0})
    fleet.workers[0].gate.close()
    task = asyncio.create_task(fleet.ask(PROMPT))
    await fleet.workers[0].gate.arrived(1)
    assert not fleet.services.index.tree.expects
    fleet.workers[0].gate.open()
    await task


async def test_a_flush_ends_what_was_expected(rig) -> None:
    fleet = await rig()
    await fleet.ask("warm " * 60)
    await fleet.settled()
    fleet.workers[0].gate.close()
    task = asyncio.create_task(fleet.ask(PROMPT))
    await fleet.workers[0].gate.arrived(1)
    (rank,) = fleet.services.index._ranks[fleet.worker(0)]
    rank.stream.resync()
    assert not fleet.services.index.tree.expects
    fleet.workers[0].gate.open()
    assert (await task).status == 200
