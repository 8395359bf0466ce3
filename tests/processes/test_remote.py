from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sgl_router.outcome import Outcome
from sgl_router.placement import DecisionReason, Unmatched
from sgl_router.routing import RouteRequest
from sgl_router.workers import BreakerState, HealthState

MODEL, PAGE = "m", 16
A, B = "http://a:1", "http://b:1"


async def test_a_decision_is_made_where_the_load_of_all_data_processes_is_known(rig: Any) -> None:
    routing = await rig.routing(A, B)
    one, two = await rig.side(), await rig.side()
    leases = []
    for _ in range(3):  # each sees what the other has taken
        leases += [await one.choose(), await two.choose()]
    assert routing.inflight() == {A: 3, B: 3}
    assert sorted(lease.placement.prefill.min_load for lease in leases) == [0, 0, 1, 1, 2, 2]
    assert sum(target.inflight for worker in one.registry.all() for target in worker.targets) == 3  # its own alone
    for lease in leases:
        lease.end(Outcome.COMPLETED)
        lease.end(Outcome.INTERNAL)
    await rig.until(routing.idle, "all leases ended")
    assert one.load.expire(0.0, 0.0) == 0
    assert len(one.load) == len(two.load) == one.routing.in_flight == 0
    stats = [routing.worker(url).stats.requests for url in (A, B)]
    assert stats == [{"completed": 3}, {"completed": 3}]


async def test_the_index_decides_and_the_whole_decision_comes_back(rig: Any) -> None:
    routing = await rig.routing(A, B)
    side = await rig.side()
    holder = routing.worker(B).targets[0]
    routing.index.held[holder] = (5, 9)
    lease = await side.choose(161, key=5)
    decision = lease.placement.prefill
    assert decision.target is side.worker(B).targets[0]
    assert (decision.reason, decision.matched_blocks, decision.total_blocks) == (DecisionReason.CACHE_HIT, 9, 10)
    assert (decision.page_size, decision.prompt_tokens, decision.candidates) == (PAGE, 161, 2)
    assert decision.expected_blocks == 9
    root = routing.index.hasher().root()
    assert routing.index.seen == [(161, {root: routing.index.keys(5, 161)}, (None, None))]
    assert (holder.prefill_tokens, holder.decode_blocks) == (161 - 9 * PAGE, 11)
    here = decision.target
    assert (here.inflight, here.prefill_tokens, here.decode_blocks) == (1, 161 - 9 * PAGE, 11)
    lease.first_byte(200)
    await rig.until(lambda: holder.prefill_tokens == 0, "the first byte was told")
    assert (holder.inflight, here.prefill_tokens) == (1, 0)
    lease.end(Outcome.COMPLETED, 144)
    await rig.until(routing.idle, "the lease ended")
    assert routing.index.reports == [(holder, 144, 144, 7)]


async def test_keys_of_every_kind_in_use_are_sent(rig: Any) -> None:
    routing = await rig.routing(A)
    routing.index.kinds = [(PAGE, False), (1, True)]
    side = await rig.side()
    (await side.choose(161)).end(Outcome.COMPLETED)
    index = routing.index
    wanted = {index.hasher(*kind).root(): index.keys(1, 161, *kind) for kind in index.kinds}
    assert index.seen[-1][1] == wanted
    assert [len(keys) for keys in wanted.values()] == [10, 159]
    index.kinds = [(32, False)]  # a new kind is found cold until it is known
    index.secret = 99
    kind = index.kinds[0]
    last = {index.hasher(*kind).root(): index.keys(1, 161, *kind)}
    for _ in range(1000):
        (await side.choose(161)).end(Outcome.COMPLETED)
        if index.seen[-1][1] == last:
            break
        await asyncio.sleep(0.005)
    assert index.seen[-1][1] == last


