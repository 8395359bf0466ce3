"""`/internal/decisions` and `/internal/explain`: why requests went where they went, and where one would go."""

from __future__ import annotations

from typing import Any

PROMPT = "the same long beginning of a conversation, several pages of it, for everyone who asks " * 4
COST = {"policy": "kv_cost"}
TERMS = ("compute_ms", "load_back_ms", "queue_ms", "others_ms", "decode_ms", "eviction_ms", "session_ms")


def chat(text: str, **extra: Any) -> dict[str, Any]:
    return {"model": "mock-model", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **extra}


async def test_the_last_decisions_are_told_newest_first_with_what_came_of_them(rig) -> None:
    fleet = await rig(workers=2)
    for number in range(3):
        assert (await fleet.ask(PROMPT, headers={"x-request-id": f"id-{number}"})).status == 200
        await fleet.settled()
    await fleet.until(fleet.idle_load, "they have ended")
    entries = (await fleet.get("/internal/decisions?limit=2")).json["decisions"]
    assert [entry["request_id"] for entry in entries] == ["id-2", "id-1"]
    newest = entries[0]
    assert (newest["model"], newest["reason"], newest["outcome"]) == ("mock-model", "cache_hit", "completed")
    assert newest["worker"] == fleet.worker(0).id or newest["worker"] == fleet.worker(1).id
    assert newest["matched_blocks"] > 0
    assert newest["cached_tokens"] == newest["matched_blocks"] * newest["page_size"]
    assert newest["first_byte_ms"] > 0
    assert newest["cost_ms"] is None, "cache_aware_zmq has no costs"
    assert "http://" not in (await fleet.get("/internal/decisions")).body.decode()


async def test_a_limit_that_makes_no_sense_is_refused(rig) -> None:
    fleet = await rig()
    for limit in ("0", "-1", "x", "1001", "²"):
        answer = await fleet.get(f"/internal/decisions?limit={limit}")
        assert (answer.status, answer.error["param"]) == (400, "limit")
        assert "1000" in answer.error["message"]


async def test_sampled_decisions_carry_every_candidates_terms(rig) -> None:
    fleet = await rig(workers=3, model=COST, observability={"decision_cost_sample": 0.5})
    for number in range(4):
        assert (await fleet.ask(f"{PROMPT}{number}")).status == 200
    entries = (await fleet.get("/internal/decisions")).json["decisions"]
    assert ["costs" in entry for entry in reversed(entries)] == [False, True, False, True]
    costs = entries[0]["costs"]
    assert {cost["worker"] for cost in costs} == {fleet.worker(number).id for number in range(3)}
    for cost in costs:
        assert abs(sum(cost[term] for term in TERMS) - cost["total_ms"]) < 0.01
    chosen = next(cost for cost in costs if cost["worker"] == entries[0]["worker"])
    assert chosen["total_ms"] == min(cost["total_ms"] for cost in costs) == entries[0]["cost_ms"]


async def test_an_explanation_takes_no_requests_place_in_the_sample(rig) -> None:
    fleet = await rig(workers=2, model=COST, observability={"decision_cost_sample": 0.5})
    for number in range(4):
        assert (await fleet.ask(f"{PROMPT}{number}")).status == 200
        assert (await fleet.post("/internal/explain", json=chat("x"))).status == 200
    entries = (await fleet.get("/internal/decisions")).json["decisions"]
    assert ["costs" in entry for entry in reversed(entries)] == [False, True, False, True]


async def test_nothing_is_kept_where_nothing_is_to_be(rig) -> None:
    fleet = await rig(observability={"decisions_kept": 0})
    await fleet.ask(PROMPT)
    assert (await fleet.get("/internal/decisions")).json == {"decisions": []}


async def test_explain_says_where_a_request_would_go_and_sends_nothing(rig) -> None:
    fleet = await rig(workers=2, model=COST)
    first = await fleet.ask(PROMPT)
    await fleet.settled()
    await fleet.until(fleet.idle_load, "it has ended")
    answer = await fleet.post("/internal/explain", json=chat(PROMPT))
    assert answer.status == 200
    told = answer.json
    assert (told["model"], told["policy"], told["would_wait"], told["excluded"]) == ("mock-model", "kv_cost", False, [])
    assert told["decision"]["worker"] == first.worker
    assert told["decision"]["reason"] == "cache_hit"
    by_worker = {candidate["worker"]: candidate for candidate in told["candidates"]}
    assert len(by_worker) == 2
    holder, other = by_worker.pop(first.worker), *by_worker.values()
    assert holder["matched_blocks"] > other["matched_blocks"] == 0
    assert holder["cost"]["uncached_tokens"] < other["cost"]["uncached_tokens"] == told["decision"]["prompt_tokens"]
    assert holder["cost"]["total_ms"] < other["cost"]["total_ms"]
    assert len((await fleet.get("/internal/decisions")).json["decisions"]) == 1, "only the first was sent"
    assert fleet.idle_load()
    assert not fleet.services.index.tree.expects
    assert sum(sum(fleet.worker(number).stats.requests.values()) for number in range(2)) == 1


async def test_explain_works_for_every_policy_and_leaves_no_trace(rig) -> None:
    fleet = await rig(workers=2, model={"policy": "round_robin"})
    told = [(await fleet.post("/internal/explain", json=chat("hello"))).json["decision"] for _ in range(2)]
    assert {decision["reason"] for decision in told} == {"round_robin"}
    fleet = await rig(workers=2, model={"policy": "cache_aware_zmq"})
    told = (await fleet.post("/internal/explain", json=chat("hello"))).json
    assert told["decision"]["reason"] == "no_match"
    assert [candidate["matched_blocks"] for candidate in told["candidates"]] == [0, 0]


async def test_explain_does_not_move_a_session(rig) -> None:
    fleet = await rig(workers=2, model={**COST, "kv_cost": {"session_bonus_ms": 1000.0}})
    session = {"x-smg-routing-key": "chat-1"}
    first = await fleet.ask("a", headers=session)
    assert first.status == 200
    asked = fleet.post("/internal/explain", json=chat("something else"), headers=session)
    told = (await asked).json
    assert told["decision"]["worker"] == first.worker
    other = {"x-smg-routing-key": "chat-2"}
    for _ in range(2):
        told = (await fleet.post("/internal/explain", json=chat("x"), headers=other)).json
        assert [candidate["cost"]["session_ms"] for candidate in told["candidates"]] == [0, 0]


async def test_explain_refuses_what_a_completion_would_be_refused_for(rig) -> None:
    fleet = await rig()
    missing = await fleet.post("/internal/explain", json={"messages": []})
    assert (missing.status, missing.error["param"]) == (400, "model")
    unknown = await fleet.post("/internal/explain", json={"model": "nobody", "messages": []})
    assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")


async def test_explain_names_who_is_no_candidate_and_why(rig) -> None:
    fleet = await rig(workers=2, model={"circuit_breaker": {"threshold": 1, "cool_down_secs": 60}})
    fleet.workers[0].faults.reset(times=5)
    fleet.workers[1].faults.reset(times=5)
    await fleet.ask("a")
    told = (await fleet.post("/internal/explain", json=chat("b"))).json
    assert len(told["candidates"]) == 1
    assert [entry["why"] for entry in told["excluded"]] == ["circuit open"]
    await fleet.ask("b")
    told = (await fleet.post("/internal/explain", json=chat("b"))).json
    assert (told["decision"], told["candidates"], len(told["excluded"])) == (None, [], 2)
