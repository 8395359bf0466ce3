"""Explaining in one process what is decided in another: the messages, and what they leave behind."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from sgl_router.config import KvCostConfig, ModelConfig, PolicyName, QueueConfig
from sgl_router.errors import InternalError, RoutingUnavailable
from sgl_router.kv_events import DEFAULT_NAMESPACE
from sgl_router.outcome import Outcome
from sgl_router.placement import Unmatched
from sgl_router.prompt import Prompt
from sgl_router.routing import RouteRequest
from sgl_router.routing.remote.keys import keyed_prompt
from sgl_router.routing.remote.messages import Choose, End, Explain, Hello, encode_into
from sgl_router.workers import HealthState

MODEL, PAGE = "m", 16
A, B = "http://a:1", "http://b:1"
COSTED = ModelConfig(
    id=MODEL,
    tokenizer_path="unused",
    policy=PolicyName.KV_COST,
    kv_cost=KvCostConfig(session_bonus_ms=1_000.0),
    queue=QueueConfig(enabled=True, release_below_ms=0),
)


def ask(tokens: int = 161, *, key: int = 1, session: str | None = None) -> RouteRequest:
    ids = np.arange(tokens, dtype=np.uint32)
    ids[0] = key
    return RouteRequest(
        model_id=MODEL, request_id="req-1", prompt=Prompt(ids), namespace=DEFAULT_NAMESPACE, session=session
    )


def undecided(routing: Any) -> int:
    return sum(len(side._undecided) for side in routing.server._sides)


async def test_what_the_routing_process_would_do_is_told_and_nothing_is_left_of_it(rig: Any) -> None:
    routing = await rig.routing(A, B, config=COSTED)
    side = await rig.side()
    holder = routing.worker(B).targets[0]
    routing.index.held[holder] = (5, 9)
    for _ in range(2):
        told = await side.routing.explain(ask(key=5))
        decision, candidates = told["decision"], {one["worker"]: one for one in told["candidates"]}
        assert (decision["worker"], decision["reason"]) == (routing.worker(B).id, "cache_hit")
        assert (decision["matched_blocks"], decision["prompt_tokens"]) == (9, 161)
        assert candidates[routing.worker(B).id]["cost"]["uncached_tokens"] == 161 - 9 * PAGE
        assert candidates[routing.worker(A).id]["cost"]["uncached_tokens"] == 161
        assert (told["would_wait"], told["waiting"], told["excluded"]) == (False, 0, [])
    assert routing.idle() and undecided(routing) == 0
    assert len(side.load) == side.routing.in_flight == 0
    assert not list(routing.routing.decisions.last(10))
    assert side.fell_back == []
    assert told == await routing.routing.explain(ask_there(routing, key=5)), "word for word"


def ask_there(routing: Any, *, key: int, tokens: int = 161) -> RouteRequest:
    """The same as the routing process has it."""
    keys = np.array(routing.index.keys(key, tokens), np.uint64).tobytes()
    prompt = keyed_prompt(tokens, {routing.index.hasher().root(): keys})
    return RouteRequest(model_id=MODEL, prompt=prompt, namespace=DEFAULT_NAMESPACE)


async def test_everything_a_decision_goes_by_crosses_the_socket(rig: Any) -> None:
    routing = await rig.routing(A, B, config=COSTED)
    side = await rig.side()
    lease = await side.routing.choose(structs.replace(ask(), session="chat-1"), set())
    chosen = lease.placement.prefill.target.worker.id
    told = await side.routing.explain(ask(32, key=7, session="chat-1"))
    bonus = {one["worker"]: one["cost"]["session_ms"] for one in told["candidates"]}
    assert bonus.pop(chosen) == -1_000.0
    assert set(bonus.values()) == {0.0}
    assert told["candidates"][0]["inflight"] + told["candidates"][1]["inflight"] == 1
    told = await side.routing.explain(RouteRequest(model_id=MODEL, unmatched=Unmatched.MEDIA))
    assert (told["decision"]["unmatched"], told["decision"]["prompt_tokens"]) == ("media", None)
    lease.end(Outcome.COMPLETED)
    await rig.until(routing.idle, "nothing is left")


async def test_an_explanation_does_not_wait_in_line_but_says_that_a_request_would(rig: Any) -> None:
    routing = await rig.routing(A, config=COSTED)
    side = await rig.side()
    first = await side.choose()
    second = asyncio.create_task(side.choose(key=2))
    room = routing.routing.rooms[MODEL]
    await rig.until(lambda: len(room) == 1, "it waits")
    told = await side.routing.explain(ask(key=3))
    assert (told["would_wait"], told["waiting"], len(room)) == (True, 1, 1)
    first.end(Outcome.COMPLETED)
    (await second).end(Outcome.COMPLETED)
    await rig.until(routing.idle, "nothing is left")


async def test_no_candidate_is_an_explanation_too(rig: Any) -> None:
    routing = await rig.routing(A)
    side = await rig.side()
    routing.worker(A).health = HealthState.UNHEALTHY
    told = await side.routing.explain(ask())
    assert (told["decision"], told["candidates"]) == (None, [])
    assert told["excluded"] == [{"worker": routing.worker(A).id, "why": "unhealthy"}]


async def test_without_a_routing_process_nothing_is_guessed(rig: Any) -> None:
    routing = await rig.routing(A)
    side = await rig.side()
    routing.index.gate = asyncio.Event()
    asking = asyncio.create_task(side.routing.explain(ask()))
    await rig.until(lambda: len(routing.index.seen) == 1, "asked")
    await routing.server.close()
    with pytest.raises(RoutingUnavailable, match="is restarting"):  # while it waits
        await asking
    with pytest.raises(RoutingUnavailable, match="is restarting"):  # and from then on
        await side.routing.explain(ask())
    assert (await side.choose()).placement.prefill.reason == "routing_unavailable"
    assert side.fell_back == [MODEL], "an explanation is no decision"


async def test_a_routing_process_that_hangs_is_not_waited_for(rig: Any) -> None:
    routing = await rig.routing(A)
    side = await rig.side(explain_secs=0.1)
    gate = routing.index.gate = asyncio.Event()
    began = time.monotonic()
    with pytest.raises(RoutingUnavailable, match=r"0\.1 s"):
        await side.routing.explain(ask())
    assert 0.1 <= time.monotonic() - began < 5.0
    assert not side.routing.away, "decisions are asked for as ever"
    await rig.until(lambda: undecided(routing) == 0, "it is given up there")
    routing.index.gate = None
    gate.set()
    assert (await side.routing.explain(ask()))["decision"]["worker"] == routing.worker(A).id


async def test_who_leaves_is_not_explained_to(rig: Any) -> None:
    routing = await rig.routing(A)
    side = await rig.side()
    routing.index.gate = asyncio.Event()
    asking = asyncio.create_task(side.routing.explain(ask()))
    await rig.until(lambda: undecided(routing) == 1, "asked")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await rig.until(lambda: undecided(routing) == 0, "it is given up there")
    assert not side.routing._explanations._waited_for


async def test_those_of_a_data_process_that_dies_end(rig: Any) -> None:
    routing = await rig.routing(A)
    side = await rig.side()
    gate = routing.index.gate = asyncio.Event()
    asking = asyncio.create_task(side.routing.explain(ask()))
    await rig.until(lambda: undecided(routing) == 1, "asked")
    [there] = routing.server._sides
    await side.stop()
    await rig.until(lambda: routing.server.connected == 0 and not there._undecided, "it is given up there")
    gate.set()
    with pytest.raises(RoutingUnavailable):
        await asking


async def test_a_defect_is_told_as_one_and_costs_nobody_else_anything(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    routing = await rig.routing(A)
    side = await rig.side()
    lease = await side.choose()
    with monkeypatch.context() as patched:
        patched.setattr(routing.registry, "for_model", lambda model_id: 1 / 0)
        with pytest.raises(InternalError, match="failed to handle"):
            await side.routing.explain(ask())
    assert (await side.routing.explain(ask()))["candidates"][0]["inflight"] == 1, "the connection is the same"
    lease.end(Outcome.COMPLETED)
    await rig.until(routing.idle, "nothing is left")


async def test_an_explanation_may_not_take_the_number_of_a_lease(rig: Any) -> None:
    routing = await rig.routing(A)
    side = await rig.side()
    messages = bytearray()
    encode_into(Hello(9, 1), messages)
    encode_into(Choose(1, MODEL, 160, {}, None, None, "", None, [], True, 0), messages)
    encode_into(Explain(1, MODEL, 160, {}, None, None, "", None), messages)
    reader, writer = await asyncio.open_unix_connection(routing.path)
    writer.write(bytes(messages))
    await asyncio.wait_for(reader.read(), 120)
    await rig.until(lambda: routing.server.connected == 1 and routing.idle(), "it is cut off")
    assert (await side.routing.explain(ask()))["decision"] is not None
    writer.close()


async def test_who_asks_and_leaves_in_one_breath_is_forgotten(rig: Any) -> None:
    routing = await rig.routing(A)
    messages = bytearray()
    encode_into(Hello(9, 1), messages)
    encode_into(Explain(1, MODEL, 160, {}, None, None, "", None), messages)
    encode_into(End(1, Outcome.CLIENT_GONE, None), messages)
    _, writer = await asyncio.open_unix_connection(routing.path)
    writer.write(bytes(messages))
    await rig.until(lambda: routing.server.connected == 1 and undecided(routing) == 0, "it has been heard")
    writer.close()