async def test_of_a_prompt_too_long_for_a_message_the_beginning_is_told(rig: Any, monkeypatch: Any) -> None:
    """A message that is too large would cost the connection, and all leases with it."""
    monkeypatch.setattr("sgl_router.routing.remote.keys._MAX_KEYS_BYTES", 8 * 1_000)
    routing = await rig.routing(A)
    routing.index.kinds = [(1, False), (1, True)]
    side = await rig.side()
    lease = await side.choose(1_600)
    assert side.fell_back == []
    tokens, keys, _ = routing.index.seen[-1]
    assert (tokens, [len(found) for found in keys.values()]) == (500, [499, 498])
    assert lease.placement.prefill.prompt_tokens == 500
    lease.end(Outcome.COMPLETED)


async def test_what_cannot_be_looked_up_is_told_as_such(rig: Any) -> None:
    await rig.routing(A)
    side = await rig.side()
    lease = await side.routing.choose(RouteRequest(model_id=MODEL, unmatched=Unmatched.MEDIA), set())
    assert lease is not None
    leg = lease.placement.prefill
    assert (leg.reason, leg.unmatched) == (DecisionReason.UNMATCHABLE, Unmatched.MEDIA)
    lease.end(Outcome.COMPLETED)


async def test_tried_workers_are_not_chosen_and_nobody_left_is_said(rig: Any) -> None:
    routing = await rig.routing(A, B)
    side = await rig.side()
    lease = await side.choose(tried={side.worker(A)})
    assert lease.placement.prefill.target.worker is side.worker(B)
    assert await side.choose(tried={side.worker(A), side.worker(B)}) is None
    routing.worker(A).health = HealthState.UNHEALTHY  # the decision does not wait for the mirror
    assert await side.choose(tried={side.worker(B)}) is None
    lease.end(Outcome.COMPLETED)
    assert side.fell_back == []


async def test_the_breaker_of_the_routing_process_hears_the_outcomes(rig: Any) -> None:
    routing = await rig.routing(A)
    side = await rig.side()
    for _ in range(3):
        (await side.choose()).end(Outcome.UNREACHABLE)
    await rig.until(lambda: routing.worker(A).breaker.state is BreakerState.OPEN, "the circuit is open")
    assert await side.choose() is None
    assert side.worker(A).breaker.state is BreakerState.OPEN


async def test_the_leases_of_a_lost_data_process_end(rig: Any) -> None:
    routing = await rig.routing(A, B)
    one, two = await rig.side(), await rig.side()
    for _ in range(3):
        await one.choose()
    kept = await two.choose()
    await one.stop()
    await rig.until(lambda: len(routing.load) == 1, "the leases of one are over")
    assert sum(worker.stats.requests.get("client_gone", 0) for worker in routing.registry.all()) == 3
    kept.end(Outcome.COMPLETED)
    await rig.until(routing.idle, "the other's too, when it ends")


async def test_workers_come_change_and_go_on_the_other_side(rig: Any) -> None:
    routing = await rig.routing(A)
    side = await rig.side()
    mirrored = side.worker(A)
    assert (mirrored.id, mirrored.model_id, mirrored.info.block_size) == (routing.worker(A).id, MODEL, PAGE)
    routing.add(B, dp_size=2)
    await rig.until(lambda: side.registry.get(B) is not None, "the new worker is known")
    assert len(side.worker(B).targets) == 2
    routing.worker(A).health = HealthState.UNHEALTHY
    await rig.until(lambda: mirrored.health is HealthState.UNHEALTHY, "its health is known")
    routing.registry.remove(A)
    await rig.until(lambda: side.registry.get(A) is None, "it is gone")
    assert mirrored.removed
    routing.add(A)
    await rig.until(lambda: side.registry.get(A) is not None, "it is back")
    assert side.worker(A) is not mirrored


async def test_without_a_routing_process_the_least_loaded_worker_is_chosen(rig: Any) -> None:
    routing = await rig.routing(A, B)
    side = await rig.side()
    first = await side.choose()
    await routing.server.close()
    await rig.until(lambda: side.routing.away, "noticed")
    second = await side.choose(tokens=161)
    assert second.placement.prefill.target.worker is not first.placement.prefill.target.worker
    assert second.placement.prefill.reason is DecisionReason.ROUTING_UNAVAILABLE
    assert (second.placement.prefill.prompt_tokens, second.placement.prefill.target.decode_blocks) == (161, 11)
    assert side.fell_back == [MODEL]
    side.worker(A).health = HealthState.UNHEALTHY
    for _ in range(3):  # a breaker of its own
        (await side.choose(tried={side.worker(A)})).end(Outcome.UNREACHABLE)
    assert await side.choose() is None
    first.end(Outcome.COMPLETED)
    second.end(Outcome.COMPLETED)
    assert len(side.load) == 0


async def test_a_new_routing_process_is_told_what_is_in_flight(rig: Any) -> None:
    routing = await rig.routing(A, B)
    side = await rig.side()
    a, b = side.worker(A), side.worker(B)
    decided, begun = await side.choose(tried={b}), await side.choose(tried={a})
    waiting = await side.choose(tried={a})
    begun.first_byte(200)
    await routing.server.close()
    await rig.until(lambda: side.routing.away, "noticed")
    chosen_here, over = await side.choose(tried={b}), await side.choose(tried={b})
    over.end(Outcome.COMPLETED)

    # The successor counts generations anew, and does not know every worker yet.
    successor = await rig.routing(start=False)
    successor.add("http://c:1")
    successor.add(A)
    await rig.start(successor)
    await rig.until(lambda: len(successor.load) == 2, "what is on a known worker is declared")
    target = successor.worker(A).targets[0]
    assert (target.inflight, target.prefill_tokens, target.decode_blocks) == (2, 320, 20)
    assert side.worker(A) is a, "the mirror keeps who is the same"
    waiting.first_byte(200)
    decided.first_byte(200)
    await rig.until(lambda: target.prefill_tokens == 160, "a declared lease hears of its first byte")
    successor.add(B)
    assert successor.inflight() == {A: 2, B: 2, "http://c:1": 0}
    assert successor.worker(B).targets[0].prefill_tokens == 0, "the first bytes were out before it was known"
    await rig.until(lambda: side.registry.get(B) is not None, "B is known again")

    after = await side.choose()
    assert after.placement.prefill.reason is DecisionReason.NO_MATCH, "asked again"
    for lease in (decided, begun, waiting, chosen_here, after):
        lease.end(Outcome.COMPLETED, 16)
    await rig.until(successor.idle, "load returns to zero")
    assert len(side.load) == 0


async def test_a_declared_lease_that_ends_before_its_worker_is_known_leaves_nothing(rig: Any) -> None:
    routing = await rig.routing(A)
    side = await rig.side()
    lease = await side.choose()
    await routing.server.close()
    await rig.until(lambda: side.routing.away, "noticed")
    successor = await rig.routing()
    assert await side.routing.joined(10.0)
    lease.end(Outcome.COMPLETED)
    probe = asyncio.ensure_future(side.choose())  # answered after the end was heard
    assert await probe is None
    successor.add(A)
    assert successor.idle()


async def test_an_overdue_answer_is_not_waited_for_and_leaks_no_load(rig: Any) -> None:
    routing = await rig.routing(A, B)
    side = await rig.side(answer_secs=0.05)
    gate = routing.index.gate = asyncio.Event()
    lease = await side.choose()
    assert lease.placement.prefill.reason is DecisionReason.ROUTING_UNAVAILABLE
    assert side.routing.away, "not asked again until something is heard of it"
    other = await side.choose()
    assert other.placement.prefill.reason is DecisionReason.ROUTING_UNAVAILABLE
    assert len(routing.index.seen) == 1
    await rig.until(lambda: len(routing.load) == 2, "leases taken here are declared at once")
    routing.index.gate = None
    gate.set()
    await rig.until(lambda: not side.routing.away, "the late answer shows that it is back")
    assert len(routing.load) == 2, "the late decision holds nothing"
    assert (await side.choose()).placement.prefill.reason is DecisionReason.NO_MATCH
    await side.stop()
    await rig.until(routing.idle, "nothing leaks")


async def test_a_cancelled_asker_leaks_no_load(rig: Any) -> None:
    routing = await rig.routing(A)
    side = await rig.side()
    gate = routing.index.gate = asyncio.Event()
    asking = asyncio.create_task(side.choose())
    await rig.until(lambda: len(routing.index.seen) == 1, "asked")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await rig.until(lambda: not any(one._undecided for one in routing.server._sides), "it is given up")
    gate.set()
    (await side.choose()).end(Outcome.COMPLETED)
    await rig.until(lambda: routing.worker(A).stats.requests == {"completed": 1}, "nothing was decided for nobody")
    assert routing.idle()
    assert len(side.load) == side.routing.in_flight == 0


async def test_cancelled_in_the_turn_the_answer_arrives_leaks_no_load(rig: Any) -> None:
    routing = await rig.routing(A)
    side = await rig.side()
    real = side.routing._chosen

    def answered(message: Any) -> None:
        real(message)
        asking.cancel()

    side.routing._chosen = answered  # type: ignore[method-assign]
    asking = asyncio.create_task(side.choose())
    with pytest.raises(asyncio.CancelledError):
        await asking
    await rig.until(routing.idle, "the routing process was told")
    assert len(side.load) == side.routing.in_flight == 0
    assert routing.worker(A).stats.requests == {"client_gone": 1}


async def test_a_decision_under_way_when_its_asker_dies_holds_nothing(rig: Any) -> None:
    routing = await rig.routing(A)
    side = await rig.side()
    gate = routing.index.gate = asyncio.Event()
    asking = asyncio.create_task(side.choose())
    await rig.until(lambda: len(routing.index.seen) == 1, "asked")
    await side.stop()
    await rig.until(lambda: routing.server.connected == 0, "it is seen to be gone")
    gate.set()
    assert routing.idle()
    assert routing.worker(A).stats.requests == {}
    # For the asker it was a routing process that went away.
    lease = await asking
    assert lease is not None and lease.placement.prefill.reason is DecisionReason.ROUTING_UNAVAILABLE


async def test_expiry_reaches_the_data_process_once(rig: Any) -> None:
    routing = await rig.routing(A)
    side = await rig.side()
    lease = await side.choose()
    expired: list[int] = []
    lease.on_expire = lambda: expired.append(1)
    assert routing.load.expire(routing.server.clock() + 100, 1.0) == 1
    await rig.until(lambda: bool(expired), "the data process heard of it")
    assert side.load.expire(routing.server.clock() + 100, 1.0) == 1  # its own janitor comes to the same conclusion
    assert expired == [1]
    lease.end(Outcome.EXPIRED)
    await rig.until(routing.idle, "the lease ended")


async def test_a_lease_taken_without_the_routing_process_expires_by_the_own_janitor(rig: Any) -> None:
    routing = await rig.routing(A)
    side = await rig.side()
    await routing.server.close()
    await rig.until(lambda: side.routing.away, "noticed")
    lease = await side.choose()
    expired: list[int] = []
    lease.on_expire = lambda: expired.append(1)
    side.load.expire(routing.server.clock() + 100, 1.0)
    assert expired == [1]
    lease.end(Outcome.EXPIRED)


async def test_counts_are_handed_over_while_there_is_somebody_to_take_them(rig: Any) -> None:
    routing = await rig.routing(A)
    side = await rig.side()
    assert side.routing.send_counts(b"five")
    await rig.until(lambda: routing.merged == [b"five"], "merged")
    await routing.server.close()
    await rig.until(lambda: side.routing.away, "noticed")
    assert not side.routing.send_counts(b"lost otherwise")
